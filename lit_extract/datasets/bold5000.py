"""BOLD5000 (Chang et al., 2019, doi:10.1038/s41597-019-0052-3): scenes, COCO and ImageNet."""

from pathlib import Path

import pandas as pd

from lit_extract.datasets import table

NAME = "bold5000"
ROOT_VARIABLE = "BOLD_DATASET"
INDEX = ("preprocessed/images.parquet", "preprocessed/images.csv")
COLUMNS = ("bold_id", "image_name", "stim_source", "image_path")
ID_MEANING = "bold_id of preprocessed/images"


def load(root: str | Path | None = None) -> tuple[pd.DataFrame, Path]:
    """The table and the folder: from ``preprocessed/images.parquet``, else ``.csv``."""
    folder = table.find_root(NAME, root, ROOT_VARIABLE)
    index = table.read_index(NAME, folder, INDEX, COLUMNS)
    return table.with_stimuli(NAME, index, "bold_id", table.relative_images(folder, index["image_path"])), folder
