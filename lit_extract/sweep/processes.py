"""The processes of a sweep, one a model; what they print goes to a log."""

import os
import shlex
import subprocess
from pathlib import Path

from lit_extract import relay, signals
from lit_extract.layout import safe_name
from lit_extract.sweep.fork_server import Forked, ForkServer, end_with_parent
from lit_extract.sweep.turns import Turn

Child = subprocess.Popen[bytes] | Forked


class Processes:
    """Starts the process of a model.

    Args:
        logs: Folder of the logs.
        relays: Folder in which the runs tell how far they are.
        server: Forks those that have something to compute, or to look for.
    """

    def __init__(self, logs: Path, relays: Path, server: ForkServer) -> None:
        self.logs, self.relays, self.server = logs, relays, server
        self.has_finished_one = False

    def relay(self, turn: Turn) -> Path:
        """Where a run tells how far it is."""
        return self.relays / f"{turn.number}.json"

    def start(self, turn: Turn) -> Child:
        """The process of a model.

        Raises:
            OSError: It can't be started, or its log can't be written.
        """
        turn.log = self.logs / f"{turn.number:02d}-{safe_name(turn.model)}.log"
        environment = {**os.environ, relay.VARIABLE: str(self.relay(turn)), "PYTHONUNBUFFERED": "1"}
        environment |= {signals.PROGRESS: "1"} if self.has_finished_one else {}
        log = turn.log
        log.write_text(shlex.join(turn.command) + "\n", encoding="utf-8")

        def alone() -> "subprocess.Popen[bytes]":
            with log.open("ab") as out:
                return subprocess.Popen(
                    turn.command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )

        return self.server.start(turn.command, environment, log, alone)
