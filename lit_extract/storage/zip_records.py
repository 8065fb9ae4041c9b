"""The records of a zip archive that torch.save made, found in the one way in which all readers find them.

Zip readers differ: some follow the directory, some the headers, torch looks for names whatever their case. So an
archive must be, byte by byte but for its padding, what torch.save writes: records one after the other from the first
byte on, each with its header and, behind its content, its checksum and size once more, then the directory and its end.

Layout: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7, 4.3.9, 4.3.12 and 4.3.14 to 4.3.16.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lit_extract.common.untrusted import is_printable

MAX_RECORDS = 100  # a features file has a dozen
PIECE = 2**20  # bytes read at once
_TAIL_BYTES = 2**16  # enough for the directory of so many

_HEADER = struct.Struct("<4sHHHHHIIIHH")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_DESCRIPTOR, _WIDE_DESCRIPTOR = struct.Struct("<4sIII"), struct.Struct("<4sIQQ")
_WIDE_END, _LOCATOR, _END = struct.Struct("<4sQHHIIQQQQ"), struct.Struct("<4sIQI"), struct.Struct("<4sHHHHIIH")
_ENDS = _WIDE_END.size + _LOCATOR.size + _END.size
_HEADER_MARK, _ENTRY_MARK, DESCRIPTOR_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
_UTF8, _HAS_DESCRIPTOR = 0x800, 0x8
_WIDE = 2**32 - 1  # sizes and places from here on have 64 bits, elsewhere
CHECKSUM_IN_ENTRY = 16

# Versions of torch differ in what they add to data.pkl and data/0, data/1, …; torch does not look at the case.
_NAME = re.compile(r"[a-z0-9_.]+(/[a-z0-9_.]+)*")


@dataclass(frozen=True)
class Record:
    """A record of an archive.

    Args:
        start: Its first byte in the file.
        size: Its bytes.
        checksum: CRC-32 of them, as the archive says.
        entry: Where its entry in the directory begins.
    """

    start: int
    size: int
    checksum: int
    entry: int


def read_records(file: BinaryIO) -> dict[str, Record]:
    """Return the records of an archive by name, without the folder that all of them are in.

    Args:
        file: Opened for reading bytes; it can seek.

    Raises:
        ValueError: It is not what torch.save writes.
        OSError: It can't be read.
    """
    size = file.seek(0, os.SEEK_END)
    tail = read_exactly(file, max(0, size - _TAIL_BYTES), min(size, _TAIL_BYTES))
    count, begin = _read_end(tail, size)
    directory, at, cursor = tail[begin - size : -_ENDS], 0, 0
    records: dict[str, Record] = {}
    tops = set()
    for _ in range(count):
        name, entry = _read_entry(directory[at:], cursor)
        start, end = _check_record(file, entry, cursor)
        top, _, member = name.decode().partition("/")
        tops.add(top)
        if len(tops) > 1 or not top or not is_printable(top) or not _NAME.fullmatch(member) or member in records:
            raise _no_archive("it has a record that torch.save does not write, or one twice")
        records[member] = Record(start, entry.size, entry.checksum, begin + at)
        at, cursor = at + entry.length, end
    if at != len(directory) or cursor != begin:
        raise _no_archive("its records and its directory don't fit")
    return records


def read_record(file: BinaryIO, record: Record, limit: int) -> bytes:
    """Return a record's content, which fits its checksum.

    Raises:
        ValueError: It has more than ``limit`` bytes, or differs from its checksum.
    """
    if record.size > limit:
        raise ValueError(f"it has a record of {record.size:,} bytes, which may have {limit:,}")
    content = read_exactly(file, record.start, record.size)
    if zlib.crc32(content) != record.checksum:
        raise ValueError("it is damaged: a record differs from its checksum")
    return content


def record_pieces(file: BinaryIO, record: Record, piece: int = PIECE) -> Iterator[bytes]:
    """A record's content, some bytes at a time."""
    for start in range(0, record.size, piece):
        yield read_exactly(file, record.start + start, min(piece, record.size - start))


def is_intact(file: BinaryIO, record: Record) -> bool:
    """Return whether a record's content fits its checksum."""
    checksum = 0
    for piece in record_pieces(file, record):
        checksum = zlib.crc32(piece, checksum)
    return checksum == record.checksum


def read_exactly(file: BinaryIO, start: int, size: int) -> bytes:
    """Read so many bytes from there.

    Raises:
        ValueError: The file ends before.
    """
    file.seek(start)
    content = file.read(size)
    if len(content) != size:
        raise _no_archive("it is cut off")
    return content


@dataclass(frozen=True)
class _Entry:
    """What an entry of the directory says of a record; ``length`` is its own, in bytes."""

    name: bytes
    size: int
    checksum: int
    versions_and_times: tuple[int, int, int]  # the only fields that don't follow from the others
    length: int


def _no_archive(reason: str) -> ValueError:
    return ValueError(f"it is no zip archive of torch.save, or not whole: {reason}")


def _read_end(tail: bytes, size: int) -> tuple[int, int]:
    """The number of records, and where the directory begins."""
    end = tail[-_ENDS:]
    if len(end) < _ENDS:
        raise _no_archive(f"it has {size} bytes")
    _, _, made_by, needed, _, _, count, _, length, begin = _WIDE_END.unpack_from(end)
    expected = (
        _WIDE_END.pack(b"PK\x06\x06", _WIDE_END.size - 12, made_by, needed, 0, 0, count, count, length, begin),
        _LOCATOR.pack(b"PK\x06\x07", 0, size - _ENDS, 1),
        _END.pack(b"PK\x05\x06", 0, 0, *[min(count, 2**16 - 1)] * 2, min(length, _WIDE), min(begin, _WIDE), 0),
    )
    if b"".join(expected) != end or begin + length != size - _ENDS:
        raise _no_archive("it does not end with a directory")
    if not 0 < count <= MAX_RECORDS or length > len(tail) - _ENDS:
        raise _no_archive(f"it has {count:,} records; {MAX_RECORDS} are possible")
    return count, begin


def _read_entry(directory: bytes, cursor: int) -> tuple[bytes, _Entry]:
    """The next entry, whose record begins at ``cursor``."""
    if len(directory) < _ENTRY.size:
        raise _no_archive("its directory is cut off")
    _, made_by, needed, _, _, time, date, checksum, _, size, name_length, extra_length, *_ = _ENTRY.unpack_from(
        directory
    )
    name, extra = _split(directory[_ENTRY.size :], name_length, extra_length)
    if size == _WIDE and len(extra) >= 12:
        (size,) = struct.unpack_from("<Q", extra, 4)
    wide = [size] * 2 * (size >= _WIDE) + [cursor] * (cursor >= _WIDE)
    expected_extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    sizes = [min(size, _WIDE)] * 2
    expected = _ENTRY.pack(
        *(_ENTRY_MARK, made_by, needed, _flags(size), 0, time, date, checksum if size else 0, *sizes),
        *(len(name), len(expected_extra), 0, 0, 0, 0, min(cursor, _WIDE)),
    )
    length = len(expected) + len(name) + len(extra)
    if expected + name + expected_extra != directory[:length]:
        raise _no_archive("its directory is damaged, or another program's")
    return name, _Entry(name, size, checksum, (needed, time, date), length)


def _split(content: bytes, *lengths: int) -> Iterator[bytes]:
    at = 0
    for length in lengths:
        yield content[at : at + length]
        at += length


def _flags(size: int) -> int:
    return _UTF8 | (_HAS_DESCRIPTOR if size else 0)


def _check_record(file: BinaryIO, entry: _Entry, cursor: int) -> tuple[int, int]:
    """See that a record is where the directory says; return its first byte, and where the next record begins."""
    header = read_exactly(file, cursor, _HEADER.size + len(entry.name))
    padding = _HEADER.unpack_from(header)[-1]
    needed, time, date = entry.versions_and_times
    expected = _HEADER.pack(_HEADER_MARK, needed, _flags(entry.size), 0, time, date, 0, 0, 0, len(entry.name), padding)
    start = cursor + len(header) + int(padding)
    end = start + entry.size
    if header != expected + entry.name:
        raise _no_archive("a record's header differs from the directory")
    if not entry.size:
        return start, end
    is_wide = max(cursor, entry.size) >= _WIDE
    form = _WIDE_DESCRIPTOR if is_wide else _DESCRIPTOR
    if read_exactly(file, end, form.size) != form.pack(DESCRIPTOR_MARK, entry.checksum, entry.size, entry.size):
        raise _no_archive("a record's end differs from the directory")
    return start, end + form.size
