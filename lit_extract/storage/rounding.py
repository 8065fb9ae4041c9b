"""The precision of a features file, as noted by :mod:`lit_extract.jobs.float32_check`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_extract.common.errors import name_some
from lit_extract.common.untrusted import shorten
from lit_extract.storage.seen import part_seen

NOTE = "precision_check"  # in the notes of a store and of a features file; features_form.py has its form
FLOAT32 = 1e-5  # relative errors below this come from another order of summation


def describe(metadata: Mapping[str, Any], layers: Sequence[str], pool: str) -> str:
    """Return the precision of a features file, the part of an image that was seen, and the result of the check."""
    provenance = metadata["provenance"]
    text = str(provenance.get("precision", "unknown precision"))
    if seen := part_seen(provenance.get("preprocessing")):
        text += f", sees {seen}"
    check = metadata["notes"].get(NOTE, {})
    if "failed" in check:
        return f"{text}; not checked against float32: {shorten(check['failed'], 400)}"
    errors = _by_layer(metadata, layers, pool, "relative_error")
    if not errors:
        return f"{text}; not checked against float32"
    layer = max(errors, key=lambda layer: errors[layer])
    if errors[layer] < FLOAT32:
        return f"{text}; no rounding beyond float32"
    text += f"; rounding: at most {_share(errors[layer])} a layer's size ({layer})"
    differences = _by_layer(metadata, layers, pool, "of_differences").values()
    return f"{text}, {_share(max(differences))} the differences between stimuli" if differences else text


def _share(part: float) -> str:
    """Return a share as text: ``0.8 % of``, ``3.5 times``."""
    return f"{100 * part:.2g} % of" if part < 1 else f"{part:.2g} times"


def _by_layer(metadata: Mapping[str, Any], layers: Sequence[str], pool: str, what: str) -> dict[str, float]:
    """Return values of the note by layer, without layers for which there is none."""
    values = metadata["notes"].get(NOTE, {}).get("pools", {}).get(pool, {}).get(what, [])
    if len(values) != len(layers):
        return {}
    return {layer: value for layer, value in zip(layers, values, strict=True) if value is not None}


def warning(metadata: Mapping[str, Any], layers: Sequence[str], pool: str) -> str | None:
    """Return a sentence on layers in which rounding is as large as the differences between stimuli; None if none is."""
    lost = [layer for layer, value in _by_layer(metadata, layers, pool, "of_differences").items() if value >= 1]
    if not lost:
        return None
    precision = str(metadata["provenance"].get("precision"))
    way_out = "" if precision == "32-true" else "; extract again with --trainer.precision 32-true --overwrite"
    return (
        f"the rounding error of {precision} is as large as the differences between stimuli, in "
        f"{name_some(lost, 3)}{way_out}"
    )
