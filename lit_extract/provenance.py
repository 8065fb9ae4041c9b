"""What determines the numbers, and how two such records differ."""

import json
from collections.abc import Mapping
from typing import Any

from lit_extract.errors import name_some


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings that differ, each with both values; empty when none does."""
    old, new = (json.loads(json.dumps(settings)) for settings in (old, new))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return name_some([f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in keys], limit=20)


def features_provenance(provenance: dict[str, Any], pool: str) -> dict[str, Any]:
    """Provenance of one pooling's file."""
    return {**provenance, "pool": pool}
