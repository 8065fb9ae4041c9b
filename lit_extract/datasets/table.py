"""What every stimulus table shares: finding the root, reading the index, checking the rows."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import MAX_PATH_BYTES, absolute_path, is_printable, shorten
from lit_extract.datasets.ids import parse_ids
from lit_extract.datasets.query import evaluate
from lit_extract.datasets.reader import check_columns, read_table, with_numbers

# columns that with_stimuli and nsd.py add
RESERVED = ("stimulus_id", "image", "image_row")

# attrs of a table, which survive until the first merge; load_dataset sets them
DATASET, ID_MEANING, ROOT, IGNORED = "dataset", "stimulus_id_meaning", "root", "ignored"


def find_root(dataset: str, root: str | Path | None, variable: str | None = None) -> Path:
    """The dataset's folder: the argument (or config), else the environment variable, if it has one.

    Raises:
        InputError: Neither is given, or there is no such folder.
    """
    source = "data.root" if root is not None else f"the environment variable {variable}"
    value = root if root is not None else os.environ.get(variable or "")
    if not value:
        hint = f" or set the environment variable {variable}" if variable else ""
        raise InputError(f"data.root: where is {dataset}? Give --data.root DIR{hint}")
    folder = absolute_path(value, source)
    if not folder.is_dir():
        raise InputError(f"{source}: {str(folder)!r} is not a folder; it should hold the {dataset} dataset")
    return folder


def read_index(dataset: str, root: Path, names: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """The first of ``names`` (CSV or Parquet, relative to ``root``) that exists, with its columns checked.

    Raises:
        InputError: No such file, an unreadable or empty one, a missing column, or one with a name that is used here.
    """
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise InputError(f"{dataset}: no index below {str(root)!r}; looked for {' and '.join(names)}")
    table = read_table(path, f"{dataset}: index")
    check_columns(table, columns, f"{dataset}: index {str(path)!r}")
    if taken := [column for column in RESERVED if column in table.columns]:
        raise InputError(
            f"{dataset}: index {str(path)!r} has a column {name_some(taken)}, a name that is used here; rename it"
        )
    if table.empty:
        raise InputError(f"{dataset}: index {str(path)!r} has no rows")
    return table


def with_stimuli(dataset: str, table: pd.DataFrame, ids: str, images: Sequence[str]) -> pd.DataFrame:
    """Put ``stimulus_id`` (from the column ``ids``) and ``image`` (absolute paths) in front.

    Raises:
        InputError: An id is missing, occurs twice, or is neither an integer nor text.
    """
    found = parse_ids(table[ids], ids, f"{dataset}: the index")
    table = with_numbers(table)
    table[ids] = found
    table.insert(0, "stimulus_id", found)
    table.insert(1, "image", list(images))
    return table


def relative_images(root: Path, paths: "pd.Series[str]") -> list[str]:
    """Absolute paths of images that the index gives relative to the root.

    Raises:
        InputError: A path is missing, is not text, leads out of the root, or can't be one.
    """
    if wrong := [str(row) for row, path in enumerate(paths) if not isinstance(path, str) or not path.strip()]:
        raise InputError(f"the index below {str(root)!r} has no {paths.name} in row {name_some(wrong)}")
    if wrong := [f"row {row} ({shorten(path)})" for row, path in enumerate(paths) if not _is_below_root(path)]:
        raise InputError(
            f"the index below {str(root)!r} has a {paths.name} that is absolute, has .. in it, control characters, or "
            f"more than {MAX_PATH_BYTES:,} bytes, in {name_some(wrong)}; give paths relative to the folder"
        )
    return [str(root / path) for path in paths]


def _is_below_root(path: str) -> bool:
    """Return whether a path stays in its folder, unless links in that lead elsewhere, which are the user's."""
    parts = path.split("/")
    return parts[0] != "" and ".." not in parts and is_printable(path) and len(path.encode()) <= MAX_PATH_BYTES


def image_sizes(table: pd.DataFrame) -> list[int]:
    """Size in bytes of each row's image file; as :func:`image_stats`."""
    return [stat.st_size for stat in image_stats(table)]


def image_stats(table: pd.DataFrame) -> list[os.stat_result]:
    """State of each row's image file.

    Raises:
        InputError: Images that are missing, the first few named, with the count.
    """
    known: dict[str, os.stat_result] = {}
    missing: list[str] = []
    for path in dict.fromkeys(table["image"]):
        try:
            known[path] = Path(path).stat()
        except OSError:
            missing.append(path)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(known) + len(missing)} images are missing: {name_some(missing)}; "
            "check data.root, or leave rows out with data.query"
        )
    return [known[path] for path in table["image"]]


def fingerprint(table: pd.DataFrame) -> str:
    """Hash of what the rows are: ids, image files relative to the root, and rows in them; wherever the dataset lies."""
    root = table.attrs[ROOT]
    rows = table["image_row"] if "image_row" in table else [-1] * len(table)
    digest = hashlib.sha256()
    for stimulus, path, row in zip(table["stimulus_id"], table["image"], rows, strict=True):
        digest.update(f"{stimulus}\0{os.path.relpath(path, root)}\0{row}\n".encode())
    return digest.hexdigest()


def select(loaded: pd.DataFrame, query: str) -> pd.DataFrame:
    """Return the rows that a query chooses, in their order; :mod:`lit_extract.datasets.query` says what it may be.

    Raises:
        InputError: The query is not allowed, is not a condition, or leaves no row.
    """
    chosen = loaded[evaluate(query, loaded)]
    if chosen.empty:
        columns = name_some([shorten(column) for column in loaded.columns], 20)
        raise InputError(
            f"data.query: {shorten(repr(query), 200)} leaves none of {len(loaded)} rows; the columns are {columns}"
        )
    return chosen.reset_index(drop=True)
