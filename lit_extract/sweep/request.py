"""The resources that a job requests from a scheduler."""

import math
from dataclasses import dataclass, replace

GIB = 2**30
# Memory: 1.5 times plan's estimate plus 1 GB. Time: three times the estimate plus ten minutes, rounded up to half
# hours, at most 24 of them: short jobs start sooner, and a job that needs longer is queued again and resumes.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 3
_START_S, _HALF_HOUR_S, _HALF_HOURS = 600, 1800, 24


@dataclass(frozen=True)
class Request:
    """The resources of a job; None is to be estimated."""

    memory: int | None  # GiB
    time: str | None  # in SLURM's format
    gpus: str  # a number, or type:number
    cpus: int  # of each task

    @property
    def n_gpus(self) -> int:
        """Return the number of GPUs."""
        return int(self.gpus.rpartition(":")[2])

    def filled(self, n_bytes: int, seconds: float) -> "Request":
        """Return this request with memory and time from these estimates, where they are None."""
        memory = self.memory or math.ceil(MEMORY_MARGIN * n_bytes / GIB) + 1
        half_hours = math.ceil((TIME_MARGIN * seconds + _START_S) / _HALF_HOUR_S)
        minutes = 30 * min(half_hours, _HALF_HOURS)
        return replace(self, memory=memory, time=self.time or f"{minutes // 60}:{minutes % 60:02d}:00")
