"""A review on disk: the database with all decisions, and the review file, which is written from it."""

import threading
from pathlib import Path

import pandas as pd

from lit_extract.captioning.output import write_captions
from lit_extract.common.errors import InputError, line_of, name_some, one_line
from lit_extract.common.files import replacing
from lit_extract.review.database import Database, database_path, hash_texts
from lit_extract.review.files import DECISION, check_unchanged, noted, read_edited
from lit_extract.review.journal import journal_path, read_journal
from lit_extract.review.rows import ACCEPTED, OPEN


class ReviewOnDisk:
    """A review file with its database, made from ``captions``. The creator must hold the lock of the review file."""

    def __init__(self, path: Path, captions: pd.DataFrame) -> None:
        self.path, self._captions = path, captions
        self._stat = self._stat_now()
        self.table = self._read()  # the review file as last read
        self.database = Database(database_path(path), captions["caption"].tolist())
        self.rows = self.database.rows
        self.lock = threading.Lock()  # hold it while using rows or database, as several threads may call
        self.problem: str | None = None  # why the review file is not written
        self._writing = threading.Lock()
        journal = journal_path(path)
        if not self.database.started:
            self._start()
        if journal.exists():
            journal.rename(journal.with_name(f"{journal.name}.imported"))
        self._state: str | None = check_unchanged(self.table, path, self.database)

    def write(self) -> bool:
        """Bring the review file up to date; return whether that succeeded."""
        with self._writing:
            self._look()
            with self.lock:
                texts, decisions = list(self.rows.texts), ["" if s == OPEN else s for s in self.rows.statuses]
            state = hash_texts(texts, decisions)
            if self.problem or state == self._state:
                return self.problem is None
            try:
                with self.lock:
                    self.database.note(state)
                with replacing(self.path) as partial:
                    write_captions(self.table.assign(caption=texts, **{DECISION: decisions}), partial)
                    if self._stat_now() != self._stat:
                        raise OSError("another program is writing it")
            except OSError as error:
                self.problem = f"{self.path.name} can't be written ({one_line(error)}); no decision is lost"
                self._stat = (0, 0, 0)  # an impossible value, so the next call looks at the file and tries again
                return False
            self._state, self._stat = state, self._stat_now()
            return True

    def close(self) -> bool:
        """Write the review file for the last time; return whether it is up to date."""
        try:
            return self.write()
        finally:
            self.database.close()

    def _start(self) -> None:
        """Start from the decisions in the review file and in an earlier version's journal."""
        originals, texts, decisions = self.rows.originals, self.table["caption"].tolist(), noted(self.table)
        states = [hash_texts(originals, [""] * len(originals)), hash_texts(texts, decisions)]
        if journal_path(self.path).exists():
            for row, (text, status) in read_journal(self.path, originals).items():
                texts[row], decisions[row] = text, status
        changed = [
            (row, text)
            for row, (text, original) in enumerate(zip(texts, originals, strict=True))
            if text != original or (text and decisions[row] == ACCEPTED)
        ]
        self.database.start(states, changed)

    def _look(self) -> None:
        stat = self._stat_now()
        if stat == self._stat:
            return
        self._stat, self.problem = stat, None
        if stat is None:
            self._state = None  # the file was moved away: write it again
            return
        try:
            table = self._read()
            with self.lock:
                self._state = check_unchanged(table, self.path, self.database)
            self.table = table
        except InputError as error:
            self.problem = f"{error}. Decisions are still saved, but not to this file"

    def _read(self) -> pd.DataFrame:
        table = read_edited(self.path, self._captions)
        if missing := [column for column in ("original", "flag") if column not in table]:
            raise InputError(f"{str(self.path)!r} has no column {name_some(missing)}; is it a review file?")
        pairs = zip(table["original"], self._captions["caption"], strict=True)
        if other := [line_of(row) for row, (a, b) in enumerate(pairs) if a.split() != b.split()]:
            raise InputError(
                f"{str(self.path)!r} was made from other captions, which differ in {name_some(other)}; to start from "
                f"scratch, move it away, and {database_path(self.path).name}, if it exists"
            )
        return table

    def _stat_now(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
