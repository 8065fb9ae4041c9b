"""Shard files against what zarr reads of them, and what is said of damaged ones."""

import io

import numpy as np
import pytest
import zarr

from lit_extract.shards import read_layers

ROWS, LAYERS, DIM = 5, 4, 7


@pytest.fixture
def shard(tmp_path):
    """The bytes of a shard that zarr wrote, and the numbers in it, as zarr reads them."""
    array = zarr.create_array(
        tmp_path / "array",
        shape=(ROWS, LAYERS, DIM),
        dtype="float32",
        shards=(ROWS, LAYERS, DIM),
        chunks=(ROWS, 1, DIM),
        compressors=(zarr.codecs.Crc32cCodec(),),
        fill_value=float("nan"),
        zarr_format=3,
    )
    array[:] = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    return (tmp_path / "array" / "c" / "0" / "0" / "0").read_bytes(), np.asarray(array[:])


def read(content, layers=range(LAYERS), n_rows=ROWS):
    return read_layers(io.BytesIO(content), LAYERS, ROWS, DIM, layers, n_rows)


@pytest.mark.parametrize(("layers", "n_rows"), [([0, 1, 2, 3], 5), ([2], 5), ([3, 0], 2)])
def test_it_reads_what_zarr_reads(shard, layers, n_rows):
    content, numbers = shard
    np.testing.assert_array_equal(read(content, layers, n_rows), numbers[:n_rows, layers])


def test_every_flipped_bit_and_every_missing_byte_is_found(shard):
    content, _ = shard
    for place in range(len(content)):
        flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        with pytest.raises(ValueError, match=r"checksum|bytes"):
            read(flipped)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"checksum|bytes|ends|shorter"):
            read(content[:length])


class Counting(io.BytesIO):
    def __init__(self, content):
        super().__init__(content)
        self.n_read = 0

    def readinto(self, into):
        self.n_read += memoryview(into).nbytes
        return super().readinto(into)


def test_of_one_layer_only_its_chunk_and_the_index_are_read(shard):
    file = Counting(shard[0])
    read_layers(file, LAYERS, ROWS, DIM, [2], ROWS)
    assert file.n_read == ROWS * DIM * 4 + 4 + LAYERS * 16 + 4
