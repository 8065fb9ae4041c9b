"""Stores: whatever becomes of their files, what is read is what was written, or missing, or refused."""

import json
import os
import shutil
import tempfile

import numpy as np
import pytest
import torch
from helpers import old_store
from helpers.guard import REFUSED, fuzzed, outcome
from helpers.mutations import as_json, changed_values, damaged_bytes
from hypothesis import given
from hypothesis import strategies as st

from lit_extract import load_features
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import BAD_INPUT, MISSING, NOT_FINITE, OK, FeatsArray
from lit_extract.storage.store import Store, StoreSpec
from lit_extract.storage.store_metadata import checksum, feats_metadata, read_layout, rows_metadata

pytestmark = pytest.mark.slow

N, L, D, R = 7, 2, 3, 2
POOLS = ("cls", "avg")
EXTRAS = {"n_tokens": "int32", "loss": "float32", "bpb": "float32", "n_bytes": "int64"}
IDS = {1: [70, 5, -3, 900, 2**40, 1, 0], 2: ["a.jpg", "b/ü.jpg", "c", "007", "7", "e", "f"]}
STATUS = np.array([OK, BAD_INPUT, OK, OK, NOT_FINITE, OK, OK], dtype=np.uint8)
FEATS = {pool: np.random.default_rng(k).normal(size=(N, L, D)).astype(np.float32) for k, pool in enumerate(POOLS)}
for values in FEATS.values():
    values[1] = np.nan
    values[4, 0, 0] = np.inf
ROWS = {
    "n_tokens": [3, 0, 1, 2, 4, 1, 1],
    "loss": np.linspace(0, 1, N),
    "bpb": np.linspace(1, 2, N),
    "n_bytes": range(10, 10 + N),
}


def build(path, version, seed=0):
    """A complete store of known numbers."""
    spec = StoreSpec(
        POOLS,
        ["blocks.0", "blocks.1"],
        [(D,)] * 2,
        R,
        IDS[version],
        {
            "model": "m",
            "dataset": "demo",
            "subset": "all",
            "weights": "untrained",
            "seed": seed,
            "n_stimuli": N,
            "shard_rows": R,
            "precision": "32-true",
        },
        {"files": {pool: f"m-{pool}.pt" for pool in POOLS}, "num_params": 12, "root": "/images", "created": "2026"},
        EXTRAS,
    )
    store = Store.create(path, spec) if version == 2 else old_store.create(path, spec)
    for shard in range(store.n_shards):
        rows = slice(shard * R, min(N, shard * R + R))
        extras = {name: np.array(values[rows], dtype=EXTRAS[name]) for name, values in ROWS.items()}
        feats = {pool: numbers[rows] for pool, numbers in FEATS.items()}
        if version == 1:
            old_store.write(store, shard, feats, STATUS[rows], extras)
        else:
            store.write_shard(shard, feats, STATUS[rows], extras)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Stores of both formats, another of format 2, and what finalize makes of a good one."""

    class Made(tuple):
        __slots__ = ()

        def __repr__(self):  # or each failure prints all numbers
            return "made"

    root = tmp_path_factory.mktemp("made")
    stores = {version: build(root / f"{version}.zarr", version) for version in (1, 2)}
    stores["other"] = build(root / "other.zarr", 2, seed=1)
    finished = {}
    for version in (1, 2):
        shutil.copytree(stores[version], root / f"f{version}" / "m.zarr")
        files = finalize(root / f"f{version}" / "m.zarr")
        finished[version] = {file.name: torch.load(file, weights_only=True) for file in files}
    return Made((stores, finished, tmp_path_factory.mktemp("tried")))


@pytest.fixture
def copy(made):
    """A function that gives a fresh copy of a store; nothing else lies in its folder but one for temporary files."""
    stores, _, root = made
    before = tempfile.tempdir

    def make(version=2):
        folder = root / "x"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stores[version], folder / "m.zarr")
        (folder / "tmp").mkdir()
        tempfile.tempdir = str(folder / "tmp")
        return folder / "m.zarr"

    yield make
    tempfile.tempdir = before


KEYS = sorted(
    ["zarr.json", "stimulus_id/zarr.json", "stimulus_id/c/0"]
    + [f"{name}/zarr.json" for name in (*POOLS, "status", *EXTRAS)]
    + [f"{pool}/c/{shard}/0/0" for pool in POOLS for shard in range(4)]
    + [f"{name}/c/{shard}" for name in ("status", *EXTRAS) for shard in range(4)]
)
METADATA = [key for key in KEYS if key.endswith("zarr.json")]
DATA = [key for key in KEYS if not key.endswith("zarr.json")]


def replace(file, kind):
    """Put something else in the place of a file or folder."""
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind != "nothing":
        file.symlink_to(kind)


KINDS = ["nothing", "folder", "pipe", "nowhere", "/dev/zero", "/etc/passwd", "zarr.json"]


SHAPES = [(N - 1, L, D), (N + 1, L, D), (N, L, D - 1), (2**40, L, D), (2**63, L, D), (10**7, L, D), (N, 2**40, D),
          (N, L, 2**40), (0, L, D), (6, L, D)]  # fmt: skip


@st.composite
def harmed(draw, version, original, other):
    """A function that harms a copy of a store, and whether all of its metadata are vouched for by a checksum."""
    kind = draw(st.sampled_from(["bytes", "bytes", "replace", "values", "values", "forged", "exchange", "shape"]))
    key, is_vouched = draw(st.sampled_from(KEYS)), version == 2 and kind not in ("forged", "shape")
    if kind == "bytes":
        content = draw(damaged_bytes((original / key).read_bytes()))
        return lambda store: (store / key).write_bytes(content), is_vouched
    if kind == "replace":
        what, above = draw(st.sampled_from(KINDS)), draw(st.booleans()) and key != "zarr.json"
        return lambda store: replace((store / key).parent if above else store / key, what), is_vouched
    if kind == "exchange" and version == 2:
        first, second = draw(st.sampled_from(DATA)), draw(st.sampled_from(DATA))
        source = draw(st.sampled_from([original, original, other]))

        def exchange(store):
            (store / second).write_bytes((original / first).read_bytes())
            (store / first).write_bytes((source / second).read_bytes())

        return exchange, is_vouched
    if kind == "shape":
        shape, rows = draw(st.sampled_from(SHAPES)), draw(st.sampled_from([R, R, 1, 2**40]))
        names = draw(st.sampled_from([["cls"], None]))
        return lambda store: forge_shape(store, version, shape, rows, names), is_vouched
    key = draw(st.sampled_from(METADATA))
    changed = draw(changed_values(json.loads((original / key).read_bytes())))
    return lambda store: write_metadata(store, key, changed, kind == "forged" and version == 2), is_vouched


def write_metadata(store, key, value, is_signed):
    """Write a ``zarr.json``; if it is signed, the checksum is right all the same."""
    (store / key).write_bytes(as_json(value))
    if is_signed:
        group = json.loads((store / "zarr.json").read_bytes())
        try:
            attributes = group["attributes"]
            names = [*attributes["pools"], "status", *attributes["extras"], "stimulus_id"]
            arrays = {name: json.loads((store / name / "zarr.json").read_bytes()) for name in names}
            attributes["checksum"] = checksum(attributes, arrays)
        except (KeyError, TypeError, ValueError, OSError):
            return
        (store / "zarr.json").write_bytes(as_json(group))


def forge_shape(store, version, shape, rows, names):
    """Another shape, in some or all arrays and in the attributes, as if the store had been made so."""
    ids = "int64" if version == 1 else "string"
    n, layers, dim = shape
    feats = [FeatsArray(pool, range(layers), (dim,), 0, layers * dim, True) for pool in POOLS]
    arrays = feats_metadata(feats, n, rows, "float32") | rows_metadata(version, EXTRAS, n, rows, ids, [(dim,)])
    for name in names or arrays:
        (store / name / "zarr.json").write_bytes(as_json(arrays[name]))
    group = json.loads((store / "zarr.json").read_bytes())
    group["attributes"]["shard_rows"] = rows
    if names is None:
        group["attributes"]["provenance"] |= {"n_stimuli": shape[0], "shard_rows": rows}
    write_metadata(store, "zarr.json", group, version == 2)


def read_all(path):
    """What a store says, in all ways in which it is read."""
    store = Store(path)
    assert read_layout(path) == store.layout
    ids, status, done = store.stimulus_ids(), store.status(), store.done_shards()
    feats = {pool: np.stack([store.read_layer(pool, k) for k in range(L)], axis=1) for pool in store.pools}
    for pool in store.pools:
        for shard in done:
            rows = store.rows_of(shard)
            np.testing.assert_array_equal(store.read_shard(pool, shard), feats[pool][rows.start : rows.stop])
    extras = {name: store.extra(name) for name in store.extras}
    for pool in store.pools:
        features = load_features(path, pool)
        assert features.stimulus_ids == ids
        assert features.feats.shape == feats[pool].shape
        assert features.n_done == (status != MISSING).sum()
    return ids, status, feats, extras, [row for shard in done for row in store.rows_of(shard)]


def is_original(version):
    """Whether what was read is what was written, of the rows that are done; the others are missing."""

    def check(found):
        ids, status, feats, extras, done = found
        missing = np.delete(np.arange(N), done)
        same = [not done or np.array_equal(feats[pool][done], FEATS[pool][done], equal_nan=True) for pool in feats]
        same += [np.isnan(feats[pool][missing]).all() for pool in feats]
        same += [np.array_equal(extras[name][done], np.array(ROWS[name], extras[name].dtype)[done]) for name in extras]
        same += [(status[missing] == MISSING).all(), (status[done] == STATUS[done]).all()]
        return ids == IDS[version] and set(feats) <= set(POOLS) and all(same)

    return check


def same_content(found, expected):
    """Whether two features files hold the same."""
    tensors = {name for name, value in expected.items() if isinstance(value, torch.Tensor)}
    return (
        set(found) == set(expected)
        and all(np.array_equal(found[name], expected[name], equal_nan=True) for name in tensors)
        and all(repr(found[name]) == repr(expected[name]) for name in set(expected) - tensors)
    )


@pytest.mark.parametrize("version", [1, 2])
@fuzzed(120)
@given(data=st.data())
def test_what_is_read_of_a_store_is_what_was_written(made, copy, version, data):
    stores, _, _ = made
    harm, _ = data.draw(harmed(version, stores[version], stores["other"]))
    store = copy(version)
    harm(store)
    outcome(f"store, format {version}", store.parent, lambda: read_all(store), is_original(version))


@pytest.mark.parametrize("version", [1, 2])
@fuzzed(80)
@given(data=st.data())
def test_what_is_made_of_a_store_is_what_was_written(made, copy, version, data):
    stores, finished, _ = made
    harm, is_vouched = data.draw(harmed(version, stores[version], stores["other"]))
    store = copy(version)
    harm(store)
    there = everything(store)

    def is_right(files):
        """Where nothing vouches for the names in metadata, the numbers are those that were written all the same."""
        contents = {file: torch.load(file, weights_only=True) for file in files}
        assert all(file.parent == store.parent for file in files)
        if not is_vouched:
            return all(is_numbers(content, version) for content in contents.values())
        return all(same_content(content, finished[version][file.name]) for file, content in contents.items())

    if outcome(f"finalize, format {version}", store.parent, lambda: finalize(store), is_right) == REFUSED:
        left = everything(store)
        lost = {path for path in there - left if path.with_name(path.name + ".corrupt") not in left}
        assert not lost, f"a store that is refused has lost {lost}"
    names = {path for path in store.parent.iterdir() if path.name not in ("m.zarr", "tmp")}
    assert is_right(names), "each pooling's file is right, whatever became of the other"


def everything(store):
    return {path.relative_to(store) for path in store.rglob("*")}


def is_numbers(content, version):
    pool = content["metadata"]["provenance"]["pool"]
    return content["stimulus_ids"] == IDS[version] and np.array_equal(content["feats"], FEATS[pool], equal_nan=True)
