"""What the benchmarks share: one measurement a process, all of them in turn, and the machine."""

import importlib.metadata
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]

Numbers = dict[str, dict[str, list[float]]]  # column → label → a number each round


@dataclass(frozen=True)
class Job:
    """One thing to measure.

    Args:
        column: Of what: a model, say.
        measure: A function of a module that gives numbers by label; it runs in a process of its own.
        settings: Its arguments.
        is_peer: Another's software: where it fails it is left out, with the reason.
    """

    column: str
    measure: Callable[..., dict[str, float]]
    settings: dict[str, Any] = field(default_factory=dict)
    is_peer: bool = False


def rounds(jobs: list[Job], n_rounds: int) -> tuple[Numbers, list[str]]:
    """Measure all jobs in turn, ``n_rounds`` times, so that what drifts in one drifts in the others.

    Returns:
        The numbers, and what was left out.
    """
    numbers: Numbers = {}
    left_out: dict[tuple[str, str], str] = {}
    for turn in range(n_rounds):
        for job in jobs:
            key = job.column, job.measure.__name__
            if key in left_out:
                continue
            try:
                measured = in_process(job.measure, **job.settings)
            except Exception as error:
                if not job.is_peer:
                    raise
                left_out[key] = f"{job.column}: {job.measure.__name__} was left out: {_one_line(error)}"
                print(f"  {left_out[key]}", flush=True)
                continue
            for label, number in measured.items():
                numbers.setdefault(job.column, {}).setdefault(label, []).append(float(f"{number:.4g}"))
                print(f"  round {turn + 1} of {n_rounds}: {job.column}: {label}: {number:.4g}", flush=True)
    return numbers, list(left_out.values())


def in_process(function: Callable[..., Any], **settings: Any) -> Any:
    """What a function returns, run in a process that has imported the packages and done nothing else."""
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            with ProcessPoolExecutor(1, _context(), initializer=_prepare, initargs=(log.name,)) as pool:
                return pool.submit(function, **settings).result()
        except Exception:
            print("".join(log.readlines()[-20:]), flush=True)
            raise


_PRELOADED = ["lightning.pytorch", "timm", "transformers", "torchvision", "pandas", "lit_extract.commands.predict"]


def _context() -> Any:
    """Processes are forked from one that has done the imports; where there is a GPU that is not safe."""
    if Path("/dev/nvidiactl").exists():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _prepare(log: str) -> None:
    """What is printed goes to a log; workers are forked, as they are in a program that a user starts."""
    multiprocessing.set_start_method("fork", force=True)
    sys.stdout.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def run(*arguments: str) -> str:
    """``python -m lit_extract …`` to a good end; what it printed."""
    command = [sys.executable, "-m", "lit_extract", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} gave {done.returncode}: {done.stderr}")
    return done.stdout


def device() -> str:
    """Where models run here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype() -> Any:
    """Of the weights, in the precision that lit-extract chooses for this machine."""
    import torch

    from lit_extract.jobs.trainer import default_precision

    return torch.bfloat16 if default_precision("auto") == "bf16-true" else torch.float32


def n_cores() -> int:
    """Cores that this process may use."""
    from lit_extract.common.host import usable_cores

    return usable_cores()


def seconds_of_extract(model: Any, data: Any, **trainer: Any) -> tuple[float, float]:
    """Run a whole job and time it.

    Returns:
        Seconds until the model is made, loaded and on its device; and seconds of what then grows with the stimuli:
        reading their table, decoding or tokenizing, the model, the store, and the features file.
    """
    from lit_extract import extract
    from lit_extract.jobs.trainer import predict_trainer

    start = time.perf_counter()
    data.setup("predict")
    set_up = time.perf_counter() - start
    loader, begun = data.predict_dataloader, []

    def predict_dataloader() -> Any:  # Lightning asks for it when all else is ready
        begun.append(time.perf_counter())
        return loader()

    data.predict_dataloader = predict_dataloader
    with tempfile.TemporaryDirectory() as output:
        before = time.perf_counter()
        extract(model, data, predict_trainer(**trainer), output_dir=output)
        end = time.perf_counter()
    return begun[0] - before, set_up + end - begun[0]


def make_photographs(folder: Path, n: int, different: int = 256) -> None:
    """Photographs of NSD's size (425 × 425), cut from those that ship with the package.

    Args:
        folder: Where they go.
        n: How many.
        different: How many differ; the others are links to them, which are decoded like any file.
    """
    import random

    from PIL import Image

    from lit_extract.datasets import load_dataset

    folder.mkdir(parents=True)
    sources = [Image.open(path).convert("RGB") for path in load_dataset("demo")["image"]]
    generator = random.Random(0)
    for number in range(n):
        name = folder / f"{number:05d}.jpg"
        if number >= different:
            os.link(folder / f"{number % different:05d}.jpg", name)
            continue
        source = sources[number % len(sources)]
        side = generator.randint(min(source.size) // 2, min(source.size))
        x, y = generator.randint(0, source.width - side), generator.randint(0, source.height - side)
        crop = source.crop((x, y, x + side, y + side)).resize((425, 425), Image.Resampling.BICUBIC)
        crop.save(name, quality=90)


def describe_machine() -> dict[str, Any]:
    """The machine, in words, and what is installed."""
    import torch

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", info)
    cpu = re.sub(r"\((R|TM)\)", "", found[1] if found else platform.processor() or platform.machine())
    cores = f"{n_cores()} cores{', AMX-bf16' if 'amx_bf16' in info else ''}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = f"{gpu}; {cpu}, {cores}" if gpu else f"{cpu}, {cores}"
    return {
        "name": name,
        "file": re.sub(r"[^a-z0-9]+", "-", (gpu or f"{cpu} {n_cores()} cores").lower()).strip("-"),
        "memory": f"{memory:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "device": device(),
        "precision": str(dtype()).removeprefix("torch."),
    }


def versions() -> str:
    """What was measured, and with what."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    commit = f" ({git.stdout.strip()})" if git.returncode == 0 else ""
    packages = ("torch", "lightning", "timm", "transformers")
    installed = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    from lit_extract import __version__

    return f"lit-extract {__version__}{commit}, Python {platform.python_version()}, {', '.join(installed)}"
