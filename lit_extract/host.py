"""Cores and memory that this process may use, which containers and schedulers make less than the machine has."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_MEBIBYTE = 2**20


def usable_cores() -> int:
    """Return the cores that this process may run on; where the system does not tell (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_memory() -> int:
    """Return the bytes of host memory that this process may use at most: the machine's, a cgroup's or a SLURM job's."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *cgroup_limits(), *slurm_limits(os.environ)])


def free_memory() -> int:
    """Return the bytes of host memory that are free now, within :func:`usable_memory`."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return usable_memory()
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    return min(int(fields["MemAvailable"].split()[0]) * 1024, usable_memory())


def cgroup_limits(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield the memory limits, in bytes, of the control groups that this process is in; groups are within groups.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and ``cgroup-v1/memory.html``.

    Args:
        process: What the kernel tells of the process's groups.
        root: Where the groups are mounted.
    """
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounted, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            mounted, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = mounted / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                text = (folder / name).read_text(encoding="utf-8").strip()
            except OSError:  # in a container, groups outside of it
                text = "max"
            if text != "max":
                yield int(text)
            if folder == mounted:
                break


def slurm_limits(environment: Mapping[str, str]) -> Iterator[int]:
    """Yield the memory limits, in bytes, that SLURM notes in the environment of a job (in MiB; 0 is no limit).

    Source: https://slurm.schedmd.com/sbatch.html, output environment variables.
    """

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else 0

    if a_node := number("SLURM_MEM_PER_NODE"):
        yield a_node * _MEBIBYTE
    if a_core := number("SLURM_MEM_PER_CPU"):
        yield a_core * (number("SLURM_CPUS_ON_NODE") or 1) * _MEBIBYTE
