"""Cores and memory of this machine that a process may use."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_UNLIMITED = 2**60  # cgroup v1 writes a number like this for "no limit"


def usable_cores() -> int:
    """Return the number of cores that this process may run on; not every system has such a limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Return the bytes of memory that a process may use here: all, or what cgroups or SLURM allow."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *cgroup_limits(), *slurm_limits(os.environ, usable_cores())])


def free_host_memory() -> int:
    """Return the bytes of memory that this process may still use here; files that the system caches give way."""
    own = _numbers_of(Path("/proc/self/status")).get("RssAnon", 0)
    available = _numbers_of(Path("/proc/meminfo")).get("MemAvailable", host_memory())
    return max(0, min(available, host_memory() - own))


def _numbers_of(file: Path) -> dict[str, int]:
    """Return the sizes, in bytes, that a file of Linux gives in lines such as ``MemAvailable: 123 kB``."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in fields}


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield the limits in bytes of this process's cgroup (version 1 or 2) and of all cgroups above it."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        below = Path(path.lstrip("/"))
        for folder in (below, *below.parents):
            try:
                limit = int((top / folder / name).read_text(encoding="ascii"))
            except (OSError, ValueError):  # no such file, or "max"
                continue
            if limit < _UNLIMITED:
                yield limit


def slurm_limits(environment: Mapping[str, str], cores: int) -> Iterator[int]:
    """Yield the limits in bytes of a SLURM job on this machine; its variables are in MiB, 0 is all of the memory."""
    counts = {
        "SLURM_MEM_PER_NODE": 1,
        "SLURM_MEM_PER_CPU": _number(environment.get("SLURM_CPUS_ON_NODE")) or cores,
        "SLURM_MEM_PER_GPU": _number(environment.get("SLURM_GPUS_ON_NODE")) or 1,
    }
    for name, count in counts.items():
        if mebibytes := _number(environment.get(name)):
            yield mebibytes * count * 2**20


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
