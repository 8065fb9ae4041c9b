"""A folder of images as people have them: links in circles, other files, names of other systems."""

import os

import pytest

from lit_extract.common.errors import InputError
from lit_extract.data import ImageFolderDataModule
from lit_extract.datasets import load_dataset


def test_a_link_to_a_folder_above_is_walked_once(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.jpg").touch()
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "cats" / "up").symlink_to("..")
    (tmp_path / "cats" / "self").symlink_to(tmp_path / "cats")
    assert load_dataset("folder", tmp_path)["path"].tolist() == ["cats/a.jpg"]


def test_links_to_other_folders_and_files_are_followed(tmp_path):
    images, root = tmp_path / "elsewhere", tmp_path / "root"
    images.mkdir()
    root.mkdir()
    (images / "b.png").touch()
    (root / "linked").symlink_to(images)
    (root / "a.png").symlink_to(images / "b.png")
    assert load_dataset("folder", root)["path"].tolist() == ["a.png", "linked/b.png"]


def test_what_is_ignored_is_counted_in_one_line(image_folder, caplog):
    caplog.set_level("INFO")
    for name in ("notes.txt", "more.TXT", "film.mp4", "README", "._photo.jpg", ".DS_Store"):
        (image_folder / name).touch()
    (image_folder / ".hidden").mkdir()
    (image_folder / ".hidden" / "x.jpg").touch()
    data = ImageFolderDataModule(str(image_folder))
    data.setup()
    expected = "ignored files that are no images: 1 .mp4, 2 .txt, 3 hidden, 1 without a suffix"
    assert caplog.messages == [f"{image_folder}: {expected}"]
    assert not [path for path in data.stimuli["path"] if "hidden" in path]


def test_names_that_are_not_utf8_are_one_error(tmp_path):
    (tmp_path / "good.jpg").touch()
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    with pytest.raises(InputError, match=r"names that are not UTF-8: b'caf\\xe9.jpg'; rename the files"):
        load_dataset("folder", tmp_path)
