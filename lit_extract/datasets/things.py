"""THINGS (Hebart et al., 2019, doi:10.1371/journal.pone.0223792): 26,107 images of 1,854 objects."""

from pathlib import Path

import pandas as pd

from lit_extract.datasets import table

NAME = "things"
ROOT_VARIABLE = "THINGS_DATASET"
INDEX = ("preprocessed/images.csv",)
COLUMNS = ("things_id", "image_name", "category", "category_id", "image_category_index", "image_path")
ID_MEANING = "things_id of preprocessed/images.csv"


def load(root: str | Path | None = None) -> tuple[pd.DataFrame, Path]:
    """The table and the folder: from ``preprocessed/images.csv``."""
    folder = table.find_root(NAME, root, ROOT_VARIABLE)
    index = table.read_index(NAME, folder, INDEX, COLUMNS)
    return table.with_stimuli(NAME, index, "things_id", table.relative_images(folder, index["image_path"])), folder
