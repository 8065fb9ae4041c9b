"""Images once more by timm alone: models with other tokens, runs that went wrong, other weights and stimuli."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import timm
import torch
from helpers.parity import PRECISIONS, TINY, exceeds, model_of, rewrite, run
from PIL import Image
from safetensors.torch import save_file

from lit_extract import DemoDataModule, ImageFolderDataModule, NSDDataModule, VisionExtractor, extract
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.modules.hooks import capture
from lit_extract.modules.pooling import VISION_POOLINGS

NARROW = {"depth": 2, "embed_dim": 96, "num_heads": 2}


@pytest.fixture(scope="module")
def after_blocks(tmp_path_factory):
    """Features of what comes after the blocks: of the final norm, and of the model itself."""
    data = DemoDataModule(query="demo_id < 8", subset="few")
    folder = tmp_path_factory.mktemp("after_blocks")
    settings = {"norm": {"layers": ["norm", "blocks"]}, "head": {"pool": "head"}}
    return {of: run(VisionExtractor(TINY, untrained=True, **settings[of]), data, folder)[0] for of in settings}


@pytest.mark.parametrize("of", ["blocks", "norm", "head"])
def test_nothing_of_what_made_the_file_is_used(file, after_blocks, of, tmp_path, certify, monkeypatch):
    """Were any of it wrong, the certificate would not repeat the fault."""
    file = file if of == "blocks" else shutil.copy(after_blocks[of], tmp_path / "after.pt")

    def not_independent(*_, **__):
        raise AssertionError("the reference must not use this")

    for name in (
        "lit_extract.modules.hooks.capture",
        "lit_extract.modules.blocks.capture",
        "lit_extract.modules.blocks.Blocks.run",
        "lit_extract.modules.after_blocks.Output.run",
        "lit_extract.modules.vision.VisionExtractor.normalize",
        "lit_extract.modules.vision.VisionExtractor.activations",
        "lit_extract.datasets.decode.open_image",
        "lit_extract.datasets.decode.to_rgb",
        "lit_extract.data.batches.read_stimulus",
        "lit_extract.data.batches.ImageBatches.__getitem__",
    ):
        monkeypatch.setattr(name, not_independent)
    for name, pooling in VISION_POOLINGS.items():
        monkeypatch.setitem(VISION_POOLINGS, name, pooling._replace(pool=not_independent))
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


def test_images_that_were_resized_in_another_way(tmp_path, certify, monkeypatch):
    """As small a fault as bf16's rounding, so that only a run in float32 shows it."""
    create_transform = timm.data.create_transform
    monkeypatch.setattr(
        "lit_extract.data.batches.create_transform",
        lambda **settings: create_transform(**{**settings, "interpolation": "bilinear"}),
    )
    extractor = VisionExtractor(TINY, untrained=True)
    (file,) = run(extractor, DemoDataModule(query="demo_id < 8", subset="few"), tmp_path)
    code, _, certificate = certify(file)
    assert code == 2
    assert exceeds(certificate) > 5
    assert all(layer["cosine"] > 0.999 for layer in certificate["layers"])


GIVEN = {"crop_pct": 1.0, "crop_mode": "squash", "std": [0.25, 0.25, 0.25]}


@pytest.fixture(scope="module")
def squashed(tmp_path_factory):
    """Features of pictures that are not square, seen whole."""
    extractor = VisionExtractor(TINY, untrained=True, seed=3, preprocessing=GIVEN)
    data = DemoDataModule(query="demo_id < 8", subset="few")
    return run(extractor, data, tmp_path_factory.mktemp("squashed"))[0]


def test_preprocessing_that_was_given_is_used_and_reported(squashed, tmp_path, certify):
    file = shutil.copy(squashed, tmp_path / "x.pt")
    code, out, certificate = certify(file)
    assert code == 0, out
    (remark,) = certificate["remarks"]
    for told in ("crop_pct 1.0 instead of 0.95", "crop_mode squash instead of center", "std (0.25, 0.25, 0.25)"):
        assert told in remark
    assert remark in out


def test_without_any_that_was_given_nothing_is_reported(file, certify):
    assert certify(file)[2]["remarks"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crop_mode": "border"}, "layers that differ by more than"),
        ({"crop_pct": 0.9}, "layers that differ by more than"),
        ({"std": [0.2, 0.25, 0.25]}, "layers that differ by more than"),
        ({"interpolation": "bilinear"}, "NOT CERTIFIED: preprocessing: the file was made with"),
        ({"crop_mode": "random"}, "NOT CERTIFIED: provenance.preprocessing: crop_mode"),
        ({"crop_pct": 1e-9}, "crop_pct"),
        ({"std": [0.25, 0.25]}, "NOT CERTIFIED: provenance.preprocessing: std"),
        ({"std": None}, "NOT CERTIFIED: provenance.preprocessing: std"),
    ],
    ids=str,
)
def test_preprocessing_that_was_altered(squashed, tmp_path, certify, change, said):
    file = shutil.copy(squashed, tmp_path / "x.pt")
    rewrite(file, lambda content: content["metadata"]["provenance"]["preprocessing"].update(change))
    code, out, _ = certify(file)
    assert code == 2
    assert said in out


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["crop_pct", "crop_mode"], "preprocessing: the file was made with"),
        ([], "preprocessing: the file was made with"),
        (["crop_pct", "crop_mode", "std", "is_training"], "preprocessing: is_training: must be one of crop_pct"),
        ("std", "provenance: preprocessing_given"),
    ],
    ids=str,
)
def test_which_preprocessing_was_given_is_not_believed(squashed, tmp_path, certify, named, said):
    file = shutil.copy(squashed, tmp_path / "x.pt")
    rewrite(file, lambda content: content["metadata"]["provenance"].update(preprocessing_given=named))
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert said in out


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"crop_mode": "border", "crop_pct": 1.0, "mean": [0.2, 0.4, 0.6]}, {}),
        ({"input_size": [3, 96, 128], "interpolation": "lanczos"}, {"dynamic_img_size": True}),
    ],
    ids=["border", "size"],
)
def test_other_preprocessing_that_was_given(tmp_path, certify, image_folder, given, options):
    extractor = VisionExtractor(TINY, untrained=True, preprocessing=given, options=options, pool=["cls", "avg"])
    data = ImageFolderDataModule(root=str(image_folder), num_workers=0)
    for file in run(extractor, data, tmp_path):
        code, out, certificate = certify(file, "--root", image_folder)
        assert code == 0, out
        assert all(f"{key} " in certificate["remarks"][0] for key in given)


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
        wrong = VISION_POOLINGS["cls"]._replace(pool=lambda hidden, _: hidden[:, 1].float())
        monkeypatch.setitem(VISION_POOLINGS, "cls", wrong)
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
        # registers; distilled: two prefix tokens; no class token; a class token that joins after the blocks
        ("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 56, "depth": 3}, ["cls", "avg", "avg_all"], "timm"),
        ("deit_tiny_distilled_patch16_224.fb_in1k", {"img_size": 64, "depth": 3}, ["cls", "avg", "avg_all"], "timm"),
        ("vit_relpos_small_patch16_224.sw_in1k", {"img_size": 64, "depth": 3}, ["avg", "avg_all"], "timm"),
        ("eva02_tiny_patch14_224.mim_in22k", {"img_size": 56, "depth": 3}, ["cls"], "timm"),
        ("cait_xxs24_224.fb_dist_in1k", {"img_size": 64, "depth": 3}, ["avg_all"], "torchvision"),
        ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}, ["avg_all"], "torchvision"),
        ("convit_tiny", {"img_size": 64}, ["avg"], "timm"),
        ("qwen3_vit_88m", {"img_size": 64, **NARROW}, ["avg", "avg_all"], "timm"),
        ("gemma4_vit_167m", {"img_size": 96, **NARROW}, ["avg", "avg_all"], "timm"),
        ("deepseek_vit_412m", {"img_size": 56, **NARROW}, ["avg", "avg_all"], "timm"),
        ("vit_small_patch16_dinov3", {"img_size": 64, "depth": 2}, ["avg", "avg_all"], "timm"),
        ("vit_pe_core_tiny_patch16_384", {"img_size": 64, "depth": 2}, ["cls", "avg"], "timm"),
        ("naflexvit_base_patch16_radio_v3", {"img_size": 64, **NARROW}, ["cls", "avg", "avg_all"], "timm"),
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


@pytest.mark.parametrize(
    ("name", "options", "pools", "with_norm"),
    [
        (TINY, {}, ["cls", "avg"], True),
        (TINY, {"global_pool": "avg"}, ["avg"], False),
        (TINY, {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True}, ["avg"], True),
        (TINY, {"global_pool": "map", "num_classes": 0}, ["cls"], True),
        ("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 56, "depth": 3}, ["cls", "avg", "avg_all"], True),
        ("vit_base_patch16_siglip_224.webli", {"img_size": 64, "depth": 2}, ["avg"], True),
        ("vit_base_patch16_clip_224.laion2b", {"img_size": 64, "depth": 2}, ["cls"], True),
        ("eva02_tiny_patch14_224.mim_in22k", {"img_size": 56, "depth": 2}, ["cls"], False),
        ("deit_tiny_distilled_patch16_224.fb_in1k", {"img_size": 64, "depth": 2}, ["cls"], True),
        ("deepseek_vit_412m", {"img_size": 84, "depth": 1, "embed_dim": 128, "num_heads": 2}, ["avg"], True),
    ],
)
def test_what_comes_after_the_blocks_is_certified(tmp_path, certify, image_folder, name, options, pools, with_norm):
    data = ImageFolderDataModule(root=str(image_folder), num_workers=0)
    kinds = [{"pool": "head"}] + [{"pool": pools, "layers": ["norm", -1]}] * with_norm
    for precision in PRECISIONS:
        for kind in kinds:
            extractor = VisionExtractor(name, untrained=True, options=options, **kind)
            for file in run(extractor, data, tmp_path / precision, precision):
                code, out, certificate = certify(file, "--root", image_folder, parity=3)
                assert code == 0, out
                assert ("model(image)" if kind["pool"] == "head" else "forward_features") in certificate["reference"]
                assert [layer["layer"] for layer in certificate["layers"]] == extractor.layers


@pytest.mark.parametrize("fault", ["the last block for the norm", "the block before", "probabilities for logits"])
def test_what_comes_after_the_blocks_but_went_wrong(tmp_path, certify, monkeypatch, fault):
    is_norm = fault != "probabilities for logits"
    if is_norm:
        place = "blocks.5" if fault == "the last block for the norm" else "blocks.4.norm2"

        def run_wrong(self, model, images, pool):
            with capture({"norm": model.get_submodule(place)}, lambda tokens: pool(tokens, self.forms[0])) as pooled:
                model(images)
            return pooled

        monkeypatch.setattr("lit_extract.modules.blocks.Blocks.run", run_wrong)
    else:
        wrong = VISION_POOLINGS["head"]._replace(pool=lambda output, _: output.float().softmax(-1))
        monkeypatch.setitem(VISION_POOLINGS, "head", wrong)
    extractor = VisionExtractor(TINY, untrained=True, **({"layers": "norm"} if is_norm else {"pool": "head"}))
    (file,) = run(extractor, DemoDataModule(query="demo_id < 8", subset="few"), tmp_path)
    code, out, certificate = certify(file)
    assert code == 2, out
    assert exceeds(certificate) > 5


@pytest.mark.parametrize(
    ("of", "pool", "layers", "said"),
    [
        ("head", "cls", ["head"], "layers: the file has head, but the model has blocks.0"),
        ("head", "head", ["norm"], "layers: the file has norm, but the model has head"),
        ("head", "head", ["embeddings"], "layers"),
        ("norm", "head", None, "layers: the file has norm, blocks.0"),
    ],
)
def test_layers_and_pooling_that_do_not_go_together(after_blocks, tmp_path, certify, of, pool, layers, said):
    file = shutil.copy(after_blocks[of], tmp_path / "x.pt")

    def change(content):
        provenance = content["metadata"]["provenance"]
        content["layers"] = provenance["layers"] = layers or content["layers"]
        provenance["pool"] = pool

    rewrite(file, change)
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert f"NOT CERTIFIED: {said}" in out


def test_a_head_of_other_classes_is_that_of_the_local_weights(tmp_path, certify):
    weights, options = tmp_path / "weights.safetensors", {"num_classes": 7}
    save_file(timm.create_model(TINY, **options).state_dict(), weights)
    extractor = VisionExtractor(TINY, checkpoint=str(weights), options=options, pool="head")
    (file,) = run(extractor, DemoDataModule(), tmp_path)
    code, out, _ = certify(file, "--checkpoint", weights)
    assert code == 0, out


def test_a_class_token_that_joins_between_the_blocks_is_averaged_without_a_reference(tmp_path, certify, image_folder):
    """ConViT: timm's own intermediates are patches alone, and it can't be traced."""
    settings = {"pool": "avg_all", "options": {"img_size": 64}}
    data = ImageFolderDataModule(root=str(image_folder), num_workers=0)
    (file,) = run(VisionExtractor("convit_tiny", untrained=True, **settings), data, tmp_path)
    code, out, certificate = certify(file, "--root", image_folder)
    assert (code, certificate) == (2, None)
    assert "there is no independent way to its layers" in out


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


def test_local_weights_must_be_those_of_the_file(tmp_path, certify):
    weights, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    save_file(model_of(7).state_dict(), weights)
    save_file(model_of(8).state_dict(), other)
    (file,) = run(VisionExtractor(TINY, checkpoint=str(weights)), DemoDataModule(), tmp_path)
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert (
        "NOT CERTIFIED: checkpoint: missing; pass --checkpoint PATH; the file was made with local weights with SHA-256"
        in out
    )
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
    assert "NOT CERTIFIED: data.root: no folder given for folder; give --data.root DIR" in out


def test_ids_that_are_not_those_of_the_dataset(file, certify):
    rewrite(file, lambda content: content["stimulus_ids"].__setitem__(slice(3, 5), [4, 3]))
    code, out, _ = certify(file)
    assert code == 2
    assert "row 3 of the file is stimulus 4, but of the dataset 3" in out


@pytest.mark.parametrize("name", [TINY, "test_resnet.r160_in1k"])
@pytest.mark.parametrize(("pool", "dtype"), [("grid4", "float32"), ("grid3", "float16"), ("tokens", "bfloat16")])
def test_several_vectors_a_stimulus_are_certified(tmp_path, certify, name, pool, dtype):
    extractor = VisionExtractor(name, untrained=True, pool=pool, dtype=dtype)
    data = DemoDataModule(query="demo_id < 8", subset="few", num_workers=0)
    (file,) = extract(
        extractor, data, predict_trainer("cpu", devices=1, precision="32-true"), str(tmp_path), finalize=True
    ).files
    code, out, certificate = certify(file)
    assert code == 0, out
    assert [layer["layer"] for layer in certificate["layers"]] == extractor.layers
    content = torch.load(file, weights_only=True)
    layers = content["feats"].values() if isinstance(content["feats"], dict) else content["feats"].unbind(1)
    for layer in layers:  # the first vector, and all in their reversed order
        layer.copy_(layer.flip(1).clone())
    torch.save(content, file)
    code, out, _ = certify(file)
    assert code == 2, out
