"""Read ``models.yml``."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, StringConstraints, TypeAdapter

from lit_extract.common.errors import InputError, name_some, nearest
from lit_extract.common.shipped import shipped_file
from lit_extract.common.untrusted import MAX_PATH_BYTES, Text, expanded_path, read_yaml, shorten, validate_json

# Kinds of models, and their extractors.
KINDS = {
    "vision": "VisionExtractor",
    "language": "LanguageExtractor",
    "text_encoder": "TextEncoderExtractor",
    "vision_language": "VisionLanguageExtractor",
}

_Name = Annotated[Text, StringConstraints(min_length=1, max_length=MAX_PATH_BYTES)]


@dataclass(frozen=True)
class ModelEntry:
    """One model of models.yml."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    name: _Name  # in timm or on the Hugging Face hub; names the features file
    checkpoint: _Name | None = None  # local weights to load instead of those on the hub
    revision: _Name | None = None  # branch, tag or commit on the hub
    options: dict[str, Any] = field(default_factory=dict)  # further arguments for the backbone's constructor


_ENTRY = TypeAdapter(ModelEntry)


def default_models_file() -> Path:
    """Return ``models.yml`` of the working directory, else the one shipped with the package."""
    own = Path("models.yml")
    return own if own.is_file() else shipped_file("models.yml") or own


def read_models(path: str | Path | None = None) -> dict[str, list[ModelEntry]]:
    """Return the entries of each kind in a models file, in its order.

    Raises:
        InputError: The file is missing, is not YAML, or an entry is neither a name nor a mapping with ``name``.
    """
    path = expanded_path(path, "models") if path is not None else default_models_file()
    what = f"models file {path}"
    content = read_yaml(path, what) or {}
    if (
        not isinstance(content, dict)
        or not set(content) <= set(KINDS)
        or not all(isinstance(entries, list | None) for entries in content.values())
    ):
        raise InputError(f"{what}: expected lists under {' and '.join(KINDS)}")
    return {kind: [_entry(what, kind, raw) for raw in content.get(kind) or []] for kind in KINDS}


def own_name(name: str) -> str:
    """Return a model's name: the last part of the path of a local folder; other names are returned unchanged."""
    prefix, colon, path = name.partition(":")
    if not (prefix == "local-dir" and colon):
        path = name
        if not os.path.isdir(name):  # noqa: PTH112 (Path's raises if it is too long)
            return name
    if own := Path(path).resolve().name:
        return own
    raise InputError(f"model.name: the folder {path!r} has no name for the features file")


def find_model(kind: str, name: str, path: str | Path | None = None) -> ModelEntry | None:
    """Return the entry called ``name``, or None when the file does not list it."""
    return next((entry for entry in read_models(path)[kind] if entry.name == name), None)


def matching_models(kind: str, models: str | Path | None = None, match: str | None = None) -> list[ModelEntry]:
    """Return the entries of one kind, in the order of the file.

    Raises:
        InputError: No entry matches; the message lists the names in the file.
    """
    entries = read_models(models)[kind]
    found = [entry for entry in entries if match is None or match in entry.name or fnmatch(entry.name, match)]
    if found:
        return found
    file = models or default_models_file()
    if not entries:
        raise InputError(f"models: {str(file)!r} lists no {kind} model")
    names = name_some([entry.name for entry in entries], limit=40)
    raise InputError(f"match: no {kind} model of {str(file)!r} matches {match!r}; it lists {names}")


def unknown_model(name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that timm does not know, with the closest names that it knows."""
    is_of_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    hint = "" if is_of_hub else nearest(name, known, limit=5)
    hint = hint or (
        "; timm.list_models('vit*') lists all names; models of the Hugging Face hub need --model LanguageExtractor or "
        "TransformersVisionExtractor"
    )
    return InputError(f"model.name: no model of timm is called {name!r}{hint}")


def _entry(what: str, kind: str, raw: Any) -> ModelEntry:
    settings = {"name": raw} if isinstance(raw, str) else raw
    try:
        return validate_json(_ENTRY, json.dumps(settings), what)  # from JSON, pydantic makes an object
    except InputError as error:
        raise InputError(
            f"{what}: {kind} entry {shorten(repr(raw))} must be a name or a mapping with name and any of checkpoint, "
            f"revision (both text) and options (a mapping): {str(error).removeprefix(f'{what}: ')}"
        ) from None
