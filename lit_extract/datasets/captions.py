"""Caption files: CSV or Parquet, one caption per row."""

import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.common.errors import InputError, line_of, name_some
from lit_extract.common.shipped import shipped_file
from lit_extract.common.untrusted import expanded_path
from lit_extract.datasets import DATASETS, table
from lit_extract.datasets.ids import parse_ids
from lit_extract.datasets.reader import name_columns, read_table, with_numbers

# Id columns of caption files, and their datasets. Captions of any dataset may also have a column path, which is only
# used if there is no other id column.
FOLDER = DATASETS["folder"]
ID_COLUMNS = {dataset.id_column: dataset for dataset in DATASETS.values() if dataset.name not in ("folder", "table")}
NO_IDS = frozenset({"caption", "captions", "model", "prompt", "status", "original", "flag", "decision"})  # as we write
SEPARATOR = ";"

logger = logging.getLogger(__name__)

_LIST_SYNTAX = re.compile(r"\[\s*[bu]?(['\"]).*\1\s*\]", re.DOTALL)


def load_captions(path: str | Path, query: str | None = None, dataset: str | None = None) -> pd.DataFrame:
    """Return the captions of a file, in its order.

    Args:
        path: CSV or Parquet with a column ``caption``, or ``captions`` with several captions per row, separated by
            ``;`` (or lists in Parquet). Captions that ship with the package are found by their path in the repository.
        query: A :meth:`pandas.DataFrame.query` that chooses rows.
        dataset: Dataset whose ids the captions have, such as ``nsd``; default: any.

    Returns:
        ``stimulus_id``, ``caption`` (the first of the row, without surrounding blanks), ``captions`` (the list of all
        captions of the row), then the other columns of the file. ``stimulus_id`` is the id column of the dataset, or of
        any, such as ``nsd_id``, or ``stimulus_id``, else ``path``; or the row number, with a warning, if the file has
        no other columns than captions. ``.attrs["stimulus_id_meaning"]`` tells which.

    Raises:
        InputError: The file is missing or unreadable, has no caption column, no id column, empty captions, or missing
            or duplicate ids; or the query fails or leaves no row.
    """
    what = f"data.captions: {str(path)!r}"
    path = expanded_path(path, "data.captions")
    captions = read_table(path if path.exists() else shipped_file(str(path)) or path, "data.captions")
    column = caption_column(captions, what)
    every = _all_texts(captions, what)
    text = every.map(lambda texts: texts[0] if texts else "")
    ids, id_column, meaning = find_ids(captions, what, dataset)
    if id_column is None:
        _warn_once(f"{what} has no ids, so its rows are counted from 0; to name ids, add a column stimulus_id")
    if empty := [
        f"{line_of(row)} ({id_column} {ids[row]})" if id_column else line_of(row)
        for row in range(len(ids))
        if not text[row]
    ]:
        raise InputError(f"{what} has no caption in {name_some(empty)}")
    rest = with_numbers(captions.drop(columns=[column, "captions", "stimulus_id"], errors="ignore"))
    if id_column is not None and id_column in rest:
        rest[id_column] = pd.Series(ids, index=rest.index)
    rest.insert(0, "stimulus_id", list(ids))
    rest.insert(1, "caption", text)
    rest.insert(2, "captions", every)
    if rest.empty:
        raise InputError(f"{what} has no rows")
    if query is not None:
        rest = table.select(rest, query)
    rest.attrs = {table.ID_MEANING: meaning}
    return rest


def find_ids(
    captions: pd.DataFrame, what: str, dataset: str | None = None
) -> tuple[list[int] | list[str], str | None, str]:
    """Return the ids of captions, the name of their column, and what they mean.

    Only a file that has nothing but captions may lack ids: its rows are counted, and the column is None.
    """
    candidates = [name for name in (*ID_COLUMNS, "stimulus_id") if name in captions.columns]
    columns = name_columns(captions.columns)
    if dataset in DATASETS:  # ids of different datasets are not comparable
        column = DATASETS[dataset].id_column
        if column not in captions.columns:
            raise InputError(
                f"{what} has no column {column}, which captions of data.dataset {dataset!r} need; it has {columns}; "
                f"rename the column with the ids of {dataset} to {column}"
            )
    elif candidates:
        column = candidates[0]
    elif FOLDER.id_column in captions.columns:
        column = FOLDER.id_column
    elif NO_IDS.issuperset(captions.columns):
        return list(range(len(captions))), None, "row of the caption file, counted from 0"
    else:
        usual = {_letters(name): name for name in (*ID_COLUMNS, "stimulus_id")}
        near = next((usual[_letters(name)] for name in captions.columns if _letters(name) in usual), "stimulus_id")
        raise InputError(
            f"{what} has no known column with ids; it has {columns}; rename the column with the ids to {near}"
        )
    if len(candidates) > 1:
        raise InputError(f"{what} has several id columns, {', '.join(candidates)}; keep one")
    known = DATASETS.get(dataset or "") or ID_COLUMNS.get(column) or (FOLDER if column == FOLDER.id_column else None)
    meaning = known.id_meaning if known else "stimulus_id of the caption file"
    return parse_ids(captions[column], column, what), column, meaning


def caption_column(captions: pd.DataFrame, what: str) -> str:
    """Return the name of the caption column."""
    column = next((name for name in ("caption", "captions") if name in captions.columns), None)
    if column is None:
        raise InputError(f"{what} has no column caption or captions; it has {name_columns(captions.columns)}")
    return column


def caption_texts(captions: pd.DataFrame, what: str) -> "pd.Series[str]":
    """Return the first caption of each row, without surrounding blanks; "" if there is none."""
    return _all_texts(captions, what).map(lambda texts: texts[0] if texts else "")


def _all_texts(captions: pd.DataFrame, what: str) -> "pd.Series[Any]":
    """Return the list of captions of each row; blank ones after the first are left out."""
    column = caption_column(captions, what)
    every, wrong = [], []
    for row, value in enumerate(captions[column]):
        several = isinstance(value, list)
        texts: list[Any] = value if several else [value]
        if bad := [text for text in texts if not isinstance(text, str) or _LIST_SYNTAX.fullmatch(text.strip())]:
            wrong.append(f"{line_of(row)} ({str(bad[0])[:60]!r})")
            continue
        parts = texts if several or column == "caption" else texts[0].split(SEPARATOR)
        stripped = [part.strip() for part in parts]
        every.append([*stripped[:1], *(text for text in stripped[1:] if text)])
    if wrong:
        raise InputError(f"{what} has no plain text in column {column}, {name_some(wrong)}; write one caption per row")
    return pd.Series(every, index=captions.index, dtype=object)


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.casefold())
