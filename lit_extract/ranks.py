"""Who speaks and who writes, when several processes share a job."""

from lightning_utilities.core.rank_zero import rank_zero_only


def is_rank_zero() -> bool:
    """Whether this process is the first of the job; known from the environment before a Trainer runs."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


def say(text: str) -> None:
    """Print once, not once a rank, and at once, also into a file."""
    if is_rank_zero():
        print(text, flush=True)
