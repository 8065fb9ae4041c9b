"""Images a second of two ranks with a core each, next to one rank with both cores and one with one of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from common import REPOSITORY, Job, Numbers, in_process, make_photographs, rounds
from report import LIMIT, OURS, Table

NAME, TITLE = "ranks", "Ranks"
MODELS = ("vit_tiny_patch16_224", "vit_base_patch16_224")
IMAGES = {
    "cpu": dict(zip(MODELS, (2_048, 256), strict=True)),
    "cuda": dict(zip(MODELS, (2_048, 256), strict=True)),
    "quick": {MODELS[0]: 32},
}
ROUNDS = {"cpu": 3, "cuda": 1, "quick": 1}
SHARDS = 8  # so that two ranks have even shares

ONE, TWO, BOTH = "one rank, one core", "two ranks, a core each", "one rank, two cores"
TABLES = [
    Table(
        unit="images/s",
        rows={ONE: OURS, TWO: OURS, BOTH: OURS, "twice one rank of one core": LIMIT},
        shares=((TWO, ONE), (TWO, BOTH), (TWO, "twice one rank of one core")),
    )
]

TEXT = """
One model on CPUs: `torchrun` with two ranks, one core for each, compared with `lit-extract predict` with both cores and
with one core. Ranks exchange nothing, so two ranks are nearly twice as fast as one, unless memory or disk is the limit;
two threads of one rank have to wait for each other in each operation. Images are decoded in the ranks' own processes,
without workers. The rate is measured from the first batch to the last shard.
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it, on CPUs also where there is a GPU."""
    cores = _cores()
    if len(cores) < 2:
        return {}, ["ranks: not measured, there is one core only"]
    jobs = []
    for model, n in IMAGES[setting].items():
        images = folder / f"photographs-{n}"
        in_process(make_photographs, folder=images, n=n)
        common = {"model": model, "images": images, "n": n, "output": folder / f"features-{n}"}
        jobs += [
            Job(model, ranks, {**common, "label": ONE, "cores": cores[:1], "n_ranks": 1}),
            Job(model, ranks, {**common, "label": TWO, "cores": cores[:2], "n_ranks": 2}),
            Job(model, ranks, {**common, "label": BOTH, "cores": cores[:2], "n_ranks": 1}),
        ]
    numbers, notes = rounds(jobs, ROUNDS[setting])
    for rows in numbers.values():
        rows["twice one rank of one core"] = [2 * rate for rate in rows[ONE]]
    return numbers, notes


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def ranks(
    model: str, images: Path, n: int, output: Path, label: str, cores: list[int], n_ranks: int
) -> dict[str, float]:
    """One run from scratch, bound to its cores."""
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(n_ranks)] if n_ranks > 1 else []
    command = [
        *(sys.executable, *start, "-m", "lit_extract", "predict", "--config", "configs/folder/vision.yaml"),
        *("--model.name", model, "--model.untrained", "true", "--output_dir", str(output), "--overwrite"),
        *("--data.root", str(images), "--data.cache", "off", "--data.num_workers", "0"),
        *("--data.shard_rows", str(n // SHARDS), "--data.batch_size", str(min(32, n // SHARDS))),
        *("--trainer.accelerator", "cpu", "--trainer.devices", str(n_ranks)),
    ]
    done = subprocess.run(
        ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": str(len(cores) // n_ranks)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{label} gave {done.returncode}: {done.stderr}")
    *_, rate = re.findall(rf" {n} of {n} images, ([\d.]+) images/s", done.stdout)
    return {label: float(rate)}
