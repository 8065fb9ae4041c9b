"""The Trainer of a run, and the starter of its processes: srun, torchrun, or Lightning itself."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import StrategyRegistry

from lit_extract.common.errors import InputError, must_be_one_of, nearest, one_line
from lit_extract.common.host import is_task_of_srun
from lit_extract.common.untrusted import shorten

MAX_DEVICES, MAX_NODES = 1024, 100_000  # more than exist; Lightning makes a list of them

ACCELERATORS = ("auto", "gpu", "cpu", "cuda", "mps")
Precision = Literal["bf16-true", "bf16-mixed", "32-true"]


def predict_trainer(
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: Precision | None = None,
    callbacks: list[Callback] | None = None,
) -> Trainer:
    """Return a Lightning Trainer for :func:`lit_extract.extract` or :func:`lit_extract.caption`.

    Args:
        accelerator: "gpu" ("cuda", "mps"), "cpu" or "auto".
        devices: Number of devices, a list of them, or "auto" for all; several devices share the work (DDP).
        num_nodes: Number of machines that share the work.
        strategy: Lightning's strategy for several devices; "auto" is DDP.
        precision: "bf16-true", "bf16-mixed" or "32-true"; default: bf16-true on a GPU and on a CPU with AMX, 32-true
            elsewhere and for an untrained model, whose layers may differ by less than bf16 can represent.
        callbacks: Further Lightning callbacks.

    Raises:
        InputError: Lightning refuses the settings, in general or on this machine.
    """
    if accelerator not in ACCELERATORS:
        raise InputError(f"trainer.accelerator: {must_be_one_of(accelerator, ACCELERATORS)}")
    if precision not in (None, *get_args(Precision)):
        raise InputError(f"trainer.precision: {must_be_one_of(precision, get_args(Precision))}")
    strategies = ("auto", *StrategyRegistry.available_strategies())
    if isinstance(strategy, str) and strategy not in strategies:
        raise InputError(f"trainer.strategy: Lightning has no {shorten(strategy)!r}{nearest(strategy, strategies)}")
    if type(num_nodes) is not int or not 1 <= num_nodes <= MAX_NODES:
        raise InputError(
            f"trainer.num_nodes: {shorten(repr(num_nodes))} must be a whole number from 1 to {MAX_NODES:,}"
        )
    _check_devices(accelerator, devices)
    try:
        with warnings.catch_warnings(), lightning_warnings_only():
            warnings.filterwarnings("ignore", "The `srun` command is available")
            trainer = Trainer(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=strategy,
                precision=precision or default_precision(accelerator),
                callbacks=callbacks,
                plugins=_plugins_of_cluster(),
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,  # the data module's plan gives each shard to one rank
            )
    except (
        MisconfigurationException,
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:  # no GPU, SLURM's variables
        settings = f"accelerator {accelerator!r}, devices {devices!r}, strategy {strategy!r}, precision {precision!r}"
        raise InputError(f"trainer: Lightning refuses {settings}: {one_line(error)}") from error
    _check_meeting_place(trainer)
    return trainer


@contextmanager
def lightning_warnings_only() -> Iterator[None]:
    """Keep Lightning from printing hardware reports and tips."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _plugins_of_cluster() -> list[Any]:
    """Return the plugin for the starter of the processes; torchrun first, because srun may start it."""
    if TorchElasticEnvironment.detect():
        return [TorchElasticEnvironment()]
    if not SLURMEnvironment.detect():
        return []
    # the plugin's default would save a checkpoint of the model
    return [SLURMEnvironment(auto_requeue=False) if is_task_of_srun() else LightningEnvironment()]


def _check_meeting_place(trainer: Trainer) -> None:
    """Check that the machines of a run have an address to meet at, instead of waiting forever."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if trainer.num_nodes > 1 and missing and isinstance(environment, LightningEnvironment):
        raise InputError(
            f"trainer.num_nodes: {trainer.num_nodes} machines need srun, which starts one process per device: "
            "srun lit-extract … (see configs/slurm/multi_node.sh); or torchrun; or this command on each of them with "
            f"{' and '.join(missing)} in its environment. On one machine, pass --trainer.num_nodes 1"
        )


def _check_devices(accelerator: str, devices: int | list[int] | str) -> None:
    """Raise InputError, which names the setting, if this machine does not have the devices."""
    n_gpus = 1 if torch.backends.mps.is_available() else torch.cuda.device_count()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not n_gpus)
    if not on_cpu and not n_gpus:
        raise InputError(
            f"trainer.accelerator: {accelerator!r}, but PyTorch finds no GPU here (see lit-extract doctor); to run on "
            "the CPU, pass --config trainer/cpu or --trainer.accelerator cpu"
        )
    count = int(devices) if isinstance(devices, str) and re.fullmatch("-1|[0-9]{1,20}", devices) else devices
    shown = shorten(repr(devices))
    if on_cpu and count != "auto" and not (type(count) is int and 1 <= count <= MAX_DEVICES):
        raise InputError(
            f"trainer.devices: {shown} must be a number of processes from 1 to {MAX_DEVICES:,}, or auto, as "
            "the run is on the CPU"
        )
    shows_one = TorchElasticEnvironment.detect() and n_gpus == 1  # torchrun may show each process only its own GPU
    if not on_cpu and not shows_one and count != "auto" and not _have_gpus(count, n_gpus):
        raise InputError(
            f"trainer.devices: {shown} must be a number of GPUs from 1 to {n_gpus}, which are here, a list "
            f"of their numbers from 0 to {n_gpus - 1}, such as '[0]', or auto"
        )


def _have_gpus(devices: Any, n_gpus: int) -> bool:
    """Return whether so many GPUs exist, or the GPUs of a list of numbers."""
    if type(devices) is int:
        return devices == -1 or 1 <= devices <= n_gpus
    numbers = devices.removesuffix(",").split(",") if isinstance(devices, str) else devices
    wanted = [str(number).strip() for number in numbers] if isinstance(numbers, list | tuple) else []
    return 0 < len(wanted) == len({*wanted} & {str(number) for number in range(n_gpus)})


def default_precision(accelerator: str) -> Precision:
    """Return bf16-true if the hardware multiplies bf16 matrices faster than float32 ones."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-true" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    has_amx = cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return "bf16-true" if has_amx else "32-true"
