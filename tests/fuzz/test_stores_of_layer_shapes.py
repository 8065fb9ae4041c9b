"""Stores of layers that differ in shape: whatever becomes of their files, what is read was written, or is refused."""

import json
import shutil
import tempfile

import numpy as np
import pytest
import torch
from helpers.guard import fuzzed, outcome
from helpers.mutations import as_json, changed_values, damaged_bytes
from hypothesis import given
from hypothesis import strategies as st

from lit_extract import load_features
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import OK
from lit_extract.storage.store import Store, StoreSpec
from lit_extract.storage.store_metadata import checksum

pytestmark = pytest.mark.slow

N, R, SHAPES, LAYERS = 5, 2, [(3,), (2, 2), (1,)], ["stem", "a", "b"]
NUMBERS = [torch.arange(N * int(np.prod(shape))).reshape(N, *shape).to(torch.bfloat16) for shape in SHAPES]
KEYS = sorted(
    ["zarr.json", "stimulus_id/zarr.json", "stimulus_id/c/0", "status/zarr.json"]
    + [f"avg.{k}/zarr.json" for k in range(3)]
    + [f"avg.{k}/c/{shard}" + "/0" * len(shape) for k, shape in enumerate(SHAPES) for shard in range(3)]
    + [f"status/c/{shard}" for shard in range(3)]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A complete store, and a folder for copies of it and for temporary files."""
    provenance = {"model": "m", "dataset": "demo", "subset": "all", "weights": "untrained", "precision": "32-true"}
    notes = {"files": {"avg": "m-avg.pt"}, "num_params": 12}
    spec = StoreSpec(["avg"], LAYERS, SHAPES, R, list(range(N)), provenance, notes, dtype="bfloat16")
    store = Store.create(tmp_path_factory.mktemp("made") / "m.zarr", spec)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        feats = {f"avg.{k}": x[rows.start : rows.stop].view(torch.uint16).numpy() for k, x in enumerate(NUMBERS)}
        store.write_shard(shard, feats, np.full(len(rows), OK, dtype=np.uint8))
    folder, before = tmp_path_factory.mktemp("tried") / "x", tempfile.tempdir
    tempfile.tempdir = str(folder / "tmp")
    yield store.path, folder
    tempfile.tempdir = before


def harm(data, original, store):
    key = data.draw(st.sampled_from(KEYS))
    how = data.draw(st.sampled_from(["bytes", "values", "signed", "exchange", "lost"]))
    if how == "values" or how == "signed":
        key = data.draw(st.sampled_from([key for key in KEYS if key.endswith("zarr.json")]))
        (store / key).write_bytes(as_json(data.draw(changed_values(json.loads((original / key).read_bytes())))))
        if how == "signed":
            sign(store)
    elif how == "bytes":
        (store / key).write_bytes(data.draw(damaged_bytes((original / key).read_bytes())))
    elif how == "lost":
        (store / key).unlink()
    else:
        (store / key).write_bytes((original / data.draw(st.sampled_from(KEYS))).read_bytes())


def sign(store):
    """Make the checksum of the metadata right."""
    try:
        group = json.loads((store / "zarr.json").read_bytes())
        arrays = {path.parent.name: json.loads(path.read_bytes()) for path in store.glob("*/zarr.json")}
        group["attributes"]["checksum"] = checksum(group["attributes"], arrays)
    except (AttributeError, KeyError, TypeError, ValueError):
        return
    (store / "zarr.json").write_bytes(as_json(group))


def read_all(path):
    features = load_features(path, "avg")
    return features, [features.layer(k) for k in range(len(features.layers))]


def is_original(read):
    """Whether each layer is as it was written, or missing; names of layers may be others where a checksum vouches."""
    features, layers = read
    assert len(features.layers) == len(set(features.layers)) == 3
    for found, numbers in zip(layers, NUMBERS, strict=True):
        same = (found == numbers).flatten(1).all(dim=1) | found.isnan().flatten(1).all(dim=1)
        if found.shape != numbers.shape or found.dtype != torch.bfloat16 or not same.all():
            return False
    return features.stimulus_ids == list(range(N))


@fuzzed(200)
@given(data=st.data())
def test_what_is_read_is_what_was_written(made, data):
    original, folder = made
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder / "m.zarr")
    (folder / "tmp").mkdir()
    store = folder / "m.zarr"
    harm(data, original, store)
    outcome("store of layers", folder, lambda: read_all(store), is_original)
    made_of_it = outcome("finalize of layers", folder, lambda: finalize(store), lambda files: len(files) == 1)
    for file in folder.glob("*.pt"):
        assert is_original(read_all(file))
    assert made_of_it
