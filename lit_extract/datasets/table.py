"""Functions for all stimulus tables: images, fingerprint, queries."""

import hashlib
import json
import os
import shlex
from pathlib import Path

import pandas as pd

from lit_extract.common.errors import InputError, counted, name_some
from lit_extract.common.untrusted import shorten
from lit_extract.datasets.query import evaluate

# columns that are added to an index
RESERVED = ("stimulus_id", "image", "image_row")

# attrs of a table, which survive until the first merge; load_dataset sets them
DATASET, ID_MEANING, ROOT, FINDINGS = "dataset", "stimulus_id_meaning", "root", "findings"


def image_stats(table: pd.DataFrame) -> list[os.stat_result]:
    """Return the state of each row's image file."""
    known: dict[str, os.stat_result] = {}
    missing: list[str] = []
    for path in dict.fromkeys(table["image"]):
        try:
            known[path] = Path(path).stat()
        except OSError:
            missing.append(path)
    if missing:
        ids = table["stimulus_id"][~table["image"].isin(known)].tolist()
        hint = "data.query"
        if len(ids) == 1 < len(table):
            query = f"stimulus_id != {json.dumps(ids[0], ensure_ascii=False)}"
            hint = f"--data.query {shlex.quote(query)} --data.subset NAME"
        of_all = f"of {counted(len(known) + len(missing), 'image')}"
        raise InputError(
            f"{counted(len(missing), f'{of_all} is missing', f'{of_all} are missing')}: {name_some(missing)}; "
            f"check data.root, or leave rows out with {hint}"
        )
    return [known[path] for path in table["image"]]


def fingerprint(table: pd.DataFrame) -> str:
    """Return a hash of the rows: ids, image files relative to the root, rows within files."""
    root = table.attrs[ROOT]
    rows = table["image_row"] if "image_row" in table else [-1] * len(table)
    digest = hashlib.sha256()
    for stimulus, path, row in zip(table["stimulus_id"], table["image"], rows, strict=True):
        digest.update(f"{stimulus}\0{os.path.relpath(path, root)}\0{row}\n".encode())
    return digest.hexdigest()


def first(loaded: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Return the first ``limit`` rows."""
    if not 1 <= limit <= len(loaded):
        raise InputError(f"data.limit: {limit} must be 1 to {len(loaded)}, the number of rows")
    return loaded.head(limit)


def select(loaded: pd.DataFrame, query: str) -> pd.DataFrame:
    """Return the rows that a query chooses, in their order; see :mod:`lit_extract.datasets.query`."""
    chosen = loaded[evaluate(query, loaded)]
    if chosen.empty:
        columns = name_some([shorten(column) for column in loaded.columns], 20)
        rows = counted(len(loaded), "row")
        raise InputError(f"data.query: {shorten(repr(query), 200)} chooses none of {rows}; the columns are {columns}")
    return chosen.reset_index(drop=True)
