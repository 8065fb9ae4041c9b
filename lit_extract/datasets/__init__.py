"""Stimulus tables: the images of a dataset, their order and their ids. No torch here."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import pandas as pd

from lit_extract.common.errors import InputError, nearest
from lit_extract.datasets import table
from lit_extract.datasets.dataset import Dataset

# A dataset is a file of this folder, with a Dataset called DATASET, and a line here. The data module
# lit_extract.<data_module>, the choices of --data.dataset and the id column of captions follow from it.
_FILES = (
    "nsd",
    "bold5000",
    "things",
    "folder",
    "own",
    "demo",
)

_FOUND: list[Dataset] = [import_module(f"{__name__}.{file}").DATASET for file in _FILES]
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _FOUND}

if TYPE_CHECKING:
    DatasetName: TypeAlias = str
else:  # allowed values of --data.dataset
    DatasetName = Literal[tuple(DATASETS)]

__all__ = ["DATASETS", "Dataset", "DatasetName", "find_dataset", "load_captions", "load_dataset", "load_trials"]


def find_dataset(name: str) -> Dataset:
    """Return the dataset of this name."""
    if name not in DATASETS:
        raise InputError(f"dataset: {name!r} is not one of {', '.join(DATASETS)}{nearest(name, DATASETS)}")
    return DATASETS[name]


def load_dataset(
    name: str, root: str | Path | None = None, query: str | None = None, limit: int | None = None
) -> pd.DataFrame:
    """Return the stimulus table of a dataset.

    Args:
        name: One of ``DATASETS``, such as ``nsd``.
        root: The dataset's folder, or the file of ``table``; default: the dataset's environment variable, such as
            ``NSD_DATASET``. ``demo`` needs no root.
        query: A :meth:`pandas.DataFrame.query` that chooses rows, such as ``"nsd_id < 1000"``.
        limit: Return only the first ``limit`` of these rows.

    Returns:
        One row per stimulus, in dataset order: ``stimulus_id``, ``image`` (absolute path), then the dataset's own
        columns. For images in an HDF5 file, ``image_row`` is the row in it. ``.attrs["stimulus_id_meaning"]`` explains
        the ids; ``.attrs["findings"]`` lists missing and ignored files, one sentence each.

    Raises:
        InputError: The dataset is unknown; the root, an image or a column is missing; the query fails or leaves no row;
            or the limit is larger than the number of rows.
    """
    dataset = find_dataset(name)
    folder = dataset.find_root(root)
    stimuli = dataset.describe(dataset.load(folder), folder)
    findings = stimuli.attrs.get(table.FINDINGS, [])
    if query is not None:
        stimuli = table.select(stimuli, query)
    if limit is not None:
        stimuli = table.first(stimuli, limit)
    stimuli.attrs = {
        table.DATASET: name,
        table.ID_MEANING: dataset.id_meaning,
        table.ROOT: str(folder if folder.is_dir() else folder.parent),  # for a table, it is its file
        table.FINDINGS: findings,
    }
    return stimuli


# at the end, because these modules import DATASETS
from lit_extract.datasets.captions import load_captions  # noqa: E402
from lit_extract.datasets.trials import load_trials  # noqa: E402
