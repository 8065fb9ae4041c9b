"""Caption files: CSV or Parquet, one caption a row."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.shipped import shipped_file
from lit_extract.common.untrusted import shorten
from lit_extract.datasets import DATASETS, table
from lit_extract.datasets.ids import parse_ids
from lit_extract.datasets.reader import name_columns, read_table, with_numbers

# Column that has the ids in a caption file, and the dataset that they are of. Captions of any dataset may have a column
# path as well, which counts when there is no other.
FOLDER = DATASETS["folder"]
ID_COLUMNS = {dataset.id_column: dataset for dataset in DATASETS.values() if dataset.name not in ("folder", "table")}
SEPARATOR = ";"

_LIST_SYNTAX = re.compile(r"\[\s*[bu]?(['\"]).*\1\s*\]", re.DOTALL)


def load_captions(path: str | Path, query: str | None = None) -> pd.DataFrame:
    """Return the captions of a file, in its order.

    Args:
        path: CSV or Parquet with a column ``caption``, or ``captions`` of which several are separated
            by ``;`` (in Parquet, they may be lists) and the first counts. The captions that ship with the package are
            found by their path in a clone.
        query: A :meth:`pandas.DataFrame.query` that chooses rows.

    Returns:
        ``stimulus_id``, ``caption`` (without surrounding blanks), ``captions`` (a list of all of the row, of which that
        is the first), then the other columns of the file.
        The id is the column that a dataset has its ids in, such as ``nsd_id``, or ``stimulus_id``, whichever the
        file has, else ``path``, else the number of the row; which one is in ``.attrs["stimulus_id_meaning"]``.

    Raises:
        InputError: A missing or unreadable file, no caption column, empty captions, ids that are
            missing or occur twice, or a query that fails or leaves no row.
    """
    what = f"data.captions: {str(path)!r}"
    path = Path(path)
    captions = read_table(path if path.exists() else shipped_file(str(path)) or path, "data.captions")
    column = caption_column(captions, what)
    every = _all_texts(captions, what)
    text = every.map(lambda texts: texts[0] if texts else "")
    id_column, meaning = _identify(what, captions)
    ids = parse_ids(captions[id_column], id_column, what) if id_column else range(len(captions))
    if empty := [
        f"row {row} ({id_column} {ids[row]})" if id_column else f"row {row}" for row in range(len(ids)) if not text[row]
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


def caption_column(captions: pd.DataFrame, what: str) -> str:
    """Return the column that has the captions."""
    column = next((name for name in ("caption", "captions") if name in captions.columns), None)
    if column is None:
        raise InputError(f"{what} has no column caption or captions; it has {name_columns(captions.columns)}")
    return column


def caption_texts(captions: pd.DataFrame, what: str) -> "pd.Series[str]":
    """Return one caption a row, without surrounding blanks: the first of several, "" where there is none."""
    return _all_texts(captions, what).map(lambda texts: texts[0] if texts else "")


def _all_texts(captions: pd.DataFrame, what: str) -> "pd.Series[Any]":
    """Return the captions of each row, a list; those after the first only if they are not blank."""
    column = caption_column(captions, what)
    every, wrong = [], []
    for row, value in enumerate(captions[column]):
        several = isinstance(value, list)
        texts: list[Any] = value if several else [value]
        if bad := [text for text in texts if not isinstance(text, str) or _LIST_SYNTAX.fullmatch(text.strip())]:
            wrong.append(f"row {row} ({str(bad[0])[:60]!r})")
            continue
        parts = texts if several or column == "caption" else texts[0].split(SEPARATOR)
        stripped = [part.strip() for part in parts]
        every.append([*stripped[:1], *(text for text in stripped[1:] if text)])
    if wrong:
        raise InputError(f"{what} has no plain text in column {column}, {name_some(wrong)}; write one caption a row")
    return pd.Series(every, index=captions.index, dtype=object)


def _identify(what: str, captions: pd.DataFrame) -> tuple[str | None, str]:
    candidates = [name for name in (*ID_COLUMNS, "stimulus_id") if name in captions.columns]
    if len(candidates) > 1:
        raise InputError(f"{what} has several id columns, {', '.join(candidates)}; keep one")
    if candidates:
        dataset = ID_COLUMNS.get(candidates[0])
        return candidates[0], dataset.id_meaning if dataset else "stimulus_id of the caption file"
    if FOLDER.id_column in captions.columns:
        return FOLDER.id_column, FOLDER.id_meaning
    usual = {_letters(name): name for name in (*ID_COLUMNS, "stimulus_id")}
    if near := [name for name in captions.columns if _letters(name) in usual]:
        raise InputError(
            f"{what} has a column {shorten(near[0])}, which is no id; rename it to {usual[_letters(near[0])]}, or to "
            "something else"
        )
    return None, "row of the caption file, counted from 0"


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.casefold())
