"""Find the records of a zip archive that torch.save made, such that every reader finds the same.

Zip readers differ: some follow the directory, some the headers, torch ignores the case of names, and Python's zipfile
skips whatever lies around and between records. So an archive must be, byte by byte except for its padding, what
torch.save writes: records one after the other from the first byte on, each with its header and, after its content, its
checksum and size again, then the directory and its end. zipfile would not shorten this: each field that it reads would
have to be packed again for the comparison, and it neither writes nor checks torch's layout.

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
_TAIL_BYTES = 2**16  # enough for a directory of MAX_RECORDS

_HEADER = struct.Struct("<4sHHHHHIIIHH")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_DESCRIPTOR, _WIDE_DESCRIPTOR = struct.Struct("<4sIII"), struct.Struct("<4sIQQ")
_WIDE_END, _LOCATOR, _END = struct.Struct("<4sQHHIIQQQQ"), struct.Struct("<4sIQI"), struct.Struct("<4sHHHHIIH")
_ENDS = _WIDE_END.size + _LOCATOR.size + _END.size
_HEADER_MARK, _ENTRY_MARK, DESCRIPTOR_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
_UTF8, _HAS_DESCRIPTOR = 0x800, 0x8
_WIDE = 2**32 - 1  # sizes and places from here on have 64 bits, elsewhere
CHECKSUM_IN_ENTRY = 16

# Versions of torch add different records to data.pkl and data/0, data/1, …; torch ignores the case of names.
_NAME = re.compile(r"[a-z0-9_.]+(/[a-z0-9_.]+)*")


@dataclass(frozen=True)
class Record:
    """A record of an archive; places are offsets in the file."""

    start: int
    size: int
    checksum: int  # CRC-32, as stated in the archive
    entry: int  # place of its entry in the directory


def read_records(file: BinaryIO) -> dict[str, Record]:
    """Return the records of an archive by name, without their common folder.

    Raises:
        ValueError: It is not what torch.save writes.
    """
    size = file.seek(0, os.SEEK_END)
    tail = read_exactly(file, max(0, size - _TAIL_BYTES), min(size, _TAIL_BYTES))
    count, begin = _read_end(tail, size)
    directory, at, header = tail[begin - size : -_ENDS], 0, 0
    records: dict[str, Record] = {}
    tops = set()
    for _ in range(count):
        name, record, length, next_header = _read_entry(file, directory[at:], header, begin + at)
        top, _, member = name.decode().partition("/")
        tops.add(top)
        if len(tops) > 1 or not top or not is_printable(top) or not _NAME.fullmatch(member) or member in records:
            raise _no_archive("it has a record that torch.save does not write, or one twice")
        records[member] = record
        at, header = at + length, next_header
    if at != len(directory) or header != begin:
        raise _no_archive("its records and its directory don't fit")
    return records


def read_record(file: BinaryIO, record: Record, name: str, limit: int) -> bytes:
    """Return a record's content; raise ValueError if it has more than ``limit`` bytes, or as :func:`checked_pieces`."""
    if record.size > limit:
        raise ValueError(f"{name} has {record.size:,} bytes; at most {limit:,} are possible")
    return b"".join(checked_pieces(file, record, name))


def checked_pieces(file: BinaryIO, record: Record, name: str) -> Iterator[bytes]:
    """Yield a record's content piece by piece; raise ValueError at the end if it differs from its checksum."""
    checksum = 0
    for first in range(0, record.size, PIECE):
        piece = read_exactly(file, record.start + first, min(PIECE, record.size - first))
        checksum = zlib.crc32(piece, checksum)
        yield piece
    if checksum != record.checksum:
        raise ValueError(f"{name} is damaged: its checksum differs")


def read_exactly(file: BinaryIO, start: int, size: int) -> bytes:
    """Return ``size`` bytes from ``start`` on; raise ValueError if the file ends before."""
    file.seek(start)
    content = file.read(size)
    if len(content) != size:
        raise _no_archive("it is cut off")
    return content


def _no_archive(reason: str) -> ValueError:
    return ValueError(f"it is not a zip archive of torch.save, or incomplete: {reason}")


def _read_end(tail: bytes, size: int) -> tuple[int, int]:
    """Return the number of records, and the place of the directory."""
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
        raise _no_archive(f"it has {count:,} records; at most {MAX_RECORDS} are possible")
    return count, begin


def _read_entry(file: BinaryIO, directory: bytes, header: int, place: int) -> tuple[bytes, Record, int, int]:
    """Read the first entry of a directory, and check that entry, header and descriptor are as torch.save writes them.

    The header of its record begins at ``header``, where the previous record ends; the entry begins at ``place``.

    Returns:
        Name, record, bytes of the entry, and place of the next header.
    """
    if len(directory) < _ENTRY.size:
        raise _no_archive("its directory is cut off")
    _, made_by, needed, _, _, time, date, checksum, _, size, name_length, extra_length, *_ = _ENTRY.unpack_from(
        directory
    )
    name, extra = directory[_ENTRY.size :][:name_length], directory[_ENTRY.size + name_length :][:extra_length]
    if size == _WIDE and len(extra) >= 12:
        (size,) = struct.unpack_from("<Q", extra, 4)
    flags, checksum = (_UTF8 | _HAS_DESCRIPTOR, checksum) if size else (_UTF8, 0)
    wide = [size] * 2 * (size >= _WIDE) + [header] * (header >= _WIDE)
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    sizes, rest = [min(size, _WIDE)] * 2, (len(name), len(extra), 0, 0, 0, 0, min(header, _WIDE))
    entry = _ENTRY.pack(_ENTRY_MARK, made_by, needed, flags, 0, time, date, checksum, *sizes, *rest) + name + extra
    found = read_exactly(file, header, _HEADER.size + len(name))
    padding = int(_HEADER.unpack_from(found)[-1])
    expected = _HEADER.pack(_HEADER_MARK, needed, flags, 0, time, date, 0, 0, 0, len(name), padding) + name
    start = header + len(found) + padding
    end = start + size
    form = _WIDE_DESCRIPTOR if max(header, size) >= _WIDE else _DESCRIPTOR
    descriptor = form.pack(DESCRIPTOR_MARK, checksum, size, size) if size else b""
    if not directory.startswith(entry) or found != expected or end > place:
        raise _no_archive("its directory is damaged, another program's, or at odds with a record's header")
    if read_exactly(file, end, len(descriptor)) != descriptor:
        raise _no_archive("a record's end differs from the directory")
    return name, Record(start, size, checksum, place), len(entry), end + len(descriptor)
