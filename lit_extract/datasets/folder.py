"""Any folder of images: every image below it, sorted by relative path."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

import pandas as pd

from lit_extract.common.errors import InputError, name_some
from lit_extract.datasets.dataset import Dataset, images_below
from lit_extract.datasets.table import IGNORED

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # what Python makes of other bytes in a name; no file takes it as text


class _Folder(Dataset):
    def load(self, folder: Path) -> pd.DataFrame:
        """Return the images; files that are no images, and hidden ones, are counted in ``.attrs["ignored"]``."""
        paths: list[str] = []
        ignored: Counter[str] = Counter()
        for path in _files_below(str(folder)):
            # macOS puts a ._photo.jpg next to each photo.jpg, which is none
            is_hidden = os.path.basename(path).startswith(".")  # noqa: PTH119 (73,000 of them)
            if path.lower().endswith(SUFFIXES) and not is_hidden:
                paths.append(os.path.relpath(path, folder))
            else:
                ignored["hidden" if is_hidden else PurePath(path).suffix.lower() or "without a suffix"] += 1
        if not paths:
            raise InputError(f"data.root: no image below {str(folder)!r}; looked for {', '.join(SUFFIXES)}")
        if wrong := [repr(os.fsencode(path)) for path in paths if _NOT_UTF8.search(path)]:
            raise InputError(f"data.root: names that are not UTF-8: {name_some(wrong)}; rename the files")
        paths.sort()
        index = pd.DataFrame({"path": paths, "name": [Path(path).stem for path in paths]}, dtype=object)
        table = self.with_stimuli(index, images_below(folder, index["path"]))
        table.attrs[IGNORED] = dict(ignored)
        return table


DATASET = _Folder(
    name="folder",
    title="Every image below a folder, by relative path",
    data_module="ImageFolderDataModule",
    id_column="path",
    id_meaning="path of the image relative to data.root",
)


def _files_below(base: str) -> Iterator[str]:
    """Yield every file below a folder, through links too; a link to a folder that it is in leads nowhere new."""
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
