"""From store to .pt: the same numbers, whole or not at all, and damage is found years later."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_extract.common.errors import InputError
from lit_extract.storage.archive import write_filled
from lit_extract.storage.finalize import check_ids_fit, finalize
from lit_extract.storage.layout import BAD_INPUT, NOT_FINITE, OK
from lit_extract.storage.store import Store


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def zip_test(file):
    run = subprocess.run([sys.executable, "-m", "zipfile", "-t", file], capture_output=True, text=True, check=False)
    return run.stdout


@pytest.mark.parametrize("ids", [[9, 4, 7, 1, 0], ["b", "a/ü.jpg", "c", "a longer one", "d"]])
def test_the_file_opens_safely_elsewhere_and_equals_the_store(make_store, tmp_path, ids):
    store, feats = make_store(n=5, shard_rows=2, layers=12, ids=ids, shards=[1, 2, 0])
    (file,) = finalize(store.path)
    assert file == tmp_path / "m_pool-cls.pt"
    script = """
import sys, json, numpy as np, torch
content = torch.load(sys.argv[1], weights_only=True, mmap=True)
np.save(sys.argv[2], content.pop("feats").numpy())
print(json.dumps(content))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, file, tmp_path / "feats.npy"], check=True, capture_output=True, text=True
    )
    np.testing.assert_array_equal(np.load(tmp_path / "feats.npy"), feats["cls"], strict=True)
    rest = torch.load(file, weights_only=True)
    assert set(rest) == {"feats", "num_params", "layers", "stimulus_ids", "metadata"}
    del rest["feats"]
    assert rest == json.loads(run.stdout), "plain values: JSON loses nothing of them"
    assert rest["num_params"] == 123
    assert rest["layers"] == [f"blocks.{k}" for k in range(12)]
    assert rest["stimulus_ids"] == ids
    assert rest["metadata"]["provenance"] == {**store.provenance, "pool": "cls"}
    assert rest["metadata"]["bad_input_rows"] == rest["metadata"]["not_finite_rows"] == []


def test_records_are_aligned_so_that_torch_can_map_them(make_store):
    store, feats = make_store(n=7, layers=3)
    (file,) = finalize(store.path)
    with zipfile.ZipFile(file) as archive, file.open("rb") as opened:
        assert archive.testzip() is None
        for info in archive.infolist():
            opened.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", opened.read(4))
            assert (info.header_offset + 30 + name + extra) % 64 == 0, info.filename
    mapped = torch.load(file, weights_only=True, mmap=True)["feats"]
    np.testing.assert_array_equal(mapped.numpy(), feats["cls"], strict=True)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert any(str(file) in line and int(line.split("-")[0], 16) <= mapped.data_ptr() for line in maps)


def test_the_store_goes_with_the_last_file(make_store, tmp_path):
    store, feats = make_store(pools=("cls", "avg"))
    files = finalize(store.path)
    assert names(tmp_path) == ["m_pool-avg.pt", "m_pool-cls.pt"]
    for pool, file in zip(("cls", "avg"), files, strict=True):
        content = torch.load(file, weights_only=True)
        np.testing.assert_array_equal(content["feats"].numpy(), feats[pool], strict=True)
        assert content["metadata"]["provenance"]["pool"] == pool


def test_the_store_can_be_kept_and_finalized_again(make_store, tmp_path):
    store, _ = make_store()
    finalize(store.path, keep_store=True)
    assert names(tmp_path) == ["m_pool-cls.pt", "m_pool-cls.zarr"]
    written = (tmp_path / "m_pool-cls.pt").stat().st_ino
    assert finalize(store.path) == [tmp_path / "m_pool-cls.pt"]
    assert (tmp_path / "m_pool-cls.pt").stat().st_ino == written, "it was there, whole, with this provenance"
    assert names(tmp_path) == ["m_pool-cls.pt"]


def test_bad_rows_are_listed(make_store):
    store, feats = make_store(n=6, shard_rows=3)
    for shard, status in ((0, [OK, BAD_INPUT, OK]), (1, [NOT_FINITE, OK, BAD_INPUT])):
        rows = store.rows_of(shard)
        store.write_shard(shard, {"cls": feats["cls"][rows.start : rows.stop]}, np.array(status, dtype=np.uint8))
    metadata = torch.load(finalize(store.path)[0], weights_only=True)["metadata"]
    assert metadata["bad_input_rows"] == [1, 5]
    assert metadata["not_finite_rows"] == [3]


def test_one_flipped_bit_is_found_without_this_package(make_store):
    store, _ = make_store()
    (file,) = finalize(store.path)
    assert zip_test(file) == "Done testing\n"
    with zipfile.ZipFile(file) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
    content = bytearray(file.read_bytes())
    content[record.header_offset + 200 + record.file_size // 2] ^= 1
    file.write_bytes(content)
    assert re.search(r"corrupted: .*data/0", zip_test(file))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([1], "6 of 10 rows are missing: rows 0 to 3, 8 to 9; run the same predict command again"),
        ([], "10 of 10 rows are missing"),
    ],
)
def test_an_incomplete_store_is_refused_and_left_alone(make_store, tmp_path, shards, message):
    store, _ = make_store(shards=shards)
    with pytest.raises(InputError, match=message):
        finalize(store.path)
    assert names(tmp_path) == ["m_pool-cls.zarr"]
    assert Store(store.path).done_shards() == set(shards)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.zarr' is not a folder"):
        finalize(tmp_path / "nowhere.zarr")
    (tmp_path / "some.zarr").mkdir()
    with pytest.raises(InputError, match="not a lit-extract store"):
        finalize(tmp_path / "some.zarr")
    assert names(tmp_path) == ["some.zarr"]


def test_a_full_disk_leaves_no_file_and_the_store_whole(make_store, tmp_path, monkeypatch):
    store, feats = make_store()
    read_shard = Store.read_shard

    def full(self, pool, shard, into):
        if shard == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return read_shard(self, pool, shard, into)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read_shard", full)
        with pytest.raises(InputError, match=r"m_pool-cls\.pt'.*No space left on device.*lit-extract finalize"):
            finalize(store.path)
    assert names(tmp_path) == ["m_pool-cls.zarr"]
    (file,) = finalize(store.path)
    np.testing.assert_array_equal(torch.load(file, weights_only=True)["feats"].numpy(), feats["cls"])


def test_what_does_not_reach_the_disk_is_no_file(make_store, tmp_path, monkeypatch):
    store, _ = make_store()

    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(InputError, match="Input/output error; nothing is lost"):
            finalize(store.path)
    assert names(tmp_path) == ["m_pool-cls.zarr"]


def test_an_interrupt_leaves_no_file(make_store, tmp_path, monkeypatch):
    store, _ = make_store()

    def interrupt(self, pool, shard, into):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "read_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        finalize(store.path)
    assert names(tmp_path) == ["m_pool-cls.zarr"]


def test_a_bit_lost_on_the_way_to_the_disk_is_found_before_the_file_appears(make_store, tmp_path, monkeypatch):
    store, _ = make_store()

    def lose(skeleton, chunks, out):
        write_filled(skeleton, chunks, out)
        out.flush()
        with Path(out.name).open("r+b") as part:
            middle = os.fstat(part.fileno()).st_size // 2
            (byte,) = os.pread(part.fileno(), 1, middle)
            os.pwrite(part.fileno(), bytes([byte ^ 1]), middle)

    with monkeypatch.context() as patch:
        patch.setattr("lit_extract.storage.finalize.write_filled", lose)
        with pytest.raises(InputError, match="read back differs from what was written"):
            finalize(store.path)
    assert names(tmp_path) == ["m_pool-cls.zarr"]
    assert finalize(store.path) == [tmp_path / "m_pool-cls.pt"]


def test_a_damaged_shard_is_set_aside_for_the_next_run(make_store, tmp_path):
    store, _ = make_store()
    shard = store.path / "cls" / "c" / "1" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="rows 4 to 7"):
        finalize(store.path)
    assert names(tmp_path) == ["m_pool-cls.zarr"]
    assert Store(store.path).missing_rows() == [range(4, 8)]


def test_what_a_killed_finalize_left_does_not_disturb(make_store, tmp_path):
    store, feats = make_store()
    (tmp_path / ".m_pool-cls.pt.part").write_bytes(b"half a file" * 1000)
    (file,) = finalize(store.path)
    np.testing.assert_array_equal(torch.load(file, weights_only=True)["feats"].numpy(), feats["cls"])
    assert names(tmp_path) == ["m_pool-cls.pt"]


def test_a_file_of_another_provenance_is_not_overwritten(make_store, tmp_path):
    store, _ = make_store()
    store._change(provenance={**store.provenance, "seed": 1})
    finalize(store.path)
    other = (tmp_path / "m_pool-cls.pt").read_bytes()
    store, _ = make_store()
    with pytest.raises(InputError, match="seed was 1, now 0"):
        finalize(store.path)
    assert (tmp_path / "m_pool-cls.pt").read_bytes() == other
    assert Store(store.path).missing_rows() == []


@pytest.fixture
def small_files(monkeypatch):
    """Files hold 20 values at most."""
    monkeypatch.setattr("lit_extract.storage.finalize._FEW_IDS", 0)
    monkeypatch.setattr("lit_extract.storage.plain_pickle.MAX_VALUES", 20)


@pytest.mark.parametrize("ids", [range(20), [f"image {number}" for number in range(20)]], ids=["numbers", "texts"])
def test_more_ids_than_are_read_from_a_file_are_refused(ids, small_files):
    with pytest.raises(InputError, match=r"a \.pt of \d+ stimuli can't be read \(it holds more than 20 values\)"):
        check_ids_fit([*ids])
    check_ids_fit([*ids][:5])


def test_a_run_that_can_not_end_in_a_file_does_not_begin(tmp_path, small_files, cli):
    run = ("predict", "--config", "demo/vision", "--model.name", "test_vit.r160_in1k", "--model.untrained", "true")
    run = (*run, "--model.pool", "avg", "--data.cache", "off", "--output_dir", tmp_path)
    code, out, err = cli(*run)
    assert (code, "data: a .pt of 24 stimuli" in err, "--finalize false" in err) == (2, True, True), out + err
    assert [*tmp_path.rglob("*.zarr")] == []
    assert cli(*run, "--finalize", "false")[0] == 0
    (store,) = tmp_path.rglob("*.zarr")
    for again in (run, ("finalize", store)):
        code, out, err = cli(*again)
        assert (code, "data: a .pt of 24 stimuli" in err) == (2, True), out + err
    assert store.is_dir()
    assert [*tmp_path.rglob("*.pt")] == []
