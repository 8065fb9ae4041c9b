"""The processes that share a job: find out which is the first, and end the others with it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_RANK_ZERO = "LIT_EXTRACT_RANK_ZERO"  # environment variable: process id of the rank zero that launched this rank
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")  # set by torchrun, Lightning, srun; the last by the user
_PR_SET_PDEATHSIG = 1


def is_rank_zero() -> bool:
    """Return whether this process is the first of the job; before a Trainer runs, the environment tells."""
    lightning = sys.modules.get("lightning_utilities.core.rank_zero")  # not imported for this: the import is slow
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    if rank is None:
        rank = next((os.environ[key] for key in _RANKS if key in os.environ), 0)
    return int(rank) == 0


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent is gone, whatever it is doing; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


@contextmanager
def ranks_end_with_rank_zero() -> Iterator[None]:
    """End ranks with rank zero: called in rank zero, which launches them in the body, and in each of them."""
    if launcher := os.environ.get(_RANK_ZERO):
        end_with_parent()
        if os.getppid() != int(launcher):  # gone already, and with it the right to write
            os._exit(1)
        yield
        return
    os.environ[_RANK_ZERO] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_RANK_ZERO, None)
