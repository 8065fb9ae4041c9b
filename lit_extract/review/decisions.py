"""A review in progress: the captions, their review file, and the journal of what was decided.

A decision is on disk, in the journal, before it counts. The review file is written anew from time to time, beside and
renamed; when it is not what was last written here, another program has changed it, and it is read before it is written.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.captioning.output import sha256_of, write_captions
from lit_extract.captioning.prompts import read_prompts
from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.review.files import DECISION, check_same_rows, review_file, write_review
from lit_extract.review.flags import KINDS, SEPARATOR, Rules, check_row, rules_of_rows, use_full_stops
from lit_extract.review.journal import Journal, journal_of, read_journal
from lit_extract.review.merge import read_whole, replay
from lit_extract.review.rows import ACCEPTED, EDITED, OPEN, STATUSES, Entry, Rows, base_status, changed_elsewhere

FLAGGED = "flagged"  # a choice of rows: with any flag
CLASH = "clash"  # a choice of rows: changed by another program after a decision
LONGEST = 20_000  # characters of a caption
NO_TEXT = "A caption can't be empty: check --accept would refuse it."


class _ChangedMeanwhileError(Exception):
    """Another program wrote the review file while it was being written here."""


class Decisions:
    """All that is known of a review. Its methods may be called from several threads.

    Args:
        file: The captions, CSV or Parquet. Whoever makes this holds the lock of their review file, which is made if
            it is not there.
        captions: What is in it.
        id_column: Column of the stimulus ids.
        rules: What is asked of captions.
        prompts: YAML with prompts besides those that ship here.

    Raises:
        InputError: Files that can't be read or written, or don't belong together.
    """

    def __init__(
        self, file: Path, captions: pd.DataFrame, id_column: str, rules: Rules, prompts: str | None = None
    ) -> None:
        self.path = review_file(file)
        self._before = captions
        if made := not self.path.exists():
            write_review(self._before, self.path, rules, prompts)
        self._sha256, self._table = read_whole(self.path)
        check_same_rows(self._before, self._table, self.path)
        originals = self._before["caption"].tolist()
        self._check_originals(originals, file)
        self._rules = rules_of_rows(self._before, read_prompts(prompts), rules)
        self._full_stops = use_full_stops(originals, self._rules)
        self._file_flags = [_split(text) for text in self._table["flag"]]
        self._flags_now: dict[int, list[str]] = {}
        self._counts: Counter[str] = Counter()  # rows of each status, and with each flag
        self._left: Counter[str] = Counter()  # open rows with each flag

        content = read_journal(journal_of(self.path), originals)
        self._journal = Journal(journal_of(self.path), originals)
        if made or not content.files:
            self._journal.note(self._sha256, 0)
            content.files.append((self._sha256, 0))
        texts = self._table["caption"].tolist()
        noted = self._table[DECISION] if DECISION in self._table else [""] * len(texts)
        statuses = list(map(base_status, texts, originals, noted))
        self.rows = Rows(self._before[id_column].tolist(), originals, texts, statuses)
        changed = replay(self.rows, content, self._sha256)
        for row in range(len(texts)):
            self._look_again(row)
        self._known, self._stat = texts, self._file_stat()
        self.problem: str | None = None
        self._lock, self._writing = threading.Lock(), threading.RLock()
        if content.revision_of(self._sha256) is None:
            self._take(changed, texts)
        up_to_date = texts == self.rows.texts and list(noted) == _noted(self.rows.statuses)
        self._written = self.rows.revision if up_to_date or not self.rows.entries else None

    # What a page asks

    def select(self, flag: str = "", status: str = "", search: str = "") -> list[int]:
        """Rows, in their order.

        Args:
            flag: A kind of flag, which the caption has now or had when it was checked; ``flagged``: any; "": all rows.
            status: ``open``, ``accepted``, ``edited`` or ``clash``; "": any.
            search: Text in the caption, in the original or in the id, in small or capital letters.
        """
        wanted = search.strip().casefold()
        rows = self.rows
        with self._lock:
            return [
                row
                for row in range(len(rows))
                if (not status or (row in rows.theirs if status == CLASH else rows.statuses[row] == status))
                and (not flag or flag in (flags := self._all_flags(row)) or (flag == FLAGGED and flags))
                and (not wanted or self._has(row, wanted))
            ]

    def describe(self, row: int) -> dict[str, Any]:
        """All that a page shows of a row."""
        rows = self.rows
        text, original, flags = rows.texts[row], rows.originals[row], self._flags(row)
        return {
            "row": row,
            "id": rows.stimuli[row],
            "text": text,
            "original": original,
            "status": rows.statuses[row],
            "flags": flags,
            "resolved": [flag for flag in self._file_flags[row] if flag not in flags],
            "choices": list(self._rules[row].choices),
            "theirs": rows.theirs.get(row),
            "revision": rows.revisions.get(row, 0),
        }

    def progress(self) -> dict[str, Any]:
        """How far the review is: counts of rows, what undo takes back, and what is wrong with the review file."""
        with self._lock:
            counts, last = self._counts, self.rows.last_decision
            return {
                "total": len(self.rows),
                "reviewed": counts[ACCEPTED] + counts[EDITED],
                "edited": counts[EDITED],
                "clashes": len(self.rows.theirs),
                "empty": counts["no text"],
                "flagged": counts[FLAGGED],
                "flagged_left": self._left[FLAGGED],
                "left": {kind: self._left[kind] for kind in self._kinds()},
                "undo": {"revision": last.revision, "row": last.row, "id": last.stimulus} if last else None,
                "revision": self.rows.revision,
                "problem": self.problem,
            }

    def find(self, stimulus: str) -> int | None:
        """The first row of a stimulus."""
        wanted = stimulus.strip()
        return next((row for row, found in enumerate(self.rows.stimuli) if found.strip() == wanted), None)

    def changed_since(self, revision: int) -> list[int]:
        """Rows with entries behind a revision."""
        return sorted({entry.row for entry in self.rows.entries[max(0, revision) :]})

    # What a person does

    def decide(self, row: int, text: str | None, seen: int) -> None:
        """Accept a caption, or put another in its place; it is on disk when this returns.

        Args:
            row: Which.
            text: The caption; None: as it is.
            seen: Revision of the row that the person has seen.

        Raises:
            ConflictError: The row has changed since.
            InputError: The text can't be a caption.
            OSError: The journal can't be written, and nothing has happened.
        """
        with self._lock:
            now = self.rows.texts[row]
            text = now if text is None else clean(text)
            if text == _plain_line_ends(now):
                text = now  # a page shows all line ends alike
            if not text:
                raise InputError(NO_TEXT)
            entry = self.rows.decide(row, text, seen)
            self._commit([entry] if entry else [])

    def undo(self, revision: int) -> int:
        """Take a decision back; the row that it was about.

        Args:
            revision: Of the decision.

        Raises:
            ConflictError: There is a later one about its row, or it is taken back already.
            OSError: The journal can't be written, and nothing has happened.
        """
        with self._lock:
            entry = self.rows.undo(revision)
            self._commit([entry])
            return entry.row

    def keep(self) -> None:
        """Let all decisions stand that another program has changed in the review file."""
        with self._lock:
            for row in list(self.rows.theirs):
                if self.rows.texts[row]:
                    entry = self.rows.decide(row, None, self.rows.revisions[row])
                    self._commit([entry] if entry else [])

    # The review file

    def look(self) -> None:
        """Take in what another program has done to the review file, unless it is being written right now."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            self._take_in()
        finally:
            self._writing.release()

    def write(self) -> bool:
        """Bring the review file up to date; whether it is."""
        with self._writing:
            while True:
                self._take_in()
                with self._lock:
                    revision, texts, statuses = self.rows.revision, list(self.rows.texts), list(self.rows.statuses)
                if self.problem or revision == self._written:
                    return self.problem is None
                self._table["caption"] = texts
                self._table[DECISION] = _noted(statuses)
                try:
                    write_captions(self._table, self.path, partial(self._note, revision))
                except _ChangedMeanwhileError:
                    continue
                except OSError as error:
                    self.problem = (
                        f"{self.path.name} can't be written ({one_line(error)}); decisions are in the journal"
                    )
                    self._stat = None
                    return False
                self._known, self._stat, self._written = texts, self._file_stat(), revision

    def close(self) -> bool:
        """Write the review file for the last time; whether all is in it."""
        done = self.write()
        self._journal.close()
        return done

    def _note(self, revision: int, file: Path) -> None:
        if self._file_stat() != self._stat:
            raise _ChangedMeanwhileError
        self._sha256 = sha256_of(file)
        with self._lock:
            self._journal.note(self._sha256, revision)

    def _take_in(self) -> None:
        stat = self._file_stat()
        if stat == self._stat:
            return
        self._stat, self.problem = stat, None
        if stat is None:
            self._written = None  # it was moved away: write it anew
            return
        try:
            sha256, table = read_whole(self.path)
            if sha256 == self._sha256:
                return
            check_same_rows(self._before, table, self.path)
        except InputError as error:
            self.problem = f"{error}. Nothing is written to it until that is mended, or the file moved away"
            return
        theirs = table["caption"].tolist()
        with self._lock:
            self._sha256 = sha256
            self._take(changed_elsewhere(self._known, self.rows.texts, theirs), theirs)
        self._table, self._known, self._written = table, theirs, None

    def _take(self, changed: list[int], theirs: list[str]) -> None:
        self._commit([self.rows.change_elsewhere(row, theirs[row]) for row in changed])
        self._journal.note(self._sha256, self.rows.revision)

    def _file_stat(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _check_originals(self, originals: Sequence[str], file: Path) -> None:
        if missing := [column for column in ("original", "flag") if column not in self._table]:
            raise InputError(f"{str(self.path)!r} has no column {name_some(missing)}; is it a review file?")
        pairs = zip(self._table["original"], originals, strict=True)
        if other := [f"row {row}" for row, (a, b) in enumerate(pairs) if a.split() != b.split()]:
            raise InputError(
                f"{str(file)!r} has other captions than {self.path.name} was made of, in {name_some(other)}; to "
                "begin anew, move the review file away, and its journal, if it has one"
            )

    # Flags and counts, kept up to date row by row

    def _commit(self, entries: list[Entry]) -> None:
        if not entries:
            return
        entries = [entry._replace(revision=self.rows.revision + 1 + place) for place, entry in enumerate(entries)]
        self._journal.append(entries)
        for entry in entries:
            self._count(entry.row, -1)
            self.rows.apply(entry)
            self._look_again(entry.row)

    def _look_again(self, row: int) -> None:
        text = self.rows.texts[row]
        if text == self.rows.originals[row]:
            self._flags_now.pop(row, None)
        else:
            self._flags_now[row] = check_row(text, "", self._rules[row], self._full_stops)
        self._count(row, 1)

    def _count(self, row: int, by: int) -> None:
        status, flags = self.rows.statuses[row], self._all_flags(row)
        self._counts[status] += by
        self._counts["no text"] += by * (not self.rows.texts[row])
        for kind in [FLAGGED, *flags] if flags else []:
            self._counts[kind] += by
            self._left[kind] += by * (status == OPEN)

    def _kinds(self) -> list[str]:
        known = [kind for kind in KINDS if self._counts[kind]]
        others = set(self._counts).difference(KINDS, STATUSES, (FLAGGED, "no text"))
        return known + sorted(kind for kind in others if self._counts[kind])

    def _flags(self, row: int) -> list[str]:
        return self._flags_now.get(row, self._file_flags[row])

    def _all_flags(self, row: int) -> list[str]:
        now = self._flags_now.get(row)
        return self._file_flags[row] if now is None else list(dict.fromkeys([*self._file_flags[row], *now]))

    def _has(self, row: int, wanted: str) -> bool:
        rows = self.rows
        return any(wanted in text.casefold() for text in (rows.texts[row], rows.originals[row], rows.stimuli[row]))


def clean(text: str) -> str:
    """A text as it will be read again out of the review file.

    Raises:
        InputError: It is empty, too long, or has characters that a CSV can't hold.
    """
    text = _plain_line_ends(text).strip()
    if not text:
        raise InputError(NO_TEXT)
    if len(text) > LONGEST:
        raise InputError(f"A caption of {len(text)} characters is too long; {LONGEST} are allowed.")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError("The text has characters that a CSV can't hold.")
    return text


def _noted(statuses: Sequence[str]) -> list[str]:
    """The column ``decision`` of a review file."""
    return ["" if status == OPEN else status for status in statuses]


def _plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _split(flags: str) -> list[str]:
    return [flag for flag in flags.split(SEPARATOR) if flag]
