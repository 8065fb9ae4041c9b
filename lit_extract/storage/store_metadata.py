"""Make, read and check the ``zarr.json`` files of a store.

Everything known about a store comes from here, as a :class:`~lit_extract.storage.layout.Layout`: no name, number or
path in it is used before all of it was checked.

N stimuli, R rows a shard.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from lit_extract.common.untrusted import Count, OneName, ShortText, Text, plain_values, shorten, validate
from lit_extract.storage.layout import (
    FEATURES_SUFFIX,
    FLOAT32,
    GROUP_KEY,
    MAX_AXES,
    MAX_DIM,
    MAX_LAYERS,
    MISSING,
    N_SINKS,
    NANS,
    NUMBER_BYTES,
    PLAIN_STORE_FORMAT,
    STATUS,
    STIMULUS_ID,
    STORE_FORMAT,
    FeatsArray,
    Layout,
    Shape,
    check_format,
    count_shards,
    extra_shape,
    feats_arrays,
)
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.seen import Geometry

# Limits, checked before anything is allocated or looped over; far above those of real stores.
MAX_METADATA_BYTES = 8 * 2**20  # of a zarr.json
MAX_ROWS = 20_000_000  # ImageNet-21k has 14 million images
MAX_SHARDS = 1_000_000
MAX_ARRAYS = 100  # poolings and extras
MAX_FEATS_ARRAYS = 10_000  # of all poolings
MAX_SHARD_BYTES = 2**40

EXTRA_DTYPES = ("uint8", "int32", "int64", "float32", "float64")
INTEGERS, TEXTS = "int64", "string"  # data types of stimulus ids


def _features_name(name: str) -> str:
    if not name.endswith(FEATURES_SUFFIX) or name.startswith("."):
        raise ValueError(f"must end in {FEATURES_SUFFIX} and not begin with a dot")
    return name


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("must be different from each other")
    return names


_Id = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
_Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_Names = Annotated[list[OneName], AfterValidator(_distinct)]
_LayerShape = Annotated[list[Annotated[int, Field(ge=1, le=MAX_DIM)]], Field(min_length=1, max_length=MAX_AXES)]


class _Provenance(TypedDict):
    """Settings that other code relies on; all others are plain values, which are only compared and shown."""

    model: NotRequired[str]
    weights: NotRequired[str]
    revision: NotRequired[str | None]
    dataset: NotRequired[str]
    subset: NotRequired[str]
    query: NotRequired[str | None]
    prompt_name: NotRequired[str | None]
    precision: NotRequired[Text]
    preprocessing: NotRequired[Geometry | None]
    n_stimuli: NotRequired[Count]
    shard_rows: NotRequired[Count]
    token_budget: NotRequired[Annotated[int, Field(ge=1, lt=2**31)] | None]
    stimuli_sha256: NotRequired[str]
    tokens_sha256: NotRequired[str]


class _Notes(TypedDict):
    files: dict[OneName, Annotated[OneName, AfterValidator(_features_name)]]
    num_params: Count
    root: NotRequired[str | None]
    tag: NotRequired[ShortText]
    sweep: NotRequired[bool]
    created: NotRequired[Text | None]
    lit_extract: NotRequired[Text | None]


class _Attributes(TypedDict):
    pools: Annotated[_Names, Field(min_length=1, max_length=MAX_ARRAYS)]
    extras: Annotated[_Names, Field(max_length=MAX_ARRAYS)]
    layers: Annotated[list[ShortText], Field(min_length=1, max_length=MAX_LAYERS), AfterValidator(_distinct)]
    shard_rows: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    provenance: _Provenance
    notes: _Notes
    kept: NotRequired[bool]


class _Unsealed(_Attributes):  # of format 1
    id: NotRequired[_Id]


class _Sealed(_Attributes):  # of format 2
    id: _Id
    stimulus_ids_sha256: _Sha256
    checksum: _Sha256


class _Formed(_Sealed):  # of formats 3 and 4
    layer_shapes: Annotated[list[_LayerShape], Field(min_length=1, max_length=MAX_LAYERS)]
    dtype: Literal["float32", "float16", "bfloat16"]


class _Shaped(TypedDict):
    shape: list[Annotated[int, Field(ge=1)]]
    data_type: str


_FORMS: dict[int, TypeAdapter[Any]] = {
    version: TypeAdapter(form) for version, form in enumerate([_Unsealed, _Sealed, _Formed, _Formed], start=1)
}
_SHAPED: TypeAdapter[Any] = TypeAdapter(_Shaped)


# making metadata


def feats_metadata(feats: Iterable[FeatsArray], n: int, rows: int, dtype: str) -> dict[str, dict[str, Any]]:
    """Return the content of the ``zarr.json`` of each array of features."""
    arrays: dict[str, dict[str, Any]] = {}
    in_zarr, fill = ("uint16", NANS[dtype]) if dtype == "bfloat16" else (dtype, "NaN")
    for array in feats:
        axes = [*(["layer"] if array.is_stacked else []), *["token", "dim"][-len(array.layer_shape) :]]
        inner = (rows, *([1] if array.is_stacked else []), *array.layer_shape)
        codecs = [_sharding(inner, in_zarr)]  # activations don't compress; flipped bits are found
        shard = rows, *array.row_shape
        arrays[array.name] = _array((n, *array.row_shape), in_zarr, shard, fill, codecs, ("stimulus", *axes))
    return arrays


def rows_metadata(
    version: int, extras: Mapping[str, str], n: int, rows: int, ids: str, layer_shapes: Sequence[Shape]
) -> dict[str, dict[str, Any]]:
    """Return the same for status, extras, and the stimulus ids, which have data type ``ids``."""
    arrays: dict[str, dict[str, Any]] = {}
    for name, dtype in {STATUS: "uint8", **extras}.items():
        shape = extra_shape(name, layer_shapes)
        codecs = [_sharding((rows, *shape), dtype)] if version > 1 else [_bytes(dtype), _CRC32C]
        fill = float(MISSING) if dtype.startswith("float") else MISSING
        axes = ("stimulus", *["layer" if name == N_SINKS else "token"] * len(shape))
        arrays[name] = _array((n, *shape), dtype, (rows, *shape), fill, codecs, axes)
    codecs = [_bytes(ids), *([_ZSTD] if version == 1 else []), _CRC32C]
    arrays[STIMULUS_ID] = _array((n,), ids, (n,), "" if ids == TEXTS else 0, codecs, ("stimulus",))
    return arrays


_CRC32C = {"name": "crc32c"}
_ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}


def _bytes(dtype: str) -> dict[str, Any]:
    if dtype == TEXTS:
        return {"name": "vlen-utf8", "configuration": {}}
    return {"name": "bytes"} | ({} if dtype == "uint8" else {"configuration": {"endian": "little"}})


def _sharding(chunk: Sequence[int], dtype: str) -> dict[str, Any]:
    index_codecs = [_bytes("uint64"), _CRC32C]
    codecs = {"codecs": [_bytes(dtype), _CRC32C], "index_codecs": index_codecs, "index_location": "end"}
    return {"name": "sharding_indexed", "configuration": {"chunk_shape": list(chunk), **codecs}}


def _array(
    shape: Sequence[int], dtype: str, chunk: Sequence[int], fill: Any, codecs: list[Any], names: Sequence[str]
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(names),
        "storage_transformers": [],
    }


def group_content(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """Return the bytes of the group's own ``zarr.json``, with a new checksum if its format has one."""
    if attributes["format"] > 1:
        attributes = {**attributes, "checksum": checksum(attributes, arrays)}
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2).encode()


def checksum(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Return the hash of all metadata: the attributes except ``checksum`` itself, and the arrays' metadata."""
    known = {name: value for name, value in attributes.items() if name != "checksum"}
    return hashlib.sha256(canonical([known, arrays]).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Return the canonical text of a value, which is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


# reading metadata


def read_layout(path: AnyPath) -> Layout:
    """Return the checked metadata of a store; raise ValueError if they are damaged or this version can't read them."""
    place = place_of(path)
    group = _metadata(place.read_files([GROUP_KEY], MAX_METADATA_BYTES), GROUP_KEY)
    attributes = group.get("attributes")
    if not isinstance(attributes, dict) or "format" not in attributes:
        raise ValueError("it is not a lit-extract store")
    check_format(attributes["format"], STORE_FORMAT, attributes.get("notes"))
    version: int = attributes["format"]
    _compare(GROUP_KEY, group, {"zarr_format": 3, "node_type": "group"})
    validate(_FORMS[version], attributes, f"its {GROUP_KEY}")
    pools, extras = attributes["pools"], attributes["extras"]
    stated = _stated_shapes(attributes) if version > PLAIN_STORE_FORMAT else None
    feats_names = pools if stated is None else [array.name for pool in pools for array in feats_arrays(pool, stated)]
    _check_names(pools, feats_names, extras, attributes["notes"]["files"])
    names = [*feats_names, STATUS, *extras, STIMULUS_ID]
    files = place.read_files([f"{name}/{GROUP_KEY}" for name in names], MAX_METADATA_BYTES)
    arrays = {name: _metadata(files, f"{name}/{GROUP_KEY}") for name in names}
    shaped = {name: validate(_SHAPED, arrays[name], f"its {name}/{GROUP_KEY}") for name in names}
    shape = shaped[feats_names[0]]["shape"]
    layer_shapes = _plain_shapes(shape, attributes["layers"]) if stated is None else stated
    dtype = FLOAT32 if stated is None else attributes["dtype"]
    n, rows = shape[0], attributes["shard_rows"]
    _check_sizes(n, sum(map(math.prod, layer_shapes)) * NUMBER_BYTES[dtype], attributes)
    dtypes = {name: shaped[name]["data_type"] for name in extras}
    ids = shaped[STIMULUS_ID]["data_type"]
    for name, found, known in [(STIMULUS_ID, ids, (INTEGERS, TEXTS)), *((x, dtypes[x], EXTRA_DTYPES) for x in extras)]:
        if found not in known:
            raise ValueError(f"its {name} has data type {shorten(found)}, not {' or '.join(known)}")
    feats = [array for pool in pools for array in feats_arrays(pool, layer_shapes)]
    wanted = feats_metadata(feats, n, rows, dtype) | rows_metadata(version, dtypes, n, rows, ids, layer_shapes)
    for name, expected in wanted.items():
        _compare(f"{name}/{GROUP_KEY}", arrays[name], expected)
    if version > 1 and checksum(attributes, arrays) != attributes["checksum"]:
        raise ValueError("its metadata differ from their checksum")
    return Layout(
        version,
        attributes.get("id"),
        pools,
        dtypes,
        attributes["layers"],
        n,
        layer_shapes,
        dtype,
        rows,
        ids,
        attributes.get("stimulus_ids_sha256"),
        attributes["provenance"],
        attributes["notes"],
        attributes.get("kept", False),
        attributes,
        arrays,
    )


def id_in(content: bytes) -> str | None:
    """Return the id in the bytes of the group's own ``zarr.json``; None if there is none."""
    try:
        attributes = _metadata({GROUP_KEY: content}, GROUP_KEY).get("attributes")
    except ValueError:
        return None
    return attributes.get("id") if isinstance(attributes, dict) else None


def _metadata(files: Mapping[str, bytes], key: str) -> dict[str, Any]:
    if key not in files:
        raise ValueError(f"it has no {key}")
    try:
        metadata = plain_values(json.loads(files[key]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {key} is not whole: {shorten(str(error), 200)}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"its {key} is not that of a lit-extract store")
    return metadata


def _stated_shapes(attributes: Mapping[str, Any]) -> list[Shape]:
    """Return the shape of a row in each layer."""
    shapes = [tuple(shape) for shape in attributes["layer_shapes"]]
    if len(shapes) != (n_layers := len(attributes["layers"])):
        raise ValueError(f"it has {len(shapes)} layer_shapes, but names of {n_layers} layers")
    if len({*shapes}) > 1 and n_layers * len(attributes["pools"]) > MAX_FEATS_ARRAYS:
        raise ValueError(f"it has more than {MAX_FEATS_ARRAYS:,} arrays, the most that are possible")
    return shapes


def _plain_shapes(found: Sequence[int], layers: Sequence[str]) -> list[Shape]:
    """Return the shapes in a store whose format does not state them, from the shape of its first array."""
    if len(found) != 3:
        raise ValueError(f"it has shape {shorten(list(found))}; it must have 3 numbers")
    _, n_layers, dim = found
    if n_layers != len(layers):
        raise ValueError(f"it has {shorten(n_layers)} layers, but names of {len(layers)}")
    if dim > MAX_DIM:
        raise ValueError(f"it has {shorten(dim)} dimensions; at most {MAX_DIM:,} are possible")
    return [(dim,)] * n_layers


def _check_names(pools: Sequence[str], feats: Sequence[str], extras: Sequence[str], files: Mapping[str, str]) -> None:
    names = [*feats, *extras, STATUS, STIMULUS_ID, GROUP_KEY, "c"]
    if len(set(names)) != len(names):
        raise ValueError(f"its {GROUP_KEY} has two arrays with the same name: {shorten(', '.join([*pools, *extras]))}")
    if set(files) != set(pools) or len(set(files.values())) != len(files):
        raise ValueError(f"its {GROUP_KEY} has notes.files {shorten(files)}; it must name one file for each pooling")


def _check_sizes(n: int, row_bytes: int, attributes: Mapping[str, Any]) -> None:
    """Check that a store is within the limits, and has as many rows as its attributes state."""
    rows, provenance = attributes["shard_rows"], attributes["provenance"]
    limits = {"rows": (n, MAX_ROWS), "bytes a shard": (rows * row_bytes, MAX_SHARD_BYTES),
              "shards": (count_shards(n, rows), MAX_SHARDS)}  # fmt: skip
    for what, (number, limit) in limits.items():
        if number > limit:
            raise ValueError(f"it has {shorten(number)} {what}; at most {limit:,} are possible")
    for what, number in (("n_stimuli", n), ("shard_rows", rows)):
        if provenance.get(what, number) != number:
            raise ValueError(f"its {what} is {number}, but {provenance[what]} in its provenance")


def _compare(key: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that metadata are those of a store; purely descriptive fields may differ."""
    for name, value in expected.items():
        if name in ("attributes", "dimension_names"):
            continue
        if canonical(found.get(name, [] if name == "storage_transformers" else None)) != canonical(value):
            raise ValueError(f"its {key} has {name} {shorten(found.get(name))}, not {shorten(value, 400)}")
