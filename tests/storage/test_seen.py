"""The sentence on which part of a picture is seen, against the pixels that timm's transform leaves."""

import re

import numpy as np
import pytest
import timm
from PIL import Image
from transformers import (
    BeitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DPTImageProcessor,
    LlavaImageProcessor,
    Qwen2VLImageProcessor,
    SiglipImageProcessor,
)

from lit_extract.storage.seen import part_seen


def settings(crop_mode, crop_pct, *size):
    return {"crop_mode": crop_mode, "crop_pct": crop_pct, "input_size": [3, *size]}


def ramps(height, width):
    """A picture whose red is the place across and whose green is the place down, from 0 to 255; blue is 255."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[..., 0] = np.rint(np.linspace(0, 255, width))
    pixels[..., 1] = np.rint(np.linspace(0, 255, height))[:, None]
    return Image.fromarray(pixels)


def shown(picture, preprocessing):
    """What timm leaves of a picture, (3, H, W); a border is black."""
    transform = timm.data.create_transform(**preprocessing, mean=(0, 0, 0), is_training=False, use_prefetcher=True)
    return transform(picture).numpy().astype(float)


def parts_of(pixels):
    """Height and width of the source that pixels (3, H, W) of ramps show; those of a border have no blue."""
    inside = pixels[2] > 128
    red, green = pixels[0][inside], pixels[1][inside]
    n_down, n_across = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    # from the centre of the first pixel to that of the last; half a pixel lies outside on both ends
    return tuple((ramp.max() - ramp.min()) / 255 * n / (n - 1) for ramp, n in ((green, n_down), (red, n_across)))


@pytest.mark.parametrize("size", [(224, 224), (96, 128), (128, 96)])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_the_parts_are_those_of_the_pixels(crop_mode, crop_pct, size):
    preprocessing = settings(crop_mode, crop_pct, *size)
    said = part_seen(preprocessing)
    height, width = parts_of(shown(ramps(1500, 1500), preprocessing))
    if found := re.search(r"the middle (\d+) % × (\d+) % of .*picture \((\d+) % of its area\)", said):
        parts = [int(number) / 100 for number in found.groups()]
    else:
        assert "whole" in said or "middle square" in said
        parts = [1, 1, 1]
    np.testing.assert_allclose(parts, [height, width, height * width], atol=0.02)
    assert said.count(f"{size[0]} × {size[1]}") == 1


@pytest.mark.parametrize(
    ("crop_mode", "seen"),
    [("center", (1, 0.5)), ("squash", (1, 1)), ("border", (1, 1))],
)
def test_of_a_picture_that_is_not_square(crop_mode, seen):
    """Twice as wide as high."""
    pixels = shown(ramps(600, 1200), settings(crop_mode, 1.0, 224, 224))
    np.testing.assert_allclose(parts_of(pixels), seen, atol=0.02)
    assert (pixels[2].min() < 10) == (crop_mode == "border")


@pytest.mark.parametrize(
    ("preprocessing", "said"),
    [
        (
            settings("center", 0.875, 224, 224),
            "the middle 88 % × 88 % of a square picture (77 % of its area), resized to 224 × 224",
        ),
        (settings("center", 1.0, 224, 224), "the middle square of the picture, resized to 224 × 224"),
        (settings("squash", 1, 224, 224), "the whole picture, squashed to 224 × 224"),
        (
            settings("squash", 0.9, 256, 256),
            "the middle 90 % × 90 % of the picture (81 % of its area), squashed to 256 × 256",
        ),
        (settings("border", 1.0, 384, 384), "the whole picture, fitted into 384 × 384 with a border"),
        (
            settings("center", 0.999, 1500, 1500),
            "the middle 99 % × 99 % of a square picture (99 % of its area), resized to 1500 × 1500",
        ),
        ({"context": 2048, "tokenizer": "huggingface"}, ""),
        (None, ""),
    ],
)
def test_the_sentence(preprocessing, said):
    assert part_seen(preprocessing) == said


@pytest.mark.parametrize(
    ("processor", "parts", "said"),
    [
        (
            CLIPImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
            (0.875, 0.4375),
            "the middle 88 % × 88 % of a square picture (77 % of its area), resized to 224 × 224",
        ),
        (CLIPImageProcessor(), (1, 0.5), "the middle square of the picture, resized to 224 × 224"),
        (
            SiglipImageProcessor(size={"height": 128, "width": 96}),
            (1, 1),
            "the whole picture, squashed to 128 × 96",
        ),
        (BeitImageProcessor(), (1, 1), "the whole picture, squashed to 224 × 224"),
        (LlavaImageProcessor(), (1, 0.5), "the middle square of the picture, resized to 224 × 224"),
    ],
)
def test_a_processor_of_transformers(processor, parts, said):
    """On a picture twice as wide as high, against the pixels that it leaves."""
    scale = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    (pixels,) = processor(ramps(600, 1200), **scale, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(parts_of(255 * pixels), parts, atol=0.02)
    assert part_seen({"image_processor": "any", "settings": processor.to_dict()}) == said


@pytest.mark.parametrize(
    "settings",
    [
        ConvNextImageProcessor().to_dict(),  # crops by a rule of its own
        Qwen2VLImageProcessor().to_dict(),  # as many patches as the picture needs
        DPTImageProcessor(keep_aspect_ratio=True).to_dict(),
        LlavaImageProcessor(do_pad=True).to_dict(),
        {"do_resize": True, "size": 224},
        {"do_resize": True, "size": {"height": "224", "width": 224}},
        {"do_resize": True, "size": {"height": 0, "width": 0}},
        {"do_resize": True, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": None},
        {"do_resize": "yes", "size": {"height": 224, "width": 224}},
        {},
    ],
)
def test_of_other_processors_nothing_is_said(settings):
    assert part_seen({"image_processor": "any", "settings": settings}) == ""
