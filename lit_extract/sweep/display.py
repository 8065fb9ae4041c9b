"""Show a sweep: a live table in a terminal, plain lines in a log."""

import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_extract.common.progress import clock
from lit_extract.sweep.runs import RUNNING, WAITING, ModelRun

SECONDS_BETWEEN_LINES = 30.0
_COLOURS = {"done": "green", "already done": "green", "failed": "red", "waiting": "dim", RUNNING: ""}


class Display:
    """Shows the runs of a sweep while the body runs.

    In a terminal, all models are in a table that is updated, and remains at the end. Otherwise, a line is printed when
    a model starts and ends, and now and then in between.
    """

    def __init__(self, runs: Sequence[ModelRun], console: Console | None = None) -> None:
        self.runs = runs
        self.console = console or Console(highlight=False)
        is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.live = Live(console=self.console, auto_refresh=False) if is_live else None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.update(table(self.runs))
            self.live.stop()

    def start(self, run: ModelRun) -> None:
        """Show that a run starts."""
        self._show(run, "starts")

    def update(self, run: ModelRun) -> None:
        """Show the progress of a run; to be called every now and then."""
        if self.live is not None:
            self._draw()
        elif run.progress is not None and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._show(run, ", ".join((rows(run), rate(run), f"{left(run)} left")))

    def end(self, run: ModelRun) -> None:
        """Show how a run ended."""
        reason = f": {run.reason}" if run.reason else ""
        text = ", ".join(filter(None, (run.state, rows(run), f"{clock(run.seconds)}{reason}")))
        self._show(run, text, stays=bool(reason))

    def note(self, text: str) -> None:
        """Show a message; in a terminal, above the table."""
        if self.live is not None:
            self.console.print(Text(text))
        else:
            print(text, flush=True)

    def _show(self, run: ModelRun, text: str, stays: bool = False) -> None:
        self._last_line = time.monotonic()
        if self.live is None or stays:
            self.note(f"[{run.number} of {len(self.runs)}] {run.model}: {text}")
        self._draw()

    def _draw(self) -> None:
        if self.live is None:
            return
        shown = window(self.runs, max(3, self.console.height - 4))
        hidden = len(self.runs) - len(shown)
        below = [Text(f"… and {hidden} more", style="dim")] if hidden else []
        self.live.update(Group(table(shown), *below), refresh=True)


def window(runs: Sequence[ModelRun], fitting: int) -> Sequence[ModelRun]:
    """Return as many runs as fit: the last ones that ended, the running one, and the next ones."""
    current = next((place for place, run in enumerate(runs) if run.state in (RUNNING, WAITING)), len(runs))
    first = max(0, min(current - fitting // 2, len(runs) - fitting))
    return runs[first : first + fitting]


def table(runs: Sequence[ModelRun]) -> Table:
    """Return a table with one line per model."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "model", "state", "rows", "rate", "left", "took"):
        drawn.add_column(name, justify="left" if name in ("model", "state") else "right", no_wrap=True)
    for run in runs:
        speed = (rate(run), left(run)) if run.state == RUNNING else ("", "")
        took = "" if run.state == WAITING else clock(run.seconds)
        coloured = Text(shown_state(run), style=_COLOURS.get(run.state, "yellow"))
        drawn.add_row(str(run.number), Text(run.model), coloured, rows(run), *speed, took)
    return drawn


def shown_state(run: ModelRun) -> str:
    """Return the state of a run; for a running model, what it is doing."""
    if run.state != RUNNING:
        return run.state
    if run.progress is None:
        return "starting"
    return "finalizing" if run.progress.rows_done == run.progress.rows else run.state


def rows(run: ModelRun) -> str:
    """Return the number of rows done and of all rows, once known."""
    return f"{run.progress.rows_done} of {run.progress.rows} {run.progress.unit}" if run.progress else ""


def rate(run: ModelRun) -> str:
    """Return the rows per second."""
    return f"{run.progress.rate:.1f}/s" if run.progress else ""


def left(run: ModelRun) -> str:
    """Return the time until all rows are done."""
    return clock(run.progress.seconds_left) if run.progress else ""
