"""The processes of a sweep, one a model; what they print goes to a log."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_extract.common import signals
from lit_extract.jobs import relay
from lit_extract.storage.layout import safe_name
from lit_extract.sweep.turns import Turn

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent is gone: a killed sweep must not leave a model running unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    """Starts the process of a model.

    Args:
        logs: Folder of the logs.
        relays: Folder in which the runs tell how far they are.
    """

    def __init__(self, logs: Path, relays: Path) -> None:
        self.logs, self.relays = logs, relays
        self.has_finished_one = False

    def relay(self, turn: Turn) -> Path:
        """Return the file in which a run tells how far it is."""
        return self.relays / f"{turn.number}.json"

    def begin_log(self, turn: Turn, lines: Sequence[str] = ()) -> Path:
        """Begin the log of a model with its command, and return it.

        Raises:
            OSError: It can't be written.
        """
        turn.log = self.logs / f"{turn.number:02d}-{safe_name(turn.model)}.log"
        turn.log.write_text("".join(f"{line}\n" for line in (shlex.join(turn.command), *lines)), encoding="utf-8")
        return turn.log

    def start(self, turn: Turn) -> "subprocess.Popen[bytes]":
        """Start the process of a model.

        Raises:
            OSError: It can't be started, or its log can't be written.
        """
        environment = {**os.environ, relay.VARIABLE: str(self.relay(turn)), "PYTHONUNBUFFERED": "1"}
        environment |= {signals.PROGRESS: "1"} if self.has_finished_one else {}
        with self.begin_log(turn).open("ab") as out:
            return subprocess.Popen(
                turn.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
