"""The photographs that ship with the package; their licences are in ``demo_images/LICENSES.md``."""

from pathlib import Path

import pandas as pd

from lit_extract.datasets import table

NAME = "demo"
INDEX = ("photographs.csv",)
COLUMNS = ("demo_id", "name", "path")
ID_MEANING = "demo_id of demo_images/photographs.csv"

FOLDER = Path(__file__).parent / "demo_images"


def load(root: str | Path | None = None) -> tuple[pd.DataFrame, Path]:
    """The table and the folder; ``root`` is for a changed copy of the photographs."""
    folder = table.find_root(NAME, root or FOLDER)
    index = table.read_index(NAME, folder, INDEX, COLUMNS)
    return table.with_stimuli(NAME, index, "demo_id", table.relative_images(folder, index["path"])), folder
