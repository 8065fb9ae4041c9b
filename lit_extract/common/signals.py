"""Asked to stop: SIGINT, SIGTERM, and under SLURM SIGUSR1, which also asks for the job to be queued again.

The first signal lets a run finish what it says is worth finishing (:func:`wait_while`, :func:`held`) and otherwise
interrupts it where it is; all that is on disk is whole at any moment. A second signal ends the process at once.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from lit_extract.common.ranks import LAUNCHER, is_rank_zero

# A scheduler and the launcher below it may both pass on the same signal.
DUPLICATES_WITHIN = 0.3
SECONDS_BETWEEN_LOOKS = 1.0

PROGRESS = "LIT_EXTRACT_PROGRESS"  # environment variable: 1 when a sweep has finished other models since it started

BY_ANOTHER_RANK = 0  # in the place of a signal: another rank failed


class Interrupted(SystemExit):
    """The run was asked to stop. No Exception: nobody on the way is to take it for a failure.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.how_far = ""  # what is done; whoever knows fills it in
        self.is_stuck = False  # nothing was finished since the run started: the next one would fare no better

    def __str__(self) -> str:
        by = f" by {signal.Signals(self.number).name}" if self.number else ""
        return f"stopped{by}{': ' if self.how_far else ''}{self.how_far}; run the same command again to go on"


@contextmanager
def stoppable(exit_at_second: bool = False) -> Iterator[None]:
    """Handle the signals while the body runs; say how to go on when one has ended it.

    Inside another such body, and outside of the main thread, which alone may set handlers, it does nothing.

    Args:
        exit_at_second: A second signal ends the process, whatever it is doing; otherwise the main thread is
            interrupted as soon as it runs Python again. For the command line.

    Raises:
        Interrupted: The body was.
        KeyboardInterrupt: In its place, to who calls from Python.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    listener = _current = _Listener(exit_at_second)
    try:
        with listener:
            yield
    except Interrupted as stop:
        if is_rank_zero():
            tell(stop)
        if stop.number == signal.SIGINT and not exit_at_second:
            raise KeyboardInterrupt from None
        raise
    finally:
        _current = None


def tell(stop: Interrupted) -> None:
    """Say how to go on, or see to it."""
    print(f"lit-extract: {stop}", file=sys.stderr, flush=True)
    if stop.number != signal.SIGUSR1:
        return
    if stop.is_stuck and os.environ.get(PROGRESS) != "1":
        print(
            "lit-extract: not queued again, as no shard was finished since this run started, and the next one would "
            "get no further: give the job more time, or smaller shards (--data.shard_rows N; with --overwrite when "
            "some are done)",
            file=sys.stderr,
            flush=True,
        )
        return
    _requeue()


def asked() -> int | None:
    """The signal that asked to stop, or :data:`BY_ANOTHER_RANK`; None when nobody has."""
    return _current.number if _current else None


def asked_at() -> float:
    """When that was, by the monotonic clock."""
    return _current.since if _current else time.monotonic()


def ask(number: int) -> None:
    """Ask this process to stop, on behalf of another."""
    if _current:
        _current.note(number)


@contextmanager
def wait_while(is_worth_it: Callable[[], bool]) -> Iterator[None]:
    """A first signal leaves the body alone if what it is doing is worth finishing; the body then looks at asked()."""
    before = _current.is_worth_it if _current else None
    if _current:
        _current.is_worth_it = is_worth_it
    try:
        yield
    finally:
        if _current:
            _current.is_worth_it = before


def held() -> Any:
    """Whatever happens in the body is finished."""
    return wait_while(lambda: True)


def leave_workers_alone(worker: int) -> None:
    """What a data-loading worker does first: signals to the whole process group are its parent's business.

    Without that a worker would die under the loop that waits for it. It ends by its parent's word, or with it.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.excepthook = _be_silent_about_parent
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _be_silent_about_parent(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what a thread died of, but not that the parent was interrupted while it was taking a batch."""
    if not issubclass(kind, EOFError | OSError):
        sys.__excepthook__(kind, error, trace)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


_current: "_Listener | None" = None


class _Listener:
    """Handlers, and a thread that hears of signals while the main thread is busy in C: loading, or in a barrier."""

    def __init__(self, exit_at_second: bool) -> None:
        self.exit_at_second = exit_at_second
        self.number: int | None = None
        self.since = 0.0
        self.is_worth_it: Callable[[], bool] | None = None
        self.process = os.getpid()
        self.launcher = os.environ.get(LAUNCHER)
        self._handled_at: float | None = None
        self._noting = threading.Lock()

    def __enter__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
        self._thread = threading.Thread(target=self._listen, args=(set(numbers),), name="signals", daemon=True)
        self._thread.start()
        self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._fd_before)
        os.write(self._writer, bytes([0]))
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def note(self, number: int) -> None:
        """The first one counts; that another rank failed, until a signal is known to be why."""
        with self._noting:
            if self.number is None:
                self.since = time.monotonic()
            if self.number in (None, BY_ANOTHER_RANK):
                self.number = number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a child that was forked a moment ago
        self.note(number)
        now, first = time.monotonic(), self._handled_at
        if first is None:
            self._handled_at = now
        elif now - first < DUPLICATES_WITHIN:
            return
        if first is not None or self.is_worth_it is None or not self.is_worth_it():
            raise Interrupted(self.number or number)

    def _listen(self, numbers: set[int]) -> None:
        first: float | None = None
        while True:
            heard, _, _ = select.select([self._reader], [], [], SECONDS_BETWEEN_LOOKS)
            if self.launcher not in (None, str(os.getppid()), str(self.process)):
                os._exit(1)  # the first rank is gone, and with it the right to write
            for number in os.read(self._reader, 64) if heard else b"":
                if number == 0:
                    return
                if number not in numbers:
                    continue
                now = time.monotonic()
                self.note(number)
                if first is None:
                    first = now
                elif now - first > DUPLICATES_WITHIN and self.exit_at_second:
                    os._exit(128 + number)


def _stop_listening_in_child() -> None:
    """A signal to a forked child would be heard by its parent, as a second one."""
    if _current is not None:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_stop_listening_in_child)


def _requeue() -> None:
    """Have SLURM run this job again, as it would after a preemption."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = done.stderr.strip() if done.returncode else None
    except OSError as error:
        reason = str(error)
    said = f"could not queue job {job} again: {reason}" if reason is not None else f"job {job} is queued again"
    print(f"lit-extract: {said}", file=sys.stderr, flush=True)
