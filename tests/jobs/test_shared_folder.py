"""Whether a folder is that of rank zero is asked in a way that leaves nothing, and that no cache answers."""

import shutil
import threading

import pytest

from lit_extract.jobs import shared_folder
from lit_extract.storage.store import Store


@pytest.fixture
def sees(monkeypatch):
    """A function that asks whether a store is the one with an id; what is wrong has no time to appear."""
    monkeypatch.setattr(shared_folder, "SECONDS_TO_APPEAR", 0.0)
    return shared_folder._sees


def test_the_store_itself(make_store, sees, tmp_path):
    store, _ = make_store()
    before = sorted(tmp_path.rglob("*"))
    assert sees(store.path, store.layout.id)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_missing_is_not_left_there(sees, tmp_path):
    assert not sees(tmp_path / "features" / "nsd" / "m.zarr", "0" * 32)
    assert not [*tmp_path.iterdir()]


def test_the_store_of_an_earlier_run_on_this_machine_alone(make_store, sees):
    store, _ = make_store()
    other, _ = make_store(name="other")
    assert store.layout.id != other.layout.id
    assert not sees(other.path, store.layout.id)
    assert Store(other.path).done_shards(), "it is untouched"


def test_where_nothing_can_be_made_nothing_is_seen(sees, tmp_path):
    (tmp_path / "file").write_text("")
    assert not sees(tmp_path / "file" / "m.zarr", "0" * 32)


def test_what_was_changed_a_moment_ago_may_appear_late(make_store, tmp_path):
    store, _ = make_store()
    metadata = store.path / "zarr.json"
    shutil.move(metadata, tmp_path / "aside")
    later = threading.Timer(0.5, shutil.move, (tmp_path / "aside", metadata))
    later.start()
    assert shared_folder._sees(store.path, store.layout.id)
    later.join()
