"""The form of a features file: the one description for all readers and writers (``docs/store-format.md``).

N stimuli, L layers, D hidden size, T tokens.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, BinaryIO, NamedTuple, Required

import numpy as np
from pydantic import Field, InstanceOf, StringConstraints, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12; unknown keys are allowed

from lit_extract.common.errors import name_some
from lit_extract.common.untrusted import Count, OneName, ShortText, Text, shorten, validate
from lit_extract.storage.archive import TensorRecord, read_content
from lit_extract.storage.layout import (
    FEATURES_FORMAT,
    INPUT_COLUMNS,
    INPUTS,
    MAX_AXES,
    MAX_DIM,
    MAX_LAYERS,
    MAX_TOKENS,
    N_EXCLUDED,
    N_SINKS,
    TOKEN_IDS,
    Shape,
    check_format,
    is_plain,
    shapes_in_words,
)
from lit_extract.storage.provenance import OF_CAPTIONS, kind_of
from lit_extract.storage.rounding import NOTE
from lit_extract.storage.seen import Geometry

MEANS = ("loss", "bpb")  # means over stimuli, for captions; the values of rows are row_<name>

# Data types of feats: the name in a TensorRecord, and ours.
FEATS_DTYPES: Mapping[str, str] = {"<f4": "float32", "<f2": "float16", "|V2": "bfloat16"}

# Data type and number of axes of each other tensor; all have one row per stimulus.
TENSORS: Mapping[str, tuple[str, int]] = {
    "mask": ("|u1", 2),  # (N, T), for captions
    TOKEN_IDS: ("<i4", 2),  # (N, T), if all tokens of captions are kept; 0 where mask is 0
    N_EXCLUDED: ("<i4", 1),  # (N,), if poolings leave out some tokens of captions
    N_SINKS: ("<i4", 2),  # (N, L), likewise
    INPUTS: ("<i8", 2),  # (N, 4), for images and captions
    **{f"row_{name}": ("<f4", 1) for name in MEANS},  # (N,), for captions, if asked for
}

_Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]  # whoever prints it uses ``shorten``
_StimulusId = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[str, StringConstraints(min_length=1)]


class Provenance(TypedDict, total=False):
    """The settings that determine the numbers."""

    model: Required[_Name]
    pool: Required[OneName]
    options: dict[str, Any]
    weights: _Name
    layers: list[ShortText]
    dataset: _Name
    subset: _Name
    dtype: ShortText
    query: str | None  # of any length, on several lines
    n_stimuli: Count
    precision: ShortText
    preprocessing: Geometry | None
    prompt_name: _Name | None
    tokens_sha256: ShortText
    exclude_bos: bool | Text
    exclude: list[ShortText]
    longest_caption: Count
    loss: bool


class _Rounding(TypedDict, total=False):
    relative_error: list[float | None]
    of_differences: list[float | None]


class _PrecisionCheck(TypedDict, total=False):
    failed: str  # any error of another library
    pools: dict[str, _Rounding]


class Notes(TypedDict, total=False):
    """Further facts, which may differ between runs with the same provenance."""

    lit_extract: ShortText
    created: ShortText
    root: str | None
    tag: ShortText
    sweep: bool  # made by a sweep over all models of its kind
    exif_rotations: Count
    repaired_rows: list[Count]
    captions_of_rows: list[dict[str, Any]]  # if some rows are of captions that were edited later
    head_meaning: ShortText  # with pooling head: the meaning of the model's output
    precision_check: _PrecisionCheck


class Metadata(TypedDict, total=False):
    """Format (absent in the oldest files), provenance, notes, and the rows without numbers."""

    format: int
    provenance: Required[Provenance]
    notes: Required[Notes]
    bad_input_rows: Required[list[Count]]
    not_finite_rows: Required[list[Count]]
    n_bytes_sha256: Text | None


class Content(TypedDict, total=False):
    """A features file; it may also have the other ``TENSORS``."""

    # (N, L, D), or (N, L, T, D); by layer (N, D), or (N, T, D), if layers differ in shape
    feats: Required[InstanceOf[TensorRecord] | dict[ShortText, InstanceOf[TensorRecord]]]
    num_params: Required[Annotated[int, Field(gt=0, lt=2**63)]]
    layers: Required[list[ShortText]]
    stimulus_ids: Required[list[_StimulusId]]
    metadata: Required[Metadata]
    loss: InstanceOf[float]
    bpb: InstanceOf[float]


assert NOTE in Notes.__annotations__
METADATA: TypeAdapter[Metadata] = TypeAdapter(Metadata)
_CONTENT: TypeAdapter[Content] = TypeAdapter(Content)

# Keys that the provenance of every current file has.
_OF_TODAY = frozenset({"model", "options", "weights", "layers", "pool", "dataset", "subset", "n_stimuli", "precision"})


def read_features_content(file: BinaryIO) -> dict[str, Any]:
    """Return what :func:`read_content` returns; raise ValueError if it is not a consistent features file."""
    content = read_content(file)
    if problems := inconsistencies(content):
        raise ValueError("; ".join(problems))
    return content


def inconsistencies(content: Mapping[str, Any], of_today: bool = False) -> list[str]:
    """List problems of a file's content: missing, of the wrong type, or inconsistent. Numbers are not read.

    Args:
        content: As :func:`~lit_extract.storage.archive.read_content` returns it.
        of_today: Require everything that current files have; earlier files and those of tests may lack some of it.
    """
    try:
        metadata = content.get("metadata")
        if isinstance(metadata, dict) and type(metadata.get("format")) is int:  # a newer one may be of another form
            check_format(metadata["format"], FEATURES_FORMAT, metadata.get("notes"))
        validate(_CONTENT, content, "content")
    except ValueError as error:  # an InputError is one
        return [str(error)]
    provenance = content["metadata"]["provenance"]
    if problem := _wrong_feats(content["feats"]):
        return [problem]
    form = form_of(content)
    n, n_layers = form.n_stimuli, len(form.layer_shapes)
    if content["metadata"].get("format", 1) < FEATURES_FORMAT and not is_plain(form.layer_shapes, form.dtype):
        return [f"it has features that need format {FEATURES_FORMAT}, but states an earlier format"]
    problems = _wrong_names("layers", content["layers"], n_layers)
    if isinstance(content["feats"], dict) and [*content["feats"]] != content["layers"]:
        problems.append("the names in feats differ from its layers")
    problems += _wrong_names("stimulus_ids", content["stimulus_ids"], n)
    problems += _wrong_row_lists(content["metadata"], n)
    if of_today:
        if missing := _OF_TODAY - set(provenance):
            return [f"its provenance has no {', '.join(sorted(missing))}"]
        problems += [] if "format" in content["metadata"] else ["its metadata have no format"]
        if provenance["layers"] != content["layers"]:
            problems.append("layers differ from those of its provenance")
        if provenance["n_stimuli"] != n:
            problems.append(f"n_stimuli of its provenance is {provenance['n_stimuli']}, but it has {n} rows")
    return problems + _wrong_extras(content, n, of_today)


class Form(NamedTuple):
    """The form of features."""

    n_stimuli: int
    layer_shapes: list[Shape]  # of a row in each layer, such as (D,)
    dtype: str


def form_of(content: Mapping[str, Any]) -> Form:
    """Return the form of a features file's content, which must have passed :func:`inconsistencies`."""
    first, *_ = records = feats_records(content)
    dtype = FEATS_DTYPES[first.dtype]
    if isinstance(content["feats"], dict):
        return Form(first.shape[0], [record.shape[1:] for record in records], dtype)
    n, n_layers, *shape = first.shape
    return Form(n, [tuple(shape)] * n_layers, dtype)


def feats_records(content: Mapping[str, Any]) -> list[TensorRecord]:
    """Return the tensors of features: one with all layers, or one per layer."""
    feats = content["feats"]
    return list(feats.values()) if isinstance(feats, dict) else [feats]


def _wrong_feats(feats: TensorRecord | dict[str, TensorRecord]) -> str | None:
    by_layer = isinstance(feats, dict)
    records, others = (list(feats.values()), 1) if isinstance(feats, dict) else ([feats], 2)
    for record in records:
        if record.dtype not in FEATS_DTYPES or not 1 <= len(record.shape) - others <= MAX_AXES:
            axes = " or ".join(str(others + n) for n in range(1, MAX_AXES + 1))
            return f"feats is not a {' or '.join(FEATS_DTYPES.values())} tensor of {axes} axes"
        if 0 in record.shape:
            return f"feats is empty: its shape is {record.shape}"
        if max(record.shape[others:]) > MAX_DIM:
            return f"feats has {max(record.shape[others:]):,} dimensions; at most {MAX_DIM:,} are possible"
    if not records or len({(record.dtype, record.shape[0]) for record in records}) > 1:
        return "feats has no layers, or layers that differ in rows or data type"
    n_layers = len(records) if by_layer else records[0].shape[1]
    return f"feats has {n_layers:,} layers; at most {MAX_LAYERS:,} are possible" if n_layers > MAX_LAYERS else None


def _wrong_names(what: str, names: Sequence[int | str], n: int) -> list[str]:
    if len(names) != n:
        return [f"{len(names)} {what} for {n}"]
    if len(set(map(type, names))) > 1:
        return [f"{what} are not all int or all str"]
    if len(set(names)) < n:
        twice = [shorten(str(name)) for name, times in Counter(names).most_common(10) if times > 1]
        return [f"{what} occur twice: {name_some(twice)}"]
    return []


def _wrong_row_lists(metadata: Mapping[str, Any], n: int) -> list[str]:
    lists = {what: metadata[what] for what in ("bad_input_rows", "not_finite_rows")}
    problems = [
        f"{what} must list rows 0 to {n - 1}, each once"
        for what, rows in lists.items()
        if max(rows, default=0) >= n or len(set(rows)) < len(rows)
    ]
    if not problems and (both := set.intersection(*map(set, lists.values()))):
        problems.append(f"rows {rows_text(both)} are in bad_input_rows and in not_finite_rows")
    return problems


def rows_text(rows: Iterable[int]) -> str:
    """Return the first few rows, sorted."""
    return name_some([str(row) for row in sorted(rows)], 10)


def _wrong_extras(content: Mapping[str, Any], n: int, of_today: bool) -> list[str]:
    """List problems of further tensors: those that a file may have, and those that current files of captions have."""
    provenance = content["metadata"]["provenance"]
    is_of_captions = of_today and kind_of(provenance) in OF_CAPTIONS
    has_loss = any(f"row_{name}" in content for name in MEANS) or (is_of_captions and provenance.get("loss"))
    has_tokens = TOKEN_IDS in content or (is_of_captions and provenance["pool"] == "tokens")
    excluded = set(provenance.get("exclude", ())) if is_of_captions else set()
    wanted = {"mask": is_of_captions or has_loss or has_tokens, TOKEN_IDS: has_tokens}
    wanted |= {N_EXCLUDED: bool(excluded - {"sinks"}), N_SINKS: "sinks" in excluded}
    wanted |= {f"row_{name}": has_loss for name in MEANS}
    problems = [
        _wrong_tensor(name, content.get(name), n) for name in TENSORS if name in content or wanted.get(name, False)
    ]
    problems += [f"{name} is missing" for name in MEANS if has_loss and name not in content]
    found = [problem for problem in problems if problem]
    if not found and N_SINKS in content and content[N_SINKS].shape[1] != len(content["layers"]):
        found = [f"{N_SINKS} has {content[N_SINKS].shape[1]} columns for {len(content['layers'])} layers"]
    return found or (_wrong_widths(content) if has_tokens else [])


def _wrong_widths(content: Mapping[str, Any]) -> list[str]:
    """Check that features of all tokens, their ids, the mask and the provenance have the same number of tokens."""
    shapes, ids = form_of(content).layer_shapes, content[TOKEN_IDS].shape[1]
    others = content["mask"].shape[1], content["metadata"]["provenance"].get("longest_caption", ids)
    if {(len(shape), shape[0]) for shape in shapes} == {(MAX_AXES, ids)} and {*others} == {ids}:
        return []
    found = f"mask {others[0]}, the longest caption {others[1]}, and a row of feats {shapes_in_words(shapes)}"
    return [f"{TOKEN_IDS} has {ids} tokens, {found}"]


def _wrong_tensor(name: str, tensor: Any, n: int) -> str | None:
    dtype, axes = TENSORS[name]
    if not isinstance(tensor, TensorRecord) or (tensor.dtype, len(tensor.shape)) != (dtype, axes):
        return f"{name} is not a tensor of {np.dtype(dtype).name} with {axes} axes"
    if tensor.shape[0] != n:
        return f"{name} has {tensor.shape[0]} rows for {n}"
    if name == INPUTS and tensor.shape[1] != len(INPUT_COLUMNS):
        return f"{name} has {tensor.shape[1]} columns for {len(INPUT_COLUMNS)}"
    if name == "mask" and tensor.shape[1] > MAX_TOKENS:
        return f"{name} has {tensor.shape[1]:,} tokens; at most {MAX_TOKENS:,} are possible"
    return None
