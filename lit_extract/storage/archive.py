"""The inside of a ``.pt``, which is a zip archive: numbers into its holes, and what it holds without torch."""

import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.untrusted import open_regular
from lit_extract.storage.plain_pickle import MAX_PICKLE_BYTES, load_plain
from lit_extract.storage.zip_records import (
    CHECKSUM_IN_ENTRY,
    DESCRIPTOR_MARK,
    PIECE,
    Record,
    is_intact,
    read_record,
    read_records,
)

_SMALL_BYTES = 100  # of a record that is neither the pickle nor numbers
_MAX_AXES = 8


def write_filled(skeleton: Path, tensors: Sequence[Iterable[NDArray[Any]]], out: BinaryIO) -> None:
    """Write a ``.pt`` from its skeleton, with numbers in the holes.

    A record's checksum, which the skeleton leaves 0, is filled in too, so that ``python -m zipfile -t FILE`` finds
    damage years later.

    Args:
        skeleton: A file of torch.save with a hole for each tensor.
        tensors: The numbers of each tensor in chunks, in the order of the holes.
        out: Where it goes, front to back: that may be a server.
    """
    checksums = []
    with skeleton.open("rb") as file:
        records = read_records(file)
        at = 0
        for place, chunks in enumerate(tensors):
            record = records[f"data/{place}"]
            file.seek(at)
            out.write(file.read(record.start - at))
            at, checksum = record.start, 0
            for chunk in chunks:
                numbers = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
                for first in range(0, len(numbers), PIECE):
                    piece = numbers[first : first + PIECE].data
                    out.write(piece)
                    checksum = zlib.crc32(piece, checksum)
                at += numbers.nbytes
            assert at == record.start + record.size, "the numbers do not fill the tensor"
            checksums.append((record.entry + CHECKSUM_IN_ENTRY, struct.pack("<I", checksum)))
            if record.size:  # else it has no descriptor
                out.write(DESCRIPTOR_MARK + checksums[-1][1])
                at += len(DESCRIPTOR_MARK) + 4
        file.seek(at)
        rest = bytearray(file.read())
    for place, checksum_bytes in checksums:
        rest[place - at : place - at + 4] = checksum_bytes
    out.write(rest)


def check_archive(source: Path | BinaryIO) -> None:
    """Read all of a ``.pt`` and compare it with its checksums.

    Raises:
        ValueError: It is damaged.
        OSError: It can't be read.
    """
    if isinstance(source, Path):
        with open_regular(source) as file:
            check_archive(file)
        return
    read_content(source)
    for name, record in read_records(source).items():
        if not is_intact(source, record):
            raise ValueError(f"its record {name!r} differs from its checksum")


def name_of_open(file: BinaryIO, path: Path) -> str:
    """Return a name for torch of the very file that is open, also when another has taken its place meanwhile."""
    place = Path(f"/proc/self/fd/{file.fileno()}")
    return str(place if place.exists() else path)


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
    """Return what a ``.pt`` of plain values holds, without torch and without executing anything in it.

    Args:
        source: The file, or one opened for reading bytes that can seek; only its directory and its small
            records are read.

    Returns:
        The content, with a :class:`TensorRecord` in the place of each tensor.

    Raises:
        ValueError: Not such a file, or not whole.
        OSError: It can't be read, or is no regular file.
    """
    if isinstance(source, Path):
        with open_regular(source) as file:
            return read_content(file)
    records = read_records(source)
    if missing := {"data.pkl", "version"} - records.keys():
        raise ValueError(f"it is no archive of torch.save: it has no {missing.pop()}")
    for name, record in records.items():  # in the order of the file: going back and forth costs requests
        if name in _SMALL and not _SMALL[name].fullmatch(small := read_record(source, record, _SMALL_BYTES)):
            raise ValueError(f"its {name} is {small!r}, which this version does not read")
    pickled = read_record(source, records["data.pkl"], MAX_PICKLE_BYTES)
    content = load_plain(pickled, _Storages(records).find, _NAMES, TensorRecord)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict")
    return content


_SMALL = {
    "version": re.compile(rb"3\n"),
    "byteorder": re.compile(rb"little"),
    ".format_version": re.compile(rb"\d{1,9}"),
    ".storage_alignment": re.compile(rb"\d{1,9}"),
    ".data/serialization_id": re.compile(rb"\d{1,80}"),
}


@dataclass(frozen=True)
class _Dtype:
    """What stands for a type of storage in a pickle: its numbers, as numpy calls them."""

    name: str

    @property
    def size(self) -> int:
        return int(self.name[2:])


@dataclass(frozen=True)
class _Storage:
    """Numbers, of which tensors are parts."""

    dtype: _Dtype
    start: int
    count: int


class _NoHooks:
    """What stands for the hooks of a tensor in a pickle: an OrderedDict of nothing."""


class _Storages:
    """The storages of an archive."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.records = records
        self.dtypes: dict[str, _Dtype] = {}

    def find(self, found: Any) -> _Storage:
        """The storage of a persistent id.

        Raises:
            ValueError: There is none such.
        """
        if not isinstance(found, tuple) or [*map(type, found)] != [str, _Dtype, str, str, int]:
            raise ValueError("it holds a tensor that is not one of torch.save")
        kind, dtype, key, device, count = found
        record = self.records.get(f"data/{key}")
        if kind != "storage" or device != "cpu" or record is None or count * dtype.size != record.size:
            raise ValueError("it holds a tensor whose numbers are missing, or too many or too few")
        if self.dtypes.setdefault(key, dtype) != dtype:
            raise ValueError("it holds two tensors of the same numbers with different types")
        return _Storage(dtype, record.start, count)


def _tensor(
    storage: Any = None,
    skipped: Any = None,
    shape: Any = None,
    strides: Any = None,
    needs_gradient: Any = None,
    hooks: Any = None,
    *_: Any,
) -> TensorRecord:
    if (type(storage), type(skipped), needs_gradient, type(hooks), _) != (_Storage, int, False, _NoHooks, ()):
        raise ValueError("it holds a tensor that is not one of plain numbers")
    for numbers in (shape, strides):
        if (
            type(numbers) is not tuple
            or len(numbers) > _MAX_AXES
            or not all(type(n) is int and n >= 0 for n in numbers)
        ):
            raise ValueError("it holds a tensor whose shape is none")
    in_c_order = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    count, size = math.prod(shape), storage.dtype.size
    if len(strides) != len(shape) or (count and strides != in_c_order):
        raise ValueError(f"a tensor of shape {shape} is not in C order")
    if math.prod(max(n, 1) for n in shape) * size >= 2**62 or skipped < 0 or skipped + count > storage.count:
        raise ValueError(f"a tensor of shape {shape} does not fit its {storage.count * size} bytes")
    return TensorRecord(storage.dtype.name, shape, storage.start + skipped * size, count * size)


def _no_hooks(*arguments: Any) -> _NoHooks:
    if arguments:
        raise ValueError("it holds an OrderedDict, which is not a plain value")
    return _NoHooks()


_NAMES: Mapping[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "collections.OrderedDict": _no_hooks,
    "torch.FloatStorage": _Dtype("<f4"),
    "torch.DoubleStorage": _Dtype("<f8"),
    "torch.HalfStorage": _Dtype("<f2"),
    "torch.ByteStorage": _Dtype("|u1"),
    "torch.CharStorage": _Dtype("|i1"),
    "torch.BoolStorage": _Dtype("|b1"),
    "torch.ShortStorage": _Dtype("<i2"),
    "torch.IntStorage": _Dtype("<i4"),
    "torch.LongStorage": _Dtype("<i8"),
}
