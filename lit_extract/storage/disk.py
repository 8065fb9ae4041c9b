"""Disk space: how much a job may still write, and whether that much is free.

Features files are made next to the store, which stays until they are complete, so at the peak both exist.
"""

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError
from lit_extract.storage.layout import FLOAT32, NUMBER_BYTES, Shape, count_shards, feats_arrays
from lit_extract.storage.places import AnyPath, place_of

# Per row, in the store and again in a features file: id, status, size of the input, and for captions the mask.
ROW_OVERHEAD = 256
# Folders and small files of a shard, one block of the file system each; metadata of a features file.
FILE_OVERHEAD = 64 * 2**10


@dataclass(frozen=True)
class Size:
    """The facts that determine the size of a job's output."""

    n_stimuli: int
    layer_shapes: Sequence[Shape]  # of a row in each layer
    n_pools: int
    dtype: str = FLOAT32

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row of one pooling."""
        return sum(map(math.prod, self.layer_shapes)) * NUMBER_BYTES[self.dtype]

    def store(self, shard_rows: int, done_shards: int = 0) -> int:
        """Return the bytes of a store, or of its missing shards."""
        arrays = feats_arrays("", self.layer_shapes)
        files = self.n_pools * sum(array.shard_bytes(shard_rows, self.dtype) for array in arrays)
        folders = FILE_OVERHEAD * len(arrays)
        a_shard = files + shard_rows * ROW_OVERHEAD + folders
        return (count_shards(self.n_stimuli, shard_rows) - done_shards) * a_shard

    def file(self) -> int:
        """Return the bytes of one features file."""
        return self.n_stimuli * (self.row_bytes + ROW_OVERHEAD) + FILE_OVERHEAD


def bytes_there(paths: Iterable[AnyPath]) -> int:
    """Return the bytes of disk space that files and folders use now; missing and remote ones use none."""
    local = [path for path in (place_of(each).local for each in paths) if path is not None]
    files = (file for path in local for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return sum(file.stat().st_blocks * 512 for file in files)  # blocks: a file with holes needs less than its length


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write where ``folder`` is or would be made.

    A quota is respected as far as the file system reports it; space reserved for root is not included.
    """
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def check_room(folder: AnyPath, store: int, files: int, replaced: int, advice: str) -> None:
    """Raise InputError if ``folder`` has too little space for the bytes of a store and features files.

    ``replaced`` bytes will be deleted first. ``advice`` says what to do if there is too little space.
    """
    local = place_of(folder).local
    if local is None:
        return  # the space in a bucket is not known
    needed, free = store + files - replaced, free_bytes(local)
    if needed > free:
        parts = {"for the store": store, "for the .pt files": files, "freed by what is replaced": replaced}
        shares = ", ".join(f"{as_size(size)} {what}" for what, size in parts.items() if size)
        raise InputError(
            f"not enough disk space: {as_size(needed)} are needed ({shares}), {as_size(free)} are free at "
            f"{str(folder)!r}; nothing is lost: {advice}"
        )
