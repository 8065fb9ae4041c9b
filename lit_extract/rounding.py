"""What a features file says of its own precision, as :mod:`lit_extract.float32_check` noted it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_extract.errors import name_some

NOTE = "precision_check"  # in the notes of a store and of a features file


def describe(metadata: Mapping[str, Any], layers: Sequence[str], pool: str) -> str:
    """The precision of a features file, the size of its images, and what the check has found."""
    provenance = metadata["provenance"]
    text = str(provenance.get("precision", "unknown precision"))
    if size := (provenance.get("preprocessing") or {}).get("input_size"):
        text += f", images of {size[-2]} × {size[-1]}"
    check = metadata["notes"].get(NOTE)
    if check is None:
        return f"{text}; not checked against float32"
    if "failed" in check:
        return f"{text}; not checked against float32: {check['failed']}"
    figures = check["pools"][pool]
    largest = _largest(figures["relative_error"])
    if largest is None:
        return f"{text}; nothing to compare with float32"
    layer, error = largest
    text += f"; rounding: at most {100 * error:.2g} % of a layer's size ({layers[layer]})"
    differences = _largest(figures["of_differences"])
    return text if differences is None else f"{text}, {100 * differences[1]:.2g} % of the differences between stimuli"


def _largest(values: Sequence[float | None]) -> tuple[int, float] | None:
    known = [(layer, value) for layer, value in enumerate(values) if value is not None]
    return max(known, key=lambda item: item[1]) if known else None


def lost_layers(metadata: Mapping[str, Any], layers: Sequence[str], pool: str) -> list[str]:
    """Layers in which what was rounded away is as large as the differences between stimuli, by the file's own note."""
    figures = (metadata["notes"].get(NOTE) or {}).get("pools", {}).get(pool, {}).get("of_differences", [])
    return [layer for layer, value in zip(layers, figures, strict=False) if value is not None and value >= 1]


def warning(metadata: Mapping[str, Any], layers: Sequence[str], pool: str) -> str | None:
    """One sentence about :func:`lost_layers`, with the way out; None when there are none."""
    if not (lost := lost_layers(metadata, layers, pool)):
        return None
    precision = str(metadata["provenance"].get("precision"))
    way_out = "" if precision == "32-true" else "; extract again with --trainer.precision 32-true --overwrite"
    return (
        f"what {precision} rounded away is as large as the differences between stimuli, in "
        f"{name_some(lost, 3)}{way_out}"
    )
