"""Shared fixtures: a store of known numbers, a folder of small images, a job on it, the command line in process."""

import os
import signal

# Before torch comes: for models this small more threads gain nothing, and on a busy machine they cost tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from lit_extract.storage.layout import OK
from lit_extract.storage.store import Store, StoreSpec


def pytest_configure():
    """Where the tests run in the background or under nohup, these are ignored, also by what they start."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items):
    """Files with slow tests first: what runs last keeps the other processes waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def make_store(tmp_path):
    """A function that creates a store; it returns the store and, per pooling, the numbers (N, L, D) written to it.

    ``shards`` are the numbers of the shards to write, in that order; default: all. ``folder`` may be remote.
    """

    def make(
        n=10,
        layers=3,
        dim=4,
        shard_rows=4,
        pools=("cls",),
        ids=None,
        shards=None,
        name="m_pool-cls",
        extras=(),
        folder=tmp_path,
    ):
        spec = StoreSpec(
            pools=pools,
            layers=[f"blocks.{k}" for k in range(layers)],
            layer_shapes=[(dim,)] * layers,
            shard_rows=shard_rows,
            stimulus_ids=list(range(100, 100 + n)) if ids is None else ids,
            provenance={"model": "m", "dataset": "demo", "weights": "untrained", "seed": 0},
            notes={"files": {pool: f"m_pool-{pool}.pt" for pool in pools}, "num_params": 123},
            extras=dict(extras),
        )
        store = Store.create(folder / f"{name}.zarr", spec)
        generator = np.random.default_rng(0)
        feats = {pool: generator.normal(size=(n, layers, dim)).astype(np.float32) for pool in pools}
        for shard in range(store.n_shards) if shards is None else shards:
            rows = store.rows_of(shard)
            part = {pool: values[rows.start : rows.stop] for pool, values in feats.items()}
            values = {name: np.array(rows, dtype=dtype) for name, dtype in dict(extras).items()}
            store.write_shard(shard, part, np.full(len(rows), OK, dtype=np.uint8), values)
        return store, feats

    return make


@pytest.fixture
def image_folder(tmp_path):
    """A folder of seven small PNGs of noise, all different, of differing shapes: 0.png … 6.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(7):
        pixels = generator.integers(0, 256, (20 + number, 30 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def run_job(tmp_path, image_folder):
    """A function that runs a tiny untrained model on ``image_folder``; its features go to ``tmp_path / "out"``.

    Settings of the data module begin with ``data_``; name, pool, layers, seed, dtype and precision, and those of
    ``extract``, don't.
    """
    from lit_extract import ImageFolderDataModule, VisionExtractor, extract
    from lit_extract.jobs.trainer import predict_trainer

    def run(output_dir=tmp_path / "out", precision="32-true", name="test_vit.r160_in1k", **settings):
        of_model = {key: settings.pop(key) for key in ("pool", "seed", "layers", "dtype") if key in settings}
        of_data = {key: settings.pop(key) for key in list(settings) if key.startswith("data_")}
        of_data = {key.removeprefix("data_"): value for key, value in of_data.items()}
        model = VisionExtractor(name, untrained=True, **of_model)
        data = ImageFolderDataModule(**{"root": str(image_folder), "batch_size": 2, "num_workers": 0, **of_data})
        trainer = predict_trainer("cpu", devices=1, precision=precision)
        return extract(model, data, trainer, str(output_dir), **settings)

    return run


@pytest.fixture
def cli(capsys):
    """A function that runs ``lit-extract ARGUMENTS`` in process; it returns exit code, stdout and stderr."""
    from lit_extract.cli import main

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
