"""Estimate the duration of a run, for a scheduler; a run that needs longer is resumed."""

import statistics
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lit_extract.planning.streaming import ASSUMED_OPERATIONS
from lit_extract.storage.store_metadata import read_layout

if TYPE_CHECKING:
    from lit_extract.planning.needs import Needs

# Per second: float32 operations of a core; photographs that a core decodes and resizes; bytes written to a shared disk.
_CORE_OPERATIONS, _CORE_IMAGES, _DISK_BYTES = 2e10, 100, 2e8
_SHARDS_AT_LEAST = 4  # with fewer, the times between them say little


def estimate_seconds(needs: "Needs", cores: int) -> float:
    """Estimate the seconds of a run: measured if an earlier run has started it, else from arithmetic and images."""
    if needs.seconds_left is not None:
        return needs.seconds_left
    operations = ASSUMED_OPERATIONS if needs.device is not None else _CORE_OPERATIONS * cores
    decoding = 1 / (_CORE_IMAGES * cores) if needs.geometry else 0.0
    return needs.rows * (needs.operations / operations + decoding) + needs.disk_peak / _DISK_BYTES


def measure_seconds_left(store: Path) -> float | None:
    """Return the seconds that the rest of a store needs, from the times of its shards; None if too few are done.

    The median of the times between shards ignores times in which no run was active.
    """
    try:
        layout = read_layout(store)
    except (ValueError, OSError):
        return None
    array = next(iter(layout.feats_arrays.values()))
    files = [store / array.key(shard) for shard in range(layout.n_shards)]
    times = sorted(file.stat().st_mtime for file in files if file.is_file())
    if len(times) < _SHARDS_AT_LEAST:
        return None
    between = statistics.median(later - earlier for earlier, later in pairwise(times))
    return between * (layout.n_shards - len(times))
