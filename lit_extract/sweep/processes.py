"""The processes of a sweep, one a model: what they print goes to a log, and the next one gets ready while one runs."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from lit_extract import gate, relay
from lit_extract.layout import safe_name
from lit_extract.sweep.turns import Turn


class Processes:
    """A process a model, with its log; that of the next one gets as far as its imports while one runs.

    Args:
        logs: Folder of the logs.
        relays: Folder in which the runs tell how far they are.
    """

    def __init__(self, logs: Path, relays: Path) -> None:
        self.logs, self.relays = logs, relays
        self._ready: tuple[Turn, subprocess.Popen[bytes], int] | None = None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        if self._ready is not None:
            turn, child, opener = self._ready
            child.kill()  # it has imported, and written nothing
            child.wait()
            os.close(opener)
            assert turn.log is not None
            turn.log.unlink(missing_ok=True)

    def relay(self, turn: Turn) -> Path:
        """Where a run tells how far it is."""
        return self.relays / f"{turn.number}.json"

    def begin(self, turn: Turn) -> subprocess.Popen[bytes]:
        """The process of a model whose turn it is.

        Raises:
            OSError: It can't be started, or its log can't be written.
        """
        if self._ready is not None and self._ready[0] is turn:
            _, child, opener = self._ready
            self._ready = None
        else:
            child, opener = self._start(turn)
        with suppress(BrokenPipeError):  # it has ended already: its receipt said that it is done, or it failed
            os.write(opener, b"!")
        os.close(opener)
        return child

    def get_ready(self, turn: Turn) -> None:
        """Start the process of the model after this one; if it can't be, its own turn will say so."""
        with suppress(OSError):
            child, opener = self._start(turn)
            self._ready = turn, child, opener

    def _start(self, turn: Turn) -> tuple[subprocess.Popen[bytes], int]:
        """A process, and what opens its gate."""
        turn.log = self.logs / f"{turn.number:02d}-{safe_name(turn.model)}.log"
        entrance, opener = os.pipe()
        try:
            with turn.log.open("w", encoding="utf-8") as log:
                print(shlex.join(turn.command), file=log, flush=True)
                variables = {relay.VARIABLE: str(self.relay(turn)), gate.VARIABLE: str(entrance)}
                child = subprocess.Popen(
                    turn.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
                    pass_fds=[entrance],
                    start_new_session=True,
                    preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                )
        except OSError:
            os.close(opener)
            raise
        finally:
            os.close(entrance)
        return child, opener


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the sweep is gone: a killed one must not leave a model running unseen."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1
