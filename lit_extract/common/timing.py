"""Measure the time of each phase of a run, for ``lit-extract predict --profile``."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Phases before the first batch, and phases of each batch, one after the other in the main thread.
START_UP = ("imports", "settings", "stimuli", "weights")
PHASES = ("waiting for data", "to the device", "forward", "to the host", "into the shard")
WRITING = "writing"  # in its own thread, in parallel


class Stopwatch:
    """Seconds spent in each phase.

    ``synchronize`` waits for a GPU at the end of a phase, so nothing overlaps; without it, the GPU's work is counted in
    the phase that waits for it.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None) -> None:
        self.synchronize = synchronize
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.started: float | None = None
        self.ended = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block for a phase."""
        before = time.perf_counter()
        try:
            yield
        finally:
            if self.synchronize is not None:
                self.synchronize()
            after = time.perf_counter()
            self.seconds[phase] += after - before
            if phase in PHASES:
                self.started = before if self.started is None else self.started
                self.ended = after

    def report(self) -> list[str]:
        """Return one line per phase, with its share of the time since the first batch."""
        whole = self.ended - self.started if self.started is not None else 0.0
        start_up = {phase: self.seconds[phase] for phase in START_UP}
        parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in start_up.items())
        lines = [f"time: {sum(start_up.values()):.1f} s before the first batch ({parts}), then {whole:.1f} s:"]
        phases = {phase: self.seconds[phase] for phase in PHASES}
        phases["all else"] = max(0.0, whole - sum(phases.values()))
        for phase, seconds in phases.items():
            lines.append(f"  {phase:<18}{seconds:8.1f} s {seconds / whole if whole else 0:5.0%}")
        return [*lines, f"  {WRITING:<18}{self.seconds[WRITING]:8.1f} s, in parallel"]


stopwatch = Stopwatch()  # of this process


def seconds_since_start() -> float:
    """Return the seconds since this process was started, imports included; 0 if the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
