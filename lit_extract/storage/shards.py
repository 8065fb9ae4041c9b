"""Write and read shard files without zarr, which needs ten times as long as copying the bytes.

The format is that of zarr v3's sharding codec with the index at the end
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/). A file has a chunk for each layer, (R, D) and
its CRC-32C. Since format 2 of a store, the CRC-32C of each chunk follows again, and the seal, which ties the file to
its address; zarr ignores both. Last come the offset and length of each chunk, uint64 each, and the CRC-32C of these.

In stores of format 1, status and extras are a plain chunk with its CRC-32C.

L layers, D hidden size, R rows a shard. Status and extras have one layer, and most have one dimension.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from lit_extract.storage.layout import MISSING, SEAL_BYTES, shard_bytes


class ForeignShardError(ValueError):
    """A file is sound and at its address, but belongs to another store."""


class Address(NamedTuple):
    """The store, by its id, and the array and shard that a file of a sealed store belongs to."""

    store: str
    array: str
    shard: int


@dataclass(frozen=True)
class Form:
    """The form of a shard file."""

    n_layers: int
    shard_rows: int
    n_dim: int
    dtype: str = "<f4"  # of the numbers, little-endian
    address: Address | None = None  # None in a store of format 1, which has layers in any order and no seal

    @property
    def chunk_bytes(self) -> int:
        """Return the bytes of a chunk with its checksum."""
        return self.shard_rows * self.n_dim * np.dtype(self.dtype).itemsize + 4

    @property
    def file_bytes(self) -> int:
        """Return the bytes of the file."""
        is_sealed = self.address is not None
        return shard_bytes(self.n_layers, self.n_dim, self.shard_rows, is_sealed, np.dtype(self.dtype).itemsize)

    def index(self) -> NDArray[np.uint64]:
        """Return offset and length of each layer's chunk (L, 2), as written to the file."""
        offsets = np.arange(self.n_layers, dtype="<u8") * self.chunk_bytes
        return np.stack([offsets, np.full_like(offsets, self.chunk_bytes)], axis=1)

    def seal(self, store: str, checksums: bytes) -> bytes:
        """Return a store's id, followed by a hash of the id, the address, the form and the checksum of each chunk."""
        assert self.address is not None
        known = json.dumps(
            [store, self.address.array, self.address.shard, self.n_layers, self.shard_rows, self.n_dim, self.dtype]
        )
        digest = hashlib.blake2b(known.encode() + checksums, digest_size=SEAL_BYTES - _ID_BYTES).digest()
        return bytes.fromhex(store) + digest


_ID_BYTES = 16


def write_layers(form: Form, values: NDArray[Any], fill: float) -> Iterator[memoryview]:
    """Yield the bytes of a shard file of values (rows, L, D), chunk by chunk; each is overwritten by the next.

    The last shard may have fewer than R rows; ``fill`` is written for the others.
    """
    chunk = np.empty((form.shard_rows, form.n_dim), dtype=form.dtype)
    chunk[len(values) :] = fill
    checksums = b""
    for layer in range(form.n_layers):
        chunk[: len(values)] = values[:, layer]
        content = chunk.reshape(-1).view(np.uint8)
        checksum = google_crc32c.value(content).to_bytes(4, "little")
        checksums += checksum
        yield content.data
        yield memoryview(checksum)
    if form.address is not None:
        yield memoryview(checksums + form.seal(form.address.store, checksums))
    index = form.index().tobytes()
    yield memoryview(index + google_crc32c.value(index).to_bytes(4, "little"))


def read_layers(
    file: BinaryIO, form: Form, layers: Sequence[int], n_rows: int, into: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return the first rows of some layers of a shard (n_rows, len(layers), D); the other layers are not read.

    With ``into`` (at least n_rows, len(layers), D), a view of it is returned; memory that was used before is filled in
    half the time.

    Raises:
        ForeignShardError: The file is sealed and belongs to another store.
        ValueError: A checksum or a length is wrong, or the file belongs to another address.
        OSError: The file can't be read.
    """
    index, checksums = _tail(file, form)
    chunk = np.empty(form.chunk_bytes, dtype=np.uint8)
    numbers = chunk[:-4].view(form.dtype).reshape(form.shard_rows, form.n_dim)
    feats = np.empty((n_rows, len(layers), form.n_dim), dtype=form.dtype) if into is None else into[:n_rows]
    for place, layer in enumerate(layers):
        _read_exactly(file, int(index[layer]), chunk)
        checksum = chunk[-4:].view("<u4")[0]
        if google_crc32c.value(chunk[:-4]) != checksum or (checksums is not None and checksums[layer] != checksum):
            raise ValueError(f"the checksum of layer {layer} differs")
        feats[:, place] = numbers[:n_rows]
    return feats


def _tail(file: BinaryIO, form: Form) -> tuple[NDArray[np.uint64], NDArray[np.uint32] | None]:
    """Return the offset of each layer's chunk (L,) and, for a sealed file, its checksum (L,), which the seal covers."""
    n, is_sealed = form.n_layers, form.address is not None
    sealed = n * 4 + SEAL_BYTES if is_sealed else 0
    content = np.empty(sealed + n * 16 + 4, dtype=np.uint8)
    size = file.seek(0, 2)
    if size != form.file_bytes:
        raise ValueError(f"it has {size} bytes, not {form.file_bytes}")
    _read_exactly(file, size - content.nbytes, content)
    index = content[sealed:-4]
    if google_crc32c.value(index) != content[-4:].view("<u4")[0]:
        raise ValueError("the checksum of the index differs")
    places = index.view("<u8").reshape(n, 2)
    if (places[:, 1] != form.chunk_bytes).any() or (places[:, 0] > size - content.nbytes - form.chunk_bytes).any():
        raise ValueError(f"its index has chunks that do not have {form.chunk_bytes} bytes, or lie after its end")
    if not is_sealed:
        return places[:, 0], None
    checksums, seal = content[: n * 4], content[n * 4 : sealed].tobytes()
    store = seal[:_ID_BYTES].hex()
    if seal != form.seal(store, checksums.tobytes()) or (places != form.index()).any():
        raise ValueError("it differs from its seal: it belongs to another place")
    if form.address is not None and store != form.address.store:
        raise ForeignShardError("it belongs to another store")
    return places[:, 0], checksums.view("<u4")


def _read_exactly(file: BinaryIO, offset: int, into: NDArray[np.uint8]) -> None:
    file.seek(offset)
    if (found := file.readinto(into.data)) != into.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"it ends {into.nbytes - (found or 0)} bytes too soon")


def write_values(form: Form, values: NDArray[Any]) -> Iterator[memoryview]:
    """Yield the bytes of the file of one value of rows (rows, …)."""
    if form.address is not None:
        yield from write_layers(form, np.asarray(values).reshape(-1, 1, form.n_dim), fill=MISSING)
        return
    content = np.full(form.shard_rows, MISSING, dtype=form.dtype)
    content[: len(values)] = values
    yield content.view(np.uint8).data
    yield memoryview(google_crc32c.value(content.view(np.uint8)).to_bytes(4, "little"))


def read_values(content: bytes, form: Form, n_rows: int) -> NDArray[Any]:
    """Return a value of the rows of a shard, the numbers of rows concatenated; errors as for :func:`read_layers`."""
    if form.address is not None:
        return read_layers(io.BytesIO(content), form, [0], n_rows).reshape(-1)
    values, checksum = content[:-4], content[-4:]
    if len(content) != form.chunk_bytes or google_crc32c.value(values) != int.from_bytes(checksum, "little"):
        raise ValueError("their checksum differs")
    return np.frombuffer(values, dtype=form.dtype)[:n_rows]
