"""What a features file holds: one description, which all that read one rely on (``docs/store-format.md``).

N stimuli, L layers, D hidden size, T tokens.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Required

import numpy as np
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import Count, OneName, ShortText, Text, shorten, validate
from lit_extract.storage.archive import TensorRecord, read_content
from lit_extract.storage.layout import (
    FEATURES_FORMAT,
    FEATURES_KEYS,
    INPUT_COLUMNS,
    INPUTS,
    MAX_DIM,
    MAX_LAYERS,
    MAX_TOKENS,
    check_format,
)
from lit_extract.storage.provenance import kind_of
from lit_extract.storage.rounding import NOTE

MEANS = ("loss", "bpb")  # of captions, over stimuli; the rows are row_<name>

_Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]  # whoever prints it uses ``shorten``
_LAYERS: TypeAdapter[list[str]] = TypeAdapter(list[ShortText])
_OPEN = ConfigDict(extra="allow")


@with_config(_OPEN)
class _Preprocessing(TypedDict, total=False):
    input_size: tuple[Count, Count, Count] | Annotated[list[Count], Field(min_length=3, max_length=3)]


@with_config(_OPEN)
class Provenance(TypedDict, total=False):
    """What determines the numbers."""

    model: Required[_Name]
    pool: Required[OneName]
    options: dict[str, Any]
    weights: _Name
    layers: list[ShortText]
    dataset: _Name
    subset: _Name
    query: str | None  # of any length, on several lines
    n_stimuli: Count
    precision: ShortText
    preprocessing: _Preprocessing | None
    prompt_name: _Name | None
    tokens_sha256: ShortText
    exclude_bos: bool | Text
    loss: bool


@with_config(_OPEN)
class _Rounding(TypedDict, total=False):
    relative_error: list[float | None]
    of_differences: list[float | None]


@with_config(_OPEN)
class _Check(TypedDict, total=False):
    failed: str  # another library's error, of any kind
    pools: dict[str, _Rounding]


@with_config(_OPEN)
class Notes(TypedDict, total=False):
    """What is worth knowing and may differ."""

    lit_extract: ShortText
    created: ShortText
    root: str | None
    exif_rotations: Count
    repaired_rows: list[Count]
    precision_check: _Check


assert NOTE in Notes.__annotations__


@with_config(_OPEN)
class Metadata(TypedDict, total=False):
    """Format (absent in the oldest files), provenance, notes, and the rows without numbers."""

    format: int
    provenance: Required[Provenance]
    notes: Required[Notes]
    bad_input_rows: Required[list[Count]]
    not_finite_rows: Required[list[Count]]
    n_bytes_sha256: Text | None


METADATA: TypeAdapter[Metadata] = TypeAdapter(Metadata)


def read_features_content(source: Path | BinaryIO) -> dict[str, Any]:
    """Return the content of a features file, checked, with a record in the place of each tensor; no numbers are read.

    Raises:
        ValueError: It is none, or what it says does not fit together.
        OSError: It can't be read.
    """
    content = read_content(source)
    if problems := inconsistencies(content):
        raise ValueError("; ".join(problems))
    return content


def inconsistencies(content: Mapping[str, Any], of_today: bool = False) -> list[str]:
    """What of a file's content is missing, of another kind, or at odds with the rest; its numbers are not read.

    Args:
        content: As :func:`~lit_extract.storage.archive.read_content` gives it.
        of_today: It must have all that today's files have; else earlier ones and those of tests may lack some.
    """
    if missing := FEATURES_KEYS - set(content):
        return [f"it has no {', '.join(sorted(missing))}"]
    feats, metadata = content["feats"], content["metadata"]
    if not isinstance(feats, TensorRecord) or len(feats.shape) != 3 or 0 in feats.shape or feats.dtype != "<f4":
        return ["feats are no float32 tensor of stimuli, layers and dimensions"]
    n, n_layers, dim = feats.shape
    if n_layers > MAX_LAYERS or dim > MAX_DIM:
        return [f"feats have {n_layers:,} layers and {dim:,} dimensions; {MAX_LAYERS:,} and {MAX_DIM:,} are possible"]
    if wrong := _wrong_metadata(metadata):
        return [wrong]
    problems = _wrong_layers(content["layers"], n_layers)
    problems += _wrong_names("stimulus_ids", content["stimulus_ids"], n, (int, str))
    if of_today:
        problems += _gaps(content, n)
    if type(content["num_params"]) is not int or not 0 < content["num_params"] < 2**63:
        problems.append(f"num_params is {shorten(content['num_params'])}")
    problems += _wrong_row_lists(metadata["bad_input_rows"], metadata["not_finite_rows"], n)
    return problems + _wrong_extras(content, n, of_today)


def _gaps(content: Mapping[str, Any], n: int) -> list[str]:
    """What is missing of what today's files have, and does not fit."""
    metadata, provenance = content["metadata"], content["metadata"]["provenance"]
    if missing := _OF_TODAY - set(provenance):
        return [f"its provenance has no {', '.join(sorted(missing))}"]
    problems = [] if "format" in metadata else ["its metadata have no format"]
    if provenance["layers"] != content["layers"]:
        problems.append("layers are not those of its provenance")
    if provenance["n_stimuli"] != n:
        problems.append(f"n_stimuli of its provenance is {provenance['n_stimuli']}, but it has {n} rows")
    return problems


_OF_TODAY = frozenset({"model", "options", "weights", "layers", "pool", "dataset", "subset", "n_stimuli", "precision"})


def _wrong_layers(layers: Any, n: int) -> list[str]:
    if problems := _wrong_names("layers", layers, n, (str,)):
        return problems
    try:
        validate(_LAYERS, layers, "layers")
    except InputError as error:
        return [str(error)]
    return []


def _wrong_metadata(metadata: Any) -> str | None:
    if not isinstance(metadata, dict):
        return "metadata are no dict"
    found, notes = metadata.get("format", 1), metadata.get("notes")
    made_by = notes.get("lit_extract") if isinstance(notes, dict) else None
    try:
        shown = found if type(found) is int else shorten(found)
        check_format(shown, FEATURES_FORMAT, {"lit_extract": made_by and shorten(made_by)})
        validate(METADATA, metadata, "metadata")
    except ValueError as error:  # an InputError is one
        return str(error)
    return None


def _wrong_names(what: str, names: Any, n: int, kinds: tuple[type, ...]) -> list[str]:
    if not isinstance(names, list) or not any(set(map(type, names)) == {kind} for kind in kinds):
        return [f"{what} are no list of {' or of '.join(kind.__name__ for kind in kinds)}"]
    if len(names) != n:
        return [f"{len(names)} {what} for {n}"]
    if "" in names or (type(names[0]) is int and not -(2**63) <= min(names) <= max(names) < 2**63):
        return [f"{what} have an empty name, or a number of more than 64 bits"]
    if len(set(names)) < n:
        twice = [shorten(str(name)) for name, times in Counter(names).most_common(10) if times > 1]
        return [f"{what} occur twice: {name_some(twice)}"]
    return []


def _wrong_row_lists(bad_input: list[int], not_finite: list[int], n: int) -> list[str]:
    problems = [
        f"{what} are no list of rows 0 to {n - 1}, each once"
        for what, rows in (("bad_input_rows", bad_input), ("not_finite_rows", not_finite))
        if max(rows, default=0) >= n or len(set(rows)) < len(rows)
    ]
    if not problems and (both := set(bad_input) & set(not_finite)):
        problems.append(f"rows {rows_text(both)} are in bad_input_rows and in not_finite_rows")
    return problems


def rows_text(rows: Iterable[int]) -> str:
    """The first few of some rows."""
    return name_some([str(row) for row in sorted(rows)], 10)


def _wrong_extras(content: Mapping[str, Any], n: int, of_today: bool) -> list[str]:
    """Of what a file may have besides, and of what captions have today: the mask, and losses that were asked for."""
    provenance = content["metadata"]["provenance"]
    is_of_captions = of_today and kind_of(provenance) == "language"
    forms: dict[str, tuple[str, int]] = {"mask": ("|u1", 2), INPUTS: ("<i8", 2)}
    forms |= {f"row_{name}": ("<f4", 1) for name in MEANS}
    has_loss = any(f"row_{name}" in content for name in MEANS) or (is_of_captions and provenance.get("loss"))
    wanted = {"mask": is_of_captions or has_loss, **{f"row_{name}": has_loss for name in MEANS}}
    problems = []
    for name, (dtype, axes) in forms.items():
        tensor = content.get(name)
        if name not in content and not wanted.get(name):
            continue
        if not isinstance(tensor, TensorRecord) or (tensor.dtype, len(tensor.shape)) != (dtype, axes):
            problems.append(f"{name} is no {np.dtype(dtype).name} tensor of {axes} axes")
        elif tensor.shape[0] != n:
            problems.append(f"{name} has {tensor.shape[0]} rows for {n}")
        elif name == INPUTS and tensor.shape[1] != len(INPUT_COLUMNS):
            problems.append(f"{name} has {tensor.shape[1]} columns for {len(INPUT_COLUMNS)}")
        elif name == "mask" and tensor.shape[1] > MAX_TOKENS:
            problems.append(f"{name} has {tensor.shape[1]:,} tokens; {MAX_TOKENS:,} are possible")
    return problems + [
        f"{name} is no number"
        for name in MEANS
        if (name in content or has_loss) and type(content.get(name)) is not float
    ]
