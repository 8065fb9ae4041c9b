"""The processes of a sweep, forked from one that has their imports behind it.

A fork server is ``python -m lit_extract`` that has imported what predict needs, has done nothing else, and forks for
each command that it is asked to run. The fork goes on as if it had just been started with that command, in a session of
its own, without the seconds of imports. Python's own (``multiprocessing.forkserver``) makes processes that are not
like that: their ``__main__`` is another, from which Lightning would start other ranks, and they end without ``atexit``.
"""

import atexit
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lit_extract.imports import heavy_imports

VARIABLE = "LIT_EXTRACT_FORK_SERVER"  # the descriptor of its end of the line
SECONDS_BETWEEN_LOOKS = 0.25


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent is gone: a killed sweep must not leave a model running unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1


class Line:
    """A line between a sweep and its fork server: a JSON object each way at a time."""

    def __init__(self, end: socket.socket) -> None:
        self.end, self._heard = end, b""

    @property
    def is_open(self) -> bool:
        """Whether neither side is known to be gone."""
        return self.end.fileno() >= 0

    def say(self, words: Mapping[str, Any]) -> None:
        """Send an object."""
        self.end.sendall(json.dumps(words).encode() + b"\n")

    def hear(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next object; None when none comes within the time.

        Raises:
            EOFError: The other side is gone, or this one has closed the line.
        """
        while b"\n" not in self._heard:
            if not self.is_open:
                raise EOFError("the line is closed")
            if not select.select([self.end], [], [], timeout)[0]:
                return None
            try:
                part = self.end.recv(2**16)
            except ConnectionError:
                part = b""
            if not part:
                self.end.close()
                raise EOFError("the other side is gone")
            self._heard += part
        first, _, self._heard = self._heard.partition(b"\n")
        words: dict[str, Any] = json.loads(first)
        return words


def serve() -> None:
    """Be a fork server: returns in the processes that are asked for, whose command is then in ``sys.argv``."""
    line = Line(socket.socket(fileno=int(os.environ.pop(VARIABLE))))
    with heavy_imports():
        import lit_extract.predict  # noqa: F401  (what the commands would import)
    if not forks_can_use_gpus():
        sys.exit(1)
    server = os.getpid()
    with suppress(EOFError, BrokenPipeError):
        while (command := line.hear()) is not None:
            if (pid := os.fork()) == 0:
                line.end.close()
                _become(command, server)
                return
            line.say({"pid": pid})
            _, status = os.waitpid(pid, 0)
            line.say({"code": os.waitstatus_to_exitcode(status)})
    sys.exit(0)


def forks_can_use_gpus() -> bool:
    """Whether no library has touched the GPUs at its import, after which no fork could: tried in a fork."""
    if (pid := os.fork()) == 0:
        can = False
        with suppress(BaseException):
            import torch

            if Path("/dev/nvidiactl").exists():
                torch.cuda.init()  # type: ignore[no-untyped-call]
            can = not torch.cuda._is_in_bad_fork()
        os._exit(0 if can else 1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _become(command: Mapping[str, Any], server: int) -> None:
    """What distinguishes a fork from a process that was started with a command."""
    end_with_parent()
    if os.getppid() != server:  # it has ended before that
        os._exit(128 + signal.SIGTERM)
    os.setsid()
    log = os.open(command["log"], os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv[1:] = command["arguments"]


def end(code: int) -> NoReturn:
    """End a fork as :mod:`multiprocessing` does: without freeing, object by object, what it shares with the server.

    That would copy it first, and takes half a second.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Forked:
    """A process that a fork server starts as soon as its imports are done; used like one of :class:`subprocess.Popen`.

    Args:
        line: To the server, which has been asked.
        server: Its process.
        otherwise: Starts the command in another way, should the server end before it has forked.
    """

    def __init__(
        self, line: Line, server: "subprocess.Popen[bytes]", otherwise: Callable[[], "subprocess.Popen[bytes]"]
    ) -> None:
        self.pid: int | None = None
        self._line, self._server, self._otherwise = line, server, otherwise
        self._instead: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self._pending = 0

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; of one that a signal has ended, minus its number.

        Raises:
            subprocess.TimeoutExpired: It is still running.
            OSError: It can't be started.
        """
        while self._code is None and self._instead is None:
            self._listen(timeout)
        return self._instead.wait(timeout) if self._instead is not None else self._code  # type: ignore[return-value]

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended; what is still to be started will not be. To be used in handlers."""
        if self._instead is not None:
            self._instead.send_signal(number)
        elif self.pid is None:
            self._pending = number  # a handler must not listen, when this process may be at it
        elif self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _listen(self, timeout: float | None) -> None:
        try:
            words = self._line.hear(0 if self._pending else timeout)
        except EOFError:
            self._do_without(timeout)
        else:
            if words is not None:
                self.pid, self._code = words.get("pid", self.pid), words.get("code")
            elif self._pending:
                self._server.kill()  # and the kernel ends what it may have forked by now
                self._line.end.close()
                self._code = -self._pending
            else:
                raise subprocess.TimeoutExpired("lit-extract", timeout or 0)
        if self._pending:
            pending, self._pending = self._pending, 0
            self.send_signal(pending)

    def _do_without(self, timeout: float | None) -> None:
        """The server is gone."""
        if self.pid is None:
            self._instead = self._otherwise()
        elif is_there(self.pid):  # the kernel has asked it to end
            time.sleep(timeout or SECONDS_BETWEEN_LOOKS)
            raise subprocess.TimeoutExpired("lit-extract", timeout or 0) from None
        else:
            self._code = -signal.SIGKILL


def is_there(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class ForkServer:
    """A sweep's fork server, started with the first command that is for it, and ended with the sweep."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.end.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        otherwise: Callable[[], "subprocess.Popen[bytes]"],
    ) -> "Forked | subprocess.Popen[bytes]":
        """The process of a command.

        Args:
            command: Command line.
            environment: All of its environment.
            log: Existing file, to which its output is appended.
            otherwise: Starts it without a fork server.

        Raises:
            OSError: It can't be started.
        """
        # Elsewhere than on Linux, forks of what has imported so much are not safe.
        if sys.platform != "linux" or list(command[:3]) != [sys.executable, "-m", "lit_extract"]:
            return otherwise()
        with suppress(OSError):
            if self._line is None or self._process is None:
                self._line, self._process = _open()
            if self._line.is_open:
                asked = {"arguments": list(command[3:]), "environment": dict(environment), "log": str(log.absolute())}
                self._line.say(asked)
                return Forked(self._line, self._process, otherwise)
        return otherwise()


def _open() -> tuple[Line, "subprocess.Popen[bytes]"]:
    """A new server, and the line to it."""
    ours, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_extract"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, VARIABLE: str(its.fileno()), "PYTHONUNBUFFERED": "1"},
            pass_fds=[its.fileno()],
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    return Line(ours), process
