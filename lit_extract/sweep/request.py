"""What a job asks a scheduler for."""

import math
from dataclasses import dataclass, replace

GIB = 2**30
# Half as much memory again as plan estimates, and 1 GB. Three times the estimated time, and ten minutes, in half hours
# of which there are 24 at most: short jobs start sooner, and one that needs longer is queued again, and resumes.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 3
_START_S, _HALF_HOUR_S, _HALF_HOURS = 600, 1800, 24


@dataclass(frozen=True)
class Request:
    """What a job asks for; None is to be estimated."""

    memory: int | None  # GiB
    time: str | None  # as SLURM has it
    gpus: str  # a number, or type:number
    cpus: int  # of each task

    @property
    def n_gpus(self) -> int:
        """Return the number of GPUs."""
        return int(self.gpus.rpartition(":")[2])

    def filled(self, n_bytes: int, seconds: float) -> "Request":
        """Return this request with memory and time of these estimates, where it has none."""
        memory = self.memory or math.ceil(MEMORY_MARGIN * n_bytes / GIB) + 1
        half_hours = math.ceil((TIME_MARGIN * seconds + _START_S) / _HALF_HOUR_S)
        minutes = 30 * min(half_hours, _HALF_HOURS)
        return replace(self, memory=memory, time=self.time or f"{minutes // 60}:{minutes % 60:02d}:00")
