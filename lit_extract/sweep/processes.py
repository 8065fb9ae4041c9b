"""The processes of a sweep, one a model; what they print goes to a log."""

import os
import shlex
import subprocess
from pathlib import Path

from lit_extract import relay
from lit_extract.layout import safe_name
from lit_extract.sweep.nursery import Hatched, Nursery, end_with_parent
from lit_extract.sweep.turns import Turn

Child = subprocess.Popen[bytes] | Hatched


class Processes:
    """Starts the process of a model: out of a nursery, as soon as that is ready.

    Args:
        logs: Folder of the logs.
        relays: Folder in which the runs tell how far they are.
        nursery: Has the imports of all but the first behind it.
    """

    def __init__(self, logs: Path, relays: Path, nursery: Nursery) -> None:
        self.logs, self.relays, self.nursery = logs, relays, nursery

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
        with turn.log.open("w", encoding="utf-8") as log:
            print(shlex.join(turn.command), file=log, flush=True)
            if (hatched := self.nursery.start(turn.command, environment, turn.log)) is not None:
                return hatched
            return subprocess.Popen(
                turn.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
