"""How stores and features files are laid out: facts that need no numpy or torch (``docs/store-format.md``).

N stimuli, L layers, D hidden size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_extract.common.untrusted import shorten

# docs/store-format.md describes both; each grows when its readers must change.
STORE_FORMAT, FEATURES_FORMAT = 2, 1
STORE_SUFFIX, FEATURES_SUFFIX = ".zarr", ".pt"
GROUP_KEY = "zarr.json"  # below the store's folder, as all keys
FEATURES_KEYS = frozenset({"feats", "num_params", "layers", "stimulus_ids", "metadata"})  # of each features file


# status of a row
MISSING, OK, BAD_INPUT, NOT_FINITE = range(4)
STATUS_NUMBERS = {"missing": MISSING, "ok": OK, "bad_input": BAD_INPUT, "not_finite": NOT_FINITE}

STATUS, STIMULUS_ID = "status", "stimulus_id"
N_TOKENS = "n_tokens"  # the extra that says how long each caption is
N_BYTES = "n_bytes"  # the extra that says how large each row's input was when it was read
# What was noted of each row's image when it was read, extras of a store and columns of a features file's "inputs":
# size and time of its file, a hash of its content (0: not known), and whether it has an EXIF rotation.
INPUT_COLUMNS = (N_BYTES, "mtime_ns", "content", "rotated")
INPUTS = "inputs"
SIZE, MTIME, CONTENT, ROTATED = range(len(INPUT_COLUMNS))
# The most that a store or a features file may have, far above what models have.
MAX_LAYERS, MAX_DIM, MAX_TOKENS = 10_000, 2**20, 2**20
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


def shard_key(pool: str, shard: int) -> str:
    """Return the place of a shard, below the store's folder."""
    return f"{pool}/c/{shard}/0/0"


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
    shape: tuple[int, int, int]  # (N, L, D)
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
        return count_shards(self.shape[0], self.shard_rows)

    @property
    def shard_bytes(self) -> int:
        """Return the bytes of each shard's file of one pooling."""
        return shard_bytes(self.shape[1], self.shape[2], self.shard_rows, self.is_sealed)

    def rows_of(self, shard: int) -> range:
        """Return the global rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.shape[0]))

    def done_shards(self, sizes: Mapping[str, int]) -> set[int]:
        """Return the shards whose files all exist, at their full size, by the bytes of each file in the store."""
        whole = self.shard_bytes
        return {
            shard
            for shard in range(self.n_shards)
            if all(sizes.get(shard_key(pool, shard)) == whole for pool in self.pools)
        }

    def n_rows(self, shards: set[int]) -> int:
        """Return how many rows these shards have; the last shard may have fewer than the others."""
        return sum(len(self.rows_of(shard)) for shard in shards)
