"""What has been wrong with stores, locks and caches once, one example each."""

import errno
import json
import os
import shutil
import time

import numpy as np
import pytest
from fuzz.test_stores import build, write_metadata

from lit_extract import load_features
from lit_extract.common.errors import InputError
from lit_extract.data.pixels import PIXELS, ROWS, Noted, PixelCache
from lit_extract.inspection.survey import survey
from lit_extract.storage.features_content import save_skeleton
from lit_extract.storage.finalize import finalize
from lit_extract.storage.places import place_of, to_path
from lit_extract.storage.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(params=[1, 2])
def version(request):
    """Format of a store."""
    return request.param


@pytest.fixture
def store(tmp_path, version):
    """A complete store."""
    return build(tmp_path / "m.zarr", version)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(store, key, edit, is_signed=False):
    """Change what a zarr.json says."""
    metadata = json.loads((store / key).read_bytes())
    edit(metadata)
    write_metadata(store, key, metadata, is_signed)


def assert_refused(store, match=None):
    """One error, by whatever reads it, and all of it is still there."""
    before = contents(store.parent)
    for read in (lambda: finalize(store), lambda: load_features(store, "cls"), lambda: Store(store).stimulus_ids()):
        with pytest.raises(InputError, match=match):
            read()
    assert contents(store.parent) == before


# stimulus ids


def remove(file):
    file.unlink()


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def empty(file):
    file.write_bytes(b"")


def make_folder(file):
    file.unlink()
    file.mkdir()


def dangle(file):
    file.unlink()
    file.symlink_to("nowhere")


def make_pipe(file):
    file.unlink()
    os.mkfifo(file)


def link_device(file):
    file.unlink()
    file.symlink_to("/dev/zero")


HARMS = [remove, truncate, empty, make_folder, dangle, make_pipe, link_device]


@pytest.mark.parametrize("harm", HARMS)
def test_ids_that_cant_be_read_are_not_zeros(store, harm):
    harm(store / "stimulus_id" / "c" / "0")
    assert_refused(store, "stimulus ids of .* are damaged")


def test_ids_of_another_store_are_refused(tmp_path, make_store):
    store, _ = make_store()
    other, _ = make_store(ids=[*range(99, 108), 200], name="other")
    shutil.copy(other.path / "stimulus_id" / "c" / "0", store.path / "stimulus_id" / "c" / "0")
    with pytest.raises(InputError, match="not those with which the store was made"):
        finalize(store.path)
    with pytest.raises(InputError, match="other stimulus ids"):
        store.repair_stimulus_ids([*range(99, 108), 200])
    store.repair_stimulus_ids(list(range(100, 110)))
    assert Store(store.path).stimulus_ids() == list(range(100, 110))


# places


def test_exchanged_shards_and_poolings_are_found_and_set_aside(tmp_path):
    for first, second in (("cls/c/0", "cls/c/1"), ("cls/c/0", "avg/c/0"), ("cls/c/2", "avg/c/1")):
        path = build(tmp_path / "m.zarr", 2)
        for key in (f"{first}/0/0", f"{second}/0/0"):
            assert (path / key).stat().st_size == (path / "cls/c/0/0/0").stat().st_size
        (path / first).rename(path / "x")
        (path / second).rename(path / first)
        (path / "x").rename(path / second)
        pool, _, shard = first.split("/")
        with pytest.raises(InputError, match="another place"):
            Store(path).read_layer(pool, 0)
        with pytest.raises(InputError, match="another place"):
            Store(path).read_shard(pool, int(shard))
        with pytest.raises(InputError, match=r"are missing|damaged"):
            finalize(path)
        shutil.rmtree(path)


def test_exchanged_status_is_found(tmp_path):
    path = build(tmp_path / "m.zarr", 2)
    shutil.copy(path / "status/c/1", path / "status/c/0")  # of which row 1 is bad
    with pytest.raises(InputError, match=r"status of rows 0 to 1 .* damaged"):
        Store(path).status()
    assert Store(path).drop_damaged() == [0]


@pytest.mark.parametrize("key", ["cls/c/1/0/0", "status/c/1", "zarr.json"])
def test_a_file_of_another_store_is_refused_and_nothing_is_set_aside(tmp_path, key):
    path, other = build(tmp_path / "m.zarr", 2), build(tmp_path / "other.zarr", 2, seed=1)
    shutil.copy(other / key, path / key)
    shutil.rmtree(other)
    before = contents(path)
    with pytest.raises(InputError, match=r"to another store than the zarr\.json"):
        finalize(path)
    assert contents(path) == before


@pytest.mark.parametrize(("number", "is_damage"), [(errno.EIO, True), (errno.EACCES, False), (errno.EMFILE, False)])
def test_only_a_disk_that_cant_read_a_shard_has_it_computed_again(tmp_path, monkeypatch, number, is_damage):
    path = build(tmp_path / "m.zarr", 2)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    store = Store(path)
    for read in (lambda: store.read_shard("cls", 0), store.status):
        with monkeypatch.context() as patch:
            for name in ("open_regular", "read_regular"):
                patch.setattr(f"lit_extract.storage.places.local.{name}", fail)
            with pytest.raises(InputError) as error:
                read()
        assert ("damaged on disk" in str(error.value)) == is_damage
    assert Store(path).done_shards() == ({1, 2, 3} if is_damage else {0, 1, 2, 3})


# metadata


def test_another_chunk_key_encoding_is_refused(store, version):
    for key in ("cls/zarr.json", "status/zarr.json", "stimulus_id/zarr.json"):
        before = (store / key).read_bytes()
        change(store, key, lambda array: array["chunk_key_encoding"].update(name="v2"), is_signed=version == 2)
        assert_refused(store, "chunk_key_encoding")
        (store / key).write_bytes(before)


@pytest.mark.parametrize("names", [["cls"], ["cls", "avg", "status", "n_tokens", "loss", "n_bytes", "stimulus_id"]])
@pytest.mark.parametrize("n", [6, 2**40, 2**63, 10**9, 0, -1, True, "7", 7.0])
def test_another_number_of_rows_is_refused_at_once(store, names, n):
    for name in names:
        change(store, f"{name}/zarr.json", lambda array: array["shape"].__setitem__(0, n))
    start = time.monotonic()
    assert_refused(store)
    (entry,) = survey(store.parent).entries
    assert entry.state == "not ours"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("n", [2**40, 20_000_001])
def test_a_store_that_is_signed_for_too_many_rows_is_refused_at_once(tmp_path, n):
    path = build(tmp_path / "m.zarr", 2)
    for name in ("cls", "avg", "status", "n_tokens", "loss", "n_bytes", "stimulus_id"):
        change(path, f"{name}/zarr.json", lambda array: array["shape"].__setitem__(0, n), is_signed=True)
    assert_refused(path, "rows; at most 20,000,000 are")


FILES = [
    {},
    {"cls": "m-cls.pt"},
    {"cls": "../../X.pt", "avg": "m-avg.pt"},
    {"cls": "/tmp/X.pt", "avg": "m-avg.pt"},
    {"cls": "m.pt", "avg": "m.pt"},
    {"cls": "m-cls.zip", "avg": "m-avg.pt"},
    {"cls": ".pt", "avg": "m-avg.pt"},
    {"cls": "a\0.pt", "avg": "m-avg.pt"},
    {"cls": "m-cls.pt", "avg": "m-avg.pt", "max": "m-max.pt"},
    {"cls": None, "avg": "m-avg.pt"},
    ["m-cls.pt", "m-avg.pt"],
]


@pytest.mark.parametrize("files", FILES, ids=str)
def test_features_files_are_one_for_each_pooling_in_the_folder(store, version, files):
    change(store, "zarr.json", lambda group: group["attributes"]["notes"].update(files=files), is_signed=version == 2)
    assert_refused(store, "notes.files")


@pytest.mark.parametrize(
    ("name", "value"),
    [("shard_rows", 2**70), ("shard_rows", 0), ("shard_rows", 2.0), ("layers", ["a"]), ("layers", ["a", "a"]),
     ("layers", ["a", 1]), ("layers", {"0": "a", "1": "b"}), ("layers", ["a", "\x1b[2J"]), ("notes", []), ("notes", {}),
     ("provenance", "x"), ("provenance", None), ("pools", ["cls", "cls"]), ("pools", []), ("pools", ["../cls", "avg"]),
     ("pools", ["status", "avg"]), ("extras", ["stimulus_id"]), ("format", True), ("format", "2"), ("kept", "yes"),
     ("id", "x")],
)  # fmt: skip
def test_metadata_of_wrong_types_and_values_are_refused(store, version, name, value):
    change(store, "zarr.json", lambda group: group["attributes"].update({name: value}), is_signed=version == 2)
    assert_refused(store, "zarr.json|array|format|layers")


def test_metadata_that_changed_are_told_by_their_checksum(tmp_path):
    path = build(tmp_path / "m.zarr", 2)
    change(path, "zarr.json", lambda group: group["attributes"]["provenance"].update(seed=3))
    assert_refused(path, "differ from their checksum")
    store = Store(build(tmp_path / "other.zarr", 2))
    store.keep()
    store.note("x", {"y": [1.5, None]})
    assert Store(store.path).notes["x"] == {"y": [1.5, None]}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("key", ["zarr.json", "cls/zarr.json", "status/c/1", "loss/c/1", "cls/c/1/0/0"])
def test_no_file_makes_a_reader_wait_or_fail_in_another_way(store, version, key, harm):
    harm(store / key)
    for read in (lambda: Store(store).status(), lambda: load_features(store, "cls").feats, lambda: finalize(store)):
        try:
            read()
        except InputError:
            continue
        assert key.startswith(("cls/c", "loss/c")), "a shard that is lost is missing; nobody needs the loss for others"
    assert store.is_dir()


def test_on_the_command_line_it_is_one_line(store, cli):
    change(store, "zarr.json", lambda group: group["attributes"]["layers"].__setitem__(0, "\x1b[2J\n\0" * 1000))
    for command in ("finalize", "show"):
        code, out, err = cli(command, store)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err[:-1].isprintable()
        assert len(err) < 1000


def test_deep_and_large_metadata_are_refused(store):
    for content in (b"[" * 10**6, b'{"attributes": ' * 10**5, b" " * 9 * 2**20):
        (store / "zarr.json").write_bytes(content)
        assert_refused(store)


def test_status_lists_the_others_when_one_is_damaged(tmp_path):
    build(tmp_path / "good.zarr", 2)
    for number, harm in enumerate(HARMS):
        harm(build(tmp_path / f"bad{number}.zarr", 2) / "zarr.json")
    states = {entry.path.name: entry.state for entry in survey(tmp_path).entries}
    assert states.pop("good.zarr") == "complete"
    assert set(states.values()) <= {"not ours", "unreadable"}
    assert len(states) == len(HARMS)


# before a store goes


def test_a_store_stays_when_its_file_has_other_ids(tmp_path, make_store, monkeypatch):
    store, _ = make_store()

    def other_ids(content, part):
        return save_skeleton(content | {"stimulus_ids": content["stimulus_ids"][::-1]}, part)

    with monkeypatch.context() as patch:
        patch.setattr("lit_extract.storage.finalize.save_skeleton", other_ids)
        with pytest.raises(InputError, match="stimulus ids, shape or metadata"):
            finalize(store.path)
    assert Store(store.path).missing_rows() == []
    with monkeypatch.context() as patch:
        patch.setattr("lit_extract.storage.finalize.save_skeleton", other_ids)
        patch.setattr("lit_extract.storage.finalize.read_back", lambda *_: None)
        with pytest.raises(InputError, match="differs in stimulus_ids"):
            finalize(store.path)
    with pytest.raises(InputError, match="differs in stimulus_ids"):
        finalize(store.path)
    assert Store(store.path).missing_rows() == []


def test_links_lead_nothing_out_of_the_folder(tmp_path, make_store):
    (tmp_path / "outside").mkdir()
    victim = tmp_path / "outside" / "victim"
    victim.write_text("precious")
    folder = tmp_path / "features"
    folder.mkdir()
    store, feats = make_store(folder=folder, shards=[0, 1])
    (folder / ".m_pool-cls.pt.part").symlink_to(victim)
    (store.path / "cls" / "c" / "2").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="a link leads out of"):
        store.write_shard(2, {"cls": feats["cls"][8:]}, np.ones(2, np.uint8))
    (store.path / "cls" / "c" / "2").unlink()
    store.write_shard(2, {"cls": feats["cls"][8:]}, np.ones(2, np.uint8))
    finalize(store.path)
    assert victim.read_text() == "precious"
    assert list(victim.parent.iterdir()) == [victim]
    link = folder / ".x.zarr.lock"
    link.symlink_to(victim)
    with pytest.raises(InputError, match="can't write"), place_of(folder / "x.zarr").write_lock():
        pass
    assert victim.read_text() == "precious"


# locks, progress, pixels


def test_a_lock_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".x.zarr.lock")
    assert place_of(tmp_path / "x.zarr").lock_holder().startswith("unknown: ")
    with pytest.raises(InputError, match="not a regular file"), place_of(tmp_path / "x.zarr").write_lock():
        pass


def test_who_holds_a_lock_can_be_printed(tmp_path):
    target = tmp_path / "x.zarr"
    child = os.fork()
    if child == 0:
        with place_of(target).write_lock():
            (tmp_path / "ready").touch()
            time.sleep(60)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    (tmp_path / ".x.zarr.lock").write_bytes(b"\x1b[31m\0\xff" * 50)
    holder = place_of(target).lock_holder()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert holder.isprintable()
    assert len(holder) <= 200


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"1", b'{"holder": 3, "process": 1}', b'{"process": "../../etc"}', b'{"process": 1e400}', b"\xff",
     b"[" * 9000, b'{"machine": [1], "started": {}}', b'{"holder": "\\u001b[2J"}'],
)  # fmt: skip
def test_a_lease_of_any_shape_is_anothers(content):
    path = to_path("memory://leases/.x.zarr.lock")
    path.write_bytes(content)
    assert place_of(path.with_name("x.zarr")).lock_holder() == "unknown"
    with pytest.raises(InputError, match=r"another run \(unknown"), place_of(path.with_name("x.zarr")).write_lock():
        pass


@pytest.mark.parametrize("name", [PIXELS, ROWS])
@pytest.mark.parametrize("harm", [make_pipe, dangle, make_folder])
def test_a_pixel_cache_that_is_no_file_is_no_cache(tmp_path, name, harm):
    cache = PixelCache(tmp_path / "x", 4, (3, 2, 2))
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).touch()
    harm(tmp_path / "x" / name)
    cache.write(1, b"i" * 16, pixels, Noted(5, True))
    assert not cache.may_write
    assert cache.read(1, b"i" * 16, np.zeros_like(pixels)) is None
    assert not (tmp_path / "x" / "nowhere").exists()
