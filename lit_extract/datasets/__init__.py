"""Stimulus tables: which images a dataset has, in which order, and under which ids. No torch here."""

import os
from pathlib import Path

import pandas as pd

from lit_extract.common.errors import InputError
from lit_extract.datasets import bold5000, demo, folder, nsd, table, things
from lit_extract.datasets.captions import load_captions

__all__ = ["DATASETS", "has_root", "load_captions", "load_dataset"]

DATASETS = {module.NAME: module for module in (nsd, bold5000, things, folder, demo)}


def load_dataset(name: str, root: str | Path | None = None, query: str | None = None) -> pd.DataFrame:
    """The stimulus table of a dataset.

    Args:
        name: ``nsd``, ``bold5000``, ``things``, ``folder`` or ``demo``.
        root: The dataset's folder; default: the dataset's environment variable (``NSD_DATASET``,
            ``BOLD_DATASET``, ``THINGS_DATASET``). ``demo`` needs none.
        query: A :meth:`pandas.DataFrame.query` that chooses rows, such as ``"nsd_id < 1000"``.

    Returns:
        One row a stimulus, in dataset order: ``stimulus_id``, ``image`` (absolute path), then the
        dataset's own columns. ``image_row`` is the row in an HDF5 file, where there is one. What
        an id means is in ``.attrs["stimulus_id_meaning"]``; how many files of a folder are no images, by suffix, in
        ``.attrs["ignored"]``.

    Raises:
        InputError: An unknown dataset; a missing root, index or column; a query that fails or
            leaves no row.
    """
    if name not in DATASETS:
        raise InputError(f"dataset: {name!r} is not one of {', '.join(DATASETS)}")
    module = DATASETS[name]
    loaded: pd.DataFrame
    loaded, folder_used = module.load(root)
    ignored = loaded.attrs.get(table.IGNORED, {})
    if query is not None:
        loaded = table.select(loaded, query)
    loaded.attrs = {
        table.DATASET: name,
        table.ID_MEANING: module.ID_MEANING,
        table.ROOT: str(folder_used),
        table.IGNORED: ignored,
    }
    return loaded


def has_root(name: str, root: str | Path | None) -> bool:
    """Whether it is known where a dataset lies: by the argument or its environment variable, or as it ships here."""
    return bool(root) or name == demo.NAME or bool(os.environ.get(getattr(DATASETS[name], "ROOT_VARIABLE", "")))
