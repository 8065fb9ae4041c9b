"""What storage relies on holds of every place: a disk, an object store in memory (``test_remote.py`` has a real S3)."""

import uuid

import pytest

from lit_extract.common.errors import InputError
from lit_extract.storage.places import LARGE, place_of, to_path


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else to_path(f"memory://{uuid.uuid4().hex}/a prefix")


@pytest.fixture
def place(folder):
    return place_of(folder / "x")


@pytest.mark.parametrize("at_a_time", [2**20, LARGE, 0, None])
def test_what_is_written_is_read(folder, place, at_a_time):
    assert not place_of(folder / "x" / "a" / "b").exists()
    place.write_file("a/b", [b"one, ", memoryview(b"two")])
    assert place_of(folder / "x" / "a" / "b").exists()
    with place_of(folder / "x" / "a" / "b").open_to_read(at_a_time) as file:
        file.seek(5)
        assert file.read() == b"two"
    place.write_file("a/b", [b"three"])
    assert place.read_files(["a/b", "a/c", "a/b/c"], 10) == {"a/b": b"three"}
    place_of(folder / "x" / "a" / "b").remove_file()
    place_of(folder / "x" / "a" / "b").remove_file()
    assert place.read_files(["a/b"], 10) == {}


def test_a_missing_file_is_told_from_others(folder):
    with pytest.raises(FileNotFoundError), place_of(folder / "nothing").open_to_read():
        pytest.fail("it was opened")


def test_a_file_that_fails_on_its_way_leaves_what_was_there(place):
    def pieces():
        yield b"half of it"
        raise KeyError

    place.write_file("a", [b"before"])
    with pytest.raises(KeyError):
        place.write_file("a", pieces())
    assert place.read_files(["a"], 10) == {"a": b"before"}
    assert list(place.list_files(())[0]) == ["a"]


def test_sizes_listings_and_children(folder, place):
    place.write_file("a/b", [b"123"])
    place.write_file("c", [b"4"])
    sizes = place.file_sizes(["a/b", "c", "d"])
    assert {key: sizes.get(key) for key in ("a/b", "c", "d")} == {"a/b": 3, "c": 1, "d": None}
    files, unreadable = place.list_files(())
    assert {key: file.size for key, file in files.items()} == {"a/b": 3, "c": 1}
    assert unreadable == {}
    assert sorted(path.name for path in place.children()) == ["a", "c"]
    assert place_of(folder / "nothing").children() == []
    with pytest.raises(NotADirectoryError):
        place_of(folder / "nothing").list_files(())


def test_a_damaged_file_is_set_aside_once(place):
    place.write_file("a/b", [b"damaged"])
    place.set_aside("a/b")
    place.set_aside("a/b")
    assert place.read_files(["a/b", "a/b.corrupt"], 10) == {"a/b.corrupt": b"damaged"}


FILES = {"a/b": b"1", "c": b"2"}


def test_a_folder_is_whole_or_not_at_all(place):
    assert not place.is_whole("mark")
    place.create_folder(FILES, "mark", b"3")
    assert place.is_whole("mark")
    assert place.read_files(["a/b", "c", "mark"], 10) == {**FILES, "mark": b"3"}
    with pytest.raises(OSError):  # noqa: PT011
        place.create_folder({}, "mark", b"4")
    assert place.read_files(["a/b", "c", "mark"], 10) == {**FILES, "mark": b"3"}
    place.remove_folder("mark")
    assert not place.is_whole("mark")
    assert not place.remains()
    place.remove_folder("mark")


@pytest.mark.parametrize("mark", ["mark", "c"])
def test_what_a_kill_left_of_a_folder_does_not_get_into_the_next(folder, mark):
    """Neither a part of a local folder nor the objects of a remote one that has no mark."""
    for left in ("x", "x.part"):
        if left == "x.part" or place_of(folder).local is None:
            place_of(folder / left).write_file("left/over", [b"of before"])
    place = place_of(folder / "x")
    assert place.remains()
    assert not place.is_whole(mark)
    place.create_folder({"a/b": b"1"}, mark, b"3")
    assert sorted(place.list_files(())[0]) == ["a/b", mark]


def test_a_file_that_is_not_what_was_written_does_not_stay(folder):
    place = place_of(folder / "a.pt")

    def write(out):
        out.write(b"content")

    def refuse(path):
        with place_of(path).open_to_read() as file:
            assert file.read() == b"content"
        raise OSError("it differs")

    with pytest.raises(OSError, match="it differs"):
        place.write_verified(write, refuse)
    assert place_of(folder).children() == []
    seen = []
    place.write_verified(write, lambda path: seen.append((path == folder / "a.pt", place.exists())))
    assert seen == [(not place.appears_verified,) * 2]
    place.drop_uploads()
    assert [path.name for path in place_of(folder).children()] == ["a.pt"]


def test_a_file_of_which_the_writing_fails_does_not_stay(tmp_path):
    folder = tmp_path  # fsspec's memory shows a file while it is written; test_remote.py has S3

    def write(out):
        out.write(b"half")
        raise KeyError

    with pytest.raises(KeyError):
        place_of(folder / "a.pt").write_verified(write, lambda path: pytest.fail("there is nothing to verify"))
    assert place_of(folder).children() == []


def test_the_lock_goes_with_its_block(folder, place):
    assert place.lock_holder() is None
    with pytest.raises(KeyError, match=r"\.x\.lock"), place.write_lock():
        raise KeyError([path.name for path in place_of(folder).children()])
    with place.write_lock():
        pass
    assert place_of(folder).children() == []


def test_of_damaged_files_one_names_the_kind(tmp_path):
    (tmp_path / "large").write_bytes(bytes(11))
    (tmp_path / "folder").mkdir()
    place = place_of(tmp_path)
    for key in ("large", "folder"):
        with pytest.raises(OSError, match=r"more than 10 bytes|it is a folder"):
            place.read_files([key], 10)
    assert place.read_files(["large", "folder"], 10, without_damaged=True) == {}


def test_a_folder_that_may_not_be_read_is_one_error(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(InputError, match="can't list"):
        place_of(tmp_path).children()
