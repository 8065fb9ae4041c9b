"""The pixel cache: images decoded, resized and cropped once for all models with the same preprocessing.

A folder per dataset and geometry has two flat files with a place for each row of the whole dataset: ``pixels``, uint8
(N, 3, H, W), and ``rows``, with one record per row that is written after its pixels: the image and its state, other
notes, and a checksum of all of it. A row is valid if record and pixels match. So no lock is needed: two jobs that write
the same row write the same bytes, and a row that a kill or a full disk left incomplete is decoded again.

N rows of the dataset, H height, W width.
"""

import errno
import hashlib
import json
import logging
import math
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from lit_extract.common.untrusted import open_own

logger = logging.getLogger(__name__)

GEOMETRY = ("input_size", "interpolation", "crop_pct", "crop_mode")
DECODERS = ("pillow", "timm", "torchvision")  # another version may give other pixels

PIXELS, ROWS = "pixels", "rows"

FORMAT = 2  # other formats have folders of their own
_RECORD = struct.Struct("<16sIq?")


class Noted(NamedTuple):
    """Notes on cached pixels: a hash of the decoded content, and whether the image has an EXIF rotation."""

    content: int
    rotated: bool


def image_state(path: str, image_row: int | None, root: str, stat: os.stat_result) -> bytes:
    """Return a hash of an image's place in its dataset, and of the state of its file.

    It includes the file's change time (ctime), as in Git, so a file of the same size whose modification time was set
    back counts as changed.
    """
    name = os.path.relpath(path, root)
    known = f"{name}\0{image_row}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}"
    return hashlib.blake2b(known.encode(), digest_size=16).digest()


def geometry(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine the pixels; a border has the colour of the mean.

    Return none for a model with its own processor, whose pixels are not cached.
    """
    if "crop_mode" not in preprocessing:
        return {}
    keys = (*GEOMETRY, "mean") if preprocessing["crop_mode"] == "border" else GEOMETRY
    return {key: preprocessing[key] for key in keys}


def folder_name(dataset: str, stimuli_sha256: str, preprocessing: Mapping[str, Any]) -> str:
    """Return the folder name for the pixels of a whole dataset in one geometry, with the installed decoders."""
    known = {**geometry(preprocessing), **{package: version(package) for package in DECODERS}}
    digest = hashlib.sha256(json.dumps([stimuli_sha256, known, FORMAT], sort_keys=True).encode()).hexdigest()
    _, height, width = preprocessing["input_size"]
    return f"{dataset}-{height}x{width}-{digest[:12]}"


class PixelCache:
    """Pixels (3, H, W) of the N rows of one dataset; safe under any number of readers and writers."""

    def __init__(self, folder: Path, n_rows: int, shape: tuple[int, ...]) -> None:
        self.folder, self.n_rows, self.row_bytes = folder, n_rows, math.prod(shape)
        self.may_write = True

    def bytes_missing(self, n_rows: int) -> int:
        """Return the maximum bytes that ``n_rows`` rows still need on the disk."""
        try:
            taken = (self.folder / PIXELS).stat().st_blocks * 512
        except OSError:
            taken = 0
        a_row = self.row_bytes + _RECORD.size
        return max(0, min(n_rows * a_row, self.n_rows * a_row - taken))

    def read(self, row: int, image: bytes, pixels: NDArray[np.uint8]) -> Noted | None:
        """Fill in ``pixels`` (3, H, W) if the cache has the row of this :func:`image_state`; return its notes.

        Otherwise return None and leave ``pixels`` undefined.
        """
        try:
            pixels_file, rows_file = open_files(self.folder, os.O_RDONLY, os.getpid())
            record = os.pread(rows_file, _RECORD.size, row * _RECORD.size)
            if len(record) != _RECORD.size:
                return None
            stored, checksum, *rest = _RECORD.unpack(record)
            if stored != image or os.preadv(pixels_file, [pixels.data], row * self.row_bytes) != self.row_bytes:
                return None
        except OSError:
            return None
        noted = Noted(*rest)
        return noted if _checksum(pixels, noted) == checksum else None

    def write(self, row: int, image: bytes, pixels: NDArray[np.uint8], noted: Noted) -> None:
        """Cache a row's pixels (3, H, W); an error of the disk ends the caching, not the run.

        If the disk or a quota is full, the cache is deleted to make space for the features.
        """
        if not self.may_write:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            pixels_file, rows_file = open_files(self.folder, os.O_RDWR | os.O_CREAT, os.getpid())
            if os.pwrite(pixels_file, pixels.data, row * self.row_bytes) == self.row_bytes:
                record = _RECORD.pack(image, _checksum(pixels, noted), *noted)
                os.pwrite(rows_file, record, row * _RECORD.size)
        except OSError as error:
            self.may_write = False
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if is_full:
                self._drop()
            dropped = ", and those in it are deleted to free space" if is_full else ""
            if (worker := get_worker_info()) is not None and worker.id > 0:
                return  # the first thread reports it for all
            logger.warning(
                f"decoded images can't be kept in {str(self.folder)!r}: {error.strerror}; the run continues without "
                f"them{dropped}. Pass --data.cache DIR to keep them elsewhere, --data.cache off to keep none"
            )

    def _drop(self) -> None:
        """Free the space at once, also of files that other processes have open; they find no rows there then."""
        for name in (ROWS, PIXELS):
            with suppress(OSError):
                os.truncate(self.folder / name, 0)


@cache
def open_files(folder: Path, mode: int, process: int) -> tuple[int, int]:
    """Return descriptors of the pixels and the rows, opened once per process, never inherited by a worker."""
    rows = open_own(folder / ROWS, mode)
    try:
        return open_own(folder / PIXELS, mode), rows
    except OSError:
        os.close(rows)
        raise


def _checksum(pixels: NDArray[np.uint8], noted: Noted) -> int:
    return int(google_crc32c.extend(google_crc32c.value(pixels), struct.pack("<q?", *noted)))
