"""Which part of a picture a model sees, in words. No torch here."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from lit_extract.common.untrusted import ShortText

_Side = Annotated[int, Field(ge=1, lt=2**31)]


class Geometry(TypedDict, total=False):
    """The settings of preprocessing on which the part depends, as files have them."""

    input_size: tuple[_Side, _Side, _Side] | Annotated[list[_Side], Field(min_length=3, max_length=3)]  # 3, H, W
    crop_pct: Annotated[float, Field(ge=0.001, le=1000)]
    crop_mode: ShortText


def part_seen(preprocessing: Mapping[str, Any] | None) -> str:
    """Return what timm's evaluation transform leaves of a picture, as 'the whole picture, squashed to 224 × 224'.

    Sizes and parts are height × width. Returns "" unless all of :class:`Geometry` is known: captions have none of it.
    """
    if not preprocessing or not Geometry.__annotations__.keys() <= preprocessing.keys():
        return ""
    mode, (_, *target) = preprocessing["crop_mode"], preprocessing["input_size"]
    resized = [math.floor(side / preprocessing["crop_pct"]) for side in target]  # before the middle is cut out
    if mode != "squash":  # a square picture stays square: it fits into that, or covers it
        resized = [min(resized) if mode == "border" else max(resized)] * 2
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
    """Return a part as people read it; less than all is never ``100 %``."""
    return "100 %" if part == 1 else f"{min(99, round(100 * part))} %"
