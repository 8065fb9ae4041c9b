"""The most memory that a whole ``predict`` holds, by number of images: it should be the same."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import REPOSITORY, Job, Numbers, in_process, rounds
from report import OURS, Table

NAME, TITLE = "memory", "Memory"
# Tiny images and a tiny model: what grows with rows would show, and nothing else takes time.
ROWS = {"cpu": (1_000, 4_000, 16_000), "cuda": (1_000, 4_000, 16_000), "quick": (50, 100, 200)}
MODEL = ("--model.name", "test_vit.r160_in1k", "--model.options", "{img_size: 32}", "--model.untrained", "true")
ROUNDS = {"cpu": 1, "cuda": 1, "quick": 1}

TABLES = [
    Table(
        unit="MB at most",
        rows={f"lit-extract predict, {rows:,} images": OURS for rows in (50, 100, 200, 1_000, 4_000, 16_000)},
    )
]

TEXT = """
`lit-extract predict` on images of 32 × 32 pixels, with a model of six blocks: the most memory that the process has
resident at any time, libraries and mapped files included (`VmHWM`).
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for images and features."""
    jobs = []
    for rows in ROWS[setting]:
        images = folder / str(rows)
        in_process(make_images, folder=images, n=rows)
        jobs.append(Job("test_vit", predict, {"images": images, "n": rows}))
    return rounds(jobs, ROUNDS[setting])


def make_images(folder: Path, n: int) -> None:
    """Sixteen small images, and links to them."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(n):
        name = folder / f"{number:05d}.png"
        if number < 16:
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(name)
        else:
            os.link(folder / f"{number % 16:05d}.png", name)


def predict(images: Path, n: int) -> dict[str, float]:
    """A whole command, in a process of its own."""
    with tempfile.TemporaryDirectory() as output:
        config = ("--config", "configs/folder/vision.yaml")
        options = (*config, *MODEL, "--data.root", str(images), "--output_dir", output)
        process = subprocess.Popen([sys.executable, "-m", "lit_extract", "predict", *options], cwd=REPOSITORY)
        peak = 0
        while process.poll() is None:
            peak = _peak_memory(process.pid) or peak
            time.sleep(0.02)
        assert process.returncode == 0, "predict failed"
        assert len(list(Path(output).rglob("*.pt"))) == 1
    return {f"lit-extract predict, {n:,} images": peak / 1e6}


def _peak_memory(pid: int) -> int:
    """Bytes that a process has had resident at most; 0 when it has ended.

    What wait4 gives would not do: it knows of the memory that its parent had when it was forked.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
