"""Estimate the time of a model whose blocks come from disk, and its limit: disk, link to the GPU, or arithmetic."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_extract.modules.base import Extractor
from lit_extract.modules.room import rows_of_a_pass

_PROBE_BYTES = 256 * 2**20
_SIDE = 2048  # of the matrices whose product is timed
# Rates of an A40 that is elsewhere: half of its peak in bf16, which transformer blocks reach; PCIe 4.0 with 16 lanes.
ASSUMED_OPERATIONS, _ASSUMED_LINK = 75e12, 20e9


@dataclass(frozen=True)
class Pass:
    """The work of sending some rows through all blocks of a model."""

    rows: int
    bytes_read: int  # from the disk, in the data type stored there
    bytes_sent: int  # to the GPU; 0 on a CPU
    operations: float


@dataclass(frozen=True)
class Rates:
    """The rates of a machine, per second."""

    disk: float  # bytes read
    link: float  # bytes sent to the GPU
    operations: float  # of matrix products, in the precision of the run
    is_measured: bool  # arithmetic and link; False: the GPU is elsewhere, and both are assumed to be an A40's

    def bound(self, one: Pass) -> tuple[str, float]:
        """Return what limits a pass, and the seconds that the pass needs."""
        seconds = {
            "disk": one.bytes_read / self.disk,
            "host link": one.bytes_sent / self.link,
            "arithmetic": one.operations / self.operations,
        }
        slowest = max(seconds, key=seconds.__getitem__)
        return slowest, seconds[slowest]


def plan_pass(model: Extractor, dtype: torch.dtype, on_gpu: bool, free: int, host: int, n_tokens: int) -> Pass:
    """Return the pass of a streamed model; arguments as for :func:`rows_of_a_pass`."""
    rows = rows_of_a_pass(model, dtype, on_gpu, free, host, n_tokens)
    parameters = sum(model.block_params)
    stored = torch.float32 if model.untrained else getattr(getattr(model, "config", None), "dtype", None) or dtype
    read = parameters * stored.itemsize
    operations = 2.0 * parameters * rows * model.tokens_a_row(n_tokens)
    return Pass(rows, read, read if on_gpu else 0, operations)


def measure_rates(checkpoints: Iterable[str], on_gpu: bool, dtype: torch.dtype) -> Rates:
    """Measure how fast this machine reads weights from the disk, and computes.

    Args:
        checkpoints: Local folders with weights; if there are none, a file in the folder for temporary files is read.
        on_gpu: The run is for a GPU, which may be elsewhere.
        dtype: Data type of the weights in the run.
    """
    files = [file for folder in checkpoints for file in Path(folder).glob("*.safetensors")]
    disk = _measure_disk(max(files, key=lambda file: file.stat().st_size, default=None))
    if on_gpu and not torch.cuda.is_available():
        return Rates(disk, _ASSUMED_LINK, ASSUMED_OPERATIONS, False)
    device = torch.device("cuda" if on_gpu else "cpu")
    return Rates(disk, _measure_link(device) if on_gpu else float("inf"), _measure_products(device, dtype), True)


def _measure_disk(file: Path | None) -> float:
    """Return the bytes per second at which a file is read that is not in the system's cache."""
    if file is not None:
        return _measure_reading(file)
    with tempfile.NamedTemporaryFile(prefix="lit-extract-") as own:
        block = os.urandom(2**20)
        for _ in range(_PROBE_BYTES // len(block)):
            own.write(block)
        own.flush()
        os.fsync(own.fileno())
        return _measure_reading(Path(own.name))


def _measure_reading(file: Path) -> float:
    buffer = bytearray(2**24)
    with file.open("rb", buffering=0) as opened:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started, total = time.perf_counter(), 0
        while total < _PROBE_BYTES and (count := opened.readinto(buffer)):
            total += count
        return total / (time.perf_counter() - started)


def _measure_link(device: torch.device) -> float:
    numbers = torch.empty(_PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    seconds = _seconds(lambda: numbers.to(device, non_blocking=True), device)
    return numbers.nbytes / seconds


def _measure_products(device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    return 2.0 * _SIDE**3 / _seconds(lambda: matrix @ matrix, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of four repetitions of some work."""
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
