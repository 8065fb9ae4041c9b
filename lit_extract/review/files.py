"""The review file, ``<captions>-review.csv``: all rows of the captions, with the checked text and its flags."""

from collections import Counter
from pathlib import Path

import pandas as pd

from lit_extract.captioning.output import read_captions
from lit_extract.common.errors import InputError, line_of, name_some
from lit_extract.review.database import Database, hash_texts

ENDING = "-review"
DECISION = "decision"  # column with the page's decision: accepted, edited, or empty
ADDED = ("original", "flag", DECISION)  # columns of a review file that captions do not have


def review_path(captions: Path) -> Path:
    """Return the path of the review file of a caption file."""
    return captions.with_name(f"{captions.stem}{ENDING}.csv")


def original_of(review: Path) -> Path:
    """Return the caption file that a review file was made from, which is next to it."""
    if review.stem.endswith(ENDING):
        stem = review.stem.removesuffix(ENDING)
        for candidate in (review.with_name(f"{stem}.csv"), review.with_name(f"{stem}.parquet")):
            if candidate.is_file():
                return candidate
    raise InputError(
        f"{str(review)!r}: its original captions are not next to it; pass them to check --accept as --original FILE"
    )


def read_originals(file: Path) -> pd.DataFrame:
    """Return the captions of a file that is not a review file."""
    captions = read_captions(file)
    if taken := [column for column in ADDED if column in captions.columns]:
        raise InputError(f"{str(file)!r} has a column {name_some(taken)}, as in a review file; accept it with --accept")
    return captions


def read_edited(file: Path, originals: pd.DataFrame) -> pd.DataFrame:
    """Return an edited file, which must have the same rows in the same order; only captions may differ."""
    edited = read_captions(file, check_ids=False)  # which must be those of the originals
    fixed = [column for column in originals.columns if column not in ("caption", "status")]
    if missing := [column for column in fixed if column not in edited.columns]:
        raise InputError(f"{str(file)!r} lost the column {name_some(missing)}")
    old, new = (_keys(table, fixed) for table in (originals, edited))
    if old == new:
        return edited
    lost, added = Counter(old) - Counter(new), Counter(new) - Counter(old)
    if not lost and not added:
        place = next(row for row, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        raise InputError(f"{str(file)!r} has its rows in another order, from {line_of(place)} on; sort them back")
    where = [f"{line_of(row)} ({', '.join(key[:2])})" for row, key in enumerate(old) if key in lost]
    if len(new) < len(old):
        raise InputError(f"{str(file)!r} lost {len(old) - len(new)} of {len(old)} rows: {name_some(where)}")
    if len(new) > len(old):
        raise InputError(
            f"{str(file)!r} has {len(new)} rows, but there were {len(old)}: {len(new) - len(old)} too many"
        )
    raise InputError(
        f"{str(file)!r} differs in columns besides caption, in {name_some(where)}; only captions may be edited"
    )


def _keys(table: pd.DataFrame, columns: list[str]) -> list[tuple[str, ...]]:
    """Return each row without its caption; spreadsheets may change blanks and line ends, and write 7 as 7.0."""
    texts = [[" ".join(text.split()).removesuffix(".0") for text in table[column]] for column in columns]
    return list(zip(*texts, strict=True))


def noted(edited: pd.DataFrame) -> list[str]:
    """Return the column ``decision`` of a review file; empty decisions if the page has not written it yet."""
    return edited[DECISION].tolist() if DECISION in edited else [""] * len(edited)


def check_unchanged(edited: pd.DataFrame, file: Path, database: Database) -> str:
    """Return the hash of a review file's state; raise InputError if the page neither started from nor wrote it."""
    state = hash_texts(edited["caption"].tolist(), noted(edited))
    if not database.knows(state):
        pairs = zip(edited["caption"], database.rows.texts, strict=True)
        differing = [line_of(row) for row, (theirs, ours) in enumerate(pairs) if theirs != ours]
        raise InputError(
            f"review: {str(file)!r} was changed by another program after the review started; it differs from the page "
            f"in {name_some(differing) or 'column decision'}. To keep the page's decisions, move this file away and "
            f"run lit-extract review; to keep this file, stop the page and move {database.path.name} away"
        )
    return state
