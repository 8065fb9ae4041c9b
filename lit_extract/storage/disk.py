"""Room on the disk: how much a job still writes at most, and whether so much is free.

Features files are made next to the store, which stays until they are whole: at the peak both exist.
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

# Ids, status, sizes of the inputs, and of captions the mask: in the store, and again in a features file.
ROW_OVERHEAD = 256
# Folders and small files of a shard, a block of the file system each; what a features file says of itself.
FILE_OVERHEAD = 64 * 2**10


@dataclass(frozen=True)
class Size:
    """What determines the size of a job's output."""

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
    """Return the bytes of the disk that files and folders take now; missing and remote ones take none."""
    local = [path for path in (place_of(each).local for each in paths) if path is not None]
    files = (file for path in local for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return sum(file.stat().st_blocks * 512 for file in files)  # blocks: a file with holes takes less than its length


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write where ``folder`` is or would be made.

    A quota counts as far as the file system reports it; what is reserved for root does not.
    """
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def check_room(folder: AnyPath, store: int, files: int, replaced: int, advice: str) -> None:
    """Raise InputError if there is no room in ``folder`` for the bytes of a store and features files to be written.

    ``replaced`` bytes will be deleted before. The advice is what to do when there is no room.
    """
    local = place_of(folder).local
    if local is None:
        return  # nobody knows how much a bucket takes
    needed, free = store + files - replaced, free_bytes(local)
    if needed > free:
        parts = {"for the store": store, "for the .pt files": files, "given back by what is replaced": replaced}
        shares = ", ".join(f"{as_size(size)} {what}" for what, size in parts.items() if size)
        raise InputError(
            f"no room on the disk: {as_size(needed)} are needed ({shares}), {as_size(free)} are free at "
            f"{str(folder)!r}; nothing is lost: {advice}"
        )
