"""The base of jobs that make features or captions."""

import platform
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import lightning

from lit_extract import __version__
from lit_extract.common.errors import InputError, name_some
from lit_extract.common.signals import Interrupted
from lit_extract.data.base import StimulusDataModule
from lit_extract.datasets.table import ID_MEANING


class Job(ABC):
    """One model on one dataset, connected to each other; the provenance determines the output."""

    def __init__(self, data: StimulusDataModule, provenance: dict[str, Any]) -> None:
        self.data, self.provenance = data, provenance
        self.stimulus_ids = data.stimuli["stimulus_id"].tolist()
        self.done_at_start: int | None = None  # in the unit of count_done(); None: not known yet

    @abstractmethod
    def count_done(self) -> tuple[int, int, str]:
        """Return the number of finished items, of all items, and their unit."""

    @contextmanager
    def reporting_how_far(self) -> Iterator[None]:
        """Let an interruption report how much is done."""
        try:
            yield
        except Interrupted as stop:
            with suppress(InputError):
                done, of, what = self.count_done()
                stop.how_far = f"{done} of {of} {what} are done"
                stop.is_stuck = self.done_at_start is None or done <= self.done_at_start
            raise

    def refuse_changed(self, rows: list[int], output: object) -> None:
        """Raise InputError if the stimuli of any ``rows`` have changed since an output was written."""
        if rows:
            named = name_some([str(self.stimulus_ids[row]) for row in rows])
            raise InputError(
                f"stimuli have changed since {str(output)!r} was written: {named}. Restore the files, or pass "
                "--overwrite to compute all from scratch"
            )

    def notes(self) -> dict[str, Any]:
        """Return notes on an output besides its provenance."""
        return {
            "stimulus_id_meaning": self.data.stimuli.attrs[ID_MEANING],
            "lit_extract": __version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
