"""``lit-extract check --accept``: put reviewed captions where reviewed captions are."""

import shlex
from contextlib import closing, suppress
from pathlib import Path

import pandas as pd

from lit_extract.captioning.output import read_captions, write_captions
from lit_extract.captioning.parts import read_sidecar, sidecar_of
from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import check_name, shorten
from lit_extract.datasets import DATASETS
from lit_extract.datasets.captions import ID_COLUMNS
from lit_extract.review.database import Database, database_path
from lit_extract.review.files import check_unchanged, original_of, read_edited
from lit_extract.review.journal import journal_path


def accept(
    file: Path,
    derivatives: Path,
    original: Path | None = None,
    name: str | None = None,
    dataset: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Put the captions of an edited file into ``derivatives``; return where they are, and how many differ.

    ``<dataset>-captions-<name>.csv`` has the edited ``caption`` and the text before as ``original``. Rows that were
    lost, added or reordered are refused, as are changes of other columns, empty captions, and a review file that
    another program has changed after decisions on the page.
    """
    source = original or original_of(file)
    before = read_captions(source)
    texts = _decided_texts(file, before)
    if empty := [f"row {row}" for row, text in enumerate(texts) if not text]:
        raise InputError(
            f"{str(file)!r} has no caption in {name_some(empty)}; write one, or leave it out of the dataset"
        )
    dataset = check_name(dataset or dataset_of(source, before), "dataset")
    name = check_name(name or name_of(before), "name")
    path = derivatives / check_name(f"{dataset}-captions-{name}.csv", "name")
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists already; pass --overwrite, or another --name")
    table = before.drop(columns="status", errors="ignore")
    table["caption"] = texts
    table.insert(list(table).index("caption") + 1, "original", before["caption"])
    write_captions(table, path)
    return path, int((table["caption"] != table["original"]).sum())


def _decided_texts(file: Path, before: pd.DataFrame) -> list[str]:
    """The captions of an edited file, with all that was decided on the page, written there or not."""
    after = read_edited(file, before)
    if database_path(file).exists():
        with closing(Database(database_path(file), before["caption"].tolist())) as database:
            if database.started:
                check_unchanged(after, file, database)
                return database.rows.texts
    if journal_path(file).exists():
        raise InputError(
            f"review: {journal_path(file).name} has decisions of an earlier version; open {str(file)!r} once with "
            "lit-extract review to take them over"
        )
    return after["caption"].tolist()


def accept_command(review: Path, source: Path, captions: pd.DataFrame, dataset: str) -> str:
    """Return the command that takes a review file."""
    words = ["lit-extract", "check", str(review), "--accept"]
    found = None
    with suppress(InputError):
        found = dataset_of(source, captions)
    if found != dataset:
        words += ["--dataset", dataset]
    try:
        name_of(captions)
    except InputError:
        words += ["--name", "NAME"]
    return shlex.join(words)


def dataset_of(source: Path, captions: pd.DataFrame) -> str:
    """Return what captions are of, as they or their provenance say."""
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
    """Return ``pixtral`` of mistralai/Pixtral-12B-2409, followed by the prompt unless it is ``caption``."""
    known = {column: set(captions[column]) if column in captions.columns else set() for column in ("model", "prompt")}
    if any(len(values) != 1 for values in known.values()):
        raise InputError("name: what are these captions called? Give --name NAME, such as pixtral")
    (model,), (prompt,) = known["model"], known["prompt"]
    model = Path(model).name.split("-")[0].lower()
    if not model or (prompt != "caption" and not prompt.isidentifier()):
        raise InputError("name: what are these captions called? Give --name NAME, such as pixtral-colours")
    return model if prompt == "caption" else f"{model}-{prompt}"
