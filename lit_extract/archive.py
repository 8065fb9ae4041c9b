"""The inside of a ``.pt``, which is a zip archive: numbers into its holes, and what it holds without torch.

Layout: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7, 4.3.9 and 4.3.12.
"""

import errno
import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Bytes written at once. They stay in a cache, and Linux takes ten times as long for a hundred times as many.
PIECE = 2**20


def write_filled(skeleton: Path, tensors: Sequence[Iterable[NDArray[Any]]], out: BinaryIO) -> None:
    """Write a ``.pt`` from its skeleton, with numbers in the holes.

    A record's checksum, which the skeleton leaves 0, is filled in too, so that ``python -m zipfile -t FILE`` finds
    damage years later.

    Args:
        skeleton: A file of torch.save with a hole for each tensor.
        tensors: The numbers of each tensor in chunks, in the order of the holes.
        out: Where it goes, front to back: that may be a server.
    """
    with zipfile.ZipFile(skeleton) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        directory = archive.start_dir
    checksums = {}
    with skeleton.open("rb") as file:
        at = 0
        for place, chunks in enumerate(tensors):
            record = records[f"data/{place}"]
            start = data_start(file, record)
            end = start + record.file_size
            file.seek(at)
            out.write(file.read(start - at))
            at, checksum = start, 0
            for chunk in chunks:
                numbers = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
                for first in range(0, len(numbers), PIECE):
                    piece = numbers[first : first + PIECE].data
                    out.write(piece)
                    checksum = zlib.crc32(piece, checksum)
                at += numbers.nbytes
            assert at == end, "the numbers do not fill the tensor"
            file.seek(at)
            assert file.read(4) == _DESCRIPTOR_MARK
            checksums[record.filename] = struct.pack("<I", checksum)
            out.write(_DESCRIPTOR_MARK + checksums[record.filename])
            at += 8
        file.seek(at)
        rest = io.BytesIO(file.read())
    for name, checksum_bytes in checksums.items():
        rest.seek(_directory_entry(rest, directory - at, name) + _CRC_IN_DIRECTORY_ENTRY)
        rest.write(checksum_bytes)
    out.write(rest.getvalue())


def check_archive(source: Path | BinaryIO) -> None:
    """Read all of a ``.pt`` and compare it with its checksums.

    Raises:
        ValueError: It is damaged.
        OSError: It can't be read.
    """
    content = read_content(source)
    assert content
    try:
        with zipfile.ZipFile(source) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    if damaged is not None:
        raise ValueError(f"its record {damaged!r} differs from its checksum")


_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_HEADER_MARK = b"PK\x03\x04"
_DIRECTORY_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_CRC_IN_DIRECTORY_ENTRY = 16
_DESCRIPTOR_MARK = b"PK\x07\x08"


def data_start(file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its header, whose length the directory does not tell."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    mark, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if mark != _LOCAL_HEADER_MARK:
        raise zipfile.BadZipFile(f"there is no record {record.filename!r} where the directory says")
    return record.header_offset + len(header) + int(name_length) + int(extra_length)


def _directory_entry(file: BinaryIO, start: int, name: str) -> int:
    """Where a record's entry in the central directory begins."""
    while True:
        file.seek(start)
        fields = _DIRECTORY_ENTRY.unpack(file.read(_DIRECTORY_ENTRY.size))
        name_length, extra_length, comment_length = fields[10:13]
        if file.read(name_length).decode() == name:
            return start
        start += _DIRECTORY_ENTRY.size + name_length + extra_length + comment_length


@dataclass(frozen=True)
class TensorRecord:
    """A tensor of a ``.pt``, where it lies; its numbers are not read.

    Args:
        dtype: As numpy calls it, little-endian.
        shape: Its shape; the numbers lie in C order.
        offset: First byte in the file.
        n_bytes: Bytes of its numbers.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def read_content(source: Path | BinaryIO) -> dict[str, Any]:
    """What a ``.pt`` of plain values holds, without torch and without executing anything in it.

    Args:
        source: The file, or one opened for reading bytes that can seek; only its directory and its small
            record are read.

    Returns:
        The content, with a :class:`TensorRecord` in the place of each tensor.

    Raises:
        ValueError: Not such a file, or not whole.
        OSError: It can't be read.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return read_content(file)
    try:
        with zipfile.ZipFile(source) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if records.get("byteorder") and archive.read(records["byteorder"]) != b"little":
                raise ValueError("its numbers are big-endian")
            with archive.open(records["data.pkl"]) as pickled:
                content = _PlainUnpickler(pickled, source, records).load()
    except ValueError:
        raise
    except KeyError:
        raise ValueError("it is a zip archive, but not one of torch.save") from None
    except Exception as error:  # a damaged archive or pickle raises almost anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one: a place outside the file
            raise
        raise ValueError(str(error) or type(error).__name__) from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict")
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Knows the few globals of a tensor, and nothing that could run."""

    def __init__(self, pickled: Any, file: BinaryIO, records: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(pickled)
        self.file, self.records = file, records

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not a plain value")

    def persistent_load(self, pid: Any) -> tuple[str, int, int]:
        """A storage: its dtype, where it begins, and its bytes."""
        _, dtype, key, *_ = pid
        record = self.records[f"data/{key}"]
        if record.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"record {record.filename!r} is compressed")
        return dtype, data_start(self.file, record), record.file_size

    def tensor(
        self, storage: tuple[str, int, int], skipped: int, shape: Iterable[int], strides: Iterable[int], *_: Any
    ) -> TensorRecord:
        dtype, start, available = storage
        shape, size = tuple(shape), int(dtype[2:])
        in_c_order = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        n_bytes = math.prod(shape) * size
        if n_bytes and tuple(strides) != in_c_order:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} is not in C order")
        if min(skipped, *shape, 0) < 0 or skipped * size + n_bytes > available:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} does not fit its {available} bytes")
        return TensorRecord(dtype, shape, start + skipped * size, n_bytes)


_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "ByteStorage": "|u1",
    "CharStorage": "|i1",
    "BoolStorage": "|b1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
}
