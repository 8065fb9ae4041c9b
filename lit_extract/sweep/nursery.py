"""Processes of a sweep that have their imports behind them.

A nursery is ``python -m lit_extract`` that has imported what predict needs, has done nothing else, and waits. For each
command that it is asked to run it forks; the fork goes on as if it had just been started with that command, in a
session of its own. It saves each model six seconds of imports.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = "LIT_EXTRACT_NURSERY"  # the descriptor of its end of the line
READY = {"ready": True}
SECONDS_TO_FORK = 10.0
SECONDS_BETWEEN_LOOKS = 0.25


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent is gone: a killed sweep must not leave a model running unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1


class Line:
    """A line between a sweep and its nursery: a JSON object each way at a time."""

    def __init__(self, end: socket.socket) -> None:
        self.end, self._heard = end, b""

    def say(self, words: Mapping[str, Any]) -> None:
        """Send an object."""
        self.end.sendall(json.dumps(words).encode() + b"\n")

    def hear(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next object; None when none comes within the time.

        Raises:
            EOFError: The other side is gone.
        """
        while b"\n" not in self._heard:
            if self.end.fileno() < 0:
                raise EOFError("this side has hung up")
            if not select.select([self.end], [], [], timeout)[0]:
                return None
            try:
                part = self.end.recv(2**16)
            except ConnectionError:
                part = b""
            if not part:
                raise EOFError("the other side is gone")
            self._heard += part
        first, _, self._heard = self._heard.partition(b"\n")
        words: dict[str, Any] = json.loads(first)
        return words


def serve() -> None:
    """Be a nursery: returns in the processes that are asked for, whose command is then in ``sys.argv``."""
    line = Line(socket.socket(fileno=int(os.environ.pop(VARIABLE))))
    import torch

    import lit_extract.predict  # noqa: F401  (what the commands would import)

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        sys.exit(1)  # a fork could not use the GPU
    gc.freeze()
    with suppress(EOFError, BrokenPipeError):
        line.say(READY)
        while (command := line.hear()) is not None:
            if (pid := os.fork()) == 0:
                line.end.close()
                _become(command)
                return
            line.say({"pid": pid})
            _, status = os.waitpid(pid, 0)
            line.say({"code": os.waitstatus_to_exitcode(status)})
    sys.exit(0)


def _become(command: Mapping[str, Any]) -> None:
    """What distinguishes a fork from a process that was started with a command."""
    end_with_parent()
    os.setsid()
    log = os.open(command["log"], os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv[1:] = command["arguments"]


class Hatched:
    """A process that a nursery has started; used like one of :class:`subprocess.Popen`."""

    def __init__(self, line: Line, pid: int) -> None:
        self.pid, self._line = pid, line
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; of one that a signal has ended, minus its number.

        Raises:
            subprocess.TimeoutExpired: It is still running.
        """
        if self._code is None:
            try:
                if (words := self._line.hear(timeout)) is None:
                    raise subprocess.TimeoutExpired("lit-extract", timeout or 0)
                self._code = int(words["code"])
            except EOFError:  # the nursery was killed; the kernel asks the process to end
                if is_there(self.pid):
                    time.sleep(timeout or SECONDS_BETWEEN_LOOKS)
                    raise subprocess.TimeoutExpired("lit-extract", timeout or 0) from None
                self._code = -signal.SIGKILL
        return self._code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def is_there(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Nursery:
    """A sweep's nursery, from the beginning of the sweep to its end."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False

    def __enter__(self) -> "Nursery":
        if sys.platform == "linux":  # elsewhere, forks of what has imported so much are not safe
            ours, its = socket.socketpair()
            with its, suppress(OSError):
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "lit_extract"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, VARIABLE: str(its.fileno()), "PYTHONUNBUFFERED": "1"},
                    pass_fds=[its.fileno()],
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
                self._line = Line(ours)
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Hatched | None:
        """A process with the command, if it is one for this nursery and that has its imports behind it by now.

        Args:
            command: Command line.
            environment: All of its environment.
            log: Existing file, to which its output is appended.
        """
        if list(command[:3]) != [sys.executable, "-m", "lit_extract"] or not self._is_willing():
            return None
        assert self._line is not None
        with suppress(EOFError, OSError):
            asked = {"arguments": list(command[3:]), "environment": dict(environment), "log": str(log.absolute())}
            self._line.say(asked)
            if (words := self._line.hear(SECONDS_TO_FORK)) is not None:
                return Hatched(self._line, int(words["pid"]))
        self._hang_up()
        return None

    def _is_willing(self) -> bool:
        try:
            if self._line is not None and not self._is_ready:
                self._is_ready = self._line.hear(0) is not None
        except EOFError:
            self._hang_up()
        return self._line is not None and self._is_ready

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.end.close()
            self._line = None
