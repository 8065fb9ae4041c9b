"""The state of a run, in a small file for a sweep: its progress, and its outcome at the end."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from lit_extract.common import exit_codes
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.files import replacing
from lit_extract.common.signals import Interrupted
from lit_extract.common.untrusted import Count, Text, read_regular, validate_json

VARIABLE = "LIT_EXTRACT_RUN_STATE"  # environment variable: the file to write
SWEEP = "LIT_EXTRACT_SWEEP"  # environment variable that marks the runs of a sweep

Ending = Literal["done", "already done", "bad rows", "failed", "stopped"]


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run; for ranks other than the first, finished shards count."""

    unit: Text  # of the rows, such as "images"
    rows: Count
    rows_done: Count  # by this run or an earlier one
    rate: float  # rows a second of this run
    seconds_left: float


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run."""

    state: Ending  # "bad rows": done, but with rows to inspect
    reason: Text  # of a failure, or what to inspect; for a stopped run, how much is done
    exit_code: int


@dataclass(frozen=True)
class RunState:
    """State of a run."""

    progress: RunProgress | None = None  # None before the first batch
    outcome: Outcome | None = None  # None while it runs, and when it was killed


def read_state(path: Path) -> RunState:
    """Return the state of a run; an empty one if nothing valid is written yet."""
    try:
        return validate_json(_STATE, read_regular(path, _MAX_BYTES), "state of a run")
    except (OSError, InputError):
        return RunState()


def record(**changes: Any) -> None:
    """Write the progress or the outcome of this run, if a sweep requests it."""
    if path := os.environ.get(VARIABLE):
        state = replace(read_state(Path(path)), **changes)
        with suppress(OSError), replacing(Path(path)) as partial:  # a full disk must not stop the run
            partial.write_text(json.dumps(asdict(state)), encoding="utf-8")


@contextmanager
def failures_recorded() -> Iterator[None]:
    """Record an outcome if the body is stopped or fails."""
    try:
        yield
    except Interrupted as stop:
        record(outcome=Outcome("stopped", stop.how_far, 128 + stop.number))
        raise
    except InputError as error:
        record(outcome=Outcome("failed", str(error), exit_codes.WRONG_INPUT))
        raise
    except Exception as error:
        record(outcome=Outcome("failed", f"{type(error).__name__}: {one_line(error)}", exit_codes.FAILED))
        raise


_STATE: TypeAdapter[RunState] = TypeAdapter(RunState)
_MAX_BYTES = 100_000
