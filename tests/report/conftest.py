"""Features of known numbers, where a sweep would put them."""

import json

import numpy as np
import pytest
import torch

from lit_extract.report.make import measure, report
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import BAD_INPUT, NOT_FINITE, OK
from lit_extract.storage.provenance import OF_CAPTIONS
from lit_extract.storage.store import Store, StoreSpec


@pytest.fixture
def save(tmp_path):
    """A function that saves features (N, L, D) of the demo below ``tmp_path / "demo"``; it returns the path.

    ``shards`` are those that are done, five rows each; all of them make a .pt. ``lengths`` are tokens a row, ``known``
    further provenance.
    """

    def save(
        name,
        feats,
        ids=None,
        untrained=False,
        kind="vision",
        shards=None,
        layers=None,
        pool="cls",
        lengths=None,
        **known,
    ):
        n, depth, dim = feats.shape
        folder = tmp_path / "demo" / ("all-untrained" if untrained else "all")
        weights = {"weights": "untrained", "seed": 0} if untrained else {"weights": "checkpoint"}
        of_captions = {"prompt_name": "own", "tokens_sha256": "0" * 64} if kind in OF_CAPTIONS else {}
        of_captions |= {"special_tokens": "included"} if kind == "text_encoder" else {}
        spec = StoreSpec(
            pools=(pool,),
            layers=layers or [f"blocks.{k}" for k in range(depth)],
            layer_shapes=[(dim,)] * depth,
            shard_rows=len(feats) if shards is None else 5,
            stimulus_ids=list(range(n)) if ids is None else list(ids),
            provenance={"model": name, "dataset": "demo", "subset": "all", **weights, **of_captions, **known},
            extras={} if lengths is None else {"n_tokens": "int32"},
            notes={"files": {pool: f"{name}_pool-{pool}.pt"}, "num_params": 123},
        )
        store = Store.create(folder / f"{name}_pool-{pool}.zarr", spec)
        for shard in range(store.n_shards) if shards is None else shards:
            rows = store.rows_of(shard)
            part = feats[rows.start : rows.stop].astype(np.float32)
            status = np.where(np.isfinite(part).all(axis=(1, 2)), OK, NOT_FINITE)
            status = np.where(np.isnan(part).all(axis=(1, 2)), BAD_INPUT, status)
            extras = {} if lengths is None else {"n_tokens": lengths[rows.start : rows.stop].astype(np.int32)}
            store.write_shard(shard, {pool: part}, status.astype(np.uint8), extras)
        return finalize(store.path)[0] if shards is None else store.path

    return save


@pytest.fixture
def random_features():
    """A function that makes features (N, L, D); layers have something in common, and so have those of all seeds."""

    def make(n=24, layers=3, dim=6, seed=0):
        common = np.random.default_rng(99).normal(size=(n, 1, 4))
        noise = np.random.default_rng(seed).normal(size=(n, layers, dim))
        noise[..., :4] += common * np.linspace(0.5, 2, layers)[:, None]
        return noise.astype(np.float32)

    return make


@pytest.fixture
def numbers(tmp_path):
    """A function that measures ``tmp_path / "demo" / "all"``; it returns what report.json has, nothing drawn."""

    def measured(folder=None, rows=1000, seed=0, permutations=3, **settings):
        found, *_ = measure(str(folder or tmp_path / "demo" / "all"), rows, seed, permutations, **settings)
        return json.loads(json.dumps(found, allow_nan=False))

    return measured


@pytest.fixture
def page(tmp_path):
    """A function that makes the report of ``tmp_path / "demo" / "all"`` in ``tmp_path / "report"``; returns HTML."""

    def make(folder=None, **settings):
        report(str(folder or tmp_path / "demo" / "all"), str(tmp_path / "report"), **{"permutations": 3, **settings})
        return (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

    return make


@pytest.fixture
def stored():
    """A function that reads features (N, L, D) by themselves."""
    return lambda path: torch.load(path, weights_only=True)["feats"].numpy()
