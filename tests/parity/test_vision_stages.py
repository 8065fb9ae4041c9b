"""Stages once more by hooks on the modules that timm lists: good runs, and runs that went wrong."""

import shutil

import pytest
import torch
from helpers.parity import PRECISIONS, exceeds, rewrite, run

from lit_extract import DemoDataModule, ImageFolderDataModule, VisionExtractor
from lit_extract.modules.pooling import VISION_POOLINGS
from lit_extract.modules.stages import Stages

SMALL = "test_resnet.r160_in1k"
ALL_BRANCHES = {"zero_init_last": False}  # else the blocks of a random ResNet add nothing to what they get


def photographs():
    return DemoDataModule(query="demo_id < 8", subset="few")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Features of a ResNet."""
    return run(VisionExtractor(SMALL, untrained=True, pool="avg"), photographs(), tmp_path_factory.mktemp("made"))[0]


@pytest.fixture
def stages(made, tmp_path):
    return shutil.copy(made, tmp_path / "x.pt")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "settings", "way"),
    [
        (SMALL, {}, "hooks"),
        (SMALL, {"layers": [-1, 0], "options": ALL_BRANCHES}, "hooks"),
        (SMALL, {"channels_last": True}, "hooks"),
        ("test_convnext.r160_in1k", {}, "hooks"),
        ("test_efficientnet.r160_in1k", {}, "hooks"),
        ("test_mambaout", {"preprocessing": {"input_size": [3, 96, 128]}}, "hooks"),
        pytest.param("swin_tiny_patch4_window7_224.ms_in1k", {}, "hooks", marks=pytest.mark.long),
        pytest.param("hiera_tiny_224.mae_in1k_ft_in1k", {}, "hooks", marks=pytest.mark.long),
        pytest.param("levit_128s.fb_dist_in1k", {}, "hooks", marks=pytest.mark.long),
        pytest.param(
            "tresnet_m.miil_in21k",
            {},
            "hooks on the modules that timm lists, timm forward_intermediates",
            marks=pytest.mark.long,
        ),
        ("twins_svt_small.in1k", {}, "timm forward_intermediates"),
    ],
)
def test_stages_are_certified(tmp_path, certify, image_folder, name, settings, way, precision):
    extractor = VisionExtractor(name, untrained=True, pool="avg", **settings)
    data = ImageFolderDataModule(root=str(image_folder), num_workers=0)
    (file,) = run(extractor, data, tmp_path, precision)
    code, out, certificate = certify(file, "--root", image_folder, parity=3)
    assert code == 0, out
    assert certificate["reference"].startswith(way)
    assert [layer["layer"] for layer in certificate["layers"]] == extractor.layers


def test_nothing_of_what_made_the_file_is_used(stages, certify, monkeypatch):
    """Were any of it wrong, the certificate would not repeat the fault."""

    def not_independent(*_, **__):
        raise AssertionError("the reference must not use this")

    for name in (
        "lit_extract.modules.stages.Stages.run",
        "lit_extract.modules.stages._maps_of",
        "lit_extract.modules.layer_set.outputs_noted",
        "lit_extract.modules.vision.VisionExtractor.normalize",
        "lit_extract.data.images.ImageBatches.__getitem__",
        "timm.models.resnet.ResNet.forward_intermediates",
    ):
        monkeypatch.setattr(name, not_independent)
    for name, pooling in VISION_POOLINGS.items():
        monkeypatch.setitem(VISION_POOLINGS, name, pooling._replace(pool=not_independent))
    assert certify(stages)[0] == 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", ["largest place", "half the map", "batch norm in training", "other statistics"])
def test_a_run_that_went_wrong(tmp_path, certify, monkeypatch, fault, precision):
    extractor = VisionExtractor(SMALL, untrained=True, pool="avg", options=ALL_BRANCHES)
    if fault == "largest place":
        wrong = VISION_POOLINGS["avg"]._replace(pool=lambda tokens, _: tokens.float().amax(dim=1))
        monkeypatch.setitem(VISION_POOLINGS, "avg", wrong)
    if fault == "half the map":
        whole = Stages.run

        def half(self, model, images, pool):
            return whole(self, model, images, lambda tokens, form: pool(tokens[:, : tokens.shape[1] // 2], form))

        monkeypatch.setattr(Stages, "run", half)
    if fault == "batch norm in training":
        extractor.configure_model()
        extractor.backbone.train()
        monkeypatch.setattr(VisionExtractor, "train", lambda self, mode=True: self)
    if fault == "other statistics":
        extractor.configure_model()
        extractor.backbone.layer2[0].bn1.running_var.mul_(2)
    (file,) = run(extractor, photographs(), tmp_path, precision)
    code, out, certificate = certify(file)
    assert code == 2, out
    assert exceeds(certificate) > (5 if precision == "32-true" else 1)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["conv1", "layer1"], "layers: the file has conv1, but the model has layer1"),
        (["intermediates.9", "layer1"], "layers: the file has intermediates.9, but the model has layer1"),
        (["blocks.0", "layer1"], "layers: the file has blocks.0"),
        (["norm", "layer1"], "layers: the file has norm"),
        (["../x", "layer1"], "layers"),
        (["layer2\n", "layer1"], "layers"),
        (["x" * 101, "layer1"], "layers"),
    ],
    ids=str,
)
def test_layers_that_are_no_stages_of_the_model(tmp_path, certify, layers, said):
    extractor = VisionExtractor(SMALL, untrained=True, pool="avg", layers=[2, 1])
    (file,) = run(extractor, photographs(), tmp_path)
    assert certify(file)[0] == 0
    certificate = file.with_name(f"{file.stem}.parity.json")
    certificate.unlink()

    def change(content):
        content["layers"] = content["metadata"]["provenance"]["layers"] = layers
        content["feats"] = dict(zip(layers, content["feats"].values(), strict=True))

    rewrite(file, change)
    code, out, written = certify(file)
    assert (code, written) == (2, None)
    assert said in out


@pytest.mark.slow
def test_a_stage_in_the_place_of_another(tmp_path, certify):
    """Of the same width, so that nothing but the numbers shows it."""
    extractor = VisionExtractor("vgg11.tv_in1k", untrained=True, pool="avg", layers=[3, 4])
    (file,) = run(extractor, photographs(), tmp_path)

    def change(content):
        assert isinstance(content["feats"], torch.Tensor)
        content["feats"] = content["feats"].flip(1)

    rewrite(file, change)
    code, out, certificate = certify(file)
    assert code == 2, out
    assert exceeds(certificate) > 5


def test_the_output_of_a_model_with_stages_is_certified(tmp_path, certify):
    (file,) = run(VisionExtractor(SMALL, untrained=True, pool="head"), photographs(), tmp_path)
    code, out, certificate = certify(file)
    assert code == 0, out
    assert certificate["reference"] == "timm model(image)"
