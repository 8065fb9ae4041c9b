"""Memory does not grow with the number of stimuli: the peak of whole processes, polled from outside."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from helpers import runs

from lit_extract.storage.layout import OK
from lit_extract.storage.store import Store, StoreSpec

pytestmark = pytest.mark.slow

MB = 2**20


def peak_anonymous_memory(run):
    """The most memory of its own, in bytes, that the main process holds until it ends well.

    Pages of mapped files do not count: the system takes them back when it needs them.
    """
    peak = 0
    while not run.has_ended:
        peak = max(peak, runs.anonymous_memory(run.process.pid))
        time.sleep(0.02)
    assert run.wait() == 0, run.output
    return peak


def test_predict_needs_no_more_memory_for_ten_times_the_stimuli(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("m")  # a short name: paths are part of the stimulus table, which is in memory
    few_images = runs.write_images(tmp_path / "originals", 16, size=32)
    # Rows of 4.6 kB each: 18,000 more of them, kept in memory, would be 83 MB.
    options = (
        *("--model.options", "{img_size: 32}", "--model.pool", "[cls, avg, avg_all]"),
        *("--data.batch_size", "64", "--data.shard_rows", "512", "--data.num_workers", "1", "--trainer.devices", "1"),
    )
    peaks = {}
    for n_stimuli in (2_000, 20_000):
        images, output = tmp_path / str(n_stimuli), tmp_path / f"features-{n_stimuli}"
        images.mkdir()
        for number in range(n_stimuli):
            os.link(few_images / f"{number % 16:05d}.jpg", images / f"{number:05d}.jpg")
        with runs.predict(images, output, *options) as run:
            peaks[n_stimuli] = peak_anonymous_memory(run)
        assert f"{n_stimuli:,} stimuli × 6 layers" in run.output
        shutil.rmtree(images)
        shutil.rmtree(output)
    print({n_stimuli: f"{peak / MB:.0f} MB" for n_stimuli, peak in peaks.items()})
    assert abs(peaks[20_000] / peaks[2_000] - 1) < 0.05


def write_store(folder, n_stimuli, n_layers=12, n_dim=768, shard_rows=1024):
    """A complete store of random numbers, and its first and last rows."""
    spec = StoreSpec(
        pools=["cls"],
        layers=[f"blocks.{k}" for k in range(n_layers)],
        layer_shapes=[(n_dim,)] * n_layers,
        shard_rows=shard_rows,
        stimulus_ids=list(range(n_stimuli)),
        provenance={"model": "none"},
        notes={"files": {"cls": "features.pt"}, "num_params": 1},
    )
    folder.mkdir()
    store = Store.create(folder / "features.zarr", spec)
    numbers = np.random.default_rng(0).standard_normal((shard_rows, n_layers, n_dim), dtype=np.float32)
    for shard in range(store.n_shards):
        n_rows = len(store.rows_of(shard))
        store.write_shard(shard, {"cls": numbers[:n_rows] + shard}, np.full(n_rows, OK, dtype=np.uint8))
    return store.path, numbers


def test_finalizing_two_gigabytes_takes_no_more_than_a_shard_or_two(tmp_path):
    n_stimuli, peaks = {"tiny": 1_024, "large": 58_000}, {}
    try:
        for name, n in n_stimuli.items():
            store, numbers = write_store(tmp_path / name, n)
            with runs.command(tmp_path / f"{name}.log", "finalize", str(store)) as run:
                peaks[name] = peak_anonymous_memory(run)
            assert not store.exists()
        file = tmp_path / "large" / "features.pt"
        assert file.stat().st_size > 2 * 10**9
        feats = torch.load(file, weights_only=True, mmap=True)["feats"].numpy()
        for row in range(0, n_stimuli["large"], 999):
            assert np.array_equal(feats[row], numbers[row % 1024] + row // 1024)
    finally:
        for name in n_stimuli:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
    print({name: f"{peak / MB:.0f} MB" for name, peak in peaks.items()})
    assert peaks["large"] - peaks["tiny"] < 300 * MB
