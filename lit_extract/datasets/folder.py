"""Any folder of images: every image below it, sorted by relative path."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lit_extract.datasets import table
from lit_extract.errors import InputError

NAME = "folder"
ID_MEANING = "path of the image relative to data.root"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def load(root: str | Path | None = None) -> tuple[pd.DataFrame, Path]:
    """The table and the folder. Names that begin with a dot (``._photo.jpg`` of macOS) are left out."""
    base = table.find_root(NAME, root)
    paths = sorted(_images_below(base))
    if not paths:
        raise InputError(f"data.root: no image below {str(base)!r}; looked for {', '.join(SUFFIXES)}")
    index = pd.DataFrame({"path": paths, "name": [Path(path).stem for path in paths]})
    return table.with_stimuli(NAME, index, "path", table.relative_images(base, index["path"])), base


def _images_below(base: Path) -> list[str]:
    return [
        Path(folder, name).relative_to(base).as_posix()
        for folder, files in _walk(base)
        for name in files
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]


def _walk(base: Path) -> Iterator[tuple[str, list[str]]]:
    for folder, folders, files in os.walk(base, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield folder, files
