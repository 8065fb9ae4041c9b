"""The sweep itself: a process a model, its log, and the signals that end it."""

import argparse
import glob
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lit_extract.commands.arguments import CONFIG_OPTIONS
from lit_extract.common import exit_codes
from lit_extract.common.errors import InputError
from lit_extract.common.imports import heavy_imports
from lit_extract.jobs.relay import heard
from lit_extract.modules.registry import own_name
from lit_extract.storage.layout import FEATURES_SUFFIX, safe_name
from lit_extract.sweep.display import Display, clock, make_display
from lit_extract.sweep.processes import Processes
from lit_extract.sweep.turns import (
    ALREADY_DONE,
    BAD_ROWS,
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Turn,
    last_given,
    plan_turns,
    read_configs,
)

SECONDS_BETWEEN_LOOKS = 0.25
LAST_LINES, LAST_BYTES = 5, 20_000
# How lines begin in which predict says why it has ended.
OURS = "lit-extract: "
ERROR, STOP = f"{OURS}error: ", f"{OURS}stopped"
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

_DESCRIPTION = """Run predict for every model of models.yml of the configs' kind (vision or language), one process each.
What is done is left alone, what was begun is gone on with, and a failure does not keep the others from running. All
options besides those below are predict's, and hold for every model: lit-extract sweep --config
configs/nsd/vision.yaml --config configs/trainer/a40.yaml --data.root /data/nsd --model.pool '[cls, avg]'. Exit code:
0 all are done; 1 some failed (the summary says why); 2 something to mend before anything runs; 3 all are done, but some
rows are not finite; 130 or 143 stopped by a signal: the same command goes on."""


def main(args: Sequence[str]) -> int:
    """Run ``lit-extract sweep`` with the given arguments; return the exit code.

    Raises:
        InputError: The settings are wrong; nothing was run.
    """
    own, options = _parser().parse_known_args(args)
    turns = plan_turns(own.config, options, own.models, own.match, own.untrained)
    if own.dry_run:
        print("\n".join(shlex.join(turn.command) for turn in turns))
        return exit_codes.DONE
    output_dir = last_given(options, "--output_dir") or read_configs(own.config).get("output_dir") or "features"
    logs = _make_log_folder(Path(own.log_dir or _log_dir(str(output_dir))))
    print(f"{len(turns)} models; what they say goes to {logs}", flush=True)
    display = make_display(turns)
    try:
        received = run_turns(turns, str(output_dir), logs, display)
    finally:
        display.close()
    print("\n".join(summary(turns, ["lit-extract", "sweep", *args] if received else [])), flush=True)
    return 128 + received if received else exit_code(turns)


def run_turns(turns: Sequence[Turn], output_dir: str, logs: Path, display: Display) -> int:
    """Run one after the other, until a signal ends it; return its number, or 0."""
    with tempfile.TemporaryDirectory(prefix="lit-extract-sweep-") as folder, _Signals() as signals:
        processes = Processes(logs, Path(folder))
        for turn in turns:
            if not is_done(turn, output_dir, processes, display) and not signals.received:
                run_turn(turn, processes, display, signals)
            if signals.received:
                break
        return signals.received


def is_done(turn: Turn, output_dir: str, processes: Processes, display: Display) -> bool:
    """Ask predict, in this process, whether a model is done; if it is, the turn has ended.

    One import serves all models, and a sweep that finds no features does without. Whatever is wrong is left to the
    model's own process, which says it in its log.
    """
    files = f"{glob.escape(safe_name(own_name(turn.model)))}_pool-*{FEATURES_SUFFIX}"
    if "://" not in output_dir and not any(Path(output_dir).rglob(files)):
        return False
    started = time.monotonic()
    with heavy_imports():
        from lit_extract.commands.predict import answer_if_done
    try:
        answer = answer_if_done(turn.command[turn.command.index("predict") + 1 :])
        if answer is None:
            return False
        processes.begin_log(turn, answer[0])
    except Exception:
        return False
    turn.state, turn.reason = outcome(answer[1], answer[0])
    turn.seconds = time.monotonic() - started
    display.end(turn)
    return True


def run_turn(turn: Turn, processes: Processes, display: Display, signals: "_Signals") -> None:
    """Run one model to its end."""
    turn.state, started = RUNNING, time.monotonic()
    display.begin(turn)
    try:
        child = processes.start(turn)
        relay = processes.relay(turn)
        with signals.hand_over(child):
            code: int | None = None
            while code is None:
                code = _wait(child)
                turn.seconds, turn.advance = time.monotonic() - started, heard(relay) or turn.advance
                display.update(turn)
                if signals.received and not signals.is_said and code is None:
                    signals.is_said = True
                    display.say(f"{_name(signals.received)}: waiting until {turn.model} has stopped")
        assert turn.log is not None
        turn.state, turn.reason = outcome(code, last_lines(turn.log), bool(signals.received))
        processes.has_finished_one |= turn.state in (DONE, BAD_ROWS)
    except OSError as error:  # a full disk, say; perhaps others fare better
        turn.state, turn.reason = FAILED, f"can't run it: {error}"
    display.end(turn)


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return child.wait(SECONDS_BETWEEN_LOOKS)
    return None


def outcome(code: int, lines: Sequence[str], was_stopped: bool = False) -> tuple[str, str]:
    """State and reason of a run that has ended.

    Args:
        code: What its process returned; of one killed by a signal, minus its number.
        lines: The last lines that it printed.
        was_stopped: Whether the sweep has asked it to end.
    """
    if code == 0:
        return (ALREADY_DONE if any(line.startswith("already done: ") for line in lines) else DONE), ""
    if code == exit_codes.LOOK:
        said = [line.strip().removeprefix("warning: ") for line in lines if line.startswith("  warning: ")]
        return BAD_ROWS, "; ".join(said)
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    stops = [line.removeprefix(OURS).partition("; run the same")[0] for line in lines if line.startswith(STOP)]
    if was_stopped and not errors:
        return STOPPED, stops[-1].partition(": ")[2] if stops else ""
    if said := errors or stops:
        return FAILED, said[-1]
    number = -code if code < 0 else code - 128 if code > 128 else 0
    ended = f"ended by {_name(number)}" if number else f"exit code {code}"
    perhaps = ", perhaps for want of memory" if number == signal.SIGKILL else ""
    return FAILED, "\n".join([f"{ended}{perhaps}; its last lines:", *lines[-LAST_LINES:]])


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def last_lines(log: Path) -> list[str]:
    """The end of a log, without lines that are blank."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def summary(turns: Sequence[Turn], again: Sequence[str] = ()) -> list[str]:
    """How many are in which state, why some failed, and how to go on.

    Args:
        turns: All of the sweep.
        again: The command that goes on, when a signal ended the sweep.
    """
    counts = {state: sum(turn.state == state for turn in turns) for state in _SAID}
    said = ", ".join(f"{count} {_SAID[state]}" for state, count in counts.items() if count)
    lines = [f"{len(turns)} models: {said}, in {clock(sum(turn.seconds for turn in turns))}"]
    for turn in turns:
        if turn.reason:
            first, *others = turn.reason.splitlines()
            lines += [f"  {turn.model}: {turn.state}: {first}", *(f"    {line}" for line in others)]
            lines += [f"    all it said is in {turn.log}"] if others else []
    if again:
        lines.append(f"to go on: {shlex.join(again)}")
        if last_given(again, "--overwrite") is not None or "--overwrite" in again:
            lines.append("  without --overwrite, which would begin the finished models anew")
    return lines


_SAID = {
    DONE: "done",
    ALREADY_DONE: "already done",
    BAD_ROWS: "done with bad rows",
    FAILED: "failed",
    STOPPED: "stopped",
    WAITING: "not begun",
}


def exit_code(turns: Sequence[Turn]) -> int:
    """What a sweep that came to its end returns."""
    states = {turn.state for turn in turns}
    return exit_codes.FAILED if FAILED in states else exit_codes.LOOK if BAD_ROWS in states else exit_codes.DONE


class _Signals:
    """Hands each signal that would end the sweep to the model that is running, once, and remembers the first.

    Children have a session of their own, so that the Ctrl-C of a terminal does not reach them a second time: then they
    would stop at once, instead of finishing what they have in hand.
    """

    def __init__(self) -> None:
        self.received, self.is_said = 0, False
        self._child: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def hand_over(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """While it lives, the child gets the signals."""
        self._child = child
        while self._pending:  # they came while it was started
            child.send_signal(self._pending.pop())
        yield
        self._child = None

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number
        number = signal.SIGTERM if number == signal.SIGHUP else number  # the terminal is gone; predict knows the others
        if self._child is None:
            self._pending = [number]
        else:
            self._child.send_signal(number)


def _log_dir(output_dir: str) -> str:
    """Beside the features, unless these go where no log can be appended."""
    return "logs" if "://" in output_dir else f"{output_dir}/logs"


def _make_log_folder(parent: Path) -> Path:
    """A folder for each sweep, so that none writes over another's logs."""
    folder = parent / f"{datetime.now():sweep-%Y%m%d-%H%M%S}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"can't write logs to {str(folder)!r}: {error.strerror}; choose another --log_dir") from None
    return folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("lit-extract sweep", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    what = "Settings of predict; may be given several times."
    add(*CONFIG_OPTIONS, dest="config", action="append", default=[], metavar="FILE", help=what)
    add("--models", metavar="FILE", help="The models.yml; default: ./models.yml, else the one shipped.")
    add("--match", metavar="PATTERN", help="Only models with this text in their name, or whose name fits '*clip*'.")
    flags = {
        "--untrained": "Random weights.",
        "--dry_run": "Print the commands, one a line, and run nothing: for GNU parallel or a SLURM array.",
    }
    for flag, meaning in flags.items():
        add(flag, nargs="?", type=_true_or_false, const=True, default=False, metavar="true", help=meaning)
    add("--log_dir", metavar="DIR", help="Where each model's output goes; default: logs/ in --output_dir.")
    return parser


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text == "true"
