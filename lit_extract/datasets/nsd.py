"""Natural Scenes Dataset (Allen et al., 2022, doi:10.1038/s41593-021-00962-x): 73,000 COCO crops."""

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.common.errors import InputError, one_line
from lit_extract.datasets.dataset import Dataset

HDF5 = "nsd_stimuli.hdf5"
HDF5_DATASET = "imgBrick"

N_IMAGES = 73_000
MAX_PIXELS = 50_000_000  # of any image: more than cameras make, and 400 MB while one is decoded


class _NSD(Dataset):
    def read_index(self, path: Path, folder: Path) -> pd.DataFrame:
        """Return the rows of ``nsd.csv``, or those of ``nsd_stimuli.hdf5``, whose images are read in place."""
        if path.name != HDF5:
            return super().read_index(path, folder)
        rows = range(_count_images(path))
        names = [f"nsd_{row:05d}" for row in rows]
        table = pd.DataFrame({"nsd_id": rows, "name": names, "path": HDF5, "image_row": rows})
        return self.with_stimuli(table, [str(path)] * len(rows))


DATASET = _NSD(
    name="nsd",
    title="Natural Scenes Dataset",
    data_module="NSDDataModule",
    root_variable="NSD_DATASET",
    index=("nsd.csv", HDF5),
    columns=("nsd_id", "name", "path"),
    image_column="path",
    id_column="nsd_id",
    id_meaning="nsd_id, counted from 0: the row of imgBrick in nsd_stimuli.hdf5 (the 73k ids of NSD's design matrices "
    "count from 1)",
    ids=range(N_IMAGES),
)


def _count_images(path: Path) -> int:
    try:
        images = open_images(str(path))
        with images.file:
            shape = images.shape
            if images.chunks is None:
                size, wanted = images.id.get_storage_size(), math.prod(shape)
            else:
                chunks = [-(-size // chunk) for size, chunk in zip(shape, images.chunks, strict=True)]
                size, wanted = images.id.get_num_chunks(), math.prod(chunks)
    except Exception as error:  # h5py raises almost anything on a damaged file
        raise InputError(f"nsd: {str(path)!r} has no readable dataset {HDF5_DATASET}: {one_line(error)}") from None
    if size != wanted:
        raise InputError(f"nsd: parts of {HDF5_DATASET} in {str(path)!r} were never written; copy the file again")
    return int(shape[0])


def open_images(path: str) -> Any:
    """Return NSD's images in an HDF5 file: a dataset whose ``.file`` the caller closes; OSError if it can't be read."""
    import h5py

    if not os.path.isfile(path):  # noqa: PTH113 (this is not the time for a Path)
        raise OSError("it is no regular file")
    file = None
    try:
        file = h5py.File(path, "r", locking=False)
        link, images = file.get(HDF5_DATASET, getlink=True), file[HDF5_DATASET]
        is_own = isinstance(link, h5py.HardLink) and isinstance(images, h5py.Dataset)
        if not is_own or images.external or images.is_virtual:
            raise OSError("it is no plain dataset of this file")
        _check_form(images.shape, images.dtype, images.chunks)
        packing = images.id.get_create_plist()
        filters = {packing.get_filter(place)[0] for place in range(packing.get_nfilters())}
        if not filters <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
            # HDF5's checksums (Fletcher-32) end the process at damaged chunks, and others are plugins.
            raise OSError("it is packed in a way that is not read; write it with gzip, or as it is")
    except Exception as error:  # h5py raises almost anything on a damaged file
        if file is not None:
            file.close()
        raise OSError(one_line(error)) from None
    return images


def _check_form(shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...] | None) -> None:
    if len(shape) != 4 or shape[3] != 3 or dtype != "uint8":
        raise OSError(f"it has shape {shape} of {dtype}; expected images × height × width × 3 of uint8")
    if not 1 <= shape[0] <= N_IMAGES or not 1 <= shape[1] * shape[2] <= MAX_PIXELS:
        raise OSError(f"it has shape {shape}; expected 1 to {N_IMAGES:,} images of at most {MAX_PIXELS:,} pixels")
    if chunks is not None and math.prod(chunks) > 3 * MAX_PIXELS:
        raise OSError(f"it has chunks of {math.prod(chunks):,} bytes, and each is read as a whole")
