"""How a store and a features file are made: facts that need no zarr, numpy or torch (``docs/store-format.md``).

N stimuli, L layers, D hidden size.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# docs/store-format.md describes both; each grows when its readers must change.
STORE_FORMAT, FEATURES_FORMAT = 1, 1
STORE_SUFFIX, FEATURES_SUFFIX = ".zarr", ".pt"
BESIDE_SUFFIX = ".part"  # of what is being made or removed
GROUP_KEY = "zarr.json"  # below the store's folder, as all keys
FEATURES_KEYS = frozenset({"feats", "num_params", "layers", "stimulus_ids", "metadata"})  # of each features file


# status of a row
MISSING, OK, BAD_INPUT, NOT_FINITE = range(4)

STATUS, STIMULUS_ID = "status", "stimulus_id"
N_BYTES = "n_bytes"  # the extra that says how large each row's input was when it was read
# What was noted of each row's image when it was read, extras of a store and columns of a features file's "inputs":
# size and time of its file, a hash of its content (0: not known), and whether it has an EXIF rotation.
INPUT_COLUMNS = (N_BYTES, "mtime_ns", "content", "rotated")
INPUTS = "inputs"
SIZE, MTIME, CONTENT, ROTATED = range(len(INPUT_COLUMNS))
IDS_KEY = f"{STIMULUS_ID}/c/0"


def check_format(found: object, known: int, notes: object) -> None:
    """See that this version reads a store or a features file.

    Args:
        found: Its format.
        known: The newest format that this version reads; older ones it reads, too.
        notes: Its notes, which name the version that made it.

    Raises:
        ValueError: It is newer.
    """
    if isinstance(found, int) and 1 <= found <= known:
        return
    made_by = notes.get("lit_extract") if isinstance(notes, Mapping) else None
    version = f"lit-extract {made_by}, which made it" if made_by else "a newer lit-extract"
    raise ValueError(f"it has format {found}; this version reads {known}: install {version}, or a later one")


def safe_name(name: str) -> str:
    """A model's name as part of a file name: ``/`` and all that is not plain written ``_``; never a path."""
    return re.sub(r"^\.+|[^A-Za-z0-9._+=@-]", "_", name)


def count_shards(n_rows: int, shard_rows: int) -> int:
    """Shards that hold ``n_rows``."""
    return -(-n_rows // shard_rows)


def shard_key(pool: str, shard: int) -> str:
    """Where a shard lies, below the store's folder."""
    return f"{pool}/c/{shard}/0/0"


def rows_key(name: str, shard: int) -> str:
    """Where status or an extra of a shard's rows lies."""
    return f"{name}/c/{shard}"


def shard_bytes(n_layers: int, n_dim: int, shard_rows: int) -> int:
    """Size of a shard's file of one pooling, always that of ``shard_rows`` rows, however many it has.

    Chunks of a layer with their checksums, then the index (offset and length of each) with its own.
    """
    return n_layers * (shard_rows * n_dim * 4 + 4) + n_layers * 16 + 4


@dataclass(frozen=True)
class Layout:
    """What a store's metadata say.

    Args:
        pools: Names of the poolings.
        layers: Names of the layers.
        shape: (N, L, D).
        dtype: Of the features.
        shard_rows: Rows a shard.
        provenance: What determines the numbers.
        notes: What else is worth knowing.
        is_kept: It was kept on purpose when its features files were made.
    """

    pools: list[str]
    layers: list[str]
    shape: tuple[int, int, int]
    dtype: str
    shard_rows: int
    provenance: dict[str, Any]
    notes: dict[str, Any]
    is_kept: bool

    @property
    def n_shards(self) -> int:
        """Shards, done or not."""
        return count_shards(self.shape[0], self.shard_rows)

    def done_shards(self, sizes: Mapping[str, int]) -> set[int]:
        """Shards whose files are all there, at their full size.

        Args:
            sizes: Bytes of each file below the store's folder.
        """
        whole = shard_bytes(self.shape[1], self.shape[2], self.shard_rows)
        return {
            shard
            for shard in range(self.n_shards)
            if all(sizes.get(shard_key(pool, shard)) == whole for pool in self.pools)
        }

    def n_rows(self, shards: set[int]) -> int:
        """Rows of these shards; the last shard may have fewer than the others."""
        n, rows = self.shape[0], self.shard_rows
        return sum(min(rows, n - shard * rows) for shard in shards)


def read_layout(read: Callable[[str], bytes]) -> Layout:
    """A store's layout.

    Args:
        read: Gives the bytes of a file below the store's folder.

    Raises:
        ValueError: There is no store that this version reads.
        OSError: It can't be read.
    """
    try:
        attributes = _metadata(read, GROUP_KEY)["attributes"]
        check_format(attributes["format"], STORE_FORMAT, attributes.get("notes"))
        pools = [str(pool) for pool in attributes["pools"]]
        if any(Path(pool).name != pool for pool in pools):
            raise ValueError(f"it has poolings {pools}, which are no names")
        array = _metadata(read, f"{pools[0]}/{GROUP_KEY}")
        n, layers, dim = map(int, array["shape"])
        layout = Layout(
            pools,
            list(attributes["layers"]),
            (n, layers, dim),
            str(array["data_type"]),
            int(attributes["shard_rows"]),
            dict(attributes["provenance"]),
            dict(attributes["notes"]),
            bool(attributes.get("kept", False)),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"it is a zarr group, but no store of lit-extract ({error!r})") from None
    if min(*layout.shape, layout.shard_rows) < 1:
        raise ValueError(f"it has shape {layout.shape} and {layout.shard_rows} rows a shard")
    return layout


def _metadata(read: Callable[[str], bytes], key: str) -> Any:
    try:
        return json.loads(read(key))
    except FileNotFoundError:
        raise ValueError(f"it has no {key}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its {key} is not whole: {error}") from None
