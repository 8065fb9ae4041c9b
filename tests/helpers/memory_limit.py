"""A cgroup in which the kernel holds commands to so much memory, whatever they ask for."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(n_bytes):
    """A prefix of commands that may have so many bytes together, the files that the system caches for them included."""
    is_first = (ROOT / "memory").is_dir()
    folder = (ROOT / "memory" if is_first else ROOT) / f"lit-extract-{os.getpid()}-{time.monotonic_ns()}"
    limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if is_first else ("memory.max",)
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        try:
            for name in limits:
                if name == limits[0] or (folder / name).exists():
                    (folder / name).write_text(str(n_bytes))
            if (folder / "memory.swap.max").exists():
                (folder / "memory.swap.max").write_text("0")
        except OSError as error:
            pytest.skip(f"cgroups do not limit memory here: {error}")
        yield ("sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh")
    finally:
        folder.rmdir()
