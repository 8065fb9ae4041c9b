"""Settings of preprocessing that are given, and what becomes of them: timm takes them, or one error names them."""

import math

import pytest
import timm
import torch

from lit_extract.common.errors import InputError
from lit_extract.modules import architecture
from lit_extract.modules.architecture import check_preprocessing
from lit_extract.modules.pooling import LayerForm
from lit_extract.modules.vision import VisionExtractor

TINY = "test_vit.r160_in1k"
OWN = {
    "input_size": [3, 160, 160],
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 0.95,
    "crop_mode": "center",
}
DYNAMIC = {"dynamic_img_size": True}
FIXED, SMALL = "vit_tiny_patch16_224.augreg_in21k", {"depth": 1}  # of one size


def extractor_of(preprocessing=None, **settings):
    return VisionExtractor(TINY, **{"untrained": True, "preprocessing": preprocessing, **settings})


def test_the_default_is_the_model_s_own():
    for given in (None, {}, {"crop_pct": 0.95, "crop_mode": "center"}):
        extractor = extractor_of(given)
        assert extractor.preprocessing == OWN
        assert "preprocessing_given" not in extractor.provenance()


def test_what_is_given_replaces_the_model_s_own_and_is_recorded():
    given = {"crop_mode": "squash", "crop_pct": 1, "std": (0.25, 0.5, 1), "interpolation": "bicubic"}
    extractor = extractor_of(given)
    assert extractor.preprocessing == {**OWN, "crop_pct": 1.0, "crop_mode": "squash", "std": [0.25, 0.5, 1.0]}
    assert type(extractor.preprocessing["crop_pct"]) is float, "1 and 1.0 name the same cache of pixels"
    assert extractor.provenance()["preprocessing_given"] == ["std", "crop_pct", "crop_mode"]


def test_every_setting_of_timm_s_transform_is_known():
    keys = set(architecture._Preprocessing.__annotations__)
    assert keys == set(timm.data.resolve_data_config(pretrained_cfg={"input_size": (3, 8, 8)}))
    for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"):
        check_preprocessing({"interpolation": name}, "x")
        timm.data.create_transform(8, interpolation=name)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"crop": 1.0, "resize": 3}, ["crop, resize", "crop_pct, crop_mode, interpolation, mean, std, input_size"]),
        ({"crop_pct": 0}, ["crop_pct", "0"]),
        ({"crop_pct": 1.01}, ["crop_pct", "1.01"]),
        ({"crop_pct": -0.5}, ["crop_pct", "-0.5"]),
        ({"crop_pct": math.nan}, ["crop_pct", "nan"]),
        ({"crop_pct": "all"}, ["crop_pct", "'all'"]),
        ({"crop_pct": True}, ["crop_pct", "True"]),
        ({"crop_pct": None}, ["crop_pct", "None"]),
        ({"crop_mode": "middle"}, ["crop_mode", "'center', 'squash' or 'border'", "'middle'"]),
        ({"interpolation": "random"}, ["interpolation", "'bicubic'", "'random'"]),
        ({"interpolation": ["bicubic"]}, ["interpolation"]),
        ({"mean": 0.5}, ["mean", "0.5"]),
        ({"mean": [0.5, 0.5]}, ["mean", "3"]),
        ({"mean": [0.5, 0.5, math.inf]}, ["mean.2", "inf"]),
        ({"mean": ["0", 0.5, 0.5]}, ["mean.0", "'0'"]),
        ({"std": [0.5, 0, 0.5]}, ["std.1", "0"]),
        ({"std": [0.5, 0.5, math.nan]}, ["std.2", "nan"]),
        ({"std": [1, 1, 1, 1]}, ["std", "3"]),
        ({"input_size": 224}, ["input_size", "224"]),
        ({"input_size": [224, 224]}, ["input_size", "3"]),
        ({"input_size": [1, 160, 160]}, ["input_size", "[3, H, W]", "[1, 160, 160]"]),
        ({"input_size": [3, 0, 160]}, ["input_size.1", "0"]),
        ({"input_size": [3, 160.5, 160]}, ["input_size.1", "160.5"]),
        ({"input_size": [3, 160, 10**6]}, ["input_size.2", "1000000"]),
    ],
    ids=str,
)
def test_what_timm_does_not_take_is_one_error(given, named):
    with pytest.raises(InputError) as caught:
        extractor_of(given)
    said = str(caught.value)
    assert said.startswith("model.preprocessing: ")
    assert [text for text in named if text not in said] == []


@torch.no_grad()
@pytest.mark.parametrize("size", [[3, 160, 160], [3, 96, 128], [3, 320, 320]])
def test_images_of_another_size_where_the_model_takes_them(size):
    """Against timm's own intermediates; the tokens before the patches stay where they are."""
    extractor = extractor_of({"input_size": size}, options=DYNAMIC, pool=["cls", "avg"]).eval()
    assert extractor.preprocessing["input_size"] == size
    assert {*extractor.layer_set.forms} == {LayerForm(1, size[1] * size[2] // 256, size[2] // 16, 64)}
    extractor.configure_model()
    images = torch.randint(0, 256, (2, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    feats = extractor.activations({"image": images})["feats"].unflatten(2, (len(extractor.layers), -1))
    torch.manual_seed(0)
    layers = (
        timm.create_model(TINY, **DYNAMIC)
        .eval()
        .forward_intermediates(
            (images / 255 - 0.5) / 0.5,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
    )
    expected = torch.stack([torch.stack([prefix[:, 0], patches.mean(1)], 1) for patches, prefix in layers], 2)
    torch.testing.assert_close(feats, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "options", "named"),
    [
        ([3, 160, 160], SMALL, ["input_size [3, 160, 160]", "(224)", "--model.options '{img_size: 160}'"]),
        ([3, 96, 128], SMALL, ["input_size [3, 96, 128]", "--model.options '{img_size: [96, 128]}'"]),
        ([3, 100, 100], DYNAMIC, ["input_size [3, 100, 100]", "patch size"]),
        ([3, 160, 160], {"img_size": 224}, ["input_size is [3, 160, 160]", "model.options is 224"]),
        (
            [3, 224, 96],
            {"img_size": [96, 224], **DYNAMIC},
            ["[3, 224, 96]", "model.options is [96, 224]"],
        ),
    ],
)
def test_a_size_that_the_model_does_not_take(size, options, named):
    name = FIXED if options is SMALL else TINY
    with pytest.raises(InputError) as caught:
        VisionExtractor(name, untrained=True, options=options, preprocessing={"input_size": size})
    said = str(caught.value)
    assert said.startswith("model.preprocessing: input_size")
    assert [text for text in named if text not in said] == []


def test_a_size_that_the_options_have_too_is_no_contradiction():
    extractor = extractor_of({"input_size": [3, 224, 224]}, options={"img_size": 224})
    assert extractor.preprocessing == {**OWN, "input_size": [3, 224, 224]}
    assert "preprocessing_given" not in extractor.provenance()
