"""Images: the pixels that Pillow and h5py read of a file, or one error; no file stops or fills the machine."""

import io
import os
import struct
import zlib
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from helpers.guard import REFUSED, RIGHT, fuzzed, outcome
from helpers.mutations import damaged_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from lit_extract.common.errors import InputError
from lit_extract.data.batches import ImageBatches
from lit_extract.data.images import ImageDataModule
from lit_extract.data.sources import MISSING, ImageSource, SourceBatches
from lit_extract.datasets import load_dataset, nsd
from lit_extract.datasets.decode import FORMATS, contents, hdf5_closed_after, read_stimulus
from lit_extract.review.images import Images, NoImageError
from lit_extract.storage.layout import INPUTS

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about what is odd in a file

GEOMETRY: dict = {"input_size": (3, 8, 8), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
TRANSFORM = create_transform(**GEOMETRY, is_training=False, use_prefetcher=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def file_of(kind, **settings):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **settings)
    return buffer.getvalue()


FILES = {kind: file_of(kind) for kind in FORMATS} | {
    "JPEG, progressive": file_of("JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "TIFF, LZW": file_of("TIFF", compression="tiff_lzw"),
    "TIFF, JPEG": file_of("TIFF", compression="jpeg"),
    "WEBP, lossless": file_of("WEBP", lossless=True),
}


def batch_of(path):
    """Decode one image as a run does, which stops at a bad one."""
    stimuli = pd.DataFrame({"stimulus_id": [7], "image": [str(path)]})
    stimuli.attrs["root"] = str(path.parent)
    batch = ImageBatches(stimuli, [[0]], GEOMETRY)[0]
    module = SimpleNamespace(stimuli=stimuli, on_bad_image="stop")
    return ImageDataModule.on_before_batch_transfer(module, batch, 0)["image"][0].numpy()


def as_pillow_reads(path):
    with Image.open(path) as image:
        return np.asarray(TRANSFORM(image.convert("RGB")))


@fuzzed(600)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_image_is_what_pillow_reads_or_a_bad_one(folder, kind, data):
    path = folder / "a.img"
    path.write_bytes(data.draw(damaged_bytes(FILES[kind])))

    def is_right(pixels):
        with Image.open(path) as image:
            plain = not image.mode.startswith(("I", "F"))
        return not plain or np.array_equal(pixels, as_pillow_reads(path))

    outcome(f"image, {kind.partition(',')[0]}", folder, lambda: batch_of(path), is_right)


@fuzzed(150)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_the_page_shows_what_a_browser_knows_or_says_why_not(folder, kind, data):
    path = folder / "b.img"
    path.write_bytes(data.draw(damaged_bytes(FILES[kind])))

    def read():
        try:
            return Images([str(path)], None, folder).read(0)
        except NoImageError as error:
            raise InputError(str(error)) from None

    outcome("image, on the page", folder, read, lambda picture: picture[1].startswith("image/"))


def bricks(path, images, **settings):
    with h5py.File(path, "w") as file:
        file.create_dataset("imgBrick", data=images, **settings)
    return path.read_bytes()


BRICKS = np.random.default_rng(1).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
LAYOUTS = {
    "plain": {},
    "chunked": {"chunks": (1, 6, 5, 3)},
    "packed": {"chunks": (2, 6, 5, 3), "compression": "gzip", "shuffle": True},
}


@fuzzed(400)
@given(st.sampled_from(sorted(LAYOUTS)), st.data())
def test_damaged_hdf5_is_what_h5py_reads_or_refused(folder, layout, data):
    path = folder / "nsd_stimuli.hdf5"
    path.write_bytes(data.draw(damaged_bytes(bricks(path, BRICKS, **LAYOUTS[layout]))))

    def read():
        with hdf5_closed_after():
            table = load_dataset("nsd", folder)
            try:
                return [read_stimulus(str(path), row).data for row in table["image_row"]]
            except OSError as error:
                raise InputError(str(error)) from None

    def is_right(images):
        with h5py.File(path, "r") as file:
            expected = file["imgBrick"][:]
        return np.array_equal(np.array(images), expected)

    outcome("HDF5 of NSD", folder, read, is_right)


# Each example of its own


def bad(path, said):
    assert outcome("image", path.parent, lambda: batch_of(path), lambda _: False) == REFUSED
    with pytest.raises(InputError, match=said):
        batch_of(path)


def test_what_is_no_file_is_a_bad_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("pipe", "device", "folder", "none", "loop", "x" * 300):
        path = tmp_path / f"{name}.jpg"
        bad(path, r"stimulus 7 \(row 0\) can't be decoded")
        assert contents([(str(path), None)]) == [0]
        noted = SourceBatches([ImageSource(7, str(path))], [[0]])[0]
        assert noted[INPUTS].tolist() == [[MISSING, 0, 0, 0]]


def test_a_file_of_absurd_size_is_a_bad_image(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**40)
    bad(tmp_path / "a.jpg", "more than 209,715,200 bytes")


def png(width, height, data=b""):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8_000, 8_000), (10_000, 10_000), (20_000, 20_000), (2**31 - 1, 1), (2**31 - 1,) * 2])
def test_a_decompression_bomb_is_a_bad_image(tmp_path, size):
    width, height = size
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(width + 1)) for _ in range(height if width < 2**20 else 0)) + rows.flush()
    (tmp_path / "a.png").write_bytes(png(width, height, data))
    bad(tmp_path / "a.png", "pixels|decompression bomb")
    with pytest.raises(NoImageError, match=r"pixels|decompression bomb"):
        Images([str(tmp_path / "a.png")], None, tmp_path).read(0)


def test_a_photograph_of_48_megapixels_is_none(tmp_path):
    Image.new("RGB", (8000, 6000), "red").save(tmp_path / "a.jpg")
    read = lambda: batch_of(tmp_path / "a.jpg")  # noqa: E731
    assert outcome("image", tmp_path, read, lambda pixels: pixels[0].min() > 250) == RIGHT


def test_large_sixteen_bits_fit_as_well(tmp_path):
    Image.fromarray(np.full((4000, 6000), 65535, dtype=np.uint16)).save(tmp_path / "a.png", compress_level=1)
    read = lambda: batch_of(tmp_path / "a.png")  # noqa: E731
    assert outcome("image", tmp_path, read, lambda pixels: pixels.min() == 255) == RIGHT


@pytest.mark.parametrize("name", ["a.jpg", "a.eps"])
def test_no_image_starts_a_program(tmp_path, name):
    """Pillow would start Ghostscript, whatever the name."""
    Image.fromarray(PIXELS).save(tmp_path / name, "EPS")
    bad(tmp_path / name, "not an image in a supported format: JPEG, PNG")


@pytest.mark.parametrize("kind", sorted(FILES))
def test_a_truncated_image_is_a_bad_one(tmp_path, kind):
    (tmp_path / "a.img").write_bytes(FILES[kind][: len(FILES[kind]) // 2])
    bad(tmp_path / "a.img", "can't be decoded")


def hdf5(path, make):
    with h5py.File(path, "w") as file:
        make(file)


def elsewhere(path):
    with h5py.File(path, "w") as file:
        file["imgBrick"] = BRICKS
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file, other: file.create_group("imgBrick"), "not a plain dataset"),
        (
            lambda file, other: file.__setitem__("imgBrick", h5py.ExternalLink(str(other), "imgBrick")),
            "not a plain dataset",
        ),
        (lambda file, other: file.__setitem__("imgBrick", h5py.SoftLink("/nowhere")), "imgBrick"),
        (lambda file, other: file.__setitem__("imgBrick", np.dtype("uint8")), "not a plain dataset"),
        (
            lambda file, other: file.create_dataset(
                "imgBrick", BRICKS.shape, "uint8", external=[(str(other), 0, BRICKS.size)]
            ),
            "not a plain dataset",
        ),
        (
            lambda file, other: file.create_virtual_dataset(
                "imgBrick", h5py.VirtualLayout(BRICKS.shape, "uint8"), fillvalue=0
            ),
            "not a plain dataset",
        ),
        (lambda file, other: file.create_dataset("imgBrick", (3, 6, 5, 3), "uint8"), "never written"),
        (
            lambda file, other: file.create_dataset("imgBrick", data=BRICKS, fletcher32=True),
            "unsupported HDF5 filter",
        ),
        (
            lambda file, other: file.create_dataset("imgBrick", data=BRICKS, compression="lzf"),
            "unsupported HDF5 filter",
        ),
        (
            lambda file, other: file.create_dataset("imgBrick", (3, 6, 5, 3), "uint8", chunks=(1, 6, 5, 3)).__setitem__(
                0, 1
            ),
            "never written",
        ),
        (lambda file, other: file.create_dataset("imgBrick", (2**40, 6, 5, 3), "uint8", chunks=(1, 6, 5, 3)), "73,000"),
        (
            lambda file, other: file.create_dataset(
                "imgBrick", (3, 2**20, 2**20, 3), "uint8", chunks=(1, 64, 64, 3), compression="gzip"
            ),
            "at most 50,000,000 pixels",
        ),
        (
            lambda file, other: file.create_dataset(
                "imgBrick", (1000, 1000, 1000, 3), "uint8", chunks=(1000, 1000, 1000, 3), compression="gzip"
            ),
            "chunks of 3,000,000,000 bytes",
        ),
        (lambda file, other: file.__setitem__("imgBrick", BRICKS.astype("int16")), "of int16; expected"),
        (lambda file, other: file.__setitem__("imgBrick", BRICKS[0]), r"shape \(6, 5, 3\)"),
        (lambda file, other: file.__setitem__("imgBrick", BRICKS[:0]), "1 to 73,000"),
        (lambda file, other: file.__setitem__("imgBrick", h5py.Empty("uint8")), "imgBrick"),
        (lambda file, other: file.__setitem__("other", BRICKS), "imgBrick"),
    ],
)
def test_the_dataset_of_nsd_is_a_plain_one(tmp_path, make, said):
    other = elsewhere(tmp_path / "other.hdf5")
    hdf5(tmp_path / "nsd_stimuli.hdf5", lambda file: make(file, other))
    assert outcome("HDF5 of NSD", tmp_path, lambda: load_dataset("nsd", tmp_path), lambda _: False) == REFUSED
    with pytest.raises(InputError, match=said):
        load_dataset("nsd", tmp_path)


def test_a_pipe_in_the_place_of_the_hdf5(tmp_path):
    os.mkfifo(tmp_path / "nsd_stimuli.hdf5")
    with pytest.raises(InputError, match="no index or images in"):
        load_dataset("nsd", tmp_path)
    with pytest.raises(OSError, match="not a regular file"):
        nsd.open_images(str(tmp_path / "nsd_stimuli.hdf5"))
