"""Who speaks and who writes, when several processes share a job."""

import os

from lightning_utilities.core.rank_zero import rank_zero_only


def is_rank_zero() -> bool:
    """Whether this process is the first of the job; known from the environment before a Trainer runs."""
    rank = getattr(rank_zero_only, "rank", None)  # Lightning's; not there before it is imported
    if rank is None:
        rank = next((os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), 0)
    return int(rank) == 0


def say(text: str) -> None:
    """Print once, not once a rank, and at once, also into a file."""
    if is_rank_zero():
        print(text, flush=True)
