"""Compare the settings that determine the numbers."""

import json
from collections.abc import Mapping
from typing import Any

from lit_extract.common.errors import name_some

STIMULI = "stimuli_sha256"
CAPTIONS = "tokens_sha256"
OF_CAPTIONS = ("language", "text_encoder")  # kinds of models
_OF_STIMULI = (STIMULI, "n_stimuli", "query", "limit")
_LONGEST = 60


def kind_of(provenance: Mapping[str, Any]) -> str:
    """Return the kind of model that made features, one of the kinds of models.yml.

    Features of captions have a hash of tokens, and text encoders also ``special_tokens``; features of images that a
    model was asked about have the prompt's text.
    """
    if CAPTIONS in provenance:
        return "text_encoder" if "special_tokens" in provenance else "language"
    return "vision_language" if "prompt_text" in provenance else "vision"


def differing(
    old: Mapping[str, Any], new: Mapping[str, Any], old_root: str | None = None, new_root: str | None = None
) -> str:
    """Return the settings that differ, each with both values, long ones shortened; "" if none differs.

    The roots are the folders of the images then and now, if known.
    """
    old, new = (json.loads(json.dumps(settings)) for settings in (old, new))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    other_roots = None not in (old_root, new_root) and old_root != new_root
    if STIMULI in keys and other_roots:
        return f"the stimuli were those of {old_root!r}, now those of {new_root!r}, which are different"
    return name_some([_difference(key, old.get(key), new.get(key)) for key in keys], limit=8)


def to_keep_both(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return how a run with other settings gets files of its own; with other stimuli, it needs a folder of its own."""
    if any(old.get(key) != new.get(key) for key in _OF_STIMULI):
        return "name these stimuli with --data.subset NAME"
    return "name this run with --tag NAME"


def _difference(key: str, old: Any, new: Any) -> str:
    if key == STIMULI and None not in (old, new):
        return "the stimuli are different, or in another order"
    nested = isinstance(old, dict) and isinstance(new, dict)
    if nested and (names := [name for name in {**old, **new} if old.get(name) != new.get(name)]):
        return name_some([_difference(f"{key}.{name}", old.get(name), new.get(name)) for name in names], limit=8)
    if isinstance(old, list) and isinstance(new, list) and max(len(repr(old)), len(repr(new))) > _LONGEST:
        first = next((k for k, both in enumerate(zip(old, new, strict=False)) if both[0] != both[1]), None)
        at = f" (at {first}: {_cut(old[first])}, now {_cut(new[first])})" if first is not None else ""
        return f"{key} had {len(old)} entries, now {len(new)}{at}"
    return f"{key} was {_cut(old)}, now {_cut(new)}"


def _cut(value: Any) -> str:
    """Shorten a long value to its ends, where paths and names differ."""
    text, half = repr(value), _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"


def features_provenance(provenance: dict[str, Any], pool: str) -> dict[str, Any]:
    """Return the provenance of one pooling's file."""
    return {**provenance, "pool": pool}
