"""Who speaks and who writes, when several processes share a job."""

import os
import sys

# Of the process that started this one as a further rank, and whose end is this one's.
LAUNCHER = "LIT_EXTRACT_LAUNCHER"


def is_rank_zero() -> bool:
    """Whether this process is the first of the job; known from the environment before a Trainer runs."""
    lightning = sys.modules.get("lightning_utilities.core.rank_zero")  # not imported for this: it takes a while
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    if rank is None:
        rank = next((os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), 0)
    return int(rank) == 0
