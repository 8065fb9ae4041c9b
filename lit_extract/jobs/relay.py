"""How far a run is, for the sweep that started it: a small file that the run writes over and the sweep reads."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import Count, Text, read_regular, validate_json

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

    unit: Text
    rows: Count
    rows_done: Count
    rate: float
    seconds_left: float


def tell(advance: Advance) -> None:
    """Write it down, when a sweep has asked for it."""
    if path := os.environ.get(VARIABLE):
        with suppress(OSError):  # a full disk is no reason to stop the run
            Path(path).write_text(json.dumps(asdict(advance)), encoding="utf-8")


def heard(path: Path) -> Advance | None:
    """What a run has last told; None when that is nothing yet, half written just now, or something else."""
    try:
        return validate_json(_ADVANCE, read_regular(path, _MAX_BYTES), "progress")
    except (OSError, InputError):
        return None


_ADVANCE: TypeAdapter[Advance] = TypeAdapter(Advance)
_MAX_BYTES = 10_000
