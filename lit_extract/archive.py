"""Numbers into the holes of a ``.pt``, which is a zip archive.

Layout: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7, 4.3.9 and 4.3.12.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def fill_record(part: Path, ending: str, chunks: Iterable[NDArray[Any]]) -> int:
    """Write numbers into the hole of a record; return their CRC-32.

    A ``.pt`` is a zip archive. A record's checksum, which the skeleton leaves 0, is filled in too, so
    that ``python -m zipfile -t FILE`` finds damage years later.
    """
    with zipfile.ZipFile(part) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith(ending))
        directory = archive.start_dir
    checksum = 0
    with part.open("r+b") as file:
        file.seek(record.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        name_length, extra_length = _LOCAL_HEADER.unpack(header)[-2:]
        start = record.header_offset + len(header) + name_length + extra_length
        file.seek(start)
        for chunk in chunks:
            contiguous = np.ascontiguousarray(chunk)
            file.write(contiguous.data)
            checksum = zlib.crc32(contiguous.data, checksum)
        assert file.tell() == start + record.file_size, "the numbers do not fill the tensor"
        packed = struct.pack("<I", checksum)
        assert file.read(4) == _DESCRIPTOR_MARK
        file.seek(start + record.file_size + 4)
        file.write(packed)
        file.seek(_directory_entry(file, directory, record.filename) + _CRC_IN_DIRECTORY_ENTRY)
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
    return checksum


_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_DIRECTORY_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_CRC_IN_DIRECTORY_ENTRY = 16
_DESCRIPTOR_MARK = b"PK\x07\x08"


def _directory_entry(file: BinaryIO, start: int, name: str) -> int:
    """Where a record's entry in the central directory begins."""
    while True:
        file.seek(start)
        fields = _DIRECTORY_ENTRY.unpack(file.read(_DIRECTORY_ENTRY.size))
        name_length, extra_length, comment_length = fields[10:13]
        if file.read(name_length).decode() == name:
            return start
        start += _DIRECTORY_ENTRY.size + name_length + extra_length + comment_length
