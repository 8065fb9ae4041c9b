"""Runs of the command line in processes of their own, for the tests that kill, freeze and measure them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
N_IMAGES, BATCH_SIZE, SHARD_ROWS = 1990, 16, 64  # the last shard has 6 rows, not even a batch
N_SHARDS = 32
# Two CPU ranks get one thread each; the bits of one rank are compared with theirs.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
MODEL = (
    *("--model.name", "test_vit.r160_in1k", "--model.untrained", "true"),
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
)
SMALL_SHARDS = ("--data.batch_size", str(BATCH_SIZE), "--data.shard_rows", str(SHARD_ROWS))
ONE_RANK = (*SMALL_SHARDS, "--trainer.devices", "1", "--data.num_workers", "0")
# With a worker; the undisturbed run decodes in its main process.
ONE_WORKER = (*SMALL_SHARDS, "--trainer.devices", "1", "--data.num_workers", "1")
TWO_RANKS = (*SMALL_SHARDS, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.num_workers", "0")


@dataclass
class Run:
    """A command under way, leader of a process group of its own."""

    process: psutil.Popen
    log: Path

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def said(self) -> list[str]:
        """The lines of the output but the first one, that about kept pixels, and those of slow_predict.py."""
        others = ("step", "loading", "decoded images are kept")
        own = [line for line in self.output.splitlines() if not line.startswith(others)]
        return [line for line in own if not line.endswith("loading PyTorch …")]

    def wait(self) -> int:
        return self.process.wait()

    def signal_all(self, number: int) -> None:
        """To the command and all its descendants, also those that have outlived their parent."""
        with_group = [process for process in psutil.process_iter() if _group(process.pid) == self.process.pid]
        if with_group:
            os.killpg(self.process.pid, number)

    def others(self) -> list[psutil.Process]:
        """The processes of the group but its leader, that are still alive."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != self.process.pid
            and _group(process.pid) == self.process.pid
            and process.status() != psutil.STATUS_ZOMBIE
        ]

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.005) -> bool:
        """Whether the condition came true; False when the command ended before."""
        while not condition():
            if self.has_ended:
                return condition()
            time.sleep(pause)
        return True


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def command(log: Path, *arguments: str) -> Any:
    """``python -m lit_extract …``, a context manager that gives the :class:`Run`."""
    return python(log, "-m", "lit_extract", *arguments)


@contextmanager
def python(log: Path, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> Iterator[Run]:
    """``python …``, after a ``prefix`` that starts it; nothing of it is left behind, whatever happens."""
    environment = {**os.environ, **ENVIRONMENT, **environment}
    with log.open("w") as file:
        process = psutil.Popen(
            [*prefix, sys.executable, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    run = Run(process, log)
    try:
        yield run
    finally:
        run.signal_all(signal.SIGKILL)
        process.wait()


def predict(images: Path, output: Path, *options: str) -> Any:
    """A run over a folder of images, a context manager that gives the :class:`Run`."""
    log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
    return command(log, *predict_arguments(images, output), *options)


def predict_arguments(images: Path, output: Path) -> list[str]:
    """The command line of :func:`predict`."""
    config = REPOSITORY / "configs" / "folder" / "vision.yaml"
    where = ("--data.root", str(images), "--output_dir", str(output))
    return ["predict", "--config", str(config), *MODEL, *where]


def slow_predict(images: Path, output: Path, *options: str, **environment: str) -> Any:
    """As :func:`predict`, with the delays of slow_predict.py."""
    log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
    return slow(log, *predict_arguments(images, output), *options, **environment)


def slow(log: Path, *arguments: str, **environment: str) -> Any:
    """As :func:`command`, with what slow_predict.py changes."""
    script = str(Path(__file__).with_name("slow_predict.py"))
    return python(log, script, *arguments, **{"PYTHONPATH": str(REPOSITORY), **environment})


def slurm(folder: Path, rank: int = 0, world_size: int = 1) -> dict[str, str]:
    """SLURM's variables of one task of a job, and in a folder on PATH a scontrol that writes down what it is asked."""
    scontrol = folder / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nexit $(cat {folder}/code 2>/dev/null || echo 0)\n')
    scontrol.chmod(0o755)
    job = {"JOB_ID": "4711", "JOB_NAME": "features", "NTASKS": world_size, "NTASKS_PER_NODE": world_size}
    task = {"STEP_ID": 0, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    variables = {f"SLURM_{name}": str(value) for name, value in {**job, **task}.items()}
    return {**variables, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def complete(images: Path, output: Path, *options: str) -> str:
    """A run to its end, which must be a good one; what it printed."""
    with predict(images, output, *options) as run:
        assert run.wait() == 0, run.output
        return run.output


def features_file(output: Path, pool: str = "cls") -> Path:
    return output / "folder" / "all-untrained" / f"test_vit.r160_in1k_pool-{pool}-untrained.pt"


def store_folder(output: Path, pool: str = "cls") -> Path:
    return features_file(output, pool).with_suffix(".zarr")


def unfinished_file(output: Path) -> Path:
    """What the features file is called while it is written."""
    file = features_file(output)
    return file.with_name(f".{file.name}.part")


def done_shards(output: Path) -> dict[int, tuple[int, int]]:
    """The shard files that are there, and what identifies each: written again it would be another."""
    files = {int(file.parts[-3]): file.stat() for file in store_folder(output).glob("cls/c/*/0/0")}
    return {shard: (stat.st_ino, stat.st_mtime_ns) for shard, stat in files.items()}


def assert_same_features(file: Path, reference: Path) -> None:
    """Byte for byte the same tensor, of the same stimuli and layers, made in the same way."""
    found, expected = (torch.load(path, weights_only=True, mmap=True) for path in (file, reference))
    for key in ("layers", "stimulus_ids", "num_params"):
        assert found[key] == expected[key], key
    for key in ("provenance", "bad_input_rows", "not_finite_rows"):
        assert found["metadata"][key] == expected["metadata"][key], key
    assert found["feats"].numpy().tobytes() == expected["feats"].numpy().tobytes()


def write_images(folder: Path, n_images: int, size: int = 160, first: int = 0) -> Path:
    """JPEGs of coloured squares, each with its own colours."""
    folder.mkdir()
    for number in range(first, first + n_images):
        squares = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(squares).resize((size, size), Image.Resampling.NEAREST)
        image.save(folder / f"{number:05d}.jpg", quality=60)
    return folder


def undisturbed(factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The images, and the features that one rank makes of them when no one disturbs it; made once a session."""
    folder = factory.getbasetemp() / "undisturbed"
    images, file = folder / "images", features_file(folder / "features")
    if not file.exists():
        folder.mkdir()
        write_images(images, N_IMAGES)
        complete(images, folder / "features", *ONE_RANK)
        feats = torch.load(file, weights_only=True)["feats"].numpy()
        assert len(np.unique(feats.reshape(N_IMAGES, -1), axis=0)) == N_IMAGES, "equal rows would hide a permutation"
    return images, file


def anonymous_memory(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(kilobytes[0]) * 1024 if kilobytes else 0  # a process that has just ended has none
