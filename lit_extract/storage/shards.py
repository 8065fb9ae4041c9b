"""Shard files, written and read without zarr, whose own way takes ten times as long as copying the bytes.

The format is that of zarr v3's sharding codec with the index at the end
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/): a chunk for each layer, (R, D) and its
CRC-32C; then, since format 2 of a store, what zarr does not look at: the CRC-32C of each chunk again, and the seal,
which ties all that to its place; then for each layer the offset and length of its chunk, uint64 each, and the CRC-32C
of that.

L layers, D hidden size, R rows a shard. Status and extras have one layer and one dimension.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from lit_extract.storage.layout import SEAL_BYTES, shard_bytes


class ForeignShardError(ValueError):
    """A file that is whole and in its place, but of another store."""


class Place(NamedTuple):
    """Where a file of a sealed store belongs.

    Args:
        store: Id of the store.
        array: Name of its array.
        shard: Number of the shard.
    """

    store: str
    array: str
    shard: int


@dataclass(frozen=True)
class Form:
    """How a shard file is laid out.

    Args:
        n_layers: L.
        shard_rows: R.
        n_dim: D.
        dtype: Of the numbers, little-endian.
        place: Where it belongs; None in a store of format 1, in any order and without a seal.
    """

    n_layers: int
    shard_rows: int
    n_dim: int
    dtype: str = "<f4"
    place: Place | None = None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk with its checksum."""
        return self.shard_rows * self.n_dim * np.dtype(self.dtype).itemsize + 4

    @property
    def n_bytes(self) -> int:
        """Bytes of the file."""
        is_sealed = self.place is not None
        return shard_bytes(self.n_layers, self.n_dim, self.shard_rows, is_sealed, np.dtype(self.dtype).itemsize)

    def index(self) -> NDArray[np.uint64]:
        """Offset and length of each layer's chunk (L, 2), as they are written."""
        offsets = np.arange(self.n_layers, dtype="<u8") * self.chunk_bytes
        return np.stack([offsets, np.full_like(offsets, self.chunk_bytes)], axis=1)

    def seal(self, store: str, checksums: bytes) -> bytes:
        """A store's id, and a hash of that, the place, the layout and the checksum of each chunk."""
        assert self.place is not None
        known = json.dumps(
            [store, self.place.array, self.place.shard, self.n_layers, self.shard_rows, self.n_dim, self.dtype]
        )
        digest = hashlib.blake2b(known.encode() + checksums, digest_size=SEAL_BYTES - _ID_BYTES).digest()
        return bytes.fromhex(store) + digest


_ID_BYTES = 16


def write_layers(form: Form, values: NDArray[Any], fill: float) -> Iterator[memoryview]:
    """The bytes of a shard file, a chunk after the other; each is gone when the next is asked for.

    Args:
        form: How it is laid out.
        values: (rows, L, D); the last shard may have fewer rows than R.
        fill: Stands for the rows that are lacking.
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
    if form.place is not None:
        yield memoryview(checksums + form.seal(form.place.store, checksums))
    index = form.index().tobytes()
    yield memoryview(index + google_crc32c.value(index).to_bytes(4, "little"))


def read_layers(
    file: BinaryIO, form: Form, layers: Sequence[int], n_rows: int, into: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Some layers of a shard; the others are not read.

    Args:
        file: The shard, opened for reading bytes.
        form: How it must be laid out.
        layers: Which layers, in which order.
        n_rows: How many of the R rows are wanted, the first ones.
        into: (at least n_rows, len(layers), D) to fill in, of which a view is returned; memory that was used before
            is filled in half the time.

    Returns:
        (n_rows, len(layers), D).

    Raises:
        ForeignShardError: It is sealed, and of another store.
        ValueError: A checksum or a length is not what it must be, or it belongs to another place.
        OSError: It can't be read.
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
    """Offset of each layer's chunk (L,) and, of a sealed file, its checksum (L,), for which the seal vouches."""
    n, is_sealed = form.n_layers, form.place is not None
    sealed = n * 4 + SEAL_BYTES if is_sealed else 0
    content = np.empty(sealed + n * 16 + 4, dtype=np.uint8)
    size = file.seek(0, 2)
    if size != form.n_bytes:
        raise ValueError(f"it has {size} bytes, not {form.n_bytes}")
    _read_exactly(file, size - content.nbytes, content)
    index = content[sealed:-4]
    if google_crc32c.value(index) != content[-4:].view("<u4")[0]:
        raise ValueError("the checksum of the index differs")
    places = index.view("<u8").reshape(n, 2)
    if (places[:, 1] != form.chunk_bytes).any() or (places[:, 0] > size - content.nbytes - form.chunk_bytes).any():
        raise ValueError(f"its index has chunks of other than {form.chunk_bytes} bytes, or behind its end")
    if not is_sealed:
        return places[:, 0], None
    checksums, seal = content[: n * 4], content[n * 4 : sealed].tobytes()
    store = seal[:_ID_BYTES].hex()
    if seal != form.seal(store, checksums.tobytes()) or (places != form.index()).any():
        raise ValueError("it differs from its seal: it belongs to another place")
    if form.place is not None and store != form.place.store:
        raise ForeignShardError("it is of another store")
    return places[:, 0], checksums.view("<u4")


def _read_exactly(file: BinaryIO, offset: int, into: NDArray[np.uint8]) -> None:
    file.seek(offset)
    if (found := file.readinto(into.data)) != into.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"it ends {into.nbytes - (found or 0)} bytes too soon")
