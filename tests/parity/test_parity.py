"""The parity certificate: what predict made passes, and each fault that it is for fails, by far, in both precisions.

N stimuli, L layers, D hidden size.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import sentencepiece
import timm
import torch
from helpers.language_models import save_captions, save_model
from PIL import Image
from safetensors.torch import save_file

from lit_extract import (
    CaptionDataModule,
    DemoDataModule,
    ImageFolderDataModule,
    LanguageExtractor,
    NSDDataModule,
    VisionExtractor,
    extract,
)
from lit_extract.common.errors import InputError
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.parity.figures import BF16, FLOAT32, Limits, misplaced, place_rows

TINY = "test_vit.r160_in1k"
PRECISIONS = ("32-true", "bf16-true")


def run(extractor, data, output, precision="32-true"):
    trainer = predict_trainer("cpu", devices=1, precision=precision)
    return extract(extractor, data, trainer, output_dir=str(output)).files


@pytest.fixture(scope="module", params=PRECISIONS)
def made(request, tmp_path_factory):
    """Features of the demo photographs, as predict makes them."""
    extractor = VisionExtractor(TINY, untrained=True, seed=3)
    return run(extractor, DemoDataModule(), tmp_path_factory.mktemp("made"), request.param)[0]


@pytest.fixture
def file(made, tmp_path):
    return shutil.copy(made, tmp_path / "x.pt")


@pytest.fixture
def certify(cli):
    """A function that runs verify; it returns exit code, what it printed and the certificate."""

    def run(file, *options, parity=4):
        code, out, err = cli("verify", file, "--parity", parity, *options)
        assert err == ""
        written = file.with_name(f"{file.stem}.parity.json")
        return code, out, json.loads(written.read_text()) if written.exists() else None

    return run


def rewrite(file, change):
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def model_of(seed=3):
    torch.manual_seed(seed)
    return timm.create_model(TINY).eval()


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
    from PIL import Image

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


def test_nothing_of_what_made_the_file_is_used(file, certify, monkeypatch):
    """Were any of it wrong, the certificate would not repeat the fault."""

    def not_independent(*_, **__):
        raise AssertionError("the reference must not use this")

    for name in (
        "lit_extract.modules.hooks.capture",
        "lit_extract.modules.vision.capture",
        "lit_extract.modules.vision.pool_image",
        "lit_extract.modules.vision.VisionExtractor.normalize",
        "lit_extract.modules.vision.VisionExtractor.activations",
        "lit_extract.modules.pooling.pool_image",
        "lit_extract.datasets.decode.open_image",
        "lit_extract.datasets.decode.to_rgb",
        "lit_extract.data.images.read_stimulus",
        "lit_extract.data.images.ImageBatches.__getitem__",
    ):
        monkeypatch.setattr(name, not_independent)
    assert certify(file)[0] == 0


def test_16_bit_grayscale_is_certified(cli, tmp_path):
    """Of images that convert("RGB") alone would show white."""
    for row in range(4):
        values = np.random.default_rng(row).integers(2**8, 2**16, (40, 50), dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"{row}.png")
    config = Path(__file__).parents[2] / "configs" / "folder" / "vision.yaml"
    settings = ["--model.name", TINY, "--model.untrained", "true", "--trainer.precision", "32-true"]
    where = ["--data.root", tmp_path, "--output_dir", tmp_path / "out", "--trainer.accelerator", "cpu"]
    code, _, err = cli("predict", "--config", config, *settings, *where)
    assert code == 0, err
    (file,) = (tmp_path / "out").rglob("*.pt")
    code, out, _ = cli("verify", file, "--parity", 4, "--root", tmp_path)
    assert code == 0, out


def roll(content):
    content["feats"] = content["feats"].roll(1, dims=0)


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


def test_images_that_were_resized_in_another_way(tmp_path, certify, monkeypatch):
    """As small a fault as bf16's rounding, so that only a run in float32 shows it."""
    create_transform = timm.data.create_transform
    monkeypatch.setattr(
        "lit_extract.data.images.create_transform",
        lambda **settings: create_transform(**{**settings, "interpolation": "bilinear"}),
    )
    extractor = VisionExtractor(TINY, untrained=True)
    (file,) = run(extractor, DemoDataModule(query="demo_id < 8", subset="few"), tmp_path)
    code, _, certificate = certify(file)
    assert code == 2
    assert exceeds(certificate) > 5
    assert all(layer["cosine"] > 0.999 for layer in certificate["layers"])


def exceeds(certificate):
    """How many times the limit of the worst layer's error is exceeded."""
    limits = certificate["limits"]
    return max(
        max(layer["relative_error"] / limits["relative_error"], (layer["times_rounding"] or 0) / 3)
        for layer in certificate["layers"]
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", ["raw pixels", "blue first", "half the crop", "patches for class token"])
def test_a_run_that_went_wrong(tmp_path, certify, monkeypatch, fault, precision):
    extractor = VisionExtractor(TINY, untrained=True)
    normalize = VisionExtractor.normalize
    if fault == "raw pixels":
        monkeypatch.setattr(VisionExtractor, "normalize", lambda self, x: (x / 255).to(next(self.parameters()).dtype))
    if fault == "blue first":
        monkeypatch.setattr(VisionExtractor, "normalize", lambda self, x: normalize(self, x.flip(1)))
    if fault == "patches for class token":
        monkeypatch.setattr("lit_extract.modules.vision.pool_image", lambda hidden, *_: hidden[:, 1].float())
    if fault == "half the crop":
        monkeypatch.setattr(VisionExtractor, "normalize", lambda self, x: normalize(self, x.roll(8, dims=3)))
    data = DemoDataModule(query="demo_id < 8", subset="few")
    (file,) = run(extractor, data, tmp_path, precision)
    code, out, certificate = certify(file)
    assert code == 2, out
    assert "layers that differ by more than" in out
    assert exceeds(certificate) > 5


@pytest.mark.parametrize(
    ("name", "options", "pools", "way"),
    [
        # registers; distilled: two prefix tokens; no class token; a class token that joins behind the blocks
        ("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 56, "depth": 3}, ["cls", "avg", "avg_all"], "timm"),
        ("deit_tiny_distilled_patch16_224.fb_in1k", {"img_size": 64, "depth": 3}, ["cls", "avg", "avg_all"], "timm"),
        ("vit_relpos_small_patch16_224.sw_in1k", {"img_size": 64, "depth": 3}, ["avg", "avg_all"], "timm"),
        ("eva02_tiny_patch14_224.mim_in22k", {"img_size": 56, "depth": 3}, ["cls"], "timm"),
        ("cait_xxs24_224.fb_dist_in1k", {"img_size": 64, "depth": 3}, ["avg_all"], "torchvision"),
    ],
)
def test_models_with_other_tokens(tmp_path, certify, image_folder, name, options, pools, way):
    for precision in PRECISIONS:
        extractor = VisionExtractor(name, untrained=True, options=options, pool=pools)
        data = ImageFolderDataModule(root=str(image_folder), num_workers=0)
        for file in run(extractor, data, tmp_path / precision, precision):
            code, out, certificate = certify(file, "--root", image_folder, parity=3)
            assert code == 0, out
            assert certificate["reference"].startswith(way)


def test_a_model_without_an_independent_way_is_a_clear_error(tmp_path, certify, image_folder, monkeypatch):
    extractor = VisionExtractor(
        "cait_xxs24_224.fb_dist_in1k", untrained=True, options={"img_size": 64, "depth": 2}, pool="avg_all"
    )
    (file,) = run(extractor, ImageFolderDataModule(root=str(image_folder), num_workers=0), tmp_path)

    def untraceable(*_):
        raise TypeError("can't trace this")

    monkeypatch.setattr("torchvision.models.feature_extraction.create_feature_extractor", untraceable)
    code, out, certificate = certify(file, "--root", image_folder)
    assert (code, certificate) == (2, None)
    assert "NOT CERTIFIED: parity: 'cait_xxs24_224.fb_dist_in1k' has no forward_intermediates of timm" in out
    assert "can't trace this" in out


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
    assert "the error of bf16-true is as large as what differs between stimuli" in certificate["remarks"][0]


def test_local_weights_must_be_those_of_the_file(tmp_path, certify):
    weights, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    save_file(model_of(7).state_dict(), weights)
    save_file(model_of(8).state_dict(), other)
    (file,) = run(VisionExtractor(TINY, checkpoint=str(weights)), DemoDataModule(), tmp_path)
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert "NOT CERTIFIED: checkpoint: give --checkpoint PATH; the file is of local weights with SHA-256" in out
    code, out, certificate = certify(file, "--checkpoint", other)
    assert (code, certificate) == (2, None)
    assert "NOT CERTIFIED: checkpoint: " in out
    assert certify(file, "--checkpoint", tmp_path / "nowhere")[0] == 2
    assert certify(file, "--checkpoint", weights)[0] == 0


def test_weights_of_the_hub_are_those_of_the_recorded_commit(tmp_path, certify, monkeypatch):
    """The hub is the edge: what is asked of it is noted, and a local file answers."""
    file, commit = tmp_path / "model.safetensors", "0123456789abcdef0123456789abcdef01234567"
    save_file(model_of(7).state_dict(), file)
    asked = []

    def download(repo_id, filename, revision=None, **_):
        asked.append((repo_id, revision))
        return str(file)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha=commit))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    (features,) = run(VisionExtractor(TINY, revision="v2"), DemoDataModule(), tmp_path)
    asked.clear()
    assert certify(features)[0] == 0
    assert asked == [("timm/test_vit.r160_in1k", commit)]
    rewrite(features, lambda content: content["metadata"]["provenance"].update(weights="hub:someone/else"))
    code, out, _ = certify(features)
    assert code == 2
    assert "NOT CERTIFIED: weights: the file was made with hub:someone/else" in out
    assert len(asked) == 1, "nothing else is fetched"


def test_images_in_hdf5_are_read_in_place(tmp_path, certify):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 50, 50, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as hdf5:
        hdf5["imgBrick"] = pixels
    data = NSDDataModule(root=str(tmp_path), query="nsd_id % 2 == 0", subset="even", num_workers=0)
    (file,) = run(VisionExtractor(TINY, untrained=True, pool="avg"), data, tmp_path / "features")
    code, out, certificate = certify(file, "--root", tmp_path, parity=5)
    assert code == 0, out
    assert [s["stimulus_id"] for s in certificate["stimuli"]] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "3.png").rename(folder / "9.png"), "stimuli_sha256: the file was made with"),
        (lambda folder: (folder / "3.png").unlink(), "stimuli_sha256: the file was made with"),
        (
            lambda folder: shutil.copy(folder / "2.png", folder / "3.png"),
            "stimuli have changed since the file was made",
        ),
    ],
)
def test_other_stimuli_are_no_verdict_but_an_error(run_job, certify, image_folder, change, said):
    (file,) = run_job().files
    assert certify(file, "--root", image_folder)[0] == 0
    certificate = file.with_name(f"{file.stem}.parity.json")
    certificate.unlink()
    change(image_folder)
    code, out, written = certify(file, "--root", image_folder)
    assert (code, written) == (2, None)
    assert f"NOT CERTIFIED: {said}" in out


def test_a_dataset_without_its_root_is_a_clear_error(run_job, certify):
    (file,) = run_job().files
    code, out, _ = certify(file)
    assert code == 2
    assert "NOT CERTIFIED: data.root: where is folder? Give --data.root DIR" in out


def test_ids_that_are_not_those_of_the_dataset(file, certify):
    rewrite(file, lambda content: content["stimulus_ids"].__setitem__(slice(3, 5), [4, 3]))
    code, out, _ = certify(file)
    assert code == 2
    assert "row 3 of the file is stimulus 4, but of the dataset 3" in out


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
    assert "x.parity.json is of another file" in out
    code, out, certificate = certify(file, parity=24)
    assert (code, certificate["verdict"]) == (2, "fail"), "replaced by one that does"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": "@pd.io.common.os.system('touch X') == 0"}, "data.query: "),
        ({"query": "9**9**9 == demo_id"}, "data.query: "),
        ({"model": "hf-hub:someone/else"}, "model: the file is of 'hf-hub:someone/else', which timm does not have"),
        ({"model": "local-dir:{folder}"}, "model: the file is of 'local-dir:"),
        ({"model": "../../{folder}"}, "give --model NAME"),
        ({"options": {"cache_dir": "{folder}/X"}}, "provenance.options: cache_dir"),
        ({"options": {"pretrained_cfg": {"url": "http://127.0.0.1/"}}}, "provenance.options: pretrained_cfg"),
        ({"options": {"depth": 10**9}}, "provenance.options: depth"),
        ({"dataset": "../folder"}, "provenance.dataset: "),
        ({"weights": "checkpoint", "checkpoint_sha256": "0" * 64, "model": "{folder}"}, "give --model NAME"),
        ({"weights": "checkpoint", "checkpoint_sha256": "0" * 64}, "give --checkpoint PATH"),
        ({"weights": "hub:someone/else", "revision": "0" * 40}, "weights: the file was made with hub:someone/else"),
        ({"weights": "hub:timm/test_vit.r160_in1k", "revision": "main"}, "provenance: revision"),
        ({"seed": 2**70}, "provenance: seed"),
        ({"seed": None}, "provenance: seed"),
        ({"precision": "16"}, "provenance: precision"),
        ({"model": "resnet18.a1_in1k"}, "preprocessing: the file was made with"),
        ({"model": "test_vit.other_tag"}, "which timm does not have"),
        ({"options": {"depth": 3}}, "layers: the file has blocks.3, blocks.4, blocks.5, but the model has 3 blocks"),
        ({"options": {"embed_dim": 128}}, "the file has 6×64 layers and dimensions, but the model gives 6×128"),
        ({"options": {"embed_dim": 16384, "num_heads": 2, "depth": 200}}, "of memory"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("made", ["32-true"], indirect=True)
def test_what_a_file_says_of_itself_reaches_nothing_unchecked(file, certify, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: pytest.fail("fetched"))
    change = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in change.items()}
    rewrite(file, lambda content: content["metadata"]["provenance"].update(change))
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert said in out
    assert out.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("made", ["32-true"], indirect=True)
def test_the_user_names_a_model_that_is_not_known(file, certify, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert certify(file, "--model", TINY)[0] == 0
    code, out, _ = certify(file, "--model", "another")
    assert code == 2
    assert "model: the file is of 'test_vit.r160_in1k', not of 'another'" in out
    rewrite(file, lambda content: content["metadata"]["provenance"].update(options={"qkv_bias": True}))
    code, out, _ = certify(file)
    assert code == 2
    assert "only when models.yml has them for this model" in out
    Path("models.yml").write_text(f"vision: [{{name: {TINY}, options: {{qkv_bias: true}}}}]\n")
    code, out, _ = certify(file)
    assert code == 0, out


def test_an_unsound_file_is_not_certified(file, certify):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert "feats is damaged" in out


# Language


def captions_run(folder, architecture, output, precision="32-true", lengths=(3, 17, 2, 40, 8, 8, 1, 25), **settings):
    if not folder.exists():
        save_model(folder, architecture)
        save_captions(folder / "captions.csv", lengths)
    extractor = LanguageExtractor("tiny", checkpoint=str(folder), **{"pool": ["avg", "last"], "loss": True, **settings})
    return run(extractor, CaptionDataModule(str(folder / "captions.csv"), "test"), output, precision)


def where(folder):
    return "--checkpoint", folder, "--captions", folder / "captions.csv"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom"])
def test_captions_are_certified(tmp_path, certify, architecture, precision):
    folder = tmp_path / "model"
    files = captions_run(folder, architecture, tmp_path, precision)
    files += captions_run(folder, architecture, tmp_path / "hf", precision, layers="hidden_states", pool="avg")
    for file in files:
        code, out, certificate = certify(file, *where(folder), parity=8)
        assert code == 0, out
        assert certificate["reference"] == "transformers output_hidden_states"
        assert certificate["failures"] == certificate["remarks"] == []
        limit = 1e-5 if precision == "32-true" else 3e-2
        assert all(layer["relative_error"] < limit for layer in certificate["layers"])
        assert certificate["loss"].keys() == {"loss", "bpb"}
        assert all(error < limit for error in certificate["loss"].values())


def test_bf16_mixed_is_certified(tmp_path, certify):
    folder = tmp_path / "model"
    for file in captions_run(folder, "llama", tmp_path, "bf16-mixed", layers="hidden_states"):
        code, out, _ = certify(file, *where(folder))
        assert code == 0, out
    (file,) = run(VisionExtractor(TINY, untrained=True), DemoDataModule(), tmp_path, "bf16-mixed")
    assert certify(file)[0] == 0


def test_untrained_captions_need_the_configuration_only(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, seed=5, pool="avg", exclude_bos=True)
    assert certify(file, *where(folder))[0] == 0
    rewrite(file, lambda content: content["metadata"]["provenance"].update(exclude_bos=False))
    assert certify(file, *where(folder))[0] == 2


def test_captions_tokenized_by_sentencepiece_and_cut(tmp_path, certify):
    folder = tmp_path / "model"
    save_model(folder, "llama")
    texts = save_captions(folder / "captions.csv", (5, 150, 9, 12))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    extractor = LanguageExtractor("tiny", checkpoint=str(folder), tokenizer="sentencepiece")
    data = CaptionDataModule(str(folder / "captions.csv"), "test", truncate=True)
    (file,) = run(extractor, data, tmp_path)
    code, out, _ = certify(file, *where(folder))
    assert code == 0, out
    assert torch.load(file, weights_only=True)["mask"].sum(dim=1).max() == 128


def norm_the_last_block(content, folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        content["feats"][:, -1] = model.model.norm(content["feats"][:, -1])


def wrong_loss(content, folder):
    content["row_loss"] *= 1.05
    content["loss"] *= 1.05


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda content, _: roll(content), "stimulus 0 (row 0) is in row 1"),
        (lambda content, _: content.update(feats=content["feats"][:, [1, 0, 2]]), "blocks.0 of the file is blocks.1"),
        (norm_the_last_block, "explains: blocks.2 (cosine"),
        (wrong_loss, "loss differs by 0.05"),
    ],
)
def test_a_fault_in_features_of_captions(tmp_path, certify, precision, fault, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, precision, pool="last")
    rewrite(file, lambda content: fault(content, folder))
    code, out, certificate = certify(file, *where(folder), parity=8)
    assert code == 2
    assert said in out
    if fault is not wrong_loss:
        assert exceeds(certificate) > 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "captions: which file has the captions 'test' of captions? Give --captions FILE"),
        (["--captions", "nowhere.csv"], "no file 'nowhere.csv'"),
    ],
)
def test_captions_that_are_not_there(tmp_path, certify, arguments, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, pool="last")
    code, out, certificate = certify(file, "--checkpoint", folder, *arguments)
    assert (code, certificate) == (2, None)
    assert "NOT CERTIFIED" in out
    assert said in out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("dog", "cat", "tokens_sha256: the file was made with"),
        ("dog", "horses", "stimuli have changed since the file was made"),
        ("\n1,", "\n99,", "has none of 1, which the file has"),
    ],
)
def test_captions_that_are_others(tmp_path, certify, old, new, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, pool="last")
    captions = folder / "captions.csv"
    text = captions.read_text()
    assert old in text
    (tmp_path / "other.csv").write_text(text.replace(old, new, 1))
    code, out, _ = certify(file, "--checkpoint", folder, "--captions", tmp_path / "other.csv")
    assert code == 2
    assert said in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "someone/else"}, "model: the file is of 'someone/else', which models.yml does not list"),
        ({"source": "/etc"}, "model: the file is of '/etc', which models.yml does not list"),
        ({"weights": "hub:someone/else", "revision": "0" * 40}, "provenance.source"),
        ({"options": {"trust_remote_code": True}}, "provenance.options: trust_remote_code"),
        ({"options": {"gguf_file": "../x.gguf"}}, "provenance.options: gguf_file"),
        ({"tokenizer": "../tokenizer"}, "provenance: tokenizer"),
        ({"query": "@pd.io.common.os.system('touch X') == 0"}, "data.query"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_file_of_captions_says_of_itself_is_checked(tmp_path, certify, monkeypatch, change, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    monkeypatch.chdir(tmp_path)
    rewrite(file, lambda content: content["metadata"]["provenance"].update(change))
    code, out, certificate = certify(file, *where(folder))
    assert (code, certificate) == (2, None)
    assert said in out
    assert not Path("X").exists()


def test_a_folder_that_the_user_did_not_give_is_not_read(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    rewrite(file, lambda content: content["metadata"]["provenance"].update(model=str(folder)))
    code, out, _ = certify(file, "--captions", folder / "captions.csv")
    assert code == 2
    assert "checkpoint: give --checkpoint DIR" in out


def test_the_user_names_what_is_loaded_not_what_it_is_called(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    told = {"model": "someone/known", "source": "someone/else"}
    rewrite(file, lambda content: content["metadata"]["provenance"].update(told))
    code, out, _ = certify(file, "--captions", folder / "captions.csv", "--model", "someone/known")
    assert code == 2
    assert "model: the file is of 'someone/else', not of 'someone/known'" in out


def test_a_file_does_not_choose_the_commit_whose_code_runs(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    told = {"source": "someone/tiny", "weights": "hub:someone/tiny", "revision": "1" * 40}
    rewrite(file, lambda content: content["metadata"]["provenance"].update(told))
    given = ("--captions", folder / "captions.csv", "--model", "someone/tiny", "--trust_remote_code", "true")
    code, out, _ = certify(file, *given)
    assert code == 2
    assert "trust_remote_code: the file decides of which commit" in out


@torch.no_grad()
@pytest.mark.parametrize("is_final", [True, False])
def test_what_is_called_a_norm_must_prove_to_be_the_final_one(tmp_path, is_final):
    from lit_extract.parity.language import FinalNorm

    model = save_model(tmp_path, "llama")
    ids = torch.tensor([[1, 7, 5, 9]])
    raw = []
    model.model.layers[-1].register_forward_hook(lambda _m, _i, output: raw.append(output))
    normed = model(ids, output_hidden_states=True).hidden_states[-1]
    model.model.another_norm = torch.nn.LayerNorm(32)  # never used
    if is_final:
        torch.testing.assert_close(FinalNorm(model).input(ids, normed), raw[0], rtol=0, atol=0)
        return
    model.model.norm.requires_grad_(False).weight += 1  # as if it had not been the one that gave this
    with pytest.raises(InputError, match="no final norm found in LlamaModel"):
        FinalNorm(model).input(ids, normed)


# Decisions


@pytest.mark.parametrize(
    ("distances", "spread", "expected"),
    [
        ([[0.1, 9.0, 8.0]], [9.0], []),  # its own
        ([[8.0, 0.1, 9.0]], [8.5], ["stimulus a (row 0) is in row 1, which should be b"]),
        ([[5.0, 6.0, 4.0]], [6.0], ["row 0 is as far from its stimulus a as from others (0.83)"]),
        ([[0.1, 0.01, 9.0]], [9.0], []),  # a twin, as near
        ([[0.0, 0.0, 0.0]], [0.0], []),  # all are alike: there is no order to get wrong
    ],
)
def test_place_rows(distances, spread, expected):
    placed, mistaken = place_rows([0], ["a", "b", "c"], torch.tensor(distances), torch.tensor(spread), limit=0.25)
    assert mistaken == expected
    assert placed[0]["nearest_row"] == min(range(3), key=lambda row: distances[0][row])


def test_misplaced_layers_are_named():
    again = torch.tensor([[[0.0, 1.0], [5.0, 5.0], [9.0, 0.0]]], dtype=torch.float64)
    names = ["a", "b", "c"]
    assert misplaced(names, again + 0.1, again) == []
    assert misplaced(names, again[:, [0, 2, 1]], again) == ["b of the file is c", "c of the file is b"]


def test_limits_of_float32_are_tighter():
    assert isinstance(BF16, Limits)
    assert FLOAT32.cosine > BF16.cosine
    assert FLOAT32.relative_error < BF16.relative_error / 50
