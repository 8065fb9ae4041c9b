"""``lit-extract check``: flag captions, and write them for a person to look at."""

from collections import Counter
from pathlib import Path

import pandas as pd

from lit_extract.captioning.output import write_captions
from lit_extract.common.errors import InputError
from lit_extract.modules.prompts import read_prompts
from lit_extract.review.database import database_path
from lit_extract.review.files import read_originals, review_path
from lit_extract.review.flags import KINDS, SEPARATOR, Rules, flag_captions
from lit_extract.review.journal import journal_path
from lit_extract.review.language import LANGUAGES, Language
from lit_extract.storage.places import place_of


def make_rules(
    choices: list[str] | None = None, sentences: int | None = None, languages: list[str] | None = None
) -> Rules:
    """Return rules from settings; ``languages``: None for the usual ones, [] to skip the check."""
    if sentences is not None and sentences < 0:
        raise InputError(f"sentences: {sentences} must be 1 or more, or 0 for any number")
    language = Language(LANGUAGES if languages is None else languages) if languages != [] else None
    return Rules(choices or (), 1 if sentences is None else sentences or None, language)


def check(
    file: Path, rules: Rules, prompts: str | None = None, overwrite: bool = False
) -> tuple[Path, list[list[str]]]:
    """Flag the captions of a file; return the path of ``<file>-review.csv``, and the flags of each row.

    The review file has all rows in order, with ``original``, the text that was checked, and ``flag``. An existing one
    may hold edits; it is replaced, with its decisions, only with ``overwrite``.
    """
    path = review_path(file)
    decisions = [database_path(path), journal_path(path)]
    if not overwrite and (found := [existing for existing in (path, *decisions) if existing.exists()]):
        raise InputError(f"{str(found[0])!r} exists already and may hold edits; pass --overwrite to replace it")
    captions = read_originals(file)
    with place_of(path).write_lock():
        flags = flag_captions(captions, read_prompts(prompts), rules)
        for existing in decisions:
            existing.unlink(missing_ok=True)
        write_review(captions, flags, path)
    return path, flags


def write_review(captions: pd.DataFrame, flags: list[list[str]], path: Path) -> None:
    """Write the review file of captions; the caller holds its lock."""
    table = captions.assign(flag=[SEPARATOR.join(row) for row in flags])
    table.insert(list(table).index("caption") + 1, "original", captions["caption"])
    write_captions(table, path)


def describe(flags: list[list[str]]) -> list[str]:
    """Return lines with the number of rows for each flag."""
    counts = Counter(kind for row in flags for kind in row)
    lines = [f"{sum(map(bool, flags))} of {len(flags)} captions are flagged"]
    return lines + [f"  {counts[kind]:7,} {kind}" for kind in KINDS if counts[kind]]
