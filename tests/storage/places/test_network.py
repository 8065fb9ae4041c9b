"""Stores on a folder of a network, which two clients see through caches of their own."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.network_folder import mounted, why_not

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import read_regular
from lit_extract.inspection.survey import survey
from lit_extract.jobs.shared_folder import wait_for_shards
from lit_extract.storage.features import load_features
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import OK
from lit_extract.storage.places import place_of
from lit_extract.storage.store import Store, is_store

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no network folder: {why_not()}")


@pytest.fixture
def clients(tmp_path):
    """Two machines' views of a folder."""
    shared = tmp_path / "server"
    shared.mkdir()
    with (
        mounted(shared, tmp_path / "first", cached=2) as first,
        mounted(shared, tmp_path / "second", cached=2) as second,
    ):
        yield first, second


@contextmanager
def another_process(script, path):
    """A process that runs a script with ``path``, prints a line and waits; it ends with the body."""
    script = f"import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n{script}"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process.pid
        process.stdin.close()
        process.wait()


OPEN = "file = path.open()\nprint(flush=True)\nsys.stdin.read()"
LOCK = """
from lit_extract.storage.places import place_of
with place_of(path).write_lock():
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_another_machine_has_written_is_waited_for(clients, make_store, nodes):
    first, second = clients
    store, numbers = make_store(folder=first, shards=())
    assert store.done_shards() == set()
    other = Store(second / store.path.name)
    for shard in range(other.n_shards):
        rows = other.rows_of(shard)
        feats = {"cls": numbers["cls"][rows.start : rows.stop]}
        other.write_shard(shard, feats, np.full(len(rows), OK, dtype=np.uint8))
    assert (store.done_shards(), other.done_shards()) == (set(), {0, 1, 2}), "the first one looks into its cache"
    wait_for_shards(SimpleNamespace(num_nodes=nodes), store)
    assert store.done_shards() == ({0, 1, 2} if nodes > 1 else set())


def test_a_lock_holds_between_machines_and_status_shows_who_has_it(clients, make_store):
    first, second = clients
    store, _ = make_store(folder=first)
    with another_process(LOCK, store.path) as pid:
        said = f"process {pid} on "
        with pytest.raises(InputError, match=said):
            finalize(second / store.path.name)
        (entry,) = survey(second).entries
        assert (entry.state, entry.holder.startswith(said)) == ("running", True)
    (file,) = finalize(second / store.path.name)
    assert sorted(path.name for path in first.iterdir()) == [file.name]


def test_without_locks_a_run_stops_unless_it_is_told_to_do_without(tmp_path, make_store, monkeypatch):
    (tmp_path / "server").mkdir()
    with mounted(tmp_path / "server", tmp_path / "client", locks=False) as folder:
        store, numbers = make_store(folder=folder)
        with pytest.raises(InputError, match=r"its file system has no locks.*LIT_EXTRACT_NO_LOCKS=1"):
            finalize(store.path)
        assert survey(folder).entries[0].state != "running"
        monkeypatch.setenv("LIT_EXTRACT_NO_LOCKS", "1")
        (file,) = finalize(store.path)
        assert load_features(file).feats.numpy().tobytes() == numbers["cls"].tobytes()
        assert [path.name for path in folder.iterdir()] == [file.name]


def test_a_store_goes_though_another_process_has_a_shard_of_it_open(clients, make_store):
    first, _ = clients
    store, numbers = make_store(folder=first)
    with another_process(OPEN, store.path / next(iter(store.feats_arrays.values())).key(1)):
        (file,) = finalize(store.path)
        assert load_features(file).feats.numpy().tobytes() == numbers["cls"].tobytes()
        assert not is_store(store.path)
        assert [path.name for path in first.rglob(".nfs*")] != [], "the open one is kept"
        make_store(folder=first)
        assert Store(store.path).done_shards() == {0, 1, 2}
    finalize(store.path)
    assert [path.name for path in first.iterdir()] == [file.name]


def test_a_store_that_can_not_be_deleted_for_another_reason_is_an_error(tmp_path, make_store, monkeypatch):
    store, _ = make_store()
    unlink = os.unlink

    def refuse(path, *arguments, **settings):
        if str(path) == "zarr.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, *arguments, **settings)

    monkeypatch.setattr("os.unlink", refuse)
    with pytest.raises(InputError, match=r"can't delete the store .* Permission denied"):
        finalize(store.path)


def test_a_file_that_another_machine_replaces_while_it_is_read_is_read_again(clients, monkeypatch):
    first, second = clients
    (first / "zarr.json").write_text("old")
    descriptor = read_regular.__globals__["_descriptor"]
    opened = []

    def replaced_meanwhile(*arguments):
        found = descriptor(*arguments)
        if not opened:
            place_of(second).write_file("zarr.json", [b"new"])
        opened.append(found)
        return found

    monkeypatch.setitem(read_regular.__globals__, "_descriptor", replaced_meanwhile)
    assert read_regular(first / "zarr.json", 10) == b"new"
    assert len(opened) == 2


def test_a_lock_file_that_its_holder_has_just_removed_is_made_again(tmp_path, monkeypatch):
    import fcntl

    lockf, tries = fcntl.lockf, []

    def stale_at_first(*arguments):
        tries.append(arguments)
        if len(tries) == 1:
            (tmp_path / ".x.zarr.lock").unlink()
            raise OSError(errno.ESTALE, "Stale file handle")
        return lockf(*arguments)

    monkeypatch.setattr("fcntl.lockf", stale_at_first)
    with place_of(tmp_path / "x.zarr").write_lock():
        assert (tmp_path / ".x.zarr.lock").exists()
    assert len(tries) == 2


def test_a_full_quota_is_reported_by_its_name(tmp_path, make_store):
    (tmp_path / "server").mkdir()
    with mounted(tmp_path / "server", tmp_path / "client", quota=100_000) as folder:
        store, _ = make_store(folder=folder, n=400, dim=16, shard_rows=400)
        with pytest.raises(InputError, match=r"can't write .*Disk quota exceeded.*nothing is lost"):
            finalize(store.path)
        assert [path.name for path in folder.iterdir()] == [store.path.name]
