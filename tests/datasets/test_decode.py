"""Images of all kinds as RGB: like their 8-bit twins, or refused."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from lit_extract.datasets.decode import open_image, read_stimulus, to_rgb

GRAY = np.random.default_rng(0).integers(0, 256, (12, 20), dtype=np.uint8)
TWIN = np.repeat(GRAY[..., None], 3, axis=2)
WIDE = GRAY.astype(np.uint16) * 257  # the same gray, 65535 for 255


def pixels(path):
    return np.asarray(open_image(str(path)))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_sixteen_bit_grayscale_is_its_eight_bit_twin(tmp_path, name):
    Image.fromarray(WIDE).save(tmp_path / name, **({"irreversible": False} if name == "a.jp2" else {}))
    with Image.open(tmp_path / name) as image:
        assert image.mode.startswith("I"), "else the test shows nothing"
    np.testing.assert_array_equal(pixels(tmp_path / name), TWIN)


@pytest.mark.parametrize("order", ["<", ">"])
def test_either_order_of_bytes(tmp_path, order):
    mode = {"<": "I;16", ">": "I;16B"}[order]
    image = Image.frombytes(mode, (20, 12), WIDE.astype(f"{order}u2").tobytes())
    image.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened:
        assert opened.mode == mode
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), TWIN)


def test_a_png_that_an_older_pillow_opens_with_32_bits(tmp_path):
    image = Image.fromarray(WIDE.astype(np.int32))
    image.format = "PNG"
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), TWIN)


def test_every_value_of_16_bits_is_the_nearest_of_8(tmp_path):
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "a.png")
    nearest = np.rint(values / 257)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[..., 1], nearest)


def _sixteen_bit_png(array):
    """A PNG that Pillow can't write: 16 bits a channel with colour (2), or alpha (4, 6)."""
    import struct
    import zlib

    height, width, channels = array.shape
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_sixteen_bits_with_colour_or_alpha(tmp_path, mode):
    channels = np.random.default_rng(1).integers(0, 256, (12, 20, len(mode)), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(_sixteen_bit_png(channels.astype(np.uint16) * 257))
    expected = np.asarray(Image.fromarray(channels, mode).convert("RGB"))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), expected)


def _float_tiff(path):
    Image.fromarray(GRAY.astype(np.float32) / 255).save(path)


def _integer_tiff(path):
    Image.fromarray(GRAY.astype(np.int32) * 2**16).save(path)


def _white_is_zero(path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray(WIDE).save(path, tiffinfo=tags)
    data = path.read_bytes()
    entry = (262).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    place = data.index(entry) + len(entry)
    path.write_bytes(data[:place] + b"\0" + data[place + 1 :])


@pytest.mark.parametrize(("write", "mode"), [(_float_tiff, "F"), (_integer_tiff, "I"), (_white_is_zero, "I;16")])
def test_pixels_without_a_defined_range_are_refused(tmp_path, write, mode):
    write(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == mode
    with pytest.raises(ValueError, match=rf"no defined range \(Pillow's mode {mode}\); save it with 8 or 16 bits"):
        open_image(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_all_modes_of_8_bits_are_converted_by_pillow(mode):
    image = Image.fromarray(TWIN)
    image = image.convert("RGBA" if mode == "RGBa" else "P" if mode == "PA" else mode).convert(mode)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", [None, *range(1, 9), 0, 9])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_exif_rotation_is_told_and_not_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(TWIN).save(path, exif=exif)
    image, rotated = read_stimulus(str(path)).decode()
    assert image.size == (20, 12)
    assert rotated == (orientation in range(2, 9))


def test_a_tiff_is_rotated_by_pillow_itself_and_not_told(tmp_path):
    Image.fromarray(TWIN).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    image, rotated = read_stimulus(str(tmp_path / "a.tif")).decode()
    assert (image.size, rotated) == ((12, 20), False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_is_no_bad_image(tmp_path):
    Image.fromarray(TWIN).save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage")
    assert not read_stimulus(str(tmp_path / "a.jpg")).decode()[1]


def test_content_is_of_the_bytes(tmp_path):
    image, buffer = Image.fromarray(TWIN), io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "b.png").write_bytes(buffer.getvalue())
    (tmp_path / "c.png").write_bytes(buffer.getvalue()[:-1] + b"\0")
    a, b, c = (read_stimulus(str(tmp_path / f"{name}.png")).content for name in "abc")
    assert a == b != c
