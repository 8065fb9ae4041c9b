"""Shard files, read without zarr, whose own reading takes ten times as long as copying the bytes.

The format is that of zarr v3's sharding codec with the index at the end, as ``store.py`` writes it: a chunk for each
layer, (R, D) float32 and its CRC-32C, in any order; then for each layer the offset and length of its chunk, uint64
each, and the CRC-32C of that (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/).

L layers, D hidden size, R rows a shard.
"""

from collections.abc import Sequence
from typing import BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray


def read_layers(
    file: BinaryIO,
    n_layers: int,
    shard_rows: int,
    n_dim: int,
    layers: Sequence[int],
    n_rows: int,
    into: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Some layers of a shard; the others are not read.

    Args:
        file: The shard, opened for reading bytes.
        n_layers: L.
        shard_rows: R.
        n_dim: D.
        layers: Which layers, in which order.
        n_rows: How many of the R rows are wanted, the first ones.
        into: (at least n_rows, len(layers), D) to fill in, of which a view is returned; memory that was used before
            is filled in half the time.

    Returns:
        (n_rows, len(layers), D).

    Raises:
        ValueError: A checksum or a length is not what it must be.
        OSError: It can't be read.
    """
    index = _index(file, n_layers)
    chunk = np.empty(shard_rows * n_dim + 1, dtype="<f4")  # the last four bytes are the checksum
    feats = np.empty((n_rows, len(layers), n_dim), dtype=np.float32) if into is None else into[:n_rows]
    for place, layer in enumerate(layers):
        offset, length = index[layer].tolist()
        if length != chunk.nbytes:
            raise ValueError(f"the chunk of layer {layer} has {length} bytes, not {chunk.nbytes}")
        _read_exactly(file, offset, chunk.view(np.uint8))
        if google_crc32c.value(chunk[:-1]) != chunk[-1:].view("<u4")[0]:
            raise ValueError(f"the checksum of layer {layer} differs")
        feats[:, place] = chunk[:-1].reshape(shard_rows, n_dim)[:n_rows]
    return feats


def _index(file: BinaryIO, n_layers: int) -> NDArray[np.uint64]:
    """Offset and length of each layer's chunk (L, 2)."""
    content = np.empty(n_layers * 16 + 4, dtype=np.uint8)
    _read_exactly(file, file.seek(0, 2) - content.nbytes, content)
    if google_crc32c.value(content[:-4]) != content[-4:].view("<u4")[0]:
        raise ValueError("the checksum of the index differs")
    return content[:-4].view("<u8").reshape(n_layers, 2)


def _read_exactly(file: BinaryIO, offset: int, into: NDArray[np.uint8]) -> None:
    if offset < 0:
        raise ValueError("it is shorter than its index")
    file.seek(offset)
    if (found := file.readinto(into.data)) != into.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"it ends {into.nbytes - (found or 0)} bytes too soon")
