"""Seconds from a command to its first batch, and to the answer of a job that is done."""

import re
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from common import Job, Numbers, rounds, run
from report import ASIDE, LIMIT, OURS, Table

NAME, TITLE = "startup", "Start-up"
ROUNDS = {"cpu": 3, "cuda": 3, "quick": 1}
PREDICT = ("predict", "--config", "configs/demo/vision.yaml", "--model.untrained", "true")
TIMES = ("predict, to the end", "predict, when all is done", "status")
PHASES = ("imports", "settings", "stimuli", "weights")  # as predict --profile prints them
IMPORTS = {
    "import of torch": "torch",
    "import of torch, timm, transformers and Lightning": "torch, timm, transformers, lightning.pytorch",
}

TABLES = [
    Table(
        unit="seconds",
        rows={
            "predict, to its first batch": OURS,
            **{f"– {phase}": ASIDE for phase in PHASES},
            **dict.fromkeys(TIMES, OURS),
            **dict.fromkeys(IMPORTS, LIMIT),
        },
        more_is_better=False,
    )
]

TEXT = """
Commands on the photographs that ship with the package, with a ViT-tiny with random weights: time from the call to the
request for the first batch (as `--profile` prints it, with its parts), to the end of all 24 images, and of a second
call, when all images are done; and the time of `lit-extract status` for that folder. The last two rows are the
imports of the libraries alone.
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; there is nothing to prepare."""
    column = "24 images"
    jobs = [Job(column, commands), *(Job(column, imports, {"label": label}) for label in IMPORTS)]
    return rounds(jobs, ROUNDS[setting])


def commands() -> dict[str, float]:
    """The same command twice, then status; and once more with its profile."""
    times = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as output:
        where = ("--output_dir", f"{output}/features")
        for _ in range(2):
            again = run(*PREDICT, *where)
            times.append(time.perf_counter())
        assert "already done" in again, again
        run("status", f"{output}/features")
        times.append(time.perf_counter())
        said = run(*PREDICT, "--output_dir", f"{output}/others", "--profile")
    first = re.search(r"^time: ([\d.]+) s before the first batch \((.*)\)", said, re.MULTILINE)
    assert first is not None, said
    parts = dict(part.rsplit(" ", 1) for part in first[2].split(", "))
    return {
        "predict, to its first batch": float(first[1]),
        **{f"– {phase}": float(parts[phase]) for phase in PHASES},
        **dict(zip(TIMES, (end - begin for begin, end in pairwise(times)), strict=True)),
    }


def imports(label: str) -> dict[str, float]:
    """A process that does nothing else."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {IMPORTS[label]}"], check=True)
    return {label: time.perf_counter() - start}
