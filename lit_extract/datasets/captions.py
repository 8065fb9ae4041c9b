"""Caption files: CSV or Parquet, one caption a row."""

from pathlib import Path

import pandas as pd

from lit_extract.datasets import bold5000, demo, nsd, table, things
from lit_extract.errors import InputError, name_some, one_line

# Column that identifies the stimulus in a caption file of a known dataset, and what it means.
ID_COLUMNS = {"nsd_id": nsd, "bold_id": bold5000, "things_id": things, "demo_id": demo}
SEPARATOR = ";"


def load_captions(path: str | Path, query: str | None = None) -> pd.DataFrame:
    """The captions of a file, in its order.

    Args:
        path: CSV or Parquet with a column ``caption``, or ``captions`` of which several are separated
            by ``;`` and the first counts.
        query: A :meth:`pandas.DataFrame.query` that chooses rows.

    Returns:
        ``stimulus_id``, ``caption`` (without surrounding blanks), then the other columns of the file.
        The id is ``nsd_id``, ``bold_id``, ``things_id``, ``demo_id`` or ``stimulus_id``, whichever the file
        has, else the number of the row; ``.attrs["stimulus_id_meaning"]`` says which.

    Raises:
        InputError: A missing or unreadable file, no caption column, empty captions, ids that are
            missing or occur twice, or a query that fails or leaves no row.
    """
    path = Path(path)
    captions = _read(path)
    column = next((name for name in ("caption", "captions") if name in captions.columns), None)
    if column is None:
        columns = ", ".join(map(str, captions.columns))
        raise InputError(f"data.captions: {str(path)!r} has no column caption or captions; it has {columns}")
    text = captions[column].astype("string")
    if column == "captions":
        text = text.str.split(SEPARATOR).str[0]
    text = text.str.strip()
    ids = [name for name in (*ID_COLUMNS, "stimulus_id") if name in captions.columns]
    id_column, meaning = _identify(path, ids)
    _refuse(path, "no caption", captions, text.isna() | (text == ""), id_column)
    rest = captions.drop(columns=[column, "stimulus_id"], errors="ignore")
    rest.insert(0, "stimulus_id", captions[id_column] if id_column else range(len(captions)))
    rest.insert(1, "caption", text.astype(object))
    _refuse(path, f"no {id_column}", captions, rest["stimulus_id"].isna(), None)
    _refuse(path, f"a {id_column} that occurs twice", captions, rest["stimulus_id"].duplicated(keep=False), id_column)
    if query is not None:
        rest = table.select(rest, query)
    rest.attrs = {table.ID_MEANING: meaning}
    return rest


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"data.captions: no file {str(path)!r}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"data.captions: {str(path)!r} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (ValueError, OSError) as error:
        raise InputError(f"data.captions: {str(path)!r} can't be read: {one_line(error)}") from None


def _identify(path: Path, candidates: list[str]) -> tuple[str | None, str]:
    if len(candidates) > 1:
        raise InputError(f"data.captions: {str(path)!r} has several id columns, {', '.join(candidates)}; keep one")
    if not candidates:
        return None, "row of the caption file, counted from 0"
    module = ID_COLUMNS.get(candidates[0])
    return candidates[0], module.ID_MEANING if module else "stimulus_id of the caption file"


def _refuse(path: Path, what: str, captions: pd.DataFrame, rows: "pd.Series[bool]", id_column: str | None) -> None:
    if not rows.any():
        return
    offenders = [f"row {row}" for row in captions.index[rows]]
    if id_column:
        offenders = [
            f"{row} ({id_column} {value})" for row, value in zip(offenders, captions.loc[rows, id_column], strict=True)
        ]
    raise InputError(f"data.captions: {str(path)!r} has {what} in {name_some(offenders)}")
