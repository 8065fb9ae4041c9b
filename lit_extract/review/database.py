"""The decisions of a review on disk: an SQLite database next to the review file.

Its table ``decisions`` only grows; an undo is also a row. ``files`` has hashes of the captions under review, and of
each state of the review file that the page started from or wrote. So a file that only lacks the last decisions is not
taken for one that another program has changed.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter

from lit_extract.captioning.parts import without_nul
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import Count, open_own, validate
from lit_extract.review.rows import Action, Decision, Rows

APPLICATION_ID, FORMAT = 0x4C695276, 1
SCHEMA = (
    "CREATE TABLE decisions (revision INTEGER PRIMARY KEY, row INTEGER NOT NULL, action TEXT NOT NULL, text TEXT, "
    "time TEXT DEFAULT CURRENT_TIMESTAMP)",
    "CREATE TABLE files (name TEXT NOT NULL, sha256 TEXT NOT NULL)",
)
COLUMNS = ", ".join(Decision._fields)  # the column time is only for people
MAX_BYTES = 256 * 2**20  # 73,000 captions, edited five times each
MAX_DECISIONS = 1_000_000
SECONDS_FOR_LOCK = 10.0  # while another process saves a decision, or check --accept reads them
NAMES_ANOTHER_FILE = bytes.fromhex("d9d505f920a163d7")  # at the end of a rollback journal

_DECISION = TypeAdapter(tuple[Count, Count, Action, Annotated[str, AfterValidator(without_nul)] | None])


class Database:
    """The decisions about some captions, in a file that is created if it is missing. For one thread at a time.

    A writer must hold the lock of the review file.
    """

    def __init__(self, path: Path, captions: Sequence[str]) -> None:
        self._captions_sha256 = hash_texts(captions)
        self.path = path
        with self._readable():
            _check_file(path)
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rwc",
                uri=True,
                timeout=SECONDS_FOR_LOCK,
                isolation_level="IMMEDIATE",
                check_same_thread=False,
            )
            self._open()
            self.rows = self._read(captions)

    def start(self, states: Iterable[str], changed: Iterable[tuple[int, str]]) -> None:
        """Start a review from the rows already decided in the file, and hashes of states that the file may have."""
        decisions = [Decision(number, row, "start", text) for number, (row, text) in enumerate(changed, start=1)]
        with self._readable():
            self._commit(decisions, [("captions", self._captions_sha256), *(("review", state) for state in states)])
        self.started = True

    def append(self, decision: Decision) -> None:
        """Save a decision to disk, then apply it; after an OSError nothing has changed."""
        self._commit([decision], [])

    def note(self, state: str) -> None:
        """Save the hash of the state that the review file will have next."""
        if not self.knows(state):
            self._commit([], [("review", state)])

    def knows(self, state: str) -> bool:
        """Return whether this state of the review file is one that the page started from or wrote."""
        query = "SELECT count(*) FROM files WHERE name = 'review' AND sha256 = ?"
        return bool(_value(self._connection.execute(query, [state])))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _commit(self, decisions: Sequence[Decision], files: Sequence[tuple[str, str]]) -> None:
        try:
            with self._connection:
                self._connection.executemany("INSERT INTO files VALUES (?, ?)", files)
                self._connection.executemany(f"INSERT INTO decisions ({COLUMNS}) VALUES (?, ?, ?, ?)", decisions)
        except sqlite3.Error as error:
            raise OSError(f"{self.path.name} can't be written ({one_line(error)})") from None
        for decision in decisions:
            self.rows.apply(decision)

    def _open(self) -> None:
        """Create the tables, or check that exactly these exist: views and triggers would run."""
        execute = self._connection.execute
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = EXTRA"):
            execute(f"PRAGMA {setting}")
        if _value(execute("PRAGMA page_count")) == 0:
            marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}"
            self._connection.executescript(f"BEGIN IMMEDIATE; {'; '.join(SCHEMA)}; {marks}; COMMIT")
        if _value(execute("PRAGMA application_id")) != APPLICATION_ID:
            raise ValueError("it is not a database of lit-extract review")
        if (version := _value(execute("PRAGMA user_version"))) != FORMAT:
            raise ValueError(f"its format is {version}, but this version reads {FORMAT}")
        if execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall() != [(sql,) for sql in SCHEMA]:
            raise ValueError("its tables are not those of a review")
        if (found := _value(execute("PRAGMA quick_check(1)"))) != "ok":
            raise ValueError(f"it is damaged ({found})")
        execute("PRAGMA journal_mode = DELETE")  # also works on network disks

    def _read(self, captions: Sequence[str]) -> Rows:
        execute = self._connection.execute
        of = execute("SELECT sha256 FROM files WHERE name = 'captions' LIMIT 2").fetchall()
        if of not in ([], [(self._captions_sha256,)]):
            raise ValueError("they belong to other captions")
        if _value(execute("SELECT count(*) FROM decisions")) > MAX_DECISIONS:
            raise ValueError(f"it has more than {MAX_DECISIONS:,} decisions")
        rows = Rows(captions)
        for number, values in enumerate(execute(f"SELECT {COLUMNS} FROM decisions ORDER BY revision"), start=1):
            try:
                rows.apply(Decision(*validate(_DECISION, values, "values")))
            except ValueError as error:
                raise ValueError(f"decision {number} is damaged: {one_line(error)}") from None
        self.started = bool(of)
        return rows

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise InputError(f"review: {str(self.path)!r} can't be opened: {reason}") from None
        except (ValueError, sqlite3.Error) as error:
            raise InputError(
                f"review: the decisions in {str(self.path)!r} can't be read: {one_line(error)}; restore the file, or "
                "move it away to start from the review file as it is"
            ) from None


def _check_file(path: Path) -> None:
    """Raise if a file is not regular, or a journal names another file, which SQLite would delete."""
    for ending in ("", "-journal", "-wal"):
        with (
            suppress(FileNotFoundError),
            os.fdopen(open_own(path.with_name(path.name + ending), os.O_RDONLY), "rb") as file,
        ):
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(NAMES_ANOTHER_FILE)))
            if size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES:,} bytes, the most that are read")
            if file.read() == NAMES_ANOTHER_FILE:
                raise ValueError(f"its {ending} belongs to another database")


def _value(cursor: sqlite3.Cursor) -> Any:
    return cursor.fetchone()[0]


def database_path(review: Path) -> Path:
    """Return the path of the decisions about a review file."""
    return review.with_suffix(".sqlite")


def hash_texts(*columns: Sequence[str]) -> str:
    """Return a hash of columns of text."""
    return hashlib.sha256("".join(f"{text}\0" for column in columns for text in column).encode()).hexdigest()
