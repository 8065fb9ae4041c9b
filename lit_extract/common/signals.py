"""Requests to stop: SIGINT, SIGTERM, and in a SLURM job SIGUSR1, which also asks to queue the job again.

In a predict loop (:func:`deferred`) a request is noted, and obeyed after the batch. Elsewhere it interrupts the main
thread at once, which is safe because all files are complete at any moment. A second signal ends a command at once.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from lit_extract.common.host import slurm_job
from lit_extract.common.ranks import end_with_parent, is_rank_zero

DUPLICATES_WITHIN = 0.3  # seconds; a scheduler and the launcher below it may both pass on the same signal
SECONDS_FOR_A_BATCH = 10  # then the batch is interrupted: a scheduler does not wait much longer

PROGRESS = "LIT_EXTRACT_PROGRESS"  # environment variable: 1 when a sweep has finished other models since it started


class Interrupted(SystemExit):
    """The run was asked to stop. This is not an Exception, so no code on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.how_far = ""  # the progress, set by the job
        self.is_stuck = False  # no shard was finished since the run started: another run would get no further

    def __str__(self) -> str:
        how_far = f": {self.how_far}" if self.how_far else ""
        return f"stopped by {signal.Signals(self.number).name}{how_far}; run the same command again to resume"


@contextmanager
def stoppable(exit_at_second: bool = False) -> Iterator[None]:
    """Handle the signals while the body runs; if one ended it, print how to resume, and raise Interrupted.

    Nested inside another such body, or outside the main thread, which alone may set handlers, this does nothing. With
    ``exit_at_second``, for the command line, a second signal ends the process, even while the main thread is in C.
    Without it, a second signal interrupts the main thread as soon as that runs Python again, and SIGINT raises
    KeyboardInterrupt.
    """
    global _handler
    if _handler is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
    before = {number: signal.getsignal(number) for number in (*numbers, signal.SIGALRM)}
    _handler = _Handler(numbers, exit_at_second)
    try:
        with _ending_at_second(numbers) if exit_at_second and is_rank_zero() else nullcontext():
            _handler.install()
            yield
    except Interrupted as stop:
        if is_rank_zero():
            _report(stop)
        elif stop.number == signal.SIGUSR1:
            raise SystemExit(0) from None  # srun may end all tasks if one fails, but rank zero must queue the job
        if stop.number == signal.SIGINT and not exit_at_second:
            raise KeyboardInterrupt from None
        raise
    finally:
        _handler = None
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def requested() -> int | None:
    """Return the number of the signal that asked to stop; None if none did."""
    return _handler.number if _handler else None


@contextmanager
def deferred() -> Iterator[None]:
    """Only note the first signal while the body runs; the body checks :func:`requested` after each batch."""
    if _handler is None:
        yield
        return
    _handler.install()  # Lightning has set its own handlers, in which ranks wait for each other
    _handler.is_deferring = True
    try:
        yield
    finally:
        _handler.is_deferring = False
        if _handler.number is not None:
            signal.alarm(0)


def ignore_in_worker(worker: int) -> None:
    """Leave signals to the parent; called when a data-loading worker starts, which ends with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


class _Handler:
    """Handles all signals of one :func:`stoppable`."""

    def __init__(self, numbers: list[signal.Signals], exit_at_second: bool) -> None:
        self.numbers, self.exit_at_second = numbers, exit_at_second
        self.number: int | None = None
        self.is_deferring = False
        self._received_at = 0.0
        self._process = os.getpid()

    def install(self) -> None:
        for number in self.numbers:
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that has just been forked
        if self.number is None:
            self.number, self._received_at = number, time.monotonic()
            if self.is_deferring:
                signal.signal(signal.SIGALRM, self)
                signal.alarm(SECONDS_FOR_A_BATCH)
                return
        elif number != signal.SIGALRM and (
            self.exit_at_second  # the thread ends the process; other ranks end with rank zero
            or not is_rank_zero()
            or time.monotonic() - self._received_at < DUPLICATES_WITHIN
        ):
            return
        raise Interrupted(self.number)


_handler: _Handler | None = None


@contextmanager
def _ending_at_second(numbers: list[signal.Signals]) -> Iterator[None]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(reader, numbers), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _end_at_second(reader: int, numbers: list[signal.Signals]) -> None:
    """End the process at the second signal; in a thread, because no handler runs while the main thread is in C."""
    first: float | None = None
    with open(reader, "rb", buffering=0) as pipe:
        while received := pipe.read(1):
            now = time.monotonic()
            if received[0] not in numbers:
                continue
            if first is None:
                first = now
            elif now - first > DUPLICATES_WITHIN:
                os._exit(128 + received[0])


def _report(stop: Interrupted) -> None:
    """Print how to resume; queue a SLURM job again if that was requested."""
    _print(str(stop))
    if stop.number != signal.SIGUSR1:
        return
    if stop.is_stuck and os.environ.get(PROGRESS) != "1":
        _print(
            "not queued again: no shard was finished since this run started, and another run would get no further. "
            "Give the job more time, or smaller shards (--data.shard_rows N; with --overwrite when some are done)"
        )
        return
    job = slurm_job()
    assert job is not None, "else SIGUSR1 is not handled"
    try:
        subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=True)
        _print(f"job {job} is queued again")
    except OSError as error:
        _print(f"could not queue job {job} again: {error}")
    except subprocess.CalledProcessError as error:
        _print(f"could not queue job {job} again: {error.stderr.strip()}")


def _print(text: str) -> None:
    print(f"lit-extract: {text}", file=sys.stderr, flush=True)
