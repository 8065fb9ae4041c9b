"""Shard files against what zarr reads of them, and what is said of damaged ones."""

import io

import google_crc32c
import numpy as np
import pytest
import zarr

from lit_extract.storage.shards import Address, ForeignShardError, Form, read_layers, write_layers

ROWS, LAYERS, DIM = 5, 4, 7


ADDRESS = Address("0123456789abcdef" * 2, "cls", 3)
UNSEALED, SEALED = Form(LAYERS, ROWS, DIM), Form(LAYERS, ROWS, DIM, address=ADDRESS)


@pytest.fixture(params=[UNSEALED, SEALED], ids=["zarr's own", "sealed"])
def shard(tmp_path, request):
    """How a shard is laid out, its bytes, and the numbers in it, as zarr reads them."""
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
    file = tmp_path / "array" / "c" / "0" / "0" / "0"
    numbers = np.asarray(array[:])
    if request.param.address is not None:
        file.write_bytes(written(request.param, numbers))
        np.testing.assert_array_equal(array[:], numbers)
        np.testing.assert_array_equal(array[1:3, 2], numbers[1:3, 2])
    return request.param, file.read_bytes(), numbers


def written(form, numbers):
    return b"".join(bytes(piece) for piece in write_layers(form, numbers, fill=np.nan))


def read(form, content, layers=range(LAYERS), n_rows=ROWS):
    return read_layers(io.BytesIO(content), form, layers, n_rows)


@pytest.mark.parametrize(("layers", "n_rows"), [([0, 1, 2, 3], 5), ([2], 5), ([3, 0], 2)])
def test_it_reads_what_zarr_reads(shard, layers, n_rows):
    form, content, numbers = shard
    np.testing.assert_array_equal(read(form, content, layers, n_rows), numbers[:n_rows, layers])


def test_unsealed_it_writes_what_zarr_writes(shard):
    form, content, numbers = shard
    assert written(form, numbers) == content


@pytest.mark.parametrize("other", [("avg", 3), ("cls", 2), ("cls", 30)])
def test_a_shard_in_another_place_is_found(other):
    content = written(SEALED, np.ones((ROWS, LAYERS, DIM), dtype=np.float32))
    address = Address(ADDRESS.store, *other)
    with pytest.raises(ValueError, match="another place"):
        read(Form(LAYERS, ROWS, DIM, address=address), content)
    with pytest.raises(ForeignShardError):
        read(Form(LAYERS, ROWS, DIM, address=ADDRESS._replace(store="f" * 32)), content)


def test_layers_that_are_exchanged_with_all_their_checksums_are_found():
    numbers = np.random.default_rng(0).normal(size=(ROWS, LAYERS, DIM)).astype(np.float32)
    content, n = written(SEALED, numbers), SEALED.chunk_bytes
    with pytest.raises(ValueError, match="checksum of layer 0"):
        read(SEALED, content[n : 2 * n] + content[:n] + content[2 * n :])


@pytest.mark.parametrize("values", [[(2**63, 0)], [(2**64 - 1, 144)], [(0, 2**64 - 1)], [(10**6, 144)]])
def test_an_index_that_points_elsewhere_is_refused(values):
    content = written(UNSEALED, np.ones((ROWS, LAYERS, DIM), dtype=np.float32))
    index = np.array((values * LAYERS), dtype="<u8").tobytes()
    content = content[: -len(index) - 4] + index + google_crc32c.value(index).to_bytes(4, "little")
    with pytest.raises(ValueError, match="index"):
        read(UNSEALED, content)


def test_every_flipped_bit_and_every_missing_byte_is_found(shard):
    form, content, _ = shard
    for place in range(len(content)):
        flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        with pytest.raises(ValueError, match=r"checksum|bytes|seal"):
            read(form, flipped)
    for length in range(len(content)):
        with pytest.raises(ValueError, match="bytes"):
            read(form, content[:length])


class Counting(io.BytesIO):
    def __init__(self, content):
        super().__init__(content)
        self.n_read = 0

    def readinto(self, into):
        self.n_read += memoryview(into).nbytes
        return super().readinto(into)


def test_of_one_layer_only_its_chunk_and_the_index_are_read(shard):
    form, content, _ = shard
    file = Counting(content)
    read_layers(file, form, [2], ROWS)
    seal = LAYERS * 4 + 32 if form.address else 0
    assert file.n_read == ROWS * DIM * 4 + 4 + seal + LAYERS * 16 + 4
