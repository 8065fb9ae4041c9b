"""``lit-extract check --accept``: put reviewed captions into ``derivatives``."""

import shlex
from contextlib import closing, suppress
from pathlib import Path

import pandas as pd

from lit_extract.captioning.output import read_captions, write_captions
from lit_extract.captioning.parts import read_sidecar, sidecar_of
from lit_extract.common.errors import InputError, line_of, name_some
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
    """Write the captions of an edited file to ``derivatives``; return the path, and how many captions differ.

    ``<dataset>-captions-<name>.csv`` has the edited ``caption``, and the earlier text as ``original``. Lost, added or
    reordered rows are refused, as are changes of other columns, empty captions, and a review file that another program
    has changed after decisions on the page.
    """
    source = original or original_of(file)
    before = read_captions(source)
    texts = _decided_texts(file, before)
    if empty := [line_of(row) for row, text in enumerate(texts) if not text]:
        raise InputError(
            f"{str(file)!r} has no caption in {name_some(empty)}; write one, or leave the row out of the dataset"
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
    """Return the captions of an edited file, with all decisions of the page, even if not yet written to the file."""
    after = read_edited(file, before)
    if database_path(file).exists():
        with closing(Database(database_path(file), before["caption"].tolist())) as database:
            if database.started:
                check_unchanged(after, file, database)
                return database.rows.texts
    if journal_path(file).exists():
        raise InputError(
            f"review: {journal_path(file).name} has decisions of an earlier version; open {str(file)!r} once with "
            "lit-extract review to import them"
        )
    return after["caption"].tolist()


def accept_command(review: Path, source: Path, captions: pd.DataFrame, dataset: str) -> str:
    """Return the command that accepts a review file."""
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
    """Return the dataset of captions, from their id column or their provenance."""
    by_column = next((dataset.name for column, dataset in ID_COLUMNS.items() if column in captions.columns), None)
    found = by_column or read_sidecar(source).get("provenance", {}).get("dataset")
    if not found:
        raise InputError(f"dataset: {str(source)!r} does not name the dataset of its captions; pass --dataset NAME")
    if found not in tuple(DATASETS):
        raise InputError(
            f"dataset: {sidecar_of(source).name} names the dataset {shorten(found)}, which is not one of "
            f"{', '.join(DATASETS)}; pass --dataset NAME"
        )
    return str(found)


def name_of(captions: pd.DataFrame) -> str:
    """Return a name such as ``pixtral`` for mistralai/Pixtral-12B-2409, with the prompt unless it is ``caption``."""
    known = {column: set(captions[column]) if column in captions.columns else set() for column in ("model", "prompt")}
    if any(len(values) != 1 for values in known.values()):
        raise InputError("name: missing; pass a name for these captions, --name NAME, such as pixtral")
    (model,), (prompt,) = known["model"], known["prompt"]
    model = Path(model).name.split("-")[0].lower()
    if not model or (prompt != "caption" and not prompt.isidentifier()):
        raise InputError("name: missing; pass a name for these captions, --name NAME, such as pixtral-colours")
    return model if prompt == "caption" else f"{model}-{prompt}"
