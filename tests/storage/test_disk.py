"""Room on the disk: what a job needs is what it then takes, and too little is said before a model is loaded."""

import os
import subprocess
import sys

import pytest
from helpers.language_models import save_captions, save_model

from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError
from lit_extract.modules.vision import VisionExtractor
from lit_extract.storage.disk import Size, bytes_there, check_room, free_bytes
from lit_extract.storage.finalize import finalize
from lit_extract.storage.store import Store

KB, MB = 2**10, 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system of so many bytes; it returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small tmpfs needs root on Linux")
        return folder

    yield make
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def tree(folder):
    return {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (999_950_000, "1.0 GB"),
        (3e15, "3000.0 TB"),
    ],
)
def test_sizes_are_in_powers_of_a_thousand(n_bytes, text):
    assert as_size(n_bytes) == text


def nsd(n_pools):
    return Size(73_000, [(768,)] * 12, n_pools)


def test_nsd_with_a_base_model_needs_the_room_of_its_rows_twice():
    feats = 73_000 * 12 * 768 * 4
    for n_pools in (1, 2):
        store, files = nsd(n_pools).store(2_048), n_pools * nsd(n_pools).file()
        assert n_pools * feats < store < 1.02 * n_pools * feats  # the last shard is as large as the others
        assert n_pools * feats < files < 1.01 * n_pools * feats


def test_shards_that_are_done_need_no_more_room():
    every, half = (Size(100, [(8,)] * 3, 2).store(10, done) for done in (0, 5))
    assert half == every / 2
    assert Size(100, [(8,)] * 3, 2).store(10, 10) == 0


@pytest.mark.parametrize("pools", [("cls",), ("cls", "avg")])
def test_what_is_needed_is_what_is_taken(make_store, pools):
    """Of numbers that are large beside names and folders: the estimate is above the bytes on disk, and close."""
    shape = {"n": 1000, "layers": 6, "dim": 300, "shard_rows": 128}
    store, _ = make_store(**shape, pools=pools)
    size = Size(1000, [(300,)] * 6, len(pools))
    needed = size.store(128)
    assert 0.9 * needed < bytes_there([store.path]) <= needed
    files = finalize(store.path)
    needed = len(pools) * size.file()
    assert 0.9 * needed < bytes_there(files) <= needed


def test_bytes_there_counts_what_a_file_takes_and_not_its_holes(tmp_path):
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(10 * MB)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").write_bytes(b"x" * 40 * KB)
    assert bytes_there([tmp_path / "holes", tmp_path / "nowhere"]) < MB
    assert 40 * KB <= bytes_there([tmp_path]) < MB


def test_free_bytes_are_those_of_an_ordinary_user_and_of_a_folder_that_is_not_there_yet(tmp_path, monkeypatch):
    def statvfs(path):
        assert path == tmp_path
        return os.statvfs_result((4096, 1000, 90, 50, 7, 0, 0, 0, 0, 255))  # sizes, blocks, free, free for all

    monkeypatch.setattr("os.statvfs", statvfs)
    assert free_bytes(tmp_path / "not" / "yet") == 7 * 1000


def test_too_little_room_is_said_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: 5_000_000)
    check_room(tmp_path, 3_000_000, 2_000_000, 0, "")
    check_room(tmp_path, 4_000_000, 2_000_000, 1_000_000, "")
    with pytest.raises(InputError) as error:
        check_room(tmp_path, 4_000_000, 2_000_000, 200_000, "do this")
    assert str(error.value) == (
        "not enough disk space: 5.8 MB are needed (4.0 MB for the store, 2.0 MB for the .pt files, 200.0 kB freed "
        f"by what is replaced), 5.0 MB are free at {str(tmp_path)!r}; nothing is lost: do this"
    )


# Seven rows of 6 layers and 64 dimensions in shards of two: 12 kB a shard, and 64 kB beside it.
TINY = Size(7, [(64,)] * 6, 1)
NEEDED = 4 * (6 * (2 * 64 * 4 + 4) + 6 * 4 + 32 + 6 * 16 + 4 + 2 * 256 + 64 * KB) + 7 * (6 * 64 * 4 + 256) + 64 * KB


def test_predict_refuses_before_the_model_is_loaded(run_job, tmp_path, monkeypatch):
    def load(self):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: NEEDED - 1)
    monkeypatch.setattr(VisionExtractor, "configure_model", load)
    with pytest.raises(InputError, match="not enough disk space") as error:
        run_job(data_shard_rows=2)
    assert str(tmp_path / "out" / "folder" / "all-untrained") in str(error.value)
    assert tree(tmp_path / "out") == {}


def test_a_run_with_just_enough_room_runs_and_without_finalizing_needs_less(run_job, monkeypatch):
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: NEEDED)
    run_job(data_shard_rows=2)
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: NEEDED - TINY.file())
    with pytest.raises(InputError, match="not enough disk space"):
        run_job(data_shard_rows=2, pool="avg")
    assert run_job(data_shard_rows=2, pool="avg", finalize=False).files == []


def test_a_resumed_run_needs_room_for_what_is_left_only(run_job, tmp_path, monkeypatch):
    extraction = run_job(data_shard_rows=2, finalize=False)
    whole = TINY.file()
    (extraction.store / "cls" / "c" / "1" / "0" / "0").unlink()
    before = tree(extraction.store)
    left = TINY.store(2, done_shards=3) + whole
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: left - 1)
    with pytest.raises(InputError, match="not enough disk space"):
        run_job(data_shard_rows=2)
    assert tree(extraction.store) == before
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: left)
    assert run_job(data_shard_rows=2).files[0].is_file()


def test_overwriting_counts_what_it_replaces_and_deletes_nothing_when_refused(run_job, tmp_path, monkeypatch):
    (file,) = run_job(data_shard_rows=2).files
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: NEEDED - bytes_there([file]) - 1)
    with pytest.raises(InputError, match="freed by what is replaced"):
        run_job(data_shard_rows=2, overwrite=True)
    assert file.is_file()
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: NEEDED - bytes_there([file]))
    run_job(data_shard_rows=2, overwrite=True)


def test_finalize_refuses_without_room_and_counts_what_a_killed_one_left(cli, make_store, tmp_path, monkeypatch):
    store, _ = make_store(pools=("cls", "avg"))
    needed = 2 * Size(10, [(4,)] * 3, 1).file()
    monkeypatch.setattr("lit_extract.storage.disk.free_bytes", lambda folder: needed - 1)
    code, out, err = cli("finalize", store.path)
    assert (code, out) == (2, "")
    assert f"lit-extract finalize {store.path}" in err
    assert [path.name for path in tmp_path.iterdir()] == [store.path.name], "no half of a file"
    (tmp_path / ".m_pool-cls.pt.part").write_bytes(b"x" * 5000)
    assert cli("finalize", store.path)[0] == 0


def test_on_a_disk_that_is_really_too_small(cli, tmp_path, small_disk):
    """The file system itself says how much is free."""
    save_model(tmp_path / "model", "llama")
    save_captions(tmp_path / "captions.csv", [5] * 2000)
    disk = small_disk("2m")
    command = (
        *("predict", "--config", "configs/nsd/language.yaml", "--trainer.accelerator", "cpu"),
        *("--model.name", "tiny", "--model.checkpoint", tmp_path / "model"),
        *("--data.captions", tmp_path / "captions.csv", "--data.prompt_name", "test", "--data.subset", "first"),
        *("--output_dir", disk),
    )
    code, _, err = cli(*command)
    assert code == 2
    assert "2.1 MB are free" in err
    assert "are needed" in err
    assert tree(disk) == {}
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
    assert cli(*command)[0] == 0
    (file,) = tree(disk)
    assert str(file).endswith("tiny_pool-avg_prompt-test.pt")


def test_a_store_moved_to_a_disk_that_is_too_small_is_not_finalized(cli, make_store, small_disk):
    store, _ = make_store(n=2000, layers=3, dim=64, shard_rows=500)
    disk = small_disk("3m")
    subprocess.run(["cp", "-r", str(store.path), str(disk)], check=True)
    moved = disk / store.path.name
    code, _, err = cli("finalize", moved)
    assert code == 2
    assert "not enough disk space" in err
    assert not Store(moved).missing_rows()
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
    assert cli("finalize", moved)[0] == 0
