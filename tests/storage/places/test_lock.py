"""One writer at a time, also across kills: other processes hold the lock for real."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from lit_extract.common.errors import InputError
from lit_extract.storage.finalize import finalize
from lit_extract.storage.places import place_of

HOLD = """
import os, sys, time
from pathlib import Path
from lit_extract.storage.places import place_of
with place_of(Path(sys.argv[1])).write_lock():
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
        with pytest.raises(InputError) as error, place_of(target).write_lock():
            pytest.fail("two hold it")
        assert str(target) in str(error.value)
        assert f"process {process.pid} on " in str(error.value)
        with place_of(tmp_path / "y.zarr").write_lock():
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
        with place_of(target).write_lock():
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_outlives_a_killed_holder_does_not_hold_it(tmp_path):
    target = tmp_path / "x.zarr"
    with holder(target, "fork") as (process, child):
        process.kill()
        process.wait()
        os.kill(int(child), 0)  # lives on, as a data-loading worker does for some seconds
        with place_of(target).write_lock():
            pass
        os.kill(int(child), 0)


def test_the_file_goes_with_the_lock_also_after_an_error(tmp_path):
    file = tmp_path / "below" / ".x.zarr.lock"
    with pytest.raises(KeyError, match="held"), place_of(tmp_path / "below" / "x.zarr").write_lock():
        raise KeyError("held" if file.read_text().startswith(f"process {os.getpid()} on ") else "missing")
    assert list((tmp_path / "below").iterdir()) == []


COMPETE = """
import os, sys, time
from pathlib import Path
from lit_extract.common.errors import InputError
from lit_extract.storage.places import place_of
target, alone = Path(sys.argv[1]), Path(sys.argv[2])
times, end = 0, time.monotonic() + 1
while time.monotonic() < end:
    try:
        with place_of(target).write_lock():
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


WITHOUT_LOCKS = """
import errno, fcntl, sys
def fail(*_):
    raise OSError(errno.{name}, "no locks here")
fcntl.lockf = fcntl.fcntl = fail
from lit_extract.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_no_other_run(make_store, name):
    store, _ = make_store()
    script = [sys.executable, "-c", WITHOUT_LOCKS.format(name=name)]

    def run(*arguments, **environment):
        done = subprocess.run([*script, *arguments], capture_output=True, text=True, env={**os.environ, **environment})
        return done.returncode, done.stdout, done.stderr

    code, _, said = run("finalize", str(store.path))
    assert code == 2
    assert "no locks here" in said
    assert "LIT_EXTRACT_NO_LOCKS=1" in said
    assert "another run" not in said
    assert said.count("\n") == 1
    (store.path.parent / f".{store.path.name}.lock").touch()
    code, said, _ = run("status", str(store.path.parent))
    assert code == 0
    assert "running" not in said
    code, said, err = run("finalize", str(store.path), LIT_EXTRACT_NO_LOCKS="1")
    assert (code, err) == (0, "")
    assert said == f"{store.path.parent / 'm_pool-cls.pt'}\n"


@pytest.mark.parametrize("name", ["EACCES", "EAGAIN"])
def test_only_these_mean_another_run(make_store, monkeypatch, name):
    store, _ = make_store()

    def fail(*_):
        raise OSError(getattr(errno, name), "taken")

    monkeypatch.setattr("fcntl.lockf", fail)
    monkeypatch.setenv("LIT_EXTRACT_NO_LOCKS", "1")
    with pytest.raises(InputError, match="is being written by another run"):
        finalize(store.path)
