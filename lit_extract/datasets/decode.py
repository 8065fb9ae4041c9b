"""Stimuli as pixels. No torch here: pages and reports open images too."""

import os
from typing import Any

from PIL import Image

from lit_extract.datasets.nsd import HDF5_DATASET


def open_image(path: str, image_row: int | None = None) -> Image.Image:
    """An image file, or a row of NSD's HDF5 file, decoded, RGB."""
    if image_row is None:
        with Image.open(path) as image:
            return image.convert("RGB")
    return Image.fromarray(_hdf5_images(path)[image_row])


_open_hdf5: dict[tuple[int, str], Any] = {}


def _hdf5_images(path: str) -> Any:
    """NSD's image brick, opened once a process: HDF5 handles must not cross a fork."""
    import h5py

    key = (os.getpid(), path)
    if key not in _open_hdf5:
        _open_hdf5[key] = h5py.File(path, "r", locking=False)[HDF5_DATASET]
    return _open_hdf5[key]
