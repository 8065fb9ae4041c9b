"""The layout of stores and features files: facts that need neither numpy nor torch (``docs/store-format.md``).

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

# docs/store-format.md describes both; a number grows when readers must change.
STORE_FORMAT, FEATURES_FORMAT = 4, 2
PLAIN_STORE_FORMAT, PLAIN_FEATURES_FORMAT = 2, 1  # each layer is a vector of the same width, in float32
FORMED_STORE_FORMAT = 3  # layers may have other shapes and types, but further values of a row are one number each
STORE_SUFFIX, FEATURES_SUFFIX = ".zarr", ".pt"
GROUP_KEY = "zarr.json"  # relative to the store's folder, as all keys
FEATURES_KEYS = frozenset({"feats", "num_params", "layers", "stimulus_ids", "metadata"})  # keys of every features file


# status of a row
MISSING, OK, BAD_INPUT, NOT_FINITE = range(4)
STATUS_NUMBERS = {"missing": MISSING, "ok": OK, "bad_input": BAD_INPUT, "not_finite": NOT_FINITE}

STATUS, STIMULUS_ID = "status", "stimulus_id"
# Extras of a store.
N_TOKENS = "n_tokens"  # tokens of each caption
N_EXCLUDED = "n_excluded"  # tokens of each caption that poolings leave out as BOS or special tokens
N_SINKS = "n_sinks"  # tokens of each caption that they leave out as attention sinks, in each layer
TOKEN_IDS = "token_ids"  # token ids of each caption, as many as the longest caption has
N_BYTES = "n_bytes"  # size of each row's input when it was read
# Notes on each row's input from when it was read, as extras of a store and columns of "inputs" in a features file: size
# and time of its file, a hash of its content (0: not known), and whether it has an EXIF rotation.
INPUT_COLUMNS = (N_BYTES, "mtime_ns", "content", "rotated")
INPUTS = "inputs"
ROW_OF = "row_of"  # in a batch of rows with several inputs, such as captions: the place of each input's row
SIZE, MTIME, CONTENT, ROTATED = range(len(INPUT_COLUMNS))
# Limits of stores and features files, far above those of real models.
MAX_LAYERS, MAX_DIM, MAX_TOKENS = 10_000, 2**20, 2**20
MAX_AXES = 2  # of a row in a layer: (D,), or (T, D)
IDS_KEY = f"{STIMULUS_ID}/c/0"
SEAL_BYTES = 32  # in a file of a store


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
    """Return a model's name as part of a file name, never a path: ``/`` and unusual characters become ``_``."""
    return re.sub(r"^\.+|[^A-Za-z0-9._+=@-]", "_", name)


def count_shards(n_rows: int, shard_rows: int) -> int:
    """Return how many shards hold ``n_rows``."""
    return -(-n_rows // shard_rows)


Shape = tuple[int, ...]
# For each data type of features: bytes of a number, the data type in numpy and zarr, and NaN in it. Neither has
# bfloat16; its bits are kept as uint16.
NUMBER_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
KEPT_AS: Mapping[str, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
NANS: Mapping[str, float] = {"float32": math.nan, "float16": math.nan, "bfloat16": 0x7FC0}
FLOAT32 = "float32"


class FeatsArray(NamedTuple):
    """An array of features: all layers of a pooling if they have the same shape, else one layer."""

    name: str  # in a store
    layers: range  # indices of the layers in this array
    layer_shape: Shape  # of a row in each layer
    first: int  # place of their first number in a row, in which the layers are concatenated
    end: int  # place after their last number
    is_stacked: bool  # whether it has an axis of layers

    @property
    def row_shape(self) -> Shape:
        """Return the shape of a row."""
        return (len(self.layers), *self.layer_shape) if self.is_stacked else self.layer_shape

    def key(self, shard: int) -> str:
        """Return the path of a shard, relative to the store's folder."""
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
    """Return whether features have the form of the first formats: (N, L, D) float32."""
    return len({*layer_shapes}) == 1 and len(layer_shapes[0]) == 1 and dtype == FLOAT32


def extra_shape(name: str, layer_shapes: Sequence[Shape]) -> Shape:
    """Return the shape of a further value of a row: () for most."""
    return {TOKEN_IDS: layer_shapes[0][:1], N_SINKS: (len(layer_shapes),)}.get(name, ())


def store_format(layer_shapes: Sequence[Shape], dtype: str, extras: Iterable[str]) -> int:
    """Return the earliest store format that supports these shapes, this data type and these extras."""
    if any(extra_shape(name, layer_shapes) for name in extras):
        return STORE_FORMAT
    return PLAIN_STORE_FORMAT if is_plain(layer_shapes, dtype) else FORMED_STORE_FORMAT


def stacked_shape(n_stimuli: int, layer_shapes: Sequence[Shape]) -> Shape:
    """Return the shape of a tensor of all layers, such as (N, L, D); (N, L) if they differ in shape."""
    shared = layer_shapes[0] if len({*layer_shapes}) == 1 else ()
    return n_stimuli, len(layer_shapes), *shared


def layers_in_words(layers: Sequence[str]) -> str:
    """Return the names of up to four layers; of more, the first, the last, and how many there are."""
    return ", ".join(layers) if len(layers) <= 4 else f"{layers[0]} … {layers[-1]} ({len(layers)} layers)"


def shapes_in_words(layer_shapes: Sequence[Shape]) -> str:
    """Return the shape of a row in the layers as text: 768, or from the first layer to the last, 64…2048."""
    known = ["×".join(map(str, shape)) for shape in dict.fromkeys(layer_shapes)]
    return "…".join(dict.fromkeys([known[0], known[-1]]))


def rows_key(name: str, shard: int) -> str:
    """Return the path of the file with status or an extra of a shard's rows, relative to the store's folder."""
    return f"{name}/c/{shard}"


def shard_bytes(n_layers: int, n_dim: int, shard_rows: int, is_sealed: bool = True, number_bytes: int = 4) -> int:
    """Return the bytes of a shard's file of one array: those of ``shard_rows`` rows, even if it has fewer.

    The file has a chunk with its checksum for each layer; since format 2 the checksums again, and the seal; then the
    index (offset and length of each chunk) with its own checksum. For status and extras, L is 1.
    """
    seal = n_layers * 4 + SEAL_BYTES if is_sealed else 0
    return n_layers * (shard_rows * n_dim * number_bytes + 4) + seal + n_layers * 16 + 4


@dataclass(frozen=True)
class Layout:
    """The metadata of a store, checked; see :func:`~lit_extract.storage.store_metadata.read_layout`."""

    version: int  # format of the store
    id: str | None  # random, different for each store
    pools: list[str]
    extras: dict[str, str]  # names of further values of a row, with their data type
    layers: list[str]
    n_stimuli: int
    layer_shapes: list[Shape]  # of a row in each layer, such as (D,)
    dtype: str  # of the features
    shard_rows: int
    ids_dtype: str
    ids_sha256: str | None
    provenance: dict[str, Any]  # settings that determine the numbers
    notes: dict[str, Any]  # other facts
    is_kept: bool  # the store was kept on purpose when its features files were made
    attributes: dict[str, Any]  # all attributes of the group, as in its file
    arrays: dict[str, Any]  # metadata of each array, as in its file

    @property
    def is_sealed(self) -> bool:
        """Return whether each file of the store has a seal, which ties it to its place."""
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
        """Return the shards whose files all exist at full size; ``sizes`` has the bytes of the files in the store."""
        arrays = self.feats_arrays.values()
        whole = [(array, array.shard_bytes(self.shard_rows, self.dtype, self.is_sealed)) for array in arrays]
        return {
            shard for shard in range(self.n_shards) if all(sizes.get(array.key(shard)) == size for array, size in whole)
        }

    def n_rows(self, shards: set[int]) -> int:
        """Return how many rows these shards have; the last shard may have fewer than the others."""
        return sum(len(self.rows_of(shard)) for shard in shards)
