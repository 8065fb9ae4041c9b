"""What is read of a store without zarr is what the store itself says, and what is no store is told by its reason."""

import json
import subprocess
import sys

import pytest

from lit_extract.storage.layout import PLAIN_STORE_FORMAT, layers_in_words
from lit_extract.storage.store_metadata import read_layout


def sizes_of(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("shards", "n_rows"), [([], 0), ([2], 2), ([0, 2], 6), ([0, 1, 2], 10)])
def test_layout_and_rows_are_those_of_the_store(make_store, shards, n_rows):
    store, _ = make_store(n=10, shard_rows=4, pools=("cls", "avg"), shards=shards)
    layout = read_layout(store.path)
    assert (layout.pools, layout.layers, layout.layer_shapes) == (store.pools, store.layers, [(4,)] * 3)
    assert (layout.dtype, layout.shard_rows, layout.n_shards, layout.is_kept) == ("float32", 4, 3, False)
    assert (layout.provenance, layout.notes) == (store.provenance, store.notes)
    done = layout.done_shards(sizes_of(store.path))
    assert done == store.done_shards() == set(shards)
    assert layout.n_rows(done) == n_rows


@pytest.mark.parametrize("damage", ["truncate", "unlink"])
def test_a_shard_that_is_not_whole_in_each_pooling_is_not_done(make_store, damage):
    store, _ = make_store(pools=("cls", "avg"))
    file = store.path / "avg" / "c" / "1" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-1]) if damage == "truncate" else file.unlink()
    assert read_layout(store.path).done_shards(sizes_of(store.path)) == store.done_shards() == {0, 2}


def test_a_kept_store_says_so(make_store):
    store, _ = make_store()
    store.keep()
    assert read_layout(store.path).is_kept


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("zarr.json", None, "no zarr.json"),
        ("cls/zarr.json", None, "no cls/zarr.json"),
        ("zarr.json", lambda text: text[: len(text) // 2], "its zarr.json is not whole"),
        ("zarr.json", lambda text: "", "its zarr.json is not whole"),
        ("zarr.json", lambda text: "\x80", "its zarr.json is not whole"),
        ("zarr.json", lambda text: "[]", "not (a|that of a) lit-extract store"),
        ("zarr.json", lambda text: '{"zarr_format": 3, "node_type": "group"}', "not (a|that of a) lit-extract store"),
        (
            "zarr.json",
            lambda text: text.replace(f'"format": {PLAIN_STORE_FORMAT}', '"format": 9'),
            "format 9; this version reads",
        ),
        (
            "zarr.json",
            lambda text: text.replace('"shard_rows": 4', '"shard_rows": 0'),
            "shard_rows: should be greater than or equal to 1",
        ),
        ("zarr.json", lambda text: text.replace('"cls"', '"../cls"'), r"pools\.0: must be a plain name"),
        ("cls/zarr.json", lambda text: json.dumps({**json.loads(text), "shape": [1, 2]}), "must have 3 numbers"),
    ],
)
def test_what_is_no_store_is_told_by_its_reason(make_store, key, change, reason):
    store, _ = make_store()
    file = store.path / key
    text = file.read_text()
    if change is None:
        file.unlink()
    else:
        assert change(text) != text, "the damage must be one"
        file.write_text(change(text), encoding="latin-1")
    with pytest.raises(ValueError, match=reason):
        read_layout(store.path)


def test_reading_a_layout_is_light():
    script = "import sys, lit_extract.storage.store_metadata; print({'torch', 'zarr', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout == "set()\n"


def test_no_layer_of_a_few_is_hidden():
    assert layers_in_words(["blocks.0", "blocks.5", "norm"]) == "blocks.0, blocks.5, norm"
    assert layers_in_words(["a", "b", "c", "d"]) == "a, b, c, d"
    assert layers_in_words(["a", "b", "c", "d", "e"]) == "a … e (5 layers)"
