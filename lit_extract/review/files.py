"""``lit-extract check``: captions, what is odd about them, and the way back of an edited file."""

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lit_extract.captioning.output import beside, read_captions, write_captions
from lit_extract.captioning.parts import read_sidecar, sidecar_of
from lit_extract.captioning.prompts import read_prompts
from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import check_name, shorten
from lit_extract.datasets import DATASETS
from lit_extract.datasets.captions import ID_COLUMNS
from lit_extract.review.flags import KINDS, SEPARATOR, Rules, check_captions
from lit_extract.review.journal import journal_of, read_journal
from lit_extract.review.language import LANGUAGES, Language
from lit_extract.review.merge import decided_texts, read_whole
from lit_extract.storage.lock import write_lock

ENDING = "-review"
DECISION = "decision"  # of the page: accepted, edited, or nothing yet
ADDED = ("original", "flag", DECISION)  # columns of a review file that captions do not have


class Review(NamedTuple):
    """What was found.

    Args:
        path: The review file.
        counts: Rows with each flag.
        n_flagged: Rows with any.
        n_rows: All rows.
    """

    path: Path
    counts: Counter[str]
    n_flagged: int
    n_rows: int


def make_rules(
    choices: list[str] | None = None, sentences: int | None = None, languages: list[str] | None = None
) -> Rules:
    """Rules out of settings; languages: None for the usual ones, [] for not looking at them."""
    if sentences is not None and sentences < 0:
        raise InputError(f"sentences: {sentences} must be 1 or more, or 0 for any number")
    language = Language(LANGUAGES if languages is None else languages) if languages != [] else None
    return Rules(choices or (), 1 if sentences is None else sentences or None, language)


def review(file: Path, rules: Rules, prompts: str | None = None, overwrite: bool = False) -> Review:
    """Flag the captions of a file; write them beside it for a person to look at.

    Args:
        file: Captions, CSV or Parquet.
        rules: What is asked of them.
        prompts: YAML with prompts besides those that ship here.
        overwrite: Replace a review file that is there.

    Returns:
        Where ``<file>-review.csv`` is: all rows in their order, with ``original``, the text that was checked, and
        ``flag``; and how many rows have each.

    Raises:
        InputError: An unreadable file, or a review file that may hold edits.
    """
    path = review_file(file)
    journal = journal_of(path)
    if not overwrite and (there := [held for held in (path, journal) if held.exists()]):
        raise InputError(f"{str(there[0])!r} is there already and may hold edits; pass --overwrite to replace it")
    captions = read_for_review(file)
    with write_lock(path):
        flags = write_review(captions, path, rules, prompts, begin=lambda: journal.unlink(missing_ok=True))
    return Review(path, Counter(kind for row in flags for kind in row), sum(map(bool, flags)), len(flags))


def read_for_review(file: Path) -> pd.DataFrame:
    """Captions that are no review file.

    Raises:
        InputError: They are one, or can't be read.
    """
    captions = read_captions(file)
    if taken := [column for column in ADDED if column in captions.columns]:
        raise InputError(f"{str(file)!r} has a column {name_some(taken)}: a review file? To put it in, add --accept")
    return captions


def write_review(
    captions: pd.DataFrame, path: Path, rules: Rules, prompts: str | None, begin: Callable[[], None] = lambda: None
) -> list[list[str]]:
    """Flag captions and write the review file; hold its lock. ``begin`` is called right before."""
    flags = check_captions(captions, read_prompts(prompts), rules)
    captions = captions.copy()
    place = captions.columns.get_loc("caption")
    assert isinstance(place, int)
    captions.insert(place + 1, "original", captions["caption"])
    captions["flag"] = [SEPARATOR.join(row) for row in flags]
    begin()
    write_captions(captions, path)
    return flags


def accept(
    file: Path,
    derivatives: Path,
    original: Path | None = None,
    name: str | None = None,
    dataset: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Put reviewed captions where reviewed captions are.

    Args:
        file: The edited file: a review file, or an edited copy of the captions.
        derivatives: Folder of reviewed captions.
        original: The captions as they were; default: the file that a review file was made of.
        name: What the captions are called; default: from the model and the prompt.
        dataset: What they are of; default: what the captions say.
        overwrite: Replace a file that is there.

    Returns:
        ``<dataset>-captions-<name>.csv`` with the edited ``caption`` and the text before as ``original``; and how many
        differ.

    Raises:
        InputError: Rows lost, added or reordered, other columns changed, captions that are empty, or decisions of the
            page that another program has changed.
    """
    source = original or original_of(file)
    before = read_captions(source)
    after = read_decided(before, file)
    if empty := [f"row {row}" for row, text in enumerate(after["caption"]) if not text]:
        raise InputError(
            f"{str(file)!r} has no caption in {name_some(empty)}; write one, or leave it out of the dataset"
        )
    path = derivatives / accepted_name(dataset or dataset_of(source, before), name or name_of(before))
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} is there already; pass --overwrite, or another --name")
    table = before.drop(columns="status", errors="ignore")
    place = table.columns.get_loc("caption")
    assert isinstance(place, int)
    table["caption"] = after["caption"]
    table.insert(place + 1, "original", before["caption"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_captions(table, path)
    return path, int((table["caption"] != table["original"]).sum())


def accepted_name(dataset: str, name: str) -> str:
    """Return the name of a file of accepted captions.

    Raises:
        InputError: The dataset or the name of the captions is no plain name.
    """
    check_name(dataset, "dataset")
    check_name(name, "name")
    file = f"{dataset}-captions-{name}.csv"
    check_name(beside(Path(file)).name, "name")  # which is written before it, and is longer
    return file


def check_same_rows(before: pd.DataFrame, after: pd.DataFrame, file: Path) -> None:
    """Refuse an edited file that is not the same rows in the same order with other captions.

    Raises:
        InputError: It is not; the first rows that differ are named.
    """
    fixed = [column for column in before.columns if column not in ("caption", "status")]
    if missing := [column for column in fixed if column not in after.columns]:
        raise InputError(f"{str(file)!r} lost the column {name_some(missing)}")
    old, new = (_keys(table, fixed) for table in (before, after))
    if old == new:
        return
    lost, added = Counter(old) - Counter(new), Counter(new) - Counter(old)
    if not lost and not added:
        place = next(row for row, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        raise InputError(f"{str(file)!r} has its rows in another order, from row {place} on; sort them back")
    where = [f"row {row} ({', '.join(key[:2])})" for row, key in enumerate(old) if key in lost]
    if len(new) < len(old):
        raise InputError(f"{str(file)!r} lost {len(old) - len(new)} of {len(old)} rows: {name_some(where)}")
    if len(new) > len(old):
        raise InputError(
            f"{str(file)!r} has {len(new)} rows, but there were {len(old)}: {len(new) - len(old)} too many"
        )
    raise InputError(
        f"{str(file)!r} differs in columns besides caption, in {name_some(where)}: only captions are edited"
    )


def read_decided(before: pd.DataFrame, file: Path) -> pd.DataFrame:
    """An edited file, with all that was decided on the page: a killed server leaves the file behind its journal.

    Raises:
        InputError: See :func:`accept`.
    """
    sha256, after = read_whole(file)
    check_same_rows(before, after, file)
    if journal_of(file).exists():
        originals = before["caption"].tolist()
        content = read_journal(journal_of(file), originals)
        after["caption"] = decided_texts(content, sha256, originals, after["caption"].tolist(), file)
    return after


def review_file(file: Path) -> Path:
    """Where the review of a caption file is."""
    return file.with_name(f"{file.stem}{ENDING}.csv")


def original_of(file: Path) -> Path:
    """The captions that a review file was made of.

    Raises:
        InputError: They are not beside it.
    """
    if file.stem.endswith(ENDING):
        stem = file.stem.removesuffix(ENDING)
        for candidate in (file.with_name(f"{stem}.csv"), file.with_name(f"{stem}.parquet")):
            if candidate.is_file():
                return candidate
    raise InputError(f"{str(file)!r}: what were the captions before they were edited? Give --original FILE")


def _keys(table: pd.DataFrame, columns: list[str]) -> list[tuple[str, ...]]:
    """Each row without its caption; spreadsheets may change blanks and line ends, and write 7 as 7.0."""
    texts = [[" ".join(text.split()).removesuffix(".0") for text in table[column]] for column in columns]
    return list(zip(*texts, strict=True))


def accept_command(review: Path, source: Path, captions: pd.DataFrame, dataset: str) -> str:
    """The command that takes a review file."""
    words = ["lit-extract", "check", str(review), "--accept"]
    try:
        if dataset_of(source, captions) != dataset:
            words += ["--dataset", dataset]
    except InputError:
        words += ["--dataset", dataset]
    try:
        name_of(captions)
    except InputError:
        words += ["--name", "NAME"]
    return shlex.join(words)


def dataset_of(source: Path, captions: pd.DataFrame) -> str:
    """What captions are of, as they or their provenance say.

    Raises:
        InputError: Neither does.
    """
    by_column = next((dataset.name for column, dataset in ID_COLUMNS.items() if column in captions.columns), None)
    found = by_column or read_sidecar(source).get("provenance", {}).get("dataset")
    if not found:
        raise InputError(f"dataset: {str(source)!r} does not say what it has captions of; give --dataset NAME")
    if found not in tuple(DATASETS):
        raise InputError(
            f"dataset: {sidecar_of(source).name} says that these are captions of {shorten(found)}, which is not one of "
            f"{', '.join(DATASETS)}; give --dataset NAME"
        )
    return str(found)


def name_of(captions: pd.DataFrame) -> str:
    """``pixtral`` of mistralai/Pixtral-12B-2409, with the prompt behind unless it is ``caption``.

    Raises:
        InputError: Captions of several models or prompts, or of none.
    """
    known = {column: set(captions[column]) if column in captions.columns else set() for column in ("model", "prompt")}
    if any(len(values) != 1 for values in known.values()):
        raise InputError("name: what are these captions called? Give --name NAME, such as pixtral")
    (model,), (prompt,) = known["model"], known["prompt"]
    model = Path(model).name.split("-")[0].lower()
    if not model or (prompt != "caption" and not prompt.isidentifier()):
        raise InputError("name: what are these captions called? Give --name NAME, such as pixtral-colours")
    return model if prompt == "caption" else f"{model}-{prompt}"


def describe(counts: Counter[str], n_rows: int, n_flagged: int) -> list[str]:
    """Lines that say how many rows have each flag."""
    lines = [f"{n_flagged} of {n_rows} captions should be looked at"]
    return lines + [f"  {counts[kind]:7,} {kind}" for kind in KINDS if counts[kind]]
