"""How stores and features files are laid out: facts that need no numpy or torch (``docs/store-format.md``).

N stimuli, L layers, D hidden size.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from lit_extract.common.untrusted import shorten

# docs/store-format.md describes both; each grows when its readers must change.
STORE_FORMAT, FEATURES_FORMAT = 4, 2
PLAIN_STORE_FORMAT, PLAIN_FEATURES_FORMAT = 2, 1  # where each layer is a vector of the same width, in float32
FORMED_STORE_FORMAT = 3  # where layers may be others, but further values of a row are one number each
STORE_SUFFIX, FEATURES_SUFFIX = ".zarr", ".pt"
GROUP_KEY = "zarr.json"  # below the store's folder, as all keys
FEATURES_KEYS = frozenset({"feats", "num_params", "layers", "stimulus_ids", "metadata"})  # of each features file


# status of a row
MISSING, OK, BAD_INPUT, NOT_FINITE = range(4)
STATUS_NUMBERS = {"missing": MISSING, "ok": OK, "bad_input": BAD_INPUT, "not_finite": NOT_FINITE}

STATUS, STIMULUS_ID = "status", "stimulus_id"
N_TOKENS = "n_tokens"  # the extra that says how long each caption is
N_EXCLUDED = "n_excluded"  # how many of them poolings leave out, as BOS or special tokens
N_SINKS = "n_sinks"  # and how many in each layer as attention sinks
TOKEN_IDS = "token_ids"  # the extra that says which they are, as many as the longest caption has
N_BYTES = "n_bytes"  # the extra that says how large each row's input was when it was read
# What was noted of each row's image when it was read, extras of a store and columns of a features file's "inputs":
# size and time of its file, a hash of its content (0: not known), and whether it has an EXIF rotation.
INPUT_COLUMNS = (N_BYTES, "mtime_ns", "content", "rotated")
INPUTS = "inputs"
ROW_OF = "row_of"  # in a batch whose rows have several inputs each, as captions: the place of the row of each input
SIZE, MTIME, CONTENT, ROTATED = range(len(INPUT_COLUMNS))
# The most that a store or a features file may have, far above what models have.
MAX_LAYERS, MAX_DIM, MAX_TOKENS = 10_000, 2**20, 2**20
MAX_AXES = 2  # of a row in a layer: (D,), or (T, D)
IDS_KEY = f"{STIMULUS_ID}/c/0"
SEAL_BYTES = 32  # of a file of a store


def check_format(found: object, known: int, notes: object) -> None:
    """Raise ValueError if a store or a features file has a newer format than this version reads.

    Its notes name the version that made it.
    """
    if type(found) is int and 1 <= found <= known:
        return
    made_by = notes.get("lit_extract") if isinstance(notes, Mapping) else None
    version = f"lit-extract {shorten(made_by)}, which made it" if made_by else "a newer lit-extract"
    raise ValueError(f"it has format {shorten(found)}; this version reads {known}: install {version}, or a later one")


def safe_name(name: str) -> str:
    """Return a model's name as part of a file name: ``/`` and all that is not plain written ``_``; never a path."""
    return re.sub(r"^\.+|[^A-Za-z0-9._+=@-]", "_", name)


def count_shards(n_rows: int, shard_rows: int) -> int:
    """Return how many shards hold ``n_rows``."""
    return -(-n_rows // shard_rows)


Shape = tuple[int, ...]
# By the data type of features: bytes of a number, how numpy and zarr keep it, and what they have for NaN. Neither has
# bfloat16: its bits are kept, as uint16.
NUMBER_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
KEPT_AS: Mapping[str, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
NANS: Mapping[str, float] = {"float32": math.nan, "float16": math.nan, "bfloat16": 0x7FC0}
FLOAT32 = "float32"


class FeatsArray(NamedTuple):
    """An array of features: of all layers of a pooling, if a row has the same shape in each of them, else of one."""

    name: str  # in a store
    layers: range  # which of them
    layer_shape: Shape  # of a row in each
    first: int  # number of a row that is theirs, and the one after the last; a row has one layer after the other
    end: int
    is_stacked: bool  # it has an axis of layers

    @property
    def row_shape(self) -> Shape:
        """Return the shape of a row."""
        return (len(self.layers), *self.layer_shape) if self.is_stacked else self.layer_shape

    def key(self, shard: int) -> str:
        """Return the place of a shard, below the store's folder."""
        return rows_key(self.name, shard) + "/0" * len(self.row_shape)

    def shard_bytes(self, shard_rows: int, dtype: str, is_sealed: bool = True) -> int:
        """Return the bytes of each shard's file."""
        numbers = math.prod(self.layer_shape)
        return shard_bytes(len(self.layers), numbers, shard_rows, is_sealed, NUMBER_BYTES[dtype])


def feats_arrays(pool: str, layer_shapes: Sequence[Shape]) -> list[FeatsArray]:
    """Return the arrays of one pooling, from the shape of a row in each layer."""
    ends = [0, *accumulate(math.prod(shape) for shape in layer_shapes)]
    if len(set(layer_shapes)) == 1:
        return [FeatsArray(pool, range(len(layer_shapes)), layer_shapes[0], 0, ends[-1], True)]
    return [
        FeatsArray(f"{pool}.{k}", range(k, k + 1), shape, *part, False)
        for k, (shape, part) in enumerate(zip(layer_shapes, pairwise(ends), strict=True))
    ]


def is_plain(layer_shapes: Sequence[Shape], dtype: str) -> bool:
    """Return whether features have the form that the first formats have: (N, L, D) float32."""
    return len({*layer_shapes}) == 1 and len(layer_shapes[0]) == 1 and dtype == FLOAT32


def extra_shape(name: str, layer_shapes: Sequence[Shape]) -> Shape:
    """Return the shape of a further value of a row: () of most."""
    return {TOKEN_IDS: layer_shapes[0][:1], N_SINKS: (len(layer_shapes),)}.get(name, ())


def store_format(layer_shapes: Sequence[Shape], dtype: str, extras: Iterable[str]) -> int:
    """Return the earliest format of a store that has all that is wanted."""
    if any(extra_shape(name, layer_shapes) for name in extras):
        return STORE_FORMAT
    return PLAIN_STORE_FORMAT if is_plain(layer_shapes, dtype) else FORMED_STORE_FORMAT


def stacked_shape(n_stimuli: int, layer_shapes: Sequence[Shape]) -> Shape:
    """Return the shape of a tensor of all layers, as (N, L, D); (N, L) if they differ in shape."""
    shared = layer_shapes[0] if len({*layer_shapes}) == 1 else ()
    return n_stimuli, len(layer_shapes), *shared


def shapes_in_words(layer_shapes: Sequence[Shape]) -> str:
    """Return the shape of a row in each layer: as 768, or from the first to the last, as 64…2048."""
    known = ["×".join(map(str, shape)) for shape in dict.fromkeys(layer_shapes)]
    return "…".join(dict.fromkeys([known[0], known[-1]]))


def rows_key(name: str, shard: int) -> str:
    """Return the place of the file of status or an extra of a shard's rows."""
    return f"{name}/c/{shard}"


def shard_bytes(n_layers: int, n_dim: int, shard_rows: int, is_sealed: bool = True, number_bytes: int = 4) -> int:
    """Return the bytes of a shard's file of one array, always those of ``shard_rows`` rows, however many it has.

    Chunks of a layer with their checksums; the checksums again and the seal, of stores since format 2; then the index
    (offset and length of each) with its own checksum. L and D are 1 of status and extras.
    """
    seal = n_layers * 4 + SEAL_BYTES if is_sealed else 0
    return n_layers * (shard_rows * n_dim * number_bytes + 4) + seal + n_layers * 16 + 4


@dataclass(frozen=True)
class Layout:
    """The metadata of a store, checked; see :func:`~lit_extract.storage.store_metadata.read_layout`."""

    version: int  # format of the store
    id: str | None  # random; another store has another
    pools: list[str]
    extras: dict[str, str]  # names of further values of a row, with their data type
    layers: list[str]
    n_stimuli: int
    layer_shapes: list[Shape]  # of a row in each layer, as (D,)
    dtype: str  # of the features
    shard_rows: int
    ids_dtype: str
    ids_sha256: str | None
    provenance: dict[str, Any]  # what determines the numbers
    notes: dict[str, Any]  # what else is worth knowing
    is_kept: bool  # on purpose when its features files were made
    attributes: dict[str, Any]  # all of the group, as they are in its file
    arrays: dict[str, Any]  # metadata of each, as they are in its file

    @property
    def is_sealed(self) -> bool:
        """Return whether each of its files has a seal, which ties it to its place."""
        return self.version > 1

    @property
    def n_shards(self) -> int:
        """Return the number of shards, done or not."""
        return count_shards(self.n_stimuli, self.shard_rows)

    @cached_property
    def feats_arrays(self) -> dict[str, FeatsArray]:
        """Return the arrays of all poolings, by name."""
        return {array.name: array for pool in self.pools for array in feats_arrays(pool, self.layer_shapes)}

    def rows_of(self, shard: int) -> range:
        """Return the global rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.n_stimuli))

    def done_shards(self, sizes: Mapping[str, int]) -> set[int]:
        """Return the shards whose files all exist, at their full size, by the bytes of each file in the store."""
        arrays = self.feats_arrays.values()
        whole = [(array, array.shard_bytes(self.shard_rows, self.dtype, self.is_sealed)) for array in arrays]
        return {
            shard for shard in range(self.n_shards) if all(sizes.get(array.key(shard)) == size for array, size in whole)
        }

    def n_rows(self, shards: set[int]) -> int:
        """Return how many rows these shards have; the last shard may have fewer than the others."""
        return sum(len(self.rows_of(shard)) for shard in shards)
