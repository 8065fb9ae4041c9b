"""How a sweep is shown: a live table in a terminal, plain lines in a log."""

import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from lit_extract.sweep.turns import ALREADY_DONE, BAD_ROWS, DONE, FAILED, RUNNING, STOPPED, WAITING, Turn

SECONDS_BETWEEN_LINES = 30.0
REASONS_SHOWN = 3
_COLOURS = {DONE: "green", ALREADY_DONE: "green", BAD_ROWS: "yellow", FAILED: "red", STOPPED: "yellow", WAITING: "dim"}


class Display(Protocol):
    """What a sweep tells whoever looks."""

    def begin(self, turn: Turn) -> None:
        """A model begins."""

    def update(self, turn: Turn) -> None:
        """It is under way; called every now and then."""

    def end(self, turn: Turn) -> None:
        """It has ended, in whatever way."""

    def say(self, text: str) -> None:
        """Something else to know."""

    def close(self) -> None:
        """The sweep is over."""


def make_display(turns: Sequence[Turn]) -> Display:
    """A table in a terminal, else lines."""
    console = Console(highlight=False)
    return LiveTable(turns, console) if console.is_terminal and not console.is_dumb_terminal else Lines(turns)


class Lines:
    """A line when a model begins and ends, and now and then between."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.n_turns = len(turns)
        self.last_line = 0.0

    def begin(self, turn: Turn) -> None:
        """Say which."""
        self.last_line = time.monotonic()
        self._print(turn, "begins")

    def update(self, turn: Turn) -> None:
        """A line, if the last one was a while ago and there is something to say."""
        if turn.advance and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self._print(turn, ", ".join(filter(None, (rows(turn), rate(turn), f"{left(turn)} left"))))

    def end(self, turn: Turn) -> None:
        """Say how it ended."""
        reason = f": {turn.reason.splitlines()[0]}" if turn.reason else ""
        self._print(turn, ", ".join(filter(None, (turn.state, rows(turn), f"{clock(turn.seconds)}{reason}"))))

    def say(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)

    def close(self) -> None:
        """Nothing to clear away."""

    def _print(self, turn: Turn, text: str) -> None:
        print(f"[{turn.number} of {self.n_turns}] {turn.model}: {text}", flush=True)


class LiveTable:
    """All models in a table that is drawn again and again, and stays when the sweep is over."""

    def __init__(self, turns: Sequence[Turn], console: Console) -> None:
        self.turns, self.console = turns, console
        self.said: list[str] = []
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.live.start()

    def begin(self, turn: Turn) -> None:
        """Draw."""
        self._draw()

    def update(self, turn: Turn) -> None:
        """Draw."""
        self._draw()

    def end(self, turn: Turn) -> None:
        """Draw."""
        self._draw()

    def say(self, text: str) -> None:
        """Below the table, as long as it lives."""
        self.said.append(text)
        self._draw()

    def close(self) -> None:
        """Leave the whole table, and what was said."""
        self.live.stop()
        self.console.print(table(self.turns))
        for text in self.said:
            self.console.print(Text(text))

    def _draw(self) -> None:
        reasons = [f"{turn.model}: {turn.reason}" for turn in self.turns if turn.reason][-REASONS_SHOWN:]
        below = [Text(line.splitlines()[0], no_wrap=True, overflow="ellipsis") for line in (*reasons, *self.said)]
        shown = window(self.turns, max(3, self.console.height - 4 - len(below)))
        if hidden := len(self.turns) - len(shown):
            below.insert(0, Text(f"… and {hidden} more", style="dim"))
        self.live.update(Group(table(shown), *below), refresh=True)


def window(turns: Sequence[Turn], fitting: int) -> Sequence[Turn]:
    """As many turns as fit, with those that ended last, the one that is running, and those that come next."""
    current = next((place for place, turn in enumerate(turns) if turn.state in (RUNNING, WAITING)), len(turns))
    first = max(0, min(current - fitting // 2, len(turns) - fitting))
    return turns[first : first + fitting]


def table(turns: Sequence[Turn]) -> Table:
    """A line a model."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "model", "state", "rows", "rate", "left", "took"):
        drawn.add_column(name, justify="left" if name in ("model", "state") else "right", no_wrap=True)
    for turn in turns:
        speed = (rate(turn), left(turn)) if turn.state == RUNNING else ("", "")
        took = "" if turn.state == WAITING else clock(turn.seconds)
        drawn.add_row(
            *(str(turn.number), Text(turn.model), Text(state(turn), style=_COLOURS.get(turn.state, ""))),
            *(rows(turn), *speed, took),
        )
    return drawn


def state(turn: Turn) -> str:
    """The state, and of a running model what it is about."""
    if turn.state != RUNNING:
        return turn.state
    if turn.advance is None:
        return "starting"
    return "finalizing" if turn.advance.rows_done == turn.advance.rows else turn.state


def rows(turn: Turn) -> str:
    """Rows done of all, once that is known."""
    return f"{turn.advance.rows_done} of {turn.advance.rows} {turn.advance.unit}" if turn.advance else ""


def rate(turn: Turn) -> str:
    """Rows a second."""
    return f"{turn.advance.rate:.1f}/s" if turn.advance else ""


def left(turn: Turn) -> str:
    """Time until all rows are done."""
    return clock(turn.advance.seconds_left) if turn.advance else ""


def clock(seconds: float) -> str:
    """1:02:03."""
    return str(tqdm.format_interval(round(seconds)))
