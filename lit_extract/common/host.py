"""Cores and memory of this machine that a process may use."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 2**60  # cgroup v1 states a larger number for "no limit"
_INTERACTIVE_STEP = str(2**32 - 6)  # SLURM's number of the step in which salloc may start its shell


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of cores that a process may use: those of its affinity, limited by cgroups and SLURM.

    On systems without an affinity, all cores count.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    of_job = _number(environment.get("SLURM_CPUS_ON_NODE")) or affinity
    return max(1, min([affinity, of_job, *cgroup_cores()]))


def cores_of_rank(ranks: int, cores: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the cores of one of several ranks on this machine: those of its srun task, or its share of all.

    ``cores`` is the number that this process may use. srun starts a task for each rank, or one that torchrun divides.
    """
    of_task = _number(environment.get("SLURM_CPUS_PER_TASK"))
    is_bound = cores < _number(environment.get("SLURM_CPUS_ON_NODE"))  # to fewer cores than the job has here
    if is_task_of_srun(environment) and (of_task or is_bound):
        tasks = _number(environment.get("SLURM_NTASKS_PER_NODE")) or 1
        cores, ranks = min(cores, of_task or cores), -(-ranks // tasks)
    return max(1, cores // ranks)


def is_task_of_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether srun has started this process as one of its tasks.

    Inside a batch script or an interactive shell, SLURM's variables describe the request, such as 8 tasks that were
    never started.
    """
    step = environment.get("SLURM_STEP_ID")
    return step not in (None, _INTERACTIVE_STEP) and "SLURM_PTY_PORT" not in environment


def slurm_job(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the SLURM job of this process, as squeue names it: 12, or 12_3 in an array; None if there is none."""
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}"
    return environment.get("SLURM_JOB_ID")


def describe_process() -> str:
    """Describe this process, its machine and its SLURM job, so that people can find it."""
    job = slurm_job()
    return f"process {os.getpid()} on {socket.gethostname()}{f', SLURM job {job}' if job else ''}"


def host_memory() -> int:
    """Return the bytes of memory that a process may use here: all, or the limit of cgroups or SLURM."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *cgroup_limits(), *slurm_limits(os.environ, usable_cores())])


def free_host_memory() -> int:
    """Return the bytes of memory that this process may still use; the system's cache of files counts as free."""
    own = _numbers_of(Path("/proc/self/status")).get("RssAnon", 0)
    available = _numbers_of(Path("/proc/meminfo")).get("MemAvailable", host_memory())
    return max(0, min(available, host_memory() - own))


def resident_memory() -> int:
    """Return the bytes of memory that this process holds, including mapped files; 0 if unknown."""
    return _numbers_of(Path("/proc/self/status")).get("VmRSS", 0)


def _numbers_of(file: Path) -> dict[str, int]:
    """Return the sizes, in bytes, from lines such as ``MemAvailable: 123 kB`` in a file of Linux."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in fields}


def cgroup_limits(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Iterator[int]:
    """Yield the limits in bytes of this process's cgroup (version 1 or 2) and of all cgroups above it."""
    for version, folder in _cgroups("memory", root, own):
        with suppress(OSError, ValueError):  # no such file, or "max"
            limit = int((folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).read_text("ascii"))
            if limit < _UNLIMITED:
                yield limit


def cgroup_cores(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Iterator[int]:
    """Yield the limits in cores of this process's cgroup and of all cgroups above it, as set by docker --cpus."""
    for version, folder in _cgroups("cpu", root, own):
        with suppress(OSError, ValueError):  # no such file, or "max"
            names = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if version == 1 else ["cpu.max"]
            quota, period = (int(number) for name in names for number in (folder / name).read_text("ascii").split())
            if quota > 0 and period > 0:  # -1 is no limit
                yield max(1, quota // period)


def _cgroups(controller: str, root: Path, own: Path) -> Iterator[tuple[int, Path]]:
    """Yield the version and folder of each cgroup that limits this process with a controller, from its own upwards."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        top, below = root / controller if controllers else root, Path(path.lstrip("/"))
        for folder in (below, *below.parents):
            yield 1 if controllers else 2, top / folder


def slurm_limits(environment: Mapping[str, str], cores: int) -> Iterator[int]:
    """Yield the memory limits in bytes of a SLURM job on this machine; its variables are in MiB, 0 means no limit."""
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
