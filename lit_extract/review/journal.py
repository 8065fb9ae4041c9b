"""The decisions on disk as they are made: a JSON line each, in a file beside the review file.

The first line says of which captions; an entry has the keys of :class:`Entry`; a line with ``file`` has the SHA-256
of the review file as it was written here, or read, when ``revision`` was the last entry. So a review file that another
program has written is told from one that only lags behind.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, final

from pydantic import AfterValidator, Discriminator, Field, Tag, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from lit_extract.captioning.parts import without_nul
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import Count, read_regular, validate_json
from lit_extract.review.rows import DECISIONS, Entry

JOURNAL_FORMAT = 1
MAX_JOURNAL_BYTES = 128 * 2**20  # 73,000 captions, edited three times each
MAX_LINE_VALUES = 100_000  # of an entry, which has eleven; its texts may have commas as well


class _Header(TypedDict):
    format: Literal[1]  # JOURNAL_FORMAT
    captions_sha256: str


@final
class _File(TypedDict):
    file: Annotated[str, Field(max_length=64)]
    revision: Count


Words = Annotated[str, AfterValidator(without_nul)]


@final
class _Entry(TypedDict):
    """As :class:`Entry`."""

    revision: Count
    row: Count
    stimulus: Words
    action: Literal["accept", "edit", "undo", "elsewhere", "clash"]
    old: Words
    new: Words
    was: Literal["open", "accepted", "edited"]
    status: Literal["open", "accepted", "edited"]
    time: Words
    undoes: NotRequired[Count]
    theirs: NotRequired[Words]


def _kind(line: object) -> str:
    return "file" if isinstance(line, dict) and "file" in line else "entry"


_HEADER = TypeAdapter(_Header)
_LINE: TypeAdapter[_File | _Entry] = TypeAdapter(
    Annotated[Annotated[_File, Tag("file")] | Annotated[_Entry, Tag("entry")], Discriminator(_kind)]
)


class Content(NamedTuple):
    """What a journal holds.

    Args:
        entries: In their order.
        files: SHA-256 of the review file, and the last revision, each time it was written or taken in.
        n_bytes: Length of the whole lines; what is behind was torn off by a crash.
    """

    entries: list[Entry]
    files: list[tuple[str, int]]
    n_bytes: int

    def revision_of(self, sha256: str) -> int | None:
        """The last revision when a review file was known; None: another program wrote it."""
        return next((revision for known, revision in reversed(self.files) if known == sha256), None)


def journal_of(review: Path) -> Path:
    """Where the decisions about a review file are."""
    return review.with_suffix(".jsonl")


def read_journal(path: Path, captions: Sequence[str]) -> Content:
    """The journal; an empty one if there is none.

    Args:
        path: Where it is.
        captions: The captions that it must be about.

    Raises:
        InputError: It is about other captions, or damaged.
    """
    try:
        data = read_regular(path, MAX_JOURNAL_BYTES)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read: {error.strerror or one_line(error)}") from None
    n_bytes = data.rfind(b"\n") + 1
    lines = data[:n_bytes].split(b"\n")[:-1]
    entries: list[Entry] = []
    files: list[tuple[str, int]] = []
    standing: dict[int, list[int]] = {}  # revisions of decisions that can be undone, by row
    for number, line in enumerate(lines, start=1):
        what = f"{str(path)!r} is damaged in line {number}; restore it, or move it away with its review file"
        if number == 1:
            header = validate_json(_HEADER, line, what, MAX_LINE_VALUES)
            if header["captions_sha256"] != hash_captions(captions):
                raise InputError(
                    f"{str(path)!r} has decisions about other captions; move it away, with its review file, to start "
                    "from scratch"
                )
            continue
        content = validate_json(_LINE, line, what, MAX_LINE_VALUES)
        if "file" in content:
            follows = content["revision"] <= len(entries)  # some may have come while the file was written
            files.append((content["file"], content["revision"]))
        else:
            follows = content["revision"] == len(entries) + 1 and _may_follow(content, standing, len(captions))
            entries.append(Entry(**content))
        if not follows:
            raise InputError(f"{what}: it does not follow from the lines before it")
    return Content(entries, files, n_bytes)


def _may_follow(content: _Entry, standing: dict[int, list[int]], n_rows: int) -> bool:
    """Return whether an entry may come after those that led to the standing decisions, which are brought up to date."""
    row, action, undoes = content["row"], content["action"], content.get("undoes")
    if row >= n_rows or (undoes is not None) != (action == "undo"):
        return False
    if action in DECISIONS:
        standing.setdefault(row, []).append(content["revision"])
    elif undoes is None:
        standing.pop(row, None)  # they were about another text
    elif standing.get(row, [])[-1:] != [undoes]:
        return False
    else:
        standing[row].pop()
    return True


class Journal:
    """A journal that grows. One process at a time: hold the lock of the review file.

    Args:
        path: Where it is, or will be.
        captions: The captions that it is about.

    Raises:
        InputError: It is about other captions, damaged, or can't be written.
    """

    def __init__(self, path: Path, captions: Sequence[str]) -> None:
        self.path = path
        content = read_journal(path, captions)
        self._n_bytes = content.n_bytes
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, self._n_bytes)
            if not self._n_bytes:
                self._append([{"format": JOURNAL_FORMAT, "captions_sha256": hash_captions(captions)}])
                _sync_folder(path.parent)
        except OSError as error:
            raise InputError(f"can't write {str(path)!r}: {one_line(error)}") from None

    def append(self, entries: Iterable[Entry]) -> None:
        """Put entries on disk; they are there when this returns.

        Raises:
            OSError: They can't be written, and none is there.
        """
        self._append([{k: v for k, v in entry._asdict().items() if v is not None} for entry in entries])

    def note(self, sha256: str, revision: int) -> None:
        """Put on disk which review file belongs to a revision; before it is there, if it is written here."""
        self._append([{"file": sha256, "revision": revision}])

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        data = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()
        try:
            place = self._n_bytes
            while place < self._n_bytes + len(data):
                place += os.pwrite(self._file, data[place - self._n_bytes :], place)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._n_bytes)  # half a line would make the next one unreadable
            raise
        self._n_bytes = place


def hash_captions(captions: Iterable[str]) -> str:
    """What tells captions from others: their texts, in their order."""
    return hashlib.sha256("".join(f"{caption}\0" for caption in captions).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Else a file that was just made may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
