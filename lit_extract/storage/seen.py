"""The part of an image that a model sees, in words. No torch here."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from lit_extract.common.untrusted import ShortText

_Side = Annotated[int, Field(ge=1, lt=2**31)]


class Geometry(TypedDict, total=False):
    """The settings of preprocessing that determine the part, as in files: timm's, or those of a processor."""

    input_size: tuple[_Side, _Side, _Side] | Annotated[list[_Side], Field(min_length=3, max_length=3)]  # 3, H, W
    crop_pct: Annotated[float, Field(ge=0.001, le=1000)]
    crop_mode: ShortText
    image_processor: ShortText
    backend: ShortText
    settings: dict[str, Any]  # of a processor, of any kind


_SIDES = ("height", "width")
# Settings of a processor that only resizes and cuts out the middle.
_PLAIN = frozenset(
    "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std "
    "do_convert_rgb data_format image_processor_type video_processor_type default_to_square".split()
)


def part_seen(preprocessing: Mapping[str, Any] | None) -> str:
    """Return the part of an image that a model sees, such as 'the whole picture, squashed to 224 × 224'.

    This is for timm's evaluation transform, or an image processor of Transformers that only resizes and crops. Sizes
    and parts are height × width. The result is "" unless all settings that matter are known; captions have none.
    """
    if not preprocessing:
        return ""
    if {"input_size", "crop_pct", "crop_mode"} <= preprocessing.keys():
        mode, (_, *target) = preprocessing["crop_mode"], preprocessing["input_size"]
        resized = [math.floor(side / preprocessing["crop_pct"]) for side in target]  # before the middle is cut out
        if mode != "squash":  # a square picture stays square: it fits into that, or covers it
            resized = [min(resized) if mode == "border" else max(resized)] * 2
        return _in_words(mode, resized, target)
    return _processed(preprocessing.get("settings", {}))


def _processed(settings: Mapping[str, Any]) -> str:
    """Return the part that a processor of Transformers leaves; "" unless its settings, which a file has, are plain."""
    active = {name for name, value in settings.items() if value not in (None, False)}
    if settings.get("do_resize") is not True or not active <= _PLAIN:
        return ""
    crops, size = settings.get("do_center_crop") is True, _sides(settings.get("size"))
    target = _sides(settings.get("crop_size")) if crops else size
    resized = {**size, **dict.fromkeys(_SIDES, size["shortest_edge"])} if [*size] == ["shortest_edge"] else size
    if not {*_SIDES} <= target.keys() or not {*_SIDES} <= resized.keys():
        return ""
    mode = "squash" if resized is size else "center"
    return _in_words(mode, [resized[side] for side in _SIDES], [target[side] for side in _SIDES])


def _sides(size: Any) -> dict[str, int]:
    is_known = isinstance(size, dict) and all(type(side) is int and 1 <= side < 2**31 for side in size.values())
    return size if is_known else {}


def _in_words(mode: str, resized: list[int], target: list[int]) -> str:
    """Describe the part; ``resized`` is the size of a square picture before its middle, ``target``, is cut out."""
    parts = [min(1, side / max(1, whole)) for side, whole in zip(target, resized, strict=True)]
    if min(parts) < 1:
        picture = "the picture" if mode == "squash" else "a square picture"
        height, width, area = map(_percent, (*parts, math.prod(parts)))
        what = f"the middle {height} × {width} of {picture} ({area} of its area)"
    else:
        what = "the whole picture" if mode in ("squash", "border") else "the middle square of the picture"
    how = {"squash": "squashed to {}", "border": "fitted into {} with a border"}.get(mode, "resized to {}")
    return f"{what}, {how.format(' × '.join(map(str, target)))}"


def _percent(part: float) -> str:
    """Return a share as text; less than all is never ``100 %``."""
    return "100 %" if part == 1 else f"{min(99, round(100 * part))} %"
