"""Write and read the file of a store's stimulus ids."""

import hashlib
import io
import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np

from lit_extract.storage.layout import IDS_KEY, Layout
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.store_metadata import INTEGERS, TEXTS, canonical

MAX_TEXT_BYTES = 4096 + 4  # of one id: a path, and its length
MAX_BYTES = 400 * 10**6  # of all ids; 20 million integers need 160 MB


def ids_dtype(ids: Sequence[int] | Sequence[str]) -> str:
    """Return the data type of ids: integers, or texts."""
    return INTEGERS if all(isinstance(one, int) for one in ids) else TEXTS


def ids_sha256(ids: Sequence[int] | Sequence[str]) -> str:
    """Return the hash of stimulus ids; 7 and "7" have different hashes."""
    return hashlib.sha256(canonical(list(ids)).encode()).hexdigest()


def encode_ids(ids: Sequence[int] | Sequence[str], version: int) -> bytes:
    """Return the bytes of the file of ids, in a store of this format version."""
    if ids_dtype(ids) == INTEGERS:
        content = np.asarray(ids, dtype="<i8").tobytes()
    else:
        texts = [str(text).encode() for text in ids]
        content = b"".join([_COUNT.pack(len(texts)), *(_COUNT.pack(len(text)) + text for text in texts)])
    if version == 1:
        import pyarrow as pa

        content = pa.compress(content, codec="zstd", asbytes=True)
    return content + _checksum(content)


def read_ids(path: AnyPath, layout: Layout) -> list[int] | list[str]:
    """Return the id of each row, as it was written; ValueError if they are lost or damaged."""
    n = layout.n_stimuli
    limit = min(MAX_BYTES, n * (8 if layout.ids_dtype == INTEGERS else MAX_TEXT_BYTES) + _COUNT.size)
    files = place_of(path).read_files([IDS_KEY], limit + 1024)  # what does not compress grows a little
    if IDS_KEY not in files:
        raise ValueError("they are lost")
    content, checksum = files[IDS_KEY][:-4], files[IDS_KEY][-4:]
    if checksum != _checksum(content):
        raise ValueError("their checksum differs")
    if layout.version == 1:
        content = _decompress(content, limit)
    ids: list[int] | list[str] = _integers(content, n) if layout.ids_dtype == INTEGERS else _texts(content, n)
    if layout.ids_sha256 is not None and ids_sha256(ids) != layout.ids_sha256:
        raise ValueError("they are not those with which the store was made")
    return ids


_COUNT = struct.Struct("<I")


def _checksum(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(4, "little")


def _decompress(content: bytes, limit: int) -> bytes:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
            found: bytes = stream.read(limit + 1)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"they can't be decompressed: {error}") from None
    if len(found) > limit:
        raise ValueError(f"they have more than {limit:,} bytes")
    return found


def _integers(content: bytes, n: int) -> list[int]:
    if len(content) != 8 * n:
        raise ValueError(f"they have {len(content)} bytes; {n} ids have {8 * n}")
    ids = np.frombuffer(content, dtype="<i8")
    if (np.diff(np.sort(ids)) == 0).any():
        raise ValueError("some occur twice")
    found: list[int] = ids.tolist()
    return found


def _texts(content: bytes, n: int) -> list[str]:
    file, ids = io.BytesIO(content), []
    try:
        (count,) = _COUNT.unpack(file.read(4))
        if count != n:
            raise ValueError(f"there are {count}, not {n}")
        for _ in range(n):
            (length,) = _COUNT.unpack(file.read(4))
            text = file.read(length)
            if len(text) != length or not text:
                raise ValueError("one is empty or cut off")
            ids.append(text.decode())
    except struct.error:
        raise ValueError("they are cut off") from None
    if file.read(1) or len(set(ids)) != n:
        raise ValueError("there are too many, or some occur twice")
    return ids
