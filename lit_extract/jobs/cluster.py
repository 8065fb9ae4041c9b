"""Choose who starts the processes of a run: srun, torchrun, or Lightning itself."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from lit_extract.common.errors import InputError

_INTERACTIVE_STEP = str(2**32 - 6)  # SLURM's number of the step in which salloc may start its shell


def is_task_of_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether srun has started this process as one of its tasks.

    Inside a batch script or an interactive shell SLURM's variables describe what was asked for, such as 8 tasks that
    nobody has started.
    """
    step = environment.get("SLURM_STEP_ID")
    return step not in (None, _INTERACTIVE_STEP) and "SLURM_PTY_PORT" not in environment


@contextmanager
def plugins_of_cluster(num_nodes: int) -> Iterator[list[Any]]:
    """Give Lightning's plugins for a Trainer that is made in the body, without its hint at srun.

    Raises:
        InputError: Several machines are asked for, and nobody has started a process on each of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `srun` command is available")
        if not SLURMEnvironment.detect():
            yield []
        elif is_task_of_srun():
            yield [SLURMEnvironment(auto_requeue=False)]  # it would save a checkpoint of the model
        elif TorchElasticEnvironment.detect():
            yield [TorchElasticEnvironment()]
        elif num_nodes > 1:
            raise InputError(
                f"trainer.num_nodes: {num_nodes} machines of a SLURM job need srun, which starts a process for each "
                "device: srun lit-extract … (see configs/slurm/multi_node.sh); or use one: --trainer.num_nodes 1"
            )
        else:
            yield [LightningEnvironment()]
