"""The Trainer of a run, and the starter of its processes: srun, torchrun, or Lightning itself."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.host import is_task_of_srun
from lit_extract.common.untrusted import shorten

MAX_DEVICES, MAX_NODES = 1024, 100_000  # more than exist; Lightning makes a list of them

Precision = Literal["bf16-true", "bf16-mixed", "32-true"]


def predict_trainer(
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: Precision | None = None,
    callbacks: list[Callback] | None = None,
) -> Trainer:
    """Return a Lightning Trainer for :func:`lit_extract.extract` or :func:`lit_extract.caption`.

    Args:
        accelerator: "gpu", "cpu" or "auto".
        devices: Number of devices, a list of them, or "auto" for all; several devices share the work (DDP).
        num_nodes: Number of machines that share the work.
        strategy: Lightning's strategy for several devices; "auto" is DDP.
        precision: "bf16-true", "bf16-mixed" or "32-true"; default: bf16-true on a GPU and on a CPU with AMX, 32-true
            elsewhere and for an untrained model, whose layers may differ by less than bf16 can represent.
        callbacks: Further Lightning callbacks.

    Raises:
        InputError: Lightning refuses the settings, in general or on this machine.
    """
    _check_counts(devices, num_nodes)
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


def _check_counts(devices: int | str | list[int], num_nodes: int) -> None:
    count = int(devices) if isinstance(devices, str) and re.fullmatch("[0-9]{1,20}", devices) else devices
    count = len(count) if isinstance(count, list | str) else count
    if count > MAX_DEVICES or num_nodes > MAX_NODES:
        raise InputError(
            f"trainer: devices {shorten(devices)} and num_nodes {shorten(num_nodes)} must be at most {MAX_DEVICES} and "
            f"{MAX_NODES:,}"
        )


def default_precision(accelerator: str) -> Precision:
    """Return bf16-true if the hardware multiplies bf16 matrices faster than float32 ones."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-true" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    has_amx = cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return "bf16-true" if has_amx else "32-true"
