"""Status, whatever lies in a folder: it lists everything else, in a table and in JSON, and never stumbles."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from fuzz.test_features_files import GOOD
from helpers.guard import RIGHT, fuzzed, outcome
from helpers.mutations import NAMES, as_json, changed_values, damaged_bytes
from hypothesis import given
from hypothesis import strategies as st

from lit_extract.cli import main
from lit_extract.commands import status
from lit_extract.inspection.survey import survey
from lit_extract.jobs.outputs import ids_in_folder
from lit_extract.storage.store import Store, StoreSpec

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "models.yml"
GOOD_FILE = "a_good_one.pt"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / GOOD_FILE).write_bytes(GOOD["images"])
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of which one shard of two is done."""
    spec = StoreSpec(
        pools=["cls", "avg"],
        layers=["blocks.0", "norm"],
        layer_shapes=[(3,)] * 2,
        shard_rows=2,
        stimulus_ids=[1, 2, 3],
        provenance={"model": "m", "dataset": "demo", "subset": "all", "weights": "untrained"},
        notes={"files": {"cls": "m_pool-cls.pt", "avg": "m_pool-avg.pt"}, "num_params": 1},
    )
    path = tmp_path_factory.mktemp("store") / "m_pool-cls+avg.zarr"
    made = Store.create(path, spec)
    feats = torch.ones(2, 2, 3).numpy()
    made.write_shard(0, {"cls": feats, "avg": feats}, torch.ones(2, dtype=torch.uint8).numpy())
    return path


def listed(folder, what):
    """What status says of a folder, which can be printed, is JSON and has the good file."""

    def look():
        found = survey(folder, MODELS)
        return found, status.as_text(found), json.loads(status.as_json(found))

    def is_right(answer):
        found, text, told = answer
        text.encode()
        assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in text)
        assert len(told["entries"]) == len(found.entries)
        states = {entry.path.name: entry.state for entry in found.entries}
        return states[GOOD_FILE] == "done" and all(len(line) < 2000 for line in text.splitlines())

    kept = []
    assert outcome(f"status, {what}", folder, lambda: kept.append(look()), lambda _: is_right(kept[0])) == RIGHT
    return kept[0][0], kept[0][1]


HOSTILE_NAMES = [*NAMES, "\udcff", "\udcff\udcfe", "a\nb", "a\tb", "\x9b31m", "x" * 240, "$x$", "{a}", "%d", " ", "."]


@fuzzed(150)
@given(
    st.sampled_from(HOSTILE_NAMES) | st.text(max_size=8),
    st.sampled_from([".pt", ".zarr", ".zarr.part", ".zarr.lock", ".pt.part"]),
)
def test_names(tmp_path_factory, name, suffix):
    """Whatever a file or a folder is called."""
    folder = tmp_path_factory.mktemp("names")
    (folder / GOOD_FILE).write_bytes(GOOD["images"])
    for make in (lambda path: path.write_bytes(GOOD["captions"]), lambda path: path.mkdir(), os.mkfifo):
        try:
            place = folder / f"{name}{suffix}"
            if folder not in place.parents or ".." in place.parts:
                return
            make(place)
        except (OSError, ValueError):  # no possible name
            return
        listed(folder, "names")
        place.rmdir() if place.is_dir() else place.unlink()
    shutil.rmtree(folder)


def put(folder, store, key, content):
    """The store with another content of one of its files."""
    target = folder / store.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(store, target)
    (target / key).write_bytes(content)


KEYS = st.sampled_from(["zarr.json", "cls/zarr.json", "avg/zarr.json", "status/zarr.json"])


@fuzzed(150)
@given(st.data(), KEYS)
def test_damaged_stores(tmp_path_factory, store, data, key):
    folder = tmp_path_factory.mktemp("store")
    (folder / GOOD_FILE).write_bytes(GOOD["images"])
    good = (store / key).read_bytes()
    content = data.draw(damaged_bytes(good) | changed_values(json.loads(good)).map(as_json))
    put(folder, store, key, content)
    listed(folder, "stores")
    outcome(
        "ids in a folder", folder, lambda: ids_in_folder(folder), lambda ids: list(ids) in ([7, 300, 70_000], [1, 2, 3])
    )
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "content",
    [b"[" * 10**6, b'{"a":' * 10**6, b'"\\ud800"', b"9" * 10**6, b"\xff", b"", b"null", b"NaN"],
    ids=lambda content: str(content[:8]),
)
def test_hostile_json(folder, store, content):
    put(folder, store, "zarr.json", content)
    found, _ = listed(folder, "hostile JSON")
    assert [entry.state for entry in found.entries] == ["done", "not ours"]


def test_a_store_of_a_trillion_rows(folder, store):
    array = json.loads((store / "cls/zarr.json").read_bytes())
    for shape in ([2**40, 2, 3], [3, 2**40, 3], [3, 2, 2**40], [2**70, 2, 3], [-1, 2, 3], ["3", 2, 3]):
        put(folder, store, "cls/zarr.json", as_json({**array, "shape": shape}))
        found, _ = listed(folder, "large stores")
        assert len(found.entries) == 2


def test_what_is_no_file_in_a_store(folder, store):
    for key in ("zarr.json", "cls/zarr.json"):
        for make in (
            os.mkfifo,
            os.mkdir,
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: os.truncate(path, 2**40),
        ):
            put(folder, store, key, b"")
            if make is os.mkfifo or make is os.mkdir or "symlink_to" in make.__code__.co_names:
                (folder / store.name / key).unlink()
            make(folder / store.name / key)
            found, _ = listed(folder, "no files")
            assert [entry.state in ("unreadable", "not ours") for entry in found.entries] == [False, True]


def test_what_is_called_features_and_is_no_file_is_listed(folder):
    os.mkfifo(folder / "pipe.pt")
    (folder / "device.pt").symlink_to("/dev/zero")
    (folder / "nowhere.pt").symlink_to(folder / "nothing")
    (folder / "itself.pt").symlink_to(folder / "itself.pt")
    found, _ = listed(folder, "no files")
    reasons = {entry.path.name: entry.reason for entry in found.entries if entry.state == "unreadable"}
    assert sorted(reasons) == ["device.pt", "itself.pt", "nowhere.pt", "pipe.pt"]
    assert all("file" in reason for reason in reasons.values())
    assert [entry.state for entry in found.entries if entry.path.name == GOOD_FILE] == ["done"]


def test_links_in_circles_and_folders_that_are_deep(folder):
    (folder / "circle").symlink_to(folder)
    (folder / "itself.pt").symlink_to(folder / "itself.pt")
    (folder / "device.pt").symlink_to("/dev/zero")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(1100):  # longer than a path may be
            os.mkdir("deep", dir_fd=descriptor)
            inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    finally:
        os.close(descriptor)
    listed(folder, "deep folders")
    while (folder / "deep").exists():  # shutil.rmtree would go down it, and so would pytest
        (folder / "deep" / "deep").rename(folder / "next") if (folder / "deep" / "deep").exists() else None
        (folder / "deep").rmdir()
        (folder / "next").rename(folder / "deep") if (folder / "next").exists() else None


def test_times_that_no_calendar_has(folder):
    for seconds in (-(2**40), 2**33, 2**40):
        try:
            os.utime(folder / GOOD_FILE, (seconds, seconds))
        except OverflowError:
            continue
        listed(folder, "times")


def test_a_lock_that_is_something_else(folder, store):
    shutil.copytree(store, folder / store.name)
    lock = folder / f".{store.name}.lock"
    for make in (os.mkfifo, os.mkdir, lambda path: path.write_bytes(b"\xff\x1b[31m\n" * 1000)):
        make(lock)
        found, _ = listed(folder, "locks")
        assert len(found.entries) == 2
        lock.rmdir() if lock.is_dir() else lock.unlink()


@pytest.mark.parametrize("folder_name", ["x" * 300, "a\0b", "\ud800", "\x1b[31m", "nowhere"])
def test_a_folder_that_can_not_be(folder, capsys, monkeypatch, folder_name):
    monkeypatch.chdir(folder)
    for command in ("status", "verify", "show", "report"):
        assert main([command, folder_name]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1
        assert "\x1b" not in printed.err + printed.out
