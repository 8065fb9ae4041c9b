"""One writer at a time, also across kills: other processes hold the lock for real."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from lit_extract.errors import InputError
from lit_extract.finalize import finalize
from lit_extract.lock import write_lock

HOLD = """
import os, sys, time
from pathlib import Path
from lit_extract.lock import write_lock
with write_lock(Path(sys.argv[1])):
    child = os.fork() if "fork" in sys.argv else None
    if child != 0:
        print(child, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(target, *options):
    """A process that holds the lock; gives it and what it printed. Nothing of it is left."""
    command = [sys.executable, "-c", HOLD, str(target), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_second_process_is_told_who_holds_it(tmp_path):
    target = tmp_path / "x.zarr"
    with holder(target) as (process, _):
        with pytest.raises(InputError) as error, write_lock(target):
            pytest.fail("two hold it")
        assert str(target) in str(error.value)
        assert f"process {process.pid} on " in str(error.value)
        with write_lock(tmp_path / "y.zarr"):
            pass  # of other targets it says nothing


def test_a_store_that_is_being_written_is_not_finalized(make_store):
    store, _ = make_store()
    with holder(store.path), pytest.raises(InputError, match="is being written by another run"):
        finalize(store.path)
    assert store.path.is_dir()


def test_a_killed_holder_holds_nothing(tmp_path):
    target = tmp_path / "x.zarr"
    with holder(target) as (process, _):
        process.kill()
        process.wait()
        assert (tmp_path / ".x.zarr.lock").exists(), "a kill leaves the file"
        with write_lock(target):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_outlives_a_killed_holder_does_not_hold_it(tmp_path):
    target = tmp_path / "x.zarr"
    with holder(target, "fork") as (process, child):
        process.kill()
        process.wait()
        os.kill(int(child), 0)  # lives on, as a data-loading worker does for some seconds
        with write_lock(target):
            pass
        os.kill(int(child), 0)


def test_the_file_goes_with_the_lock_also_after_an_error(tmp_path):
    file = tmp_path / "below" / ".x.zarr.lock"
    with pytest.raises(KeyError, match="held"), write_lock(tmp_path / "below" / "x.zarr"):
        raise KeyError("held" if file.read_text().startswith(f"process {os.getpid()} on ") else "missing")
    assert list((tmp_path / "below").iterdir()) == []


COMPETE = """
import os, sys, time
from pathlib import Path
from lit_extract.errors import InputError
from lit_extract.lock import write_lock
target, alone = Path(sys.argv[1]), Path(sys.argv[2])
times, end = 0, time.monotonic() + 1
while time.monotonic() < end:
    try:
        with write_lock(target):
            os.close(os.open(alone, os.O_CREAT | os.O_EXCL))
            alone.unlink()
            times += 1
    except InputError:
        pass
print(times)
"""


def test_never_two_at_once_though_the_file_comes_and_goes(tmp_path):
    command = [sys.executable, "-c", COMPETE, str(tmp_path / "x.zarr"), str(tmp_path / "alone")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(process.communicate()[0] or 0) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert min(counts) > 0
