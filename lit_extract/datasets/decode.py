"""Decoding of stimuli. No torch here, because review pages and reports also open images."""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from lit_extract.common.errors import one_line
from lit_extract.datasets.nsd import MAX_PIXELS, open_images

MAX_IMAGE_BYTES = 200 * 2**20  # of an image file

# Formats that Pillow may detect, whatever the name of a file. Others are rare, and EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
Image.init()  # register all formats now, not with the first file of a rare format

THREADS_TO_READ = 8  # parallel requests to a network file system

# Pillow opens 16-bit PNG and PGM as I;16 or, in some versions, as I: 32 bits with values up to 65535.
_SIXTEEN_BITS_IN_32 = ("PNG", "PPM")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1  # tags of a TIFF


@dataclass(frozen=True)
class Reading:
    """A stimulus as it was read; the hashed bytes are the decoded bytes."""

    stat: os.stat_result  # of its file, when it was opened
    data: bytes | NDArray[np.uint8]  # of an image file; or the pixels (H, W, 3) of a row of NSD's HDF5 file

    @property
    def content(self) -> int:
        """Return a hash of the bytes or pixels: 64 bits, never 0."""
        data = self.data if isinstance(self.data, bytes) else self.data.tobytes()
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True) or 1

    def decode(self) -> tuple[Image.Image, bool]:
        """Return the RGB image, and whether it has an EXIF orientation, which is not applied.

        Pillow raises almost anything on a broken file.
        """
        if not isinstance(self.data, bytes):
            return Image.fromarray(self.data), False
        with self.opened() as image:
            return to_rgb(image), is_rotated(image)

    def opened(self) -> Image.Image:
        """Open the image from the beginning of its file: format, size and mode, but no pixels yet.

        Pillow raises almost anything on a broken file.
        """
        assert isinstance(self.data, bytes), "pixels are no file"
        try:
            image = Image.open(io.BytesIO(self.data), formats=FORMATS)
        except UnidentifiedImageError:  # its own message names an address in memory
            raise UnidentifiedImageError(f"not an image in a supported format: {', '.join(FORMATS)}") from None
        if image.width * image.height > MAX_PIXELS:
            image.close()
            raise ValueError(f"it has {image.width} × {image.height} pixels, more than {MAX_PIXELS:,}; reduce it")
        return image

    def has_rotation(self) -> bool:
        """Return whether there is an EXIF orientation, from the beginning of the file; False if it is broken."""
        if not isinstance(self.data, bytes):
            return False
        try:
            with self.opened() as image:
                return image.format != "TIFF" and is_rotated(image)
        except Exception:  # Pillow raises almost anything on a broken file
            return False


def contents(stimuli: Sequence[tuple[str, int | None]]) -> list[int]:
    """Return a hash of the current content of each stimulus (file, row in it); 0 if it can't be read."""

    def content(stimulus: tuple[str, int | None]) -> int:
        try:
            return read_stimulus(*stimulus).content
        except OSError:
            return 0

    with hdf5_closed_after(), ThreadPoolExecutor(THREADS_TO_READ) as threads:
        return list(threads.map(content, stimuli))


def read_stimulus(path: str, image_row: int | None = None) -> Reading:
    """Read an image file, or a row of NSD's HDF5 file, without decoding it; raise OSError if that fails."""
    if image_row is not None:
        return Reading(Path(path).stat(), _read_hdf5(path, image_row))
    with open(path, "rb", opener=_open_at_once) as file:  # half the time of Path.open, 73,000 times
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if state.st_size > MAX_IMAGE_BYTES:
            raise OSError(errno.EFBIG, f"more than {MAX_IMAGE_BYTES:,} bytes", path)
        return Reading(state, file.read())


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, without blocking on a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_hdf5(path: str, row: int) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = _hdf5_images(path)[row]
    except OSError:
        raise
    except Exception as error:  # h5py raises almost anything on a damaged file
        raise OSError(one_line(error)) from None
    return pixels


def open_image(path: str, image_row: int | None = None) -> Image.Image:
    """Return an image file, or a row of NSD's HDF5 file, as an RGB image."""
    return read_stimulus(path, image_row).decode()[0]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB; 16-bit grayscale is scaled to 8 bits.

    Floats and 32-bit integers, which have no defined range, and rare 16-bit formats raise ValueError.
    """
    mode = image.mode
    if not mode.startswith(("I", "F")):
        return image.convert("RGB")
    is_sixteen_bits = mode.startswith("I;16") or (mode == "I" and image.format in _SIXTEEN_BITS_IN_32)
    tags = getattr(image, "tag_v2", {})
    is_usual = tags.get(_BITS_PER_SAMPLE, (16,)) == (16,) and tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO) == _BLACK_IS_ZERO
    if not (is_sixteen_bits and is_usual):
        raise ValueError(
            f"its pixels have no defined range (Pillow's mode {mode}); save it with 8 or 16 bits per channel"
        )
    values = np.asarray(image).astype(np.uint32)
    values += 128
    values //= 257
    narrow = values.astype(np.uint8)
    del values  # up to 200 MB
    return Image.fromarray(narrow).convert("RGB")


def is_rotated(image: Image.Image) -> bool:
    """Return whether a decoded image has an unapplied EXIF orientation; Pillow applies that of a TIFF."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # raised by broken EXIF, which viewers ignore too
        return False


_open_hdf5: dict[tuple[int, str], Any] = {}


@contextmanager
def hdf5_closed_after() -> Iterator[None]:
    """Close HDF5 files after the ``with`` block, because workers forked later would share their file position."""
    try:
        yield
    finally:
        for key in [key for key in _open_hdf5 if key[0] == os.getpid()]:
            _open_hdf5.pop(key).file.close()


def _hdf5_images(path: str) -> Any:
    """Return NSD's image brick, opened once per process, because HDF5 handles must not cross a fork."""
    key = (os.getpid(), path)
    if key not in _open_hdf5:
        _open_hdf5[key] = open_images(path)
    return _open_hdf5[key]
