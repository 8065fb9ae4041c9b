"""Any folder of images: every image below it, sorted by relative path."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

import pandas as pd

from lit_extract.common.errors import InputError, name_some
from lit_extract.datasets import table

NAME = "folder"
ID_MEANING = "path of the image relative to data.root"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def load(root: str | Path | None = None) -> tuple[pd.DataFrame, Path]:
    """The table and the folder; files that are no images, and hidden ones, are counted in ``.attrs["ignored"]``.

    Raises:
        InputError: There is no image, a folder can't be read, or the name of an image is not UTF-8.
    """
    base = table.find_root(NAME, root)
    paths: list[str] = []
    ignored: Counter[str] = Counter()
    for path in _files_below(str(base)):
        # macOS puts a ._photo.jpg beside each photo.jpg, which is none
        is_hidden = os.path.basename(path).startswith(".")  # noqa: PTH119 (73,000 of them)
        if path.lower().endswith(SUFFIXES) and not is_hidden:
            paths.append(os.path.relpath(path, base))
        else:
            ignored["hidden" if is_hidden else PurePath(path).suffix.lower() or "without a suffix"] += 1
    if not paths:
        raise InputError(f"data.root: no image below {str(base)!r}; looked for {', '.join(SUFFIXES)}")
    _check_names(paths)
    paths.sort()
    index = pd.DataFrame({"path": paths, "name": [Path(path).stem for path in paths]}, dtype=object)
    loaded = table.with_stimuli(NAME, index, "path", table.relative_images(base, index["path"]))
    loaded.attrs[table.IGNORED] = dict(ignored)
    return loaded, base


def _check_names(paths: list[str]) -> None:
    """Refuse names that can't be written into a file as text."""
    wrong = []
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            wrong.append(repr(os.fsencode(path)))
    if wrong:
        raise InputError(f"data.root: names that are not UTF-8: {name_some(wrong)}; rename the files")


def _files_below(base: str) -> Iterator[str]:
    """Every file below a folder, through links too; a link to a folder that it is in leads nowhere new."""
    left: list[tuple[str, tuple[str, ...]]] = [(base, ())]
    while left:
        folder, above = left.pop()
        real = os.path.realpath(folder)
        if real in above:
            continue
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir():
                        yield entry.path
                    elif not entry.name.startswith("."):
                        left.append((entry.path, (*above, real)))
        except OSError as error:
            raise InputError(f"data.root: can't read the folder {folder!r}: {error.strerror}") from None
