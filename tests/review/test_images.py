"""Images of a review: the right pixels, and nothing outside the dataset's folder."""

import io
import os

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lit_extract.captioning.output import read_captions
from lit_extract.common.errors import InputError
from lit_extract.datasets import decode
from lit_extract.review.images import Images, NoImageError, find_images


def pixels(picture):
    with Image.open(io.BytesIO(picture[0])) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def images_of(tmp_path):
    """A function that makes the images of an index of NSD with one path, in ``tmp_path / "nsd"``."""
    root = tmp_path / "nsd"
    root.mkdir()

    def images_of(path, follow_links=False):
        pd.DataFrame({"nsd_id": [5], "name": ["x"], "path": [path]}).to_csv(root / "nsd.csv", index=False)
        captions = pd.DataFrame({"nsd_id": ["5"], "caption": ["x"]})
        return find_images(captions, "nsd", str(root), follow_links)[0]

    return images_of


@pytest.fixture
def secret(tmp_path):
    """An image outside."""
    path = tmp_path / "secret.png"
    Image.new("RGB", (4, 4), "red").save(path)
    return path


def test_a_caption_gets_the_image_of_its_id_in_whatever_order(captions, root):
    table = read_captions(captions).iloc[[6, 0, 3]].assign(nsd_id=["106.0", " 100", "103"])
    images, column = find_images(table, "nsd", str(root))
    assert column == "nsd_id"
    for row, number in enumerate((6, 0, 3)):
        picture = images.read(row)
        assert picture == ((root / "images" / f"{number}.png").read_bytes(), "image/png")
        assert pixels(picture)[0, 0, 0] == 10 * number


def test_ids_that_are_not_in_the_dataset(captions, root):
    table = read_captions(captions)
    images, _ = find_images(table.assign(nsd_id=["100", *["7"] * 7]), "nsd", str(root))
    assert images.paths.count(None) == 7
    with pytest.raises(NoImageError, match="has no image with this id"):
        images.read(1)
    with pytest.raises(InputError, match="no id in column nsd_id is in nsd, such as 7, 7, 7"):
        find_images(table.assign(nsd_id="7"), "nsd", str(root))
    with pytest.raises(InputError, match="in a column nsd_id or stimulus_id; these have caption, model, prompt"):
        find_images(table.drop(columns="nsd_id"), "nsd", str(root))


@pytest.mark.parametrize("path", ["../secret.png", "images/../../secret.png", "{}", "../nsd/../secret.png"])
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_path_out_of_the_folder_is_refused(images_of, secret, path, follow_links):
    with pytest.raises(InputError, match="give paths relative to the folder"):
        images_of(path.format(secret), follow_links)


@pytest.mark.parametrize("target", ["file", "folder", "hdf5"])
def test_a_link_out_of_the_folder_is_refused_unless_they_are_followed(images_of, secret, tmp_path, target):
    if target == "file":
        (tmp_path / "nsd" / "link.png").symlink_to(secret)
        images = {follow: images_of("link.png", follow) for follow in (False, True)}
    elif target == "folder":
        (tmp_path / "nsd" / "link").symlink_to(tmp_path)
        images = {follow: images_of("link/secret.png", follow) for follow in (False, True)}
    else:
        with h5py.File(tmp_path / "bricks", "w") as file:
            file["imgBrick"] = np.full((6, 4, 4, 3), [255, 0, 0], dtype=np.uint8)
        (tmp_path / "nsd" / "nsd_stimuli.hdf5").symlink_to(tmp_path / "bricks")
        captions = pd.DataFrame({"nsd_id": ["5"], "caption": ["x"]})
        root = str(tmp_path / "nsd")
        images = {follow: find_images(captions, "nsd", root, follow)[0] for follow in (False, True)}
    with pytest.raises(NoImageError, match=r"is a link out of the dataset's folder.*--follow_links"):
        images[False].read(0)
    assert pixels(images[True].read(0))[0, 0].tolist() == [255, 0, 0]


def test_links_within_the_folder_and_to_the_folder_are_followed(images_of, secret, tmp_path):
    (tmp_path / "nsd" / "objects").mkdir()
    secret.rename(tmp_path / "nsd" / "objects" / "a")
    (tmp_path / "nsd" / "5.png").symlink_to("objects/a")
    images_of("5.png").read(0)
    (tmp_path / "link").symlink_to("nsd")
    Images([str(tmp_path / "link" / "5.png")], None, tmp_path / "link").read(0)
    relative = tmp_path / "nsd" / ".." / "nsd"
    Images([str(relative / "5.png")], None, relative).read(0)


@pytest.mark.parametrize("what", ["text", "missing", "folder", "pipe", "truncated"])
def test_what_is_no_image_is_not_sent(images_of, tmp_path, what):
    path = tmp_path / "nsd" / "5.png"
    if what == "text":
        path.write_text("root:x:0:0")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "truncated":
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(NoImageError, match="no file" if what in ("missing", "folder", "pipe") else "can't be shown"):
        images_of("5.png").read(0)


@pytest.mark.parametrize(
    ("name", "mode", "media_type"),
    [
        ("a.jpg", "RGB", "image/jpeg"),
        ("a.gif", "P", "image/gif"),
        ("a.webp", "RGB", "image/webp"),
        ("a.bmp", "RGB", "image/bmp"),
        ("a.tif", "RGB", None),
        ("a.ppm", "RGB", None),
        ("cmyk.jpg", "CMYK", None),
    ],
)
def test_formats(images_of, tmp_path, name, mode, media_type):
    """What browsers show as the models see it is sent as it is; else its pixels, as the models see them."""
    path = tmp_path / "nsd" / name
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    picture = images_of(name).read(0)
    assert picture[1] == (media_type or "image/png")
    if media_type:
        assert picture[0] == path.read_bytes()
    else:
        with Image.open(path) as image:
            assert (pixels(picture) == np.asarray(image.convert("RGB"))).all()


def test_sixteen_bits_are_shown_as_eight(images_of, tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint16)
    Image.fromarray(gray * 257).save(tmp_path / "nsd" / "sixteen.png")
    assert (pixels(images_of("sixteen.png").read(0)) == gray[..., None]).all()


def test_large_ones_are_reduced(images_of, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "nsd" / "a.png")
    assert len((picture := images_of("a.png").read(0))[0]) < 2**22
    assert (picture[1], pixels(picture).shape) == ("image/jpeg", (1000, 2000, 3))
    monkeypatch.setattr(decode, "MAX_IMAGE_BYTES", 2**20)
    with pytest.raises(NoImageError, match="more than 1,048,576 bytes"):
        images_of("a.png").read(0)


def test_rows_of_hdf5_are_those_of_the_ids(tmp_path):
    bricks = np.random.default_rng(0).integers(0, 255, (6, 8, 9, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = bricks
    images, _ = find_images(pd.DataFrame({"nsd_id": ["4", "1", "9"]}), "nsd", str(tmp_path))
    assert (pixels(images.read(0)) == bricks[4]).all()
    assert (pixels(images.read(1)) == bricks[1]).all()
    with pytest.raises(NoImageError):
        images.read(2)


def test_a_folder_and_the_demo(image_folder):
    images, column = find_images(pd.DataFrame({"path": ["3.png"], "caption": ["x"]}), "folder", str(image_folder))
    assert column == "path"
    assert images.read(0)[0] == (image_folder / "3.png").read_bytes()
    images, column = find_images(pd.DataFrame({"demo_id": ["20"]}), "demo")
    assert column == "demo_id"
    assert images.read(0)[1] == "image/jpeg"
