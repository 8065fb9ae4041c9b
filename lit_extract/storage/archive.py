"""The inside of a ``.pt``, a zip archive: fill its holes with numbers, and read its content without torch."""

import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.untrusted import shorten
from lit_extract.storage.plain_pickle import MAX_PICKLE_BYTES, load_plain
from lit_extract.storage.zip_records import (
    CHECKSUM_IN_ENTRY,
    DESCRIPTOR_MARK,
    PIECE,
    Record,
    checked_pieces,
    read_exactly,
    read_record,
    read_records,
)

_SMALL_BYTES = 100  # of a record that is neither the pickle nor numbers
_MAX_AXES = 8


def write_filled(skeleton: Path, tensors: Sequence[Iterable[NDArray[Any]]], out: BinaryIO) -> None:
    """Write a ``.pt`` from its skeleton, with numbers in the holes.

    Each record's checksum, 0 in the skeleton, is also filled in, so that ``python -m zipfile -t FILE`` finds damage
    years later. Everything is written front to back, as object stores need. The skeleton is a file of torch.save with
    a hole for each tensor; the numbers of each tensor come in chunks, in the order of the holes.
    """
    with skeleton.open("rb") as file:
        records = read_records(file)
        at, checksums = 0, {}  # by their places in the directory, which comes last
        for number, chunks in enumerate(tensors):
            record = records[f"data/{number}"]
            out.write(read_exactly(file, at, record.start - at))
            at = record.start + record.size
            checksum = struct.pack("<I", _write_numbers(out, chunks, record.size))
            checksums[record.entry + CHECKSUM_IN_ENTRY] = checksum
            if record.size:  # else it has no descriptor
                out.write(DESCRIPTOR_MARK + checksum)
                at += len(DESCRIPTOR_MARK + checksum)
        file.seek(at)
        rest = bytearray(file.read())
    for place, checksum in checksums.items():
        rest[place - at : place - at + len(checksum)] = checksum
    out.write(rest)


def _write_numbers(out: BinaryIO, chunks: Iterable[NDArray[Any]], size: int) -> int:
    """Write a tensor and return the checksum of its ``size`` bytes."""
    checksum = 0
    for chunk in chunks:
        numbers = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
        for first in range(0, len(numbers), PIECE):
            piece = numbers[first : first + PIECE].data
            out.write(piece)
            checksum = zlib.crc32(piece, checksum)
        size -= numbers.nbytes
    assert size == 0, "the numbers do not fill the tensor"
    return checksum


@dataclass(frozen=True)
class TensorRecord:
    """The place of a tensor in a ``.pt``; its numbers, in C order, are not read."""

    dtype: str  # as numpy calls it, little-endian
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_through(file: BinaryIO, note: Callable[[int, bytes], None] | None = None) -> dict[str, Any]:
    """Read all of a ``.pt``, compare it with its checksums, and return or raise what :func:`read_content` does.

    ``note`` is called with the place of each piece that is read, and the piece.
    """
    content = read_content(file)
    by_name = content | (content["feats"] if isinstance(content.get("feats"), dict) else {})
    names = {value.offset: shorten(str(name)) for name, value in by_name.items() if isinstance(value, TensorRecord)}
    for name, record in read_records(file).items():
        at = record.start
        for piece in checked_pieces(file, record, names.get(at, name)):
            if note is not None:
                note(at, piece)
            at += len(piece)
    return content


def read_content(file: BinaryIO) -> dict[str, Any]:
    """Return the content of a ``.pt`` of plain values, without torch and without executing anything in it.

    Only its directory and its small records are read; a :class:`TensorRecord` stands for each tensor.

    Raises:
        ValueError: It is something else, or incomplete.
        OSError: It can't be read.
    """
    records = read_records(file)
    if missing := {"data.pkl", "version"} - records.keys():
        raise ValueError(f"it is not an archive of torch.save: it has no {missing.pop()}")
    for name, record in records.items():  # in the order of the file: going back and forth costs requests
        if name in _SMALL and not _SMALL[name].fullmatch(small := read_record(file, record, name, _SMALL_BYTES)):
            raise ValueError(f"its {name} is {small!r}, which this version does not read")
    pickled = read_record(file, records["data.pkl"], "data.pkl", MAX_PICKLE_BYTES)
    content = load_plain(pickled, _storage_finder(records), _NAMES, TensorRecord)
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
class _Storage:
    """A block of numbers; tensors are parts of it."""

    dtype: "np.dtype[Any]"
    start: int
    count: int


def _storage_finder(records: Mapping[str, Record]) -> Callable[[Any], _Storage]:
    """Return a function that finds the storage of a persistent id; it raises ValueError if there is none."""
    dtypes: dict[str, np.dtype[Any]] = {}

    def find(found: Any) -> _Storage:
        kinds = (str, np.dtype, str, str, int)
        if not isinstance(found, tuple) or len(found) != len(kinds) or not all(map(isinstance, found, kinds)):
            raise ValueError("it holds a tensor that torch.save did not write")
        kind, dtype, key, device, count = found
        record = records.get(f"data/{key}")
        if kind != "storage" or device != "cpu" or record is None or count * dtype.itemsize != record.size:
            raise ValueError("it holds a tensor whose numbers are missing, or too many or too few")
        if dtypes.setdefault(key, dtype) != dtype:
            raise ValueError("it holds two tensors that share numbers but differ in type")
        return _Storage(dtype, record.start, count)

    return find


def _tensor(*arguments: Any) -> TensorRecord:
    is_plain = len(arguments) == 6 and arguments[4] is False and arguments[5] is _NO_HOOKS  # no gradient, no hooks
    if not is_plain or type(arguments[0]) is not _Storage or type(arguments[1]) is not int:
        raise ValueError("it holds a tensor that is not made of plain numbers")
    storage, skipped, shape, strides = arguments[:4]
    for numbers in (shape, strides):
        is_tuple = type(numbers) is tuple and len(numbers) <= _MAX_AXES
        if not is_tuple or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("it holds a tensor without a valid shape")
    in_c_order = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    count, size = math.prod(shape), storage.dtype.itemsize
    if len(strides) != len(shape) or (count and strides != in_c_order):
        raise ValueError(f"a tensor of shape {shape} is not in C order")
    if math.prod(max(n, 1) for n in shape) * size >= 2**62 or skipped < 0 or skipped + count > storage.count:
        raise ValueError(f"a tensor of shape {shape} does not fit its {storage.count * size} bytes")
    return TensorRecord(storage.dtype.str, shape, storage.start + skipped * size, count * size)


_NO_HOOKS = object()  # stands for the hooks of a tensor: an empty OrderedDict


def _no_hooks(*arguments: Any) -> object:
    if arguments:
        raise ValueError("it holds an OrderedDict, which is not a plain value")
    return _NO_HOOKS


_NAMES: Mapping[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "collections.OrderedDict": _no_hooks,
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype("V2"),  # which numpy does not have
    "torch.ByteStorage": np.dtype("|u1"),
    "torch.CharStorage": np.dtype("|i1"),
    "torch.BoolStorage": np.dtype("|b1"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
}


def name_of_open(file: BinaryIO, path: Path) -> str:
    """Return a path of the open file itself for torch, also if another file has taken its place meanwhile."""
    place = Path(f"/proc/self/fd/{file.fileno()}")
    return str(place if place.exists() else path)
