"""How far a run is, for the sweep that started it: a small file that the run writes over and the sweep reads."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "LIT_EXTRACT_PROGRESS_FILE"


@dataclass(frozen=True)
class Advance:
    """How far a run is.

    Args:
        unit: What the rows are, such as "images".
        rows: All rows of the job.
        rows_done: Those that are done, by this run or an earlier one; of several ranks rank zero's share is taken for
            everyone's.
        rate: Rows a second of this run.
        seconds_left: Until all are done.
    """

    unit: str
    rows: int
    rows_done: int
    rate: float
    seconds_left: float


def tell(advance: Advance) -> None:
    """Write it down, when a sweep has asked for it."""
    if path := os.environ.get(VARIABLE):
        with suppress(OSError):  # a full disk is no reason to stop the run
            Path(path).write_text(json.dumps(asdict(advance)), encoding="utf-8")


def heard(path: Path) -> Advance | None:
    """What a run has last told; None when that is nothing yet, or half written just now."""
    try:
        return Advance(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
