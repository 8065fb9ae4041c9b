"""The process of a model: its log, its signals, and how it ended."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

from lit_extract.common import exit_codes, signals
from lit_extract.common.ranks import end_with_parent
from lit_extract.jobs.run_state import VARIABLE, Outcome, RunState
from lit_extract.storage.layout import safe_name
from lit_extract.sweep.runs import ModelRun

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def start_process(run: ModelRun, logs: Path, state_file: Path, is_progress: bool) -> "subprocess.Popen[bytes]":
    """Start the process of a model, in its own session; its output goes to a log.

    If the sweep is killed, the kernel ends the process. ``is_progress`` tells the process that the sweep has finished
    other models, so that its SLURM job is worth queueing again.
    """
    run.log = logs / f"{run.number:02d}-{safe_name(run.model)}.log"
    run.log.write_text(f"{shlex.join(run.command)}\n", encoding="utf-8")
    environment = {**os.environ, VARIABLE: str(state_file), "PYTHONUNBUFFERED": "1"}
    environment |= {signals.PROGRESS: "1"} if is_progress else {}
    with run.log.open("ab") as out:
        return subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM) if sys.platform == "linux" else None,
        )


def outcome_of(code: int, state: RunState, log: Path | None, was_stopped: bool) -> Outcome:
    """Return how a run ended: the outcome that it recorded, unless it was killed; then ``code`` is minus the signal."""
    if state.outcome is not None and state.outcome.exit_code == code:
        return state.outcome
    number = -code if code < 0 else max(0, code - exit_codes.STOPPED)
    if was_stopped and number:
        return Outcome("stopped", "", code)
    ended = f"ended by {signal_name(number)}" if number else f"ended with exit code {code}"
    memory = " (out of memory?)" if number == signal.SIGKILL else ""
    return Outcome("failed", f"{ended}{memory}; its output is in {log}", code)


def signal_name(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class PassedOn:
    """Passes each signal that would end the sweep to the running model, once, and remembers the first.

    Models have their own session, so the Ctrl-C of a terminal does not reach them a second time, which would stop them
    at once instead of after their batch.
    """

    def __init__(self) -> None:
        self.received = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as set by nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def to(self, child: "subprocess.Popen[bytes]") -> Iterator[None]:
        """Pass signals to a process while the body runs."""
        self._child = child
        while self._pending:  # received while the process was started
            child.send_signal(self._pending.pop())
        yield
        self._child = None

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number
        number = signal.SIGTERM if number == signal.SIGHUP else number  # the terminal is gone; predict handles the rest
        if self._child is None:
            self._pending = [number]
        else:
            self._child.send_signal(number)
