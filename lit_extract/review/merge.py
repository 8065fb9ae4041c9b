"""What a review file should say, out of what it says, its journal, and what another program may have done to it."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lit_extract.captioning.output import read_captions, sha256_of
from lit_extract.common.errors import InputError, name_some
from lit_extract.review.journal import Content
from lit_extract.review.rows import OPEN, Rows, changed_elsewhere


def replay(rows: Rows, content: Content, sha256: str) -> list[int]:
    """Let the entries of a journal happen, on the rows of a review file; which of them has another program changed?

    Args:
        rows: As they are in the file.
        content: The journal.
        sha256: Of the file.
    """
    in_file = list(rows.texts)
    for entry in content.entries:
        rows.apply(entry)
    if content.revision_of(sha256) is not None:
        return []
    before = rows.text_at(content.files[-1][1] if content.files else 0)
    known = [before.get(row, text) for row, text in enumerate(in_file)]
    return changed_elsewhere(known, rows.texts, in_file)


def decided_texts(
    content: Content, sha256: str, originals: Sequence[str], texts: Sequence[str], review: Path
) -> list[str]:
    """The captions of a review file with all decisions of its journal.

    Args:
        content: The journal.
        sha256: Of the file.
        originals: The captions that were checked.
        texts: The captions in the file.
        review: Where it is, for the error.

    Raises:
        InputError: Another program has changed rows about which something was decided on the page.
    """
    rows = Rows([""] * len(originals), originals, texts, [OPEN] * len(originals))
    changed = replay(rows, content, sha256)
    if clashes := sorted({*rows.theirs, *(row for row in changed if rows.statuses[row] != OPEN)}):
        named = name_some([f"row {row}" for row in clashes])
        raise InputError(
            f"{str(review)!r} was changed by another program in {named}, about which something else was decided on the "
            "page; open it with lit-extract review to say which it is"
        )
    for row in changed:
        rows.texts[row] = texts[row]
    return rows.texts


def read_whole(path: Path) -> tuple[str, pd.DataFrame]:
    """The SHA-256 of a caption file and its table, of the same moment though a page may be writing it.

    Raises:
        InputError: It can't be read.
    """
    while True:
        table_of, table = sha256_of(path), read_captions(path)
        if sha256_of(path) == table_of:
            return table_of, table
