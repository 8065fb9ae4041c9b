"""Natural Scenes Dataset (Allen et al., 2022, doi:10.1038/s41593-021-00962-x): 73,000 COCO crops."""

from pathlib import Path

import pandas as pd

from lit_extract.datasets import table
from lit_extract.errors import InputError, one_line

NAME = "nsd"
ROOT_VARIABLE = "NSD_DATASET"
INDEX = ("nsd.csv",)
COLUMNS = ("nsd_id", "name", "path")
ID_MEANING = (
    "nsd_id, counted from 0: the row of imgBrick in nsd_stimuli.hdf5 (the 73k ids of NSD's design "
    "matrices count from 1)"
)

HDF5 = "nsd_stimuli.hdf5"
HDF5_DATASET = "imgBrick"


def load(root: str | Path | None = None) -> tuple[pd.DataFrame, Path]:
    """The table and the folder: from ``nsd.csv`` if there is one, else from ``nsd_stimuli.hdf5`` in place."""
    folder = table.find_root(NAME, root, ROOT_VARIABLE)
    if (folder / INDEX[0]).is_file() or not (folder / HDF5).is_file():
        index = table.read_index(NAME, folder, (*INDEX, HDF5), COLUMNS)
        return table.with_stimuli(NAME, index, "nsd_id", table.relative_images(folder, index["path"])), folder
    rows = _count_rows(folder / HDF5)
    index = pd.DataFrame(
        {
            "nsd_id": range(rows),
            "name": [f"nsd_{row:05d}" for row in range(rows)],
            "path": HDF5,
            "image_row": range(rows),
        }
    )
    return table.with_stimuli(NAME, index, "nsd_id", [str(folder / HDF5)] * rows), folder


def _count_rows(path: Path) -> int:
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            shape, dtype = file[HDF5_DATASET].shape, file[HDF5_DATASET].dtype
    except (OSError, KeyError) as error:
        raise InputError(f"{NAME}: {str(path)!r} has no readable dataset {HDF5_DATASET}: {one_line(error)}") from None
    if len(shape) != 4 or shape[3] != 3 or dtype != "uint8":
        raise InputError(
            f"{NAME}: {HDF5_DATASET} in {str(path)!r} has shape {shape} of {dtype}; expected images × height "
            "× width × 3 of uint8"
        )
    return int(shape[0])
