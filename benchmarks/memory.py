"""The most memory that a whole ``predict`` holds: by number of images, when it should be the same, and as estimated."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import REPOSITORY, Job, Numbers, device, in_process, rounds, run
from language import PRECISIONS, make_captions, make_model
from report import OURS, Table

NAME, TITLE = "memory", "Memory"
# Tiny images and a tiny model: what grows with rows would show, and nothing else takes time.
ROWS = {"cpu": (1_000, 4_000, 16_000), "cuda": (1_000, 4_000, 16_000), "quick": (50, 100, 200)}
TINY = ("--model.name", "test_vit.r160_in1k", "--model.options", "{img_size: 32}", "--model.untrained", "true")
ROUNDS = {"cpu": 1, "cuda": 1, "quick": 1}
# Models whose estimates are compared, and rows and tokens of a pass of theirs; captions of a job.
VIT, LLAMA = "vit_base_patch16_224.augreg_in21k", "SmolLM2-135M"
PASSES = {VIT: (16, 0), LLAMA: (32, 64)}
CAPTIONS = {"cpu": 512, "cuda": 4_096, "quick": 64}

TABLES = [
    Table(
        unit="MB at most",
        rows={f"lit-extract predict, {rows:,} images": OURS for rows in (50, 100, 200, 1_000, 4_000, 16_000)},
    ),
    Table(
        unit="estimated by measured",
        rows={"memory of the host, a whole run": OURS, "memory of the device, a forward pass": OURS},
        has_picture=False,
    ),
]

TEXT = """
`lit-extract predict` on images of 32 × 32 pixels, with a model of six blocks: peak resident memory of the process,
libraries and mapped files included (`VmHWM`).

Then the estimate of `lit-extract plan` divided by the measurement, for models with random weights. *A whole run*: peak
memory of the `predict` process alone (`RssAnon`). *A forward pass*: the most that PyTorch has allocated, weights
included (on a GPU `max_memory_allocated`, on a CPU from its profiler).
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for images, models and features."""
    jobs = []
    for rows in ROWS[setting]:
        images = folder / str(rows)
        in_process(make_images, folder=images, n=rows)
        jobs.append(Job("test_vit", predict, {"images": images, "n": rows}))
    model, captions = folder / LLAMA, folder / "captions.csv"
    in_process(make_model, folder=model, shape=LLAMA)
    make_captions(captions, CAPTIONS[setting])
    arguments = {
        VIT: ("--config", "configs/demo/vision.yaml", "--model.name", VIT, "--model.untrained", "true"),
        LLAMA: (
            *("--config", "configs/nsd/language.yaml", "--model.name", LLAMA, "--model.checkpoint", str(model)),
            *("--data.captions", str(captions), "--data.prompt_name", "benchmark", "--data.subset", "some"),
        ),
    }
    for name, given in arguments.items():
        for precision, dtype in PRECISIONS.items():
            column = f"{name.partition('.')[0]}, {dtype}"
            accelerator = () if on_gpu else ("--trainer.accelerator", "cpu")  # else plan is for a GPU elsewhere
            whole = (*given, "--trainer.precision", precision, *accelerator)
            checkpoint = model if name == LLAMA else None
            jobs.append(Job(column, whole_run, {"arguments": whole}))
            jobs.append(Job(column, forward, {"name": name, "checkpoint": checkpoint, "precision": precision}))
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
    arguments = ("--config", "configs/folder/vision.yaml", *TINY, "--data.root", str(images))
    return {f"lit-extract predict, {n:,} images": _peak_of_predict(arguments, "VmHWM") / 1e6}


def whole_run(arguments: tuple[str, ...]) -> dict[str, float]:
    """What plan says of the host, by what predict then takes there."""
    with tempfile.TemporaryDirectory() as output:
        (needs,) = json.loads(run("plan", *arguments, "--output_dir", output, "--json"))["models"]
    return {"memory of the host, a whole run": needs["host"] / _peak_of_predict(arguments, "RssAnon")}


def forward(name: str, checkpoint: Path | None, precision: str) -> dict[str, float]:
    """What is estimated of one pass, weights included, by what PyTorch allocates."""
    import torch

    from lit_extract import LanguageExtractor, VisionExtractor
    from lit_extract.commands.predict import predict_trainer
    from lit_extract.modules.weights import default_float32
    from lit_extract.planning.memory import estimate_forward

    model: Any = LanguageExtractor(name, checkpoint=str(checkpoint)) if checkpoint else VisionExtractor(name, True)
    rows, tokens = PASSES[name]
    weights = model.loaded_backbone(predict_trainer(device(), devices=1, precision=precision)).parameters()
    model.to(device())
    if checkpoint:
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "n_bytes": ids[:, 0]}
        inputs["pooled"] = inputs["attention_mask"].bool()
    else:
        inputs = {"image": torch.zeros(rows, *model.preprocessing["input_size"], dtype=torch.uint8)}
    inputs = {key: tensor.to(device()) for key, tensor in inputs.items()}
    with torch.inference_mode(), default_float32():
        if device() == "cuda":
            torch.cuda.reset_peak_memory_stats()
            model.activations(inputs)
            measured = torch.cuda.max_memory_allocated()
        else:
            held = sum(tensor.nbytes for tensor in [*weights, *inputs.values()])
            measured = held + _allocated(lambda: model.activations(inputs))
    estimate = estimate_forward(model, rows, tokens, precision, device() == "cuda")
    return {"memory of the device, a forward pass": estimate / measured}


def _allocated(function: Any) -> int:
    """The most bytes at once that PyTorch's CPU allocator gives out during a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        trace.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text(encoding="utf-8"))["traceEvents"]
    live = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def _peak_of_predict(arguments: tuple[str, ...], line: str) -> int:
    """Run a whole command in a process of its own; return the most bytes that a line of its status had."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "lit_extract", "predict", *arguments, "--output_dir", output]
        process = subprocess.Popen(command, cwd=REPOSITORY)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _memory(process.pid, line))
            time.sleep(0.01)
        assert process.returncode == 0, "predict failed"
        assert len(list(Path(output).rglob("*.pt"))) == 1
    return peak


def _memory(pid: int, name: str) -> int:
    """Bytes of a line of a process's status, such as ``VmHWM``; 0 when it has ended.

    What wait4 gives would not do: it knows of the memory that its parent had when it was forked.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
