"""The store: what is written is read back, what is not whole does not count, what is damaged is found."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr

from lit_extract.common.errors import InputError
from lit_extract.storage.layout import BAD_INPUT, MISSING, NOT_FINITE, OK
from lit_extract.storage.provenance import differing
from lit_extract.storage.store import Store, StoreSpec, remove_store


def shard_file(store, shard, pool="cls"):
    """As docs/store-format.md has it."""
    return store.path / pool / "c" / str(shard) / "0" / "0"


def damage(file, layer, n_layers):
    """Flip one bit in a layer's chunk, which the index at the end of a zarr shard locates."""
    content = bytearray(file.read_bytes())
    index = np.frombuffer(content[-(16 * n_layers + 4) : -4], dtype="<u8").reshape(n_layers, 2)
    offset, length = (int(number) for number in index[layer])
    content[offset + length // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("ids", [[9, 4, 7, 1, 0], ["b", "a/ü.jpg", "c", "a longer one", "d"]])
def test_what_is_written_out_of_order_is_what_any_zarr_reader_finds(make_store, tmp_path, ids):
    store, feats = make_store(n=5, shard_rows=2, pools=("cls", "avg"), ids=ids, shards=[2, 0, 1])
    script = """
import sys, json, numpy as np, zarr
group = zarr.open_group(sys.argv[1], mode="r")
for name in ("cls", "avg", "status"):
    np.save(f"{sys.argv[2]}/{name}.npy", group[name][:])
print(json.dumps([group["stimulus_id"][:].tolist(), dict(group.attrs)]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, store.path, tmp_path], check=True, capture_output=True, text=True
    )
    for pool in ("cls", "avg"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{pool}.npy"), feats[pool], strict=True)
    assert np.load(tmp_path / "status.npy").tolist() == [OK] * 5
    found_ids, attributes = json.loads(run.stdout)
    assert found_ids == ids == Store(store.path).stimulus_ids()
    assert attributes["layers"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert attributes["provenance"] == {"model": "m", "dataset": "demo", "weights": "untrained", "seed": 0}


def test_shards_and_layers_read_back_exactly(make_store):
    store, feats = make_store(n=10, shard_rows=4)
    store = Store(store.path)
    for shard, rows in enumerate([slice(0, 4), slice(4, 8), slice(8, 10)]):
        np.testing.assert_array_equal(store.read_shard("cls", shard), feats["cls"][rows], strict=True)
    for layer in range(3):
        np.testing.assert_array_equal(store.read_layer("cls", layer), feats["cls"][:, layer], strict=True)


def test_done_is_what_has_its_files(make_store):
    store, feats = make_store(n=10, shard_rows=4, pools=("cls", "avg"), shards=[2, 0])
    store = Store(store.path)
    assert store.n_shards == 3
    assert store.done_shards() == {0, 2}
    assert store.missing_rows() == [range(4, 8)]
    assert store.status().tolist() == [OK] * 4 + [MISSING] * 4 + [OK] * 2
    assert np.isnan(store.read_layer("avg", 1)[4:8]).all()
    np.testing.assert_array_equal(
        np.delete(store.read_layer("avg", 1), range(4, 8), 0), feats["avg"][[0, 1, 2, 3, 8, 9], 1]
    )
    shard_file(store, 2, "avg").unlink()
    assert store.done_shards() == {0}, "a shard is done when all poolings have it"


def test_status_written_before_a_kill_does_not_count(make_store):
    store, _ = make_store(n=10, shard_rows=4)
    shutil.rmtree(store.path / "cls" / "c" / "1")  # status says OK, the shard never came
    assert store.status().tolist() == [OK] * 4 + [MISSING] * 4 + [OK] * 2


def test_statuses_of_rows_are_kept(make_store):
    store, feats = make_store(n=6, shard_rows=3, shards=[])
    for shard, status in ((1, [OK, BAD_INPUT, OK]), (0, [NOT_FINITE, OK, OK])):
        rows = store.rows_of(shard)
        store.write_shard(shard, {"cls": feats["cls"][rows.start : rows.stop]}, np.array(status, dtype=np.uint8))
    assert Store(store.path).status().tolist() == [NOT_FINITE, OK, OK, OK, BAD_INPUT, OK]


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_shards_of_nothing_but_nan_or_zero_are_written_all_the_same(make_store, value):
    store, _ = make_store(n=6, shard_rows=3, shards=[])
    empty = np.full((3, 3, 4), value, dtype=np.float32)
    written = store.write_shard(1, {"cls": empty}, np.full(3, BAD_INPUT, dtype=np.uint8))
    store = Store(store.path)
    assert written == shard_file(store, 1).stat().st_size
    assert store.done_shards() == {1}
    np.testing.assert_array_equal(store.read_shard("cls", 1), empty)


def test_a_layer_of_nothing_but_nan_does_not_make_a_shard_look_truncated(make_store):
    store, feats = make_store(n=6, shard_rows=3, shards=[])
    feats["cls"][:3, 1] = np.nan
    store.write_shard(0, {"cls": feats["cls"][:3]}, np.full(3, NOT_FINITE, dtype=np.uint8))
    assert Store(store.path).done_shards() == {0}
    np.testing.assert_array_equal(Store(store.path).read_shard("cls", 0), feats["cls"][:3])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_flipped_bit_is_found_and_its_shard_is_set_aside(make_store, layer):
    store, feats = make_store(n=10, shard_rows=4)
    damage(shard_file(store, 1), layer, n_layers=3)
    store = Store(store.path)
    assert store.done_shards() == {0, 1, 2}, "its size is right"
    with pytest.raises(InputError, match=r"rows 4 to 7 of .* are damaged on disk"):
        store.read_shard("cls", 1)
    assert store.done_shards() == {0, 2}
    np.testing.assert_array_equal(store.read_shard("cls", 2), feats["cls"][8:], "the others are as they were")
    store.write_shard(1, {"cls": feats["cls"][4:8]}, np.full(4, OK, dtype=np.uint8))
    np.testing.assert_array_equal(Store(store.path).read_shard("cls", 1), feats["cls"][4:8])


def test_one_layer_is_read_without_the_others(make_store):
    store, feats = make_store(n=10, shard_rows=4)
    damage(shard_file(store, 1), layer=1, n_layers=3)
    for layer in (0, 2):
        np.testing.assert_array_equal(store.read_layer("cls", layer), feats["cls"][:, layer])
    with pytest.raises(InputError, match=r"blocks\.1 of rows 4 to 7 .* is damaged on disk"):
        store.read_layer("cls", 1)


@pytest.mark.parametrize("size", [0, 10, -1])
def test_a_truncated_shard_is_not_done_and_can_be_written_again(make_store, size):
    store, feats = make_store(n=10, shard_rows=4)
    file = shard_file(store, 0)
    file.write_bytes(file.read_bytes()[:size])
    store = Store(store.path)
    assert store.done_shards() == {1, 2}
    assert store.missing_rows() == [range(4)]
    store.write_shard(0, {"cls": feats["cls"][:4]}, np.full(4, OK, dtype=np.uint8))
    assert store.done_shards() == {0, 1, 2}
    np.testing.assert_array_equal(store.read_shard("cls", 0), feats["cls"][:4])


def test_unfinished_files_of_a_killed_writer_are_not_taken_for_shards(make_store):
    store, _ = make_store(n=10, shard_rows=4, shards=[0])
    whole = shard_file(store, 0)
    beside = shard_file(store, 1).with_name("0.c0ffee.partial")
    beside.parent.mkdir(parents=True)
    beside.write_bytes(whole.read_bytes())
    assert Store(store.path).done_shards() == {0}


def test_what_a_killed_create_left_is_no_store_and_does_not_disturb_the_next(make_store, tmp_path):
    path = tmp_path / "m_pool-cls.zarr"
    left = tmp_path / "m_pool-cls.zarr.part"
    (left / "cls" / "c" / "0" / "0").mkdir(parents=True)
    (left / "zarr.json").write_text('{"zarr_format": 3, "node_')
    with pytest.raises(InputError, match="not a lit-extract store"):
        Store(path)
    store, _ = make_store(shards=[])
    assert store.done_shards() == set()
    assert not left.exists()


def test_removed_is_gone(make_store, tmp_path):
    store, _ = make_store()
    remove_store(store.path)
    assert list(tmp_path.iterdir()) == []


PROVENANCE = {"model": "m", "size": [3, 160, 160], "precision": "32-true", "query": None}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (PROVENANCE, ""),
        ({**PROVENANCE, "size": (3, 160, 160)}, ""),  # JSON knows no tuples
        ({**PROVENANCE, "model": "n"}, "model was 'm', now 'n'"),
        (
            {**PROVENANCE, "query": "nsd_id < 9", "precision": "bf16-true"},
            "precision was '32-true', now 'bf16-true', query was None, now 'nsd_id < 9'",
        ),
        ({k: v for k, v in PROVENANCE.items() if k != "model"}, "model was 'm', now None"),
        ({**PROVENANCE, "torch": "3.0"}, "torch was None, now '3.0'"),
    ],
)
def test_differing_names_each_setting_with_both_values(new, expected):
    assert differing(PROVENANCE, new) == expected


def test_check_provenance_passes_the_same_and_stops_others(make_store):
    store, _ = make_store()
    same = {"model": "m", "dataset": "demo", "weights": "untrained", "seed": 0}
    store.check_provenance(same)
    with pytest.raises(InputError, match=r"other settings: seed was 0, now 1\. .*--overwrite"):
        store.check_provenance({**same, "seed": 1})


def _empty(path):
    path.mkdir()


def _array(path):
    zarr.create_array(path, shape=(2,), dtype="float32")


def _another_group(path):
    zarr.create_group(path, zarr_format=3, attributes={"pools": ["cls"]})


def _group_of_zarr_2(path):
    zarr.create_group(path, zarr_format=2, attributes={"format": 1})


def _half_written(path):
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_')


def _other_json(path):
    path.mkdir()
    (path / "zarr.json").write_text("[1, 2]")


def _file(path):
    path.write_text("not a folder")


@pytest.mark.parametrize(
    "make",
    [_empty, _array, _another_group, _group_of_zarr_2, _half_written, _other_json, _file],
    ids=lambda f: f.__name__,
)
def test_what_is_no_store_is_refused(tmp_path, make):
    path = tmp_path / "x.zarr"
    make(path)
    with pytest.raises(InputError, match=r"x\.zarr' is not a lit-extract store"):
        Store(path)


def test_a_store_of_another_format_is_refused(make_store):
    store, _ = make_store()
    store._change(format=99)
    with pytest.raises(InputError, match="has format 99; this version reads 4"):
        Store(store.path)


def test_creating_over_a_store_leaves_it_alone(make_store):
    store, feats = make_store()
    with pytest.raises(OSError, match="not empty"):
        make_store()
    np.testing.assert_array_equal(Store(store.path).read_shard("cls", 0), feats["cls"][:4])


def test_one_row_and_one_layer(tmp_path):
    spec = StoreSpec(["avg"], ["blocks.11"], [(1,)], 64, [3], {}, {"files": {"avg": "a.pt"}, "num_params": 1})
    Store.create(tmp_path / "s.zarr", spec).write_shard(0, {"avg": np.array([[[2.5]]], np.float32)}, np.array([OK]))
    store = Store(tmp_path / "s.zarr")
    assert store.done_shards() == {0}
    assert store.read_layer("avg", 0).tolist() == [[2.5]]
