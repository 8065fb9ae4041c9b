"""The user's own table of images: a CSV or Parquet file with the columns stimulus_id and image."""

from pathlib import Path

import pandas as pd

from lit_extract.common.errors import InputError, line_of, name_some
from lit_extract.common.untrusted import MAX_PATH_BYTES, absolute_path, is_path_like, shorten
from lit_extract.datasets.dataset import Dataset
from lit_extract.datasets.ids import parse_ids
from lit_extract.datasets.reader import check_columns, read_table, with_numbers

ID, IMAGE = "stimulus_id", "image"


class _Table(Dataset):
    def find_root(self, root: str | Path | None) -> Path:
        """Return the table's file instead of a folder."""
        if not root:
            raise InputError(
                f"data.root: no table given; give --data.root FILE, a CSV or Parquet with columns {ID} and {IMAGE}"
            )
        path = absolute_path(root, "data.root")
        if path.is_dir():
            raise InputError(
                f"data.root: {str(path)!r} is a folder; give the file of the table, or use ImageFolderDataModule"
            )
        return path

    def load(self, folder: Path) -> pd.DataFrame:
        """Return the rows in the order of the file; image paths are absolute, or relative to the file's folder."""
        rows = read_table(folder, "data.root")
        what = f"data.root: {str(folder)!r}"
        check_columns(rows, self.columns, what)
        if "image_row" in rows:
            raise InputError(f"{what} has a column image_row, which is a reserved name; rename it")
        if rows.empty:
            raise InputError(f"{what} has no rows")
        ids = parse_ids(rows[ID], ID, what)
        wrong: dict[str, list[str]] = {}
        for row, path in enumerate(rows[IMAGE]):
            if problem := _problem(path):
                wrong.setdefault(problem, []).append(f"stimulus {shorten(repr(ids[row]))} ({line_of(row)})")
        if wrong:
            raise InputError(f"{what} has {'; '.join(f'{why} for {name_some(named)}' for why, named in wrong.items())}")
        found = with_numbers(rows.drop(columns=[*self.columns]))
        found.insert(0, ID, ids)
        found.insert(1, IMAGE, [str(folder.parent / path) for path in rows[IMAGE]])
        return found


DATASET = _Table(
    name="table",
    title="The images of a table: root is a CSV or Parquet with the columns stimulus_id and image",
    data_module="ImageTableDataModule",
    columns=(ID, IMAGE),
    image_column=IMAGE,
    id_column=ID,
    id_meaning="stimulus_id of the table that data.root is",
)


def _problem(path: object) -> str | None:
    if not isinstance(path, str):
        return f"an {IMAGE} that is no text"
    if not path.strip():
        return f"no {IMAGE}"
    unfit = f"an {IMAGE} with control characters, or of more than {MAX_PATH_BYTES:,} bytes,"
    return None if is_path_like(path) else unfit
