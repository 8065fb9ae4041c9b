"""Gigabytes a second from the store to the ``.pt``, next to cp; and the time to read one layer of a large store."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from common import Job, Numbers, in_process, rounds
from report import ASIDE, LIMIT, OURS, PEER, Table

NAME, TITLE = "finalize", "Finalizing, and reading a layer"
LAYERS, DIM = 24, 1024  # of ViT-large
ROWS = {"cpu": 20_000, "cuda": 20_000, "quick": 200}  # 2 GB
LARGE_ROWS = {"cpu": 73_000, "cuda": 73_000, "quick": 400}  # NSD: 7.2 GB
SHARD_ROWS = {"cpu": 1344, "cuda": 1344, "quick": 64}  # as predict chooses
ROUNDS = {"cpu": 3, "cuda": 3, "quick": 1}

TABLES = [
    Table(
        unit="GB a second, finalizing",
        rows={"lit-extract finalize": OURS, "cp of the store": LIMIT},
        shares=(("lit-extract finalize", "cp of the store"),),
    ),
    Table(
        unit="seconds for one layer",
        rows={
            "lit-extract, one layer of the store": OURS,
            "all layers": PEER,
            "whole files of as many bytes": LIMIT,
        },
        shares=(
            ("lit-extract, one layer of the store", "all layers"),
            ("lit-extract, one layer of the store", "whole files of as many bytes"),
        ),
        more_is_better=False,
    ),
    Table(unit="MB read for it", rows={"one layer of the store": ASIDE, "the layer itself": ASIDE}, has_picture=False),
]

TEXT = """
Before each measurement, all files are synced and the store is dropped from the page cache (`posix_fadvise`), so every
measurement reads from the disk.

- *lit-extract finalize*: from the store to the `.pt`, which is read back and compared with its checksums while it is
  synced.
- *cp of the store*: `cp -r` of its folder, and a sync of each file of the copy.
- *lit-extract, one layer of the store*: `load_features(STORE).layer("blocks.7")`. *all layers*: the store is read shard
  by shard, because `.feats` would hold all of it in memory. *whole files of as many bytes*: as many bytes as the
  layer has, from the start of the store's files.
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for both stores."""
    shard_rows = SHARD_ROWS[setting]
    store, n = folder / "store" / "m_pool-cls.zarr", ROWS[setting]
    in_process(make_store, path=store, n=n, shard_rows=shard_rows)
    column = _name(n)
    jobs = [Job(column, finalize, {"store": store}), Job(column, copy, {"store": store})]
    numbers, notes = rounds(jobs, ROUNDS[setting])
    shutil.rmtree(store.parent)

    large, n = folder / "large" / "m_pool-cls.zarr", LARGE_ROWS[setting]
    room = shutil.disk_usage(folder).free // 2 // (LAYERS * DIM * 4)
    if room < n:
        notes.append(f"The store to read from has {room:,} rows, not {n:,}: the disk has no space for more.")
        n = room
    in_process(make_store, path=large, n=n, shard_rows=shard_rows)
    jobs = [Job(_name(n), function, {"store": large}) for function in (read_layer, read_all, read_files)]
    reading, left_out = rounds(jobs, ROUNDS[setting])
    for column, rows in reading.items():
        numbers.setdefault(column, {}).update(rows)
    return numbers, [*notes, *left_out]


def _name(n: int) -> str:
    return f"{n:,} × {LAYERS} × {DIM}"


def make_store(path: Path, n: int, shard_rows: int) -> None:
    """A complete store of random numbers, made shard by shard."""
    import numpy as np

    from lit_extract.storage.layout import N_BYTES, OK
    from lit_extract.storage.store import Store, StoreSpec

    spec = StoreSpec(
        pools=["cls"],
        layers=[f"blocks.{k}" for k in range(LAYERS)],
        layer_shapes=[(DIM,)] * LAYERS,
        shard_rows=shard_rows,
        stimulus_ids=list(range(n)),
        provenance={"model": "none"},
        notes={"files": {"cls": "m_pool-cls.pt"}, "num_params": 1},
        extras={N_BYTES: "int64"},
    )
    path.parent.mkdir(parents=True)
    store = Store.create(path, spec)
    numbers = np.random.default_rng(0).standard_normal((shard_rows, LAYERS, DIM), dtype=np.float32)
    for shard in range(store.n_shards):
        rows = len(store.rows_of(shard))
        numbers[:, :, 0] = shard
        extras = {N_BYTES: np.ones(rows, dtype=np.int64)}
        store.write_shard(shard, {"cls": numbers[:rows]}, np.full(rows, OK, dtype=np.uint8), extras)


def finalize(store: Path) -> dict[str, float]:
    """The command's function, and a sync of what it left."""
    from lit_extract.storage.finalize import finalize as run

    _forget(store)
    start = time.perf_counter()
    (file,) = run(store, keep_store=True)
    _sync(file)
    seconds = time.perf_counter() - start
    size = file.stat().st_size
    file.unlink()
    return {"lit-extract finalize": size / 1e9 / seconds}


def copy(store: Path) -> dict[str, float]:
    """What any copy takes."""
    target = store.with_name("copy")
    _forget(store)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", store, target], check=True)
    files = [file for file in target.rglob("*") if file.is_file()]
    for file in files:
        _sync(file)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in files)
    shutil.rmtree(target)
    return {"cp of the store": size / 1e9 / seconds}


def read_layer(store: Path) -> dict[str, float]:
    """One layer, and how much was read for it."""
    from lit_extract import load_features

    _forget(store)
    before, start = _bytes_read(), time.perf_counter()
    layer = load_features(store).layer("blocks.7")
    seconds = time.perf_counter() - start
    read = _bytes_read() - before
    assert layer.shape[1] == DIM
    return {
        "lit-extract, one layer of the store": seconds,
        "one layer of the store": read / 1e6,
        "the layer itself": layer.nbytes / 1e6,
    }


def read_all(store: Path) -> dict[str, float]:
    """All layers, in memory of one shard."""
    from lit_extract.storage.store import Store

    _forget(store)
    start = time.perf_counter()
    opened = Store(store)
    for shard in range(opened.n_shards):
        opened.read_shard("cls", shard)
    return {"all layers": time.perf_counter() - start}


def read_files(store: Path) -> dict[str, float]:
    """As many bytes as a layer has, in the order in which they lie on the disk."""
    from lit_extract.storage.store import Store

    left = Store(store).n_stimuli * DIM * 4
    _forget(store)
    start = time.perf_counter()
    for file in sorted(store.glob("cls/c/*/0/0")):
        with file.open("rb", buffering=0) as source:
            while left > 0 and (part := source.read(min(left, 2**22))):
                left -= len(part)
    return {"whole files of as many bytes": time.perf_counter() - start}


def _bytes_read() -> int:
    """Bytes that this process has asked the system for, from the disk or its cache."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def _forget(folder: Path) -> None:
    """Have nothing of a folder in the page cache, and nothing on its way to the disk."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            _on_file(file, lambda descriptor: os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED))


def _sync(file: Any) -> None:
    _on_file(Path(file), os.fsync)


def _on_file(file: Path, function: Any) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        function(descriptor)
    finally:
        os.close(descriptor)
