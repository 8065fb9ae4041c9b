"""The certificate: what predict made passes, and each fault that it is for fails, by far, in both precisions."""

import pytest
import timm
import torch
from helpers.parity import PRECISIONS, TINY, captions_run, exceeds, given, model_of, rewrite, roll, run
from PIL import Image

from lit_extract import DemoDataModule, ImageFolderDataModule, VisionExtractor


def test_what_predict_made_is_certified(file, certify, cli):
    code, out, certificate = certify(file)
    assert code == 0, out
    assert certificate["verdict"] == "pass"
    assert certificate["failures"] == certificate["remarks"] == []
    assert certificate["reference"] == "timm forward_intermediates"
    assert [layer["layer"] for layer in certificate["layers"]] == [f"blocks.{k}" for k in range(6)]
    assert all(stimulus["row"] == stimulus["nearest_row"] for stimulus in certificate["stimuli"])
    assert [stimulus["rank"] for stimulus in certificate["stimuli"]] == [1] * 4
    is_rounded = certificate["precision"] != "32-true"
    for layer in certificate["layers"]:
        low, high = (1e-3, 3e-2) if is_rounded else (-1, 1e-5)
        assert low < layer["relative_error"] < high
        assert layer["cosine"] > (0.999 if is_rounded else 0.9999999)
        assert layer["of_spread"] < 0.05
        assert (layer["times_rounding"] is not None) is is_rounded
        assert not is_rounded or 0.5 < layer["times_rounding"] < 2
    lines = out.splitlines()
    assert "sound: 24 stimuli × 6 layers × 64 dimensions; parity of 4 stimuli" in lines[0]
    assert [line.split()[0] for line in lines[2:8]] == [f"blocks.{k}" for k in range(6)]
    assert lines[-1].strip().startswith("4 of 4 stimuli are nearest to their own row")
    assert cli("verify", file)[:2] == (0, lines[0] + "\n"), "read again without the model"


def test_figures_are_those_of_the_two_tensors(file, certify):
    _, _, certificate = certify(file, parity=24)
    model = model_of()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    data = DemoDataModule()
    data.setup()
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in data.stimuli["image"]])
    with torch.no_grad():
        expected = torch.stack(
            [x[1][:, 0] for x in model.forward_intermediates(images, return_prefix_tokens=True)[1]], 1
        )
    found = torch.load(file, weights_only=True)["feats"]
    difference = (found - expected).double()
    for k, layer in enumerate(certificate["layers"]):
        relative = difference[:, k].norm(dim=-1) / expected[:, k].double().norm(dim=-1)
        assert layer["max_abs_error"] == pytest.approx(difference[:, k].abs().max().item(), rel=0.05, abs=1e-5)
        assert layer["relative_error"] == pytest.approx(relative.max().item(), rel=0.05, abs=1e-6)
        cosine = torch.cosine_similarity(found[:, k].double(), expected[:, k].double(), dim=-1).min()
        assert 1 - layer["cosine"] == pytest.approx(1 - cosine.item(), rel=0.1, abs=1e-10)


def test_the_seed_chooses_the_stimuli(file, certify):
    chosen = [[s["row"] for s in certify(file, "--seed", seed)[2]["stimuli"]] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [s["row"] for s in certify(file, parity=100)[2]["stimuli"]] == list(range(24))
    assert certify(file, parity=1)[0] == 0


def swap_two(content):
    content["feats"][[5, 16]] = content["feats"][[16, 5]]


def norm_the_last(content):
    with torch.no_grad():
        content["feats"][:, -1] = model_of().norm(content["feats"][:, -1])


def next_layer(content):
    content["feats"][:, 2] = content["feats"][:, 3]


def swap_layers(content):
    content["feats"] = content["feats"][:, [0, 2, 1, 3, 4, 5]]


def one_dimension_off(content):
    content["feats"] = content["feats"].roll(1, dims=2)


def another_seed(content):
    content["metadata"]["provenance"]["seed"] = 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (roll, "stimulus 0 (row 0) is in row 1, which should be 1"),
        (swap_two, "stimulus 5 (row 5) is in row 16, which should be 16; parity: stimulus 16 (row 16) is in row 5"),
        (norm_the_last, "layers that differ by more than {precision} explains: blocks.5 (cosine similarity"),
        (next_layer, "blocks.2 of the file is blocks.3"),
        (swap_layers, "blocks.1 of the file is blocks.2; parity: blocks.2 of the file is blocks.1"),
        (one_dimension_off, "layers that differ by more than {precision} explains: blocks.0"),
        (another_seed, "as far from its stimulus"),
    ],
)
def test_a_fault_is_found_by_a_wide_margin(file, certify, fault, said):
    rewrite(file, fault)
    code, out, certificate = certify(file, parity=24)
    assert code == 2
    assert certificate["verdict"] == "fail"
    assert said.format(precision=certificate["precision"]) in out.splitlines()[0]
    assert "WRONG: parity: " in out
    assert exceeds(certificate) > 5


@pytest.mark.parametrize("made", ["bf16-true"], indirect=True)
def test_an_error_that_keeps_the_direction_is_more_than_rounding_explains(file, certify):
    """By its cosine similarity it would pass."""
    rewrite(file, lambda content: content["feats"].mul_(1.05))
    code, out, certificate = certify(file)
    assert code == 2
    assert all(layer["cosine"] > 0.999 and layer["relative_error"] < 0.1 for layer in certificate["layers"])
    assert "times what rounding costs" in out


def test_bf16_that_leaves_nothing_of_the_stimuli_is_said(tmp_path, certify, image_folder):
    """DINOv3's layer scale of 1e-5 is lost in bf16: its class token is the same for all images."""
    verdicts = {}
    for precision in PRECISIONS:
        extractor = VisionExtractor(
            "vit_small_patch16_dinov3.lvd1689m", untrained=True, options={"img_size": 64, "depth": 2}
        )
        data = ImageFolderDataModule(root=str(image_folder), num_workers=0)
        (file,) = run(extractor, data, tmp_path / precision, precision)
        code, out, certificate = certify(file, "--root", image_folder)
        verdicts[precision] = code, certificate["verdict"]
    assert verdicts == {"32-true": (0, "pass"), "bf16-true": (2, "fail")}
    assert "is as far from its stimulus" in out
    assert "the error of bf16-true is as large as the differences between stimuli" in certificate["remarks"][0]


def test_bad_rows_are_left_out(run_job, certify, image_folder):
    (image_folder / "3.png").write_bytes(b"no image")
    (file,) = run_job(data_on_bad_image="skip").files
    code, _, certificate = certify(file, "--root", image_folder, parity=7)
    assert code == 0
    assert [stimulus["row"] for stimulus in certificate["stimuli"]] == [0, 1, 2, 4, 5, 6]


def test_a_certificate_holds_for_its_file_only(file, certify, cli):
    assert certify(file)[0] == 0
    rewrite(file, roll)
    code, out, _ = cli("verify", file)
    assert code == 2
    assert "x.parity.json belongs to another file" in out
    code, out, certificate = certify(file, parity=24)
    assert (code, certificate["verdict"]) == (2, "fail"), "replaced by one that does"


def test_an_unsound_file_is_not_certified(file, certify):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert "feats is damaged" in out


def test_bf16_mixed_is_certified(tmp_path, certify):
    folder = tmp_path / "model"
    for file in captions_run(folder, "llama", tmp_path, "bf16-mixed", layers="hidden_states"):
        code, out, _ = certify(file, *given(folder))
        assert code == 0, out
    (file,) = run(VisionExtractor(TINY, untrained=True), DemoDataModule(), tmp_path, "bf16-mixed")
    assert certify(file)[0] == 0
