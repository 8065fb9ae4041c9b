"""Descriptions of datasets: their folder, their index, and the meaning of their ids."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lit_extract.common.errors import InputError, line_of, name_some
from lit_extract.common.untrusted import MAX_PATH_BYTES, absolute_path, is_path_like, shorten
from lit_extract.datasets.ids import parse_ids
from lit_extract.datasets.reader import check_columns, read_table, with_numbers
from lit_extract.datasets.table import RESERVED


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset whose index is a table of images.

    A dataset that can be read in its published form, without an index, has a ``layout`` and overrides
    :meth:`read_published`; a dataset with trials has ``subjects`` and overrides :meth:`read_trials`.
    """

    name: str  # in --data.dataset and in the output folder
    title: str  # for the help of its data module
    data_module: str  # name of the class lit_extract.<data_module>, created from this
    id_column: str  # in the index and in caption files
    id_meaning: str  # recorded with the features
    root_variable: str | None = None  # environment variable with its folder
    ships_at: Path | None = None  # its folder, if it ships with this package
    index: Sequence[str] = ()  # files in its folder; the first that exists is the index
    columns: Sequence[str] = ()  # required columns of the index
    layout: str | None = None  # files that are read without an index, for errors; None: an index is needed
    subjects: Sequence[int] = ()  # subjects with trials
    image_column: str = "path"  # column with image files, relative to the folder
    ids: Sequence[int] | None = None  # all ids in order, if known without the index

    def has_root(self, root: str | Path | None) -> bool:
        """Return whether the folder is known: given, in the environment variable, or in the package."""
        return bool(root or self.ships_at or os.environ.get(self.root_variable or ""))

    def find_root(self, root: str | Path | None) -> Path:
        """Return the dataset's folder: the argument, else the one in the package, else the environment variable."""
        is_given = root is not None or self.ships_at is not None
        value = (self.ships_at if root is None else root) if is_given else os.environ.get(self.root_variable or "")
        source = "data.root" if is_given else f"the environment variable {self.root_variable}"
        if not value:
            hint = f" or set the environment variable {self.root_variable}" if self.root_variable else ""
            raise InputError(f"data.root: no folder given for {self.name}; give --data.root DIR{hint}")
        folder = absolute_path(value, source)
        if not folder.is_dir():
            raise InputError(f"{source}: {str(folder)!r} is not a folder; give the folder of the {self.name} dataset")
        return folder

    def load(self, folder: Path) -> pd.DataFrame:
        """Return one row per stimulus, in the index's order: ``stimulus_id``, ``image``, then the index's columns."""
        path = next((folder / name for name in self.index if (folder / name).is_file()), None)
        return self.read_index(path, folder) if path else self.read_published(folder)

    def read_published(self, folder: Path) -> pd.DataFrame:
        """Return the rows of a folder in its published form; ``.attrs["findings"]`` lists what is unusual."""
        raise self.nothing_found(folder)

    def nothing_found(self, folder: Path, hint: str = "") -> InputError:
        """Return the error for a folder with neither an index nor the published files."""
        wanted = [*self.index, *([self.layout] if self.layout else [])]
        return InputError(f"{self.name}: no index or images in {str(folder)!r}; looked for {', '.join(wanted)}{hint}")

    def read_trials(self, folder: Path, subject: int, stimuli: pd.DataFrame) -> pd.DataFrame:
        """Return ``session``, ``run`` (both from 1) and ``stimulus_id`` of each trial, in the order of the beta files.

        Args:
            folder: The dataset's folder.
            subject: One of ``subjects``.
            stimuli: The dataset's table.
        """
        raise NotImplementedError

    def describe(self, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
        """Add columns about the stimuli from other files of the folder."""
        return table

    def read_index(self, path: Path, folder: Path) -> pd.DataFrame:
        """Return the rows of an index file after a check of its columns; its paths are relative to the folder."""
        table = read_table(path, f"{self.name}: index")
        what = f"{self.name}: index {str(path)!r}"
        check_columns(table, self.columns, what)
        if taken := [column for column in RESERVED if column in table.columns]:
            raise InputError(f"{what} has a column {name_some(taken)}, which is a reserved name; rename it")
        if table.empty:
            raise InputError(f"{what} has no rows")
        return self.with_stimuli(table, images_below(folder, table[self.image_column]))

    def with_stimuli(self, table: pd.DataFrame, images: Sequence[str]) -> pd.DataFrame:
        """Put ``stimulus_id`` and ``image`` (absolute paths) before the columns of a table."""
        ids = parse_ids(table[self.id_column], self.id_column, f"{self.name}: the index")
        text = [column for column, dtype in table.dtypes.items() if isinstance(dtype, pd.StringDtype)]
        table = with_numbers(table.astype(dict.fromkeys(text, object)))  # like the columns of a file
        table[self.id_column] = ids
        table.insert(0, "stimulus_id", ids)
        table.insert(1, "image", list(images))
        return table


def images_below(root: Path, paths: "pd.Series[str]") -> list[str]:
    """Return the absolute paths of images, which an index gives relative to the root."""
    if wrong := [line_of(row) for row, path in enumerate(paths) if not isinstance(path, str) or not path.strip()]:
        raise InputError(f"the index below {str(root)!r} has no {paths.name} in {name_some(wrong)}")
    if wrong := [shorten(path) for path in paths if not _is_below_root(path)]:
        raise InputError(
            f"the index below {str(root)!r} has a {paths.name} that is absolute, or has .., control characters or "
            f"more than {MAX_PATH_BYTES:,} bytes: {name_some(wrong)}; give paths relative to the folder"
        )
    return [str(root / path) for path in paths]


def _is_below_root(path: str) -> bool:
    """Return whether a path stays in its folder; the user's own links may lead elsewhere."""
    parts = path.split("/")
    return parts[0] != "" and ".." not in parts and is_path_like(path)
