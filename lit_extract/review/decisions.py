"""A review in progress, which a page shows and a person changes."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.common.errors import InputError
from lit_extract.modules.prompts import read_prompts
from lit_extract.review.check import write_review
from lit_extract.review.disk import ReviewOnDisk
from lit_extract.review.files import review_path
from lit_extract.review.flags import KINDS, SEPARATOR, Rules, flag_caption, flag_captions, rules_of_rows, use_full_stops
from lit_extract.review.rows import ACCEPTED, EDITED, OPEN

FLAGGED = "flagged"  # selects rows with any flag
LONGEST = 20_000  # characters of a caption


class Decisions:
    """The state of a review. Its methods may be called from several threads.

    The creator must hold the lock of the review file of ``file``; that file is written if it is missing.
    """

    def __init__(
        self, file: Path, captions: pd.DataFrame, id_column: str, rules: Rules, prompts: str | None = None
    ) -> None:
        self.path = review_path(file)
        known = read_prompts(prompts)
        if not self.path.exists():
            write_review(captions, flag_captions(captions, known, rules), self.path)
        self.disk = ReviewOnDisk(self.path, captions)
        self.rows, self._lock = self.disk.rows, self.disk.lock
        self.stimuli: list[str] = captions[id_column].tolist()
        self._rules = rules_of_rows(captions, known, rules)
        self._full_stops = use_full_stops(self.rows.originals, self._rules)
        first_flags = [[kind for kind in text.split(SEPARATOR) if kind] for text in self.disk.table["flag"]]
        self._first_flags = {row: kinds for row, kinds in enumerate(first_flags) if kinds}
        self._flags: dict[int, list[str]] = {}  # flags of captions that were changed since they were checked
        for row in self.rows.revisions:
            self._flag(row)

    # What a page shows

    def select(self, flag: str = "", status: str = "", search: str = "") -> list[int]:
        """Return matching rows, in order; "" matches all.

        ``flag`` is a flag that the caption has, or had when it was checked, or ``flagged`` for any flag. ``search`` is
        text in the caption, in the original or in the id; case is ignored.
        """
        wanted = search.strip().casefold()
        searched = self.rows.texts, self.rows.originals, self.stimuli
        with self._lock:
            flagged = self._flagged()
            return [
                row
                for row, now in enumerate(self.rows.statuses)
                if (not status or now == status)
                and (not flag or (row in flagged and (flag == FLAGGED or flag in flagged[row])))
                and (not wanted or any(wanted in texts[row].casefold() for texts in searched))
            ]

    def describe(self, row: int) -> dict[str, Any]:
        """Return everything that a page shows about a row."""
        rows = self.rows
        first_flags = self._first_flags.get(row, [])
        flags = self._flags.get(row, first_flags)
        return {
            "row": row,
            "id": self.stimuli[row],
            "text": rows.texts[row],
            "original": rows.originals[row],
            "status": rows.statuses[row],
            "flags": flags,
            "resolved": [flag for flag in first_flags if flag not in flags],
            "choices": list(self._rules[row].choices),
            "revision": rows.revisions.get(row, 0),
        }

    def progress(self) -> dict[str, Any]:
        """Return the progress: counts of rows, the decision that undo takes back, problems with the review file."""
        with self._lock:
            flagged, statuses, last = self._flagged(), self.rows.statuses, self.rows.last_decision
            counts, kinds = Counter(statuses), set(chain(*flagged.values()))
            left = [flags for row, flags in flagged.items() if statuses[row] == OPEN]
            left_of = Counter(chain(*left))
            return {
                "total": len(self.stimuli),
                "reviewed": counts[ACCEPTED] + counts[EDITED],
                "edited": counts[EDITED],
                "empty": self.rows.texts.count(""),
                "flagged": len(flagged),
                "flagged_left": len(left),
                "left": {kind: left_of[kind] for kind in [*KINDS, *sorted(kinds.difference(KINDS))] if kind in kinds},
                "undo": {"revision": last[0], "row": last[1], "id": self.stimuli[last[1]]} if last else None,
                "revision": self.rows.revision,
                "problem": self.disk.problem,
            }

    def find(self, stimulus: str) -> int | None:
        """Return the first row of a stimulus."""
        wanted = stimulus.strip()
        return next((row for row, found in enumerate(self.stimuli) if found.strip() == wanted), None)

    def changed_since(self, revision: int) -> list[int]:
        """Return the rows that were decided after a revision."""
        with self._lock:
            return sorted(row for row, changed in self.rows.revisions.items() if changed > revision)

    # What a person does

    def decide(self, row: int, text: str | None, seen: int) -> None:
        """Accept a caption (``text`` is None), or replace it; the decision is on disk when this returns.

        ``seen`` is the revision of the row that the person has seen. After an OSError nothing has changed.
        """
        with self._lock:
            now = self.rows.texts[row]
            text = now if text is None else _plain_line_ends(text).strip()
            if text == _plain_line_ends(now):
                text = now  # a page does not distinguish kinds of line ends
            if not text:
                raise InputError("A caption can't be empty; check --accept would refuse it.")
            if len(text) > LONGEST:
                raise InputError(f"A caption of {len(text)} characters is too long; at most {LONGEST} are allowed.")
            if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InputError("The text has characters that a CSV can't hold.")
            if decision := self.rows.decide(row, text, seen):
                self.disk.database.append(decision)
                self._flag(row)

    def undo(self, revision: int) -> int:
        """Take a decision back; return its row. After an OSError nothing has changed."""
        with self._lock:
            decision = self.rows.undo(revision)
            self.disk.database.append(decision)
            self._flag(decision.row)
            return decision.row

    def _flag(self, row: int) -> None:
        text = self.rows.texts[row]
        if text == self.rows.originals[row]:
            self._flags.pop(row, None)
        else:
            self._flags[row] = flag_caption(text, "", self._rules[row], self._full_stops)

    def _flagged(self) -> dict[int, list[str]]:
        """Return the rows with flags that their captions have or had; visiting all rows would be too slow."""
        now = {row: list({*flags, *self._first_flags.get(row, [])}) for row, flags in self._flags.items()}
        return {row: flags for row, flags in (self._first_flags | now).items() if flags}


def _plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
