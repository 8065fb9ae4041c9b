"""Captions a second of a model in a quarter of its memory, next to accelerate's offload, and to what bounds it."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Job, Numbers, device, dtype, in_process, rounds
from language import make_captions, make_tokenizer
from report import LIMIT, OURS, PEER, Table

NAME, TITLE = "streaming", "Models larger than memory"
# Blocks are small enough that a process with two of them fits a quarter of the whole.
SHAPES = {
    "cpu": {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16},
    "cuda": {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40},
    "quick": {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4},
}
SIZE = {"cpu": 4.4e9, "cuda": 26e9, "quick": 0.05e9}  # bytes of all blocks
LEAST_LIMIT = 10**9  # bytes; a process needs 0.6 GB of the host before it has a model
N = {
    "cpu": {"float32": 128, "bfloat16": 2048},
    "cuda": {"float32": 2048, "bfloat16": 4096},
    "quick": {"float32": 24, "bfloat16": 24},
}
# Captions of a batch of accelerate's, as parts of all.
BATCHES = {"cpu": (1 / 4, 1), "cuda": (1 / 16, 1 / 4), "quick": (1 / 4, 1)}
ROUNDS = {"cpu": 2, "cuda": 3, "quick": 1}
SLOW_DISK = 120 * 10**6  # bytes a second: reading takes as long as arithmetic, or two thirds of it

STREAMED, ORDINARY = "lit-extract, streamed within the limit", "lit-extract, all in memory"
DISK, HOST = "accelerate, offloaded to disk within the limit", "accelerate, offloaded to the host within the limit"
BOUND, READING, FORWARD = "the slower of reading and arithmetic", "reading alone", "arithmetic alone"

TABLES = [
    Table(
        unit="captions a second",
        rows={HOST: PEER, DISK: PEER, STREAMED: OURS, ORDINARY: OURS, READING: LIMIT, FORWARD: LIMIT, BOUND: LIMIT},
        shares=((STREAMED, BOUND), (STREAMED, DISK), (STREAMED, HOST), (STREAMED, ORDINARY)),
    ),
]

TEXT = f"""
All blocks of a model with random weights, in a process that may use a quarter of the model's bytes: of the host, by a
cgroup, or of the GPU, by PyTorch's own limit. The clock runs from the first batch to the last: loading a model, hashing
its files and the check against float32 at the end cost the same for any number of captions. All captions go through in
one pass; before it, the files are dropped from the system's cache. On two cores, unlike on a GPU, arithmetic takes far
longer than reading; so the measurement is repeated with a disk that a cgroup slows down to {SLOW_DISK / 1e6:.0f} MB/s.

- *{DISK}*, *{HOST}*: `device_map="auto"` with
  `max_memory`, captions sorted by length, at the best of a few batch sizes; mean of the last hidden state only. It
  reads the weights for each batch and computes nothing meanwhile. With all captions in one batch, it reads them once,
  like streaming.
- *{READING}*: all files once, cold, with large reads.
- *{FORWARD}*: the forward passes of *{ORDINARY}*.
"""


@dataclass(frozen=True)
class Limit:
    """What processes may use that :func:`join` it."""

    n_bytes: int  # of memory; of a GPU if there are no folders
    folders: tuple[Path, ...] = ()  # of cgroups


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for the model and captions."""
    captions, model, name = folder / "captions.csv", folder / "model", str(in_process(dtype)).removeprefix("torch.")
    n = N[setting][name]
    make_captions(captions, n)
    size = in_process(make_model, folder=model, setting=setting, dtype=name)
    common, n_bytes = {"model": model, "captions": captions, "n": n}, round(size / 4)
    n_bytes = n_bytes if on_gpu else max(n_bytes, LEAST_LIMIT)
    columns = {f"{size / 1e9:.1f} GB, {name}": None} | (
        {} if on_gpu else {f"disk of {SLOW_DISK / 1e6:.0f} MB/s": model}
    )
    found: Numbers = {}
    notes = [f"{n:,} captions; within {n_bytes / 1e9:.1f} GB."]
    for column, slow in columns.items():
        with limited(n_bytes, on_gpu, slow) as limit:
            jobs = [
                Job(column, reading, {"model": model, "n": n, "limit": limit}),
                Job(column, streamed, {**common, "limit": limit}),
            ]
            if not found:  # a disk does not matter to it
                jobs.insert(0, Job(column, all_in_memory, common))
            sizes = [round(part * n) for part in BATCHES[setting]]
            for batch_size in sizes:
                peer = {**common, "limit": limit, "batch_size": batch_size}
                jobs.append(Job(f"{column}, {batch_size}", accelerate_disk, peer, is_peer=True))
                if on_gpu:
                    jobs.append(Job(f"{column}, {batch_size}", accelerate_host, peer, is_peer=True))
            numbers, left_out = rounds(jobs, ROUNDS[setting])
        first = next(iter(found.values()), numbers[column])
        rows = found[column] = {**{label: first[label] for label in (ORDINARY, FORWARD)}, **numbers[column]}
        rows[BOUND] = [min(rates) for rates in zip(rows[READING], rows[FORWARD], strict=True)]
        notes += left_out
        for label in (DISK, HOST):
            of_size = {size: numbers.get(f"{column}, {size}", {}).get(label, []) for size in sizes}
            if any(of_size.values()):
                best = max(of_size, key=lambda size: sum(of_size[size]))
                rows[label] = of_size[best]
                notes.append(f"{column}: {label}: best with batches of {best}, of {', '.join(map(str, of_size))}.")
    return found, notes


@contextmanager
def limited(n_bytes: int, on_gpu: bool, slow: Path | None) -> Iterator[Limit]:
    """Make limits that processes can :func:`join`: of memory, and of the rate at which the disk of a path is read."""
    if on_gpu:
        yield Limit(n_bytes)
        return
    root, name = Path("/sys/fs/cgroup"), f"lit-extract-benchmark-{os.getpid()}"
    is_first = (root / "memory").is_dir()  # of the two versions of cgroups
    memory = (root / "memory" if is_first else root) / name
    folders = [memory, *([root / "blkio" / name] if slow and is_first else [])]
    for folder in folders:
        folder.mkdir()
    try:
        (memory / ("memory.limit_in_bytes" if is_first else "memory.max")).write_text(str(n_bytes))
        if slow:
            number = slow.stat().st_dev
            disk = f"{os.major(number)}:{os.minor(number)}"
            if is_first:
                (folders[-1] / "blkio.throttle.read_bps_device").write_text(f"{disk} {SLOW_DISK}")
            else:
                (memory / "io.max").write_text(f"{disk} rbps={SLOW_DISK}")
        yield Limit(n_bytes, tuple(folders))
    finally:
        for folder in folders:
            folder.rmdir()


def join(limit: Limit) -> None:
    """Hold this process to limits."""
    import torch

    for folder in limit.folders:
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    if not limit.folders:
        torch.cuda.set_per_process_memory_fraction(limit.n_bytes / torch.cuda.get_device_properties(0).total_memory)


def make_model(folder: Path, setting: str, dtype: str) -> int:
    """A folder of the hub's format with random weights in several files; its bytes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    make_tokenizer(folder)
    shape = SHAPES[setting]
    a_block = 4 * shape["hidden_size"] ** 2 + 3 * shape["hidden_size"] * shape["intermediate_size"]
    number = getattr(torch, dtype)
    n_blocks = round(SIZE[setting] / number.itemsize / a_block)
    config = LlamaConfig(**shape, num_hidden_layers=n_blocks, vocab_size=600, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=number).save_pretrained(folder, max_shard_size="500MB")
    return sum(file.stat().st_size for file in weights_of(folder))


def weights_of(model: Path) -> list[Path]:
    """Its files, in their order."""
    return sorted(model.glob("*.safetensors"))


def forget(model: Path) -> None:
    """Have the system drop what it caches of a model's files."""
    for path in weights_of(model):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(model: Path, n: int, limit: Limit) -> dict[str, float]:
    """All files once."""
    join(limit)
    forget(model)
    part = bytearray(2**25)
    start = time.perf_counter()
    for path in weights_of(model):
        with path.open("rb", buffering=0) as file:
            while file.readinto(part):
                pass
    return {READING: n / (time.perf_counter() - start)}


def streamed(model: Path, captions: Path, n: int, limit: Limit) -> dict[str, float]:
    """A whole job, with blocks from disk."""
    join(limit)
    seconds, _ = _seconds_of_predict(model, captions, stream=True)
    return {STREAMED: n / seconds}


def all_in_memory(model: Path, captions: Path, n: int) -> dict[str, float]:
    """A whole job without a limit, and its forward passes alone."""
    seconds, forward = _seconds_of_predict(model, captions, stream=False)
    return {ORDINARY: n / seconds, FORWARD: n / forward}


def _seconds_of_predict(model: Path, captions: Path, stream: bool) -> tuple[float, float]:
    """Run a whole job; return the seconds from its first batch to its last, and those of the forward passes in it."""
    from lightning.pytorch import Callback

    from lit_extract import CaptionDataModule, LanguageExtractor, extract
    from lit_extract.jobs.trainer import predict_trainer

    class Clock(Callback):
        start = end = forward = 0.0

        def on_predict_start(self, *_: Any) -> None:
            forget(model)
            self.start = time.perf_counter()

        def on_predict_batch_start(self, *_: Any) -> None:
            self.batch_start = time.perf_counter()

        def on_predict_batch_end(self, *_: Any) -> None:
            self.end = time.perf_counter()
            self.forward += self.end - self.batch_start

    extractor, clock = LanguageExtractor("benchmark", checkpoint=str(model), stream=stream), Clock()
    data = CaptionDataModule(str(captions), "benchmark", preprocessing=extractor.preprocessing)
    with tempfile.TemporaryDirectory() as output:
        extract(extractor, data, predict_trainer(device(), 1, callbacks=[clock]), output_dir=output)
    return clock.end - clock.start, clock.forward


def accelerate_disk(model: Path, captions: Path, n: int, limit: Limit, batch_size: int) -> dict[str, float]:
    """What does not fit the limit comes from disk, for each batch."""
    return {DISK: n / _seconds_of_accelerate(model, captions, limit, batch_size, host=0)}


def accelerate_host(model: Path, captions: Path, n: int, limit: Limit, batch_size: int) -> dict[str, float]:
    """What does not fit the GPU comes from the memory of the host, for each batch."""
    return {HOST: n / _seconds_of_accelerate(model, captions, limit, batch_size, host=2**40)}


def _seconds_of_accelerate(model: Path, captions: Path, limit: Limit, batch_size: int, host: int) -> float:
    import pandas as pd
    import torch
    from transformers import AutoModel, AutoTokenizer

    join(limit)
    # Half of the GPU's limit is for weights, a quarter of the host's: more leaves too little for a batch and for what
    # is read. Of a small model as much of its size, so that there is something to offload.
    most = min(limit.n_bytes, sum(file.stat().st_size for file in weights_of(model)))
    room: dict[Any, int] = {0: most // 2, "cpu": host} if device() == "cuda" else {"cpu": most // 4}
    with tempfile.TemporaryDirectory() as folder:
        network = AutoModel.from_pretrained(
            model, dtype=dtype(), device_map="auto", max_memory=room, offload_folder=folder
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.pad_token = tokenizer.eos_token
        texts = sorted(pd.read_csv(captions)["caption"], key=len, reverse=True)
        forget(model)
        feats = []
        start = time.perf_counter()
        with torch.inference_mode():
            for first in range(0, len(texts), batch_size):
                tokens = tokenizer(texts[first : first + batch_size], padding=True, return_tensors="pt").to(device())
                hidden = network(**tokens, use_cache=False).last_hidden_state
                mask = tokens["attention_mask"][..., None]
                feats.append(((hidden * mask).sum(1) / mask.sum(1)).float().cpu())
        return time.perf_counter() - start
