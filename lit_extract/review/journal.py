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
from typing import Any, NamedTuple

from lit_extract.errors import InputError, one_line
from lit_extract.review.rows import Entry

JOURNAL_FORMAT = 1


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


def read_journal(path: Path, captions_sha256: str) -> Content:
    """The journal; an empty one if there is none.

    Args:
        path: Where it is.
        captions_sha256: The captions that it must be about, as :func:`hash_captions` gives it.

    Raises:
        InputError: It is about other captions, or damaged.
    """
    data = path.read_bytes() if path.exists() else b""
    n_bytes = data.rfind(b"\n") + 1
    lines = data[:n_bytes].split(b"\n")[:-1]
    entries: list[Entry] = []
    files: list[tuple[str, int]] = []
    for number, line in enumerate(lines):
        try:
            content = json.loads(line)
            if number == 0:
                _check_header(path, content, captions_sha256)
            elif "file" in content:
                files.append((content["file"], content["revision"]))
            else:
                entries.append(Entry(**content))
                assert entries[-1].revision == len(entries)
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{str(path)!r} is damaged in line {number + 1}: {one_line(error)}") from None
    return Content(entries, files, n_bytes)


def _check_header(path: Path, header: dict[str, Any], captions_sha256: str) -> None:
    if header["format"] != JOURNAL_FORMAT:
        raise InputError(f"{str(path)!r} has format {header['format']}; this version reads {JOURNAL_FORMAT}")
    if header["captions_sha256"] != captions_sha256:
        raise InputError(
            f"{str(path)!r} has decisions about other captions; move it away, with its review file, to begin anew"
        )


class Journal:
    """A journal that grows. One process at a time: hold the lock of the review file.

    Args:
        path: Where it is, or will be.
        captions_sha256: The captions that it is about.

    Raises:
        InputError: It is about other captions, damaged, or can't be written.
    """

    def __init__(self, path: Path, captions_sha256: str) -> None:
        self.path = path
        content = read_journal(path, captions_sha256)
        self._n_bytes = content.n_bytes
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, self._n_bytes)
            if not self._n_bytes:
                self._append([{"format": JOURNAL_FORMAT, "captions_sha256": captions_sha256}])
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
