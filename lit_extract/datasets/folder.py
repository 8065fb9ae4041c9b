"""Any folder of images: every image below it, sorted by relative path."""

import os
from collections import Counter
from pathlib import Path, PurePath

import pandas as pd

from lit_extract.common.errors import InputError
from lit_extract.datasets.dataset import Dataset, images_below
from lit_extract.datasets.listing import check_utf8, files_below
from lit_extract.datasets.table import FINDINGS

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class _Folder(Dataset):
    def load(self, folder: Path) -> pd.DataFrame:
        """Return the images; hidden files and files that are no images are counted."""
        paths: list[str] = []
        ignored: Counter[str] = Counter()
        for path in files_below(folder):
            # macOS puts a ._photo.jpg, which is no image, next to each photo.jpg
            is_hidden = os.path.basename(path).startswith(".")  # noqa: PTH119 (73,000 of them)
            if path.lower().endswith(SUFFIXES) and not is_hidden:
                paths.append(path)
            else:
                ignored["hidden" if is_hidden else PurePath(path).suffix.lower() or "without a suffix"] += 1
        if not paths:
            raise InputError(f"data.root: no image below {str(folder)!r}; looked for {', '.join(SUFFIXES)}")
        check_utf8(paths)
        paths.sort()
        index = pd.DataFrame({"path": paths, "name": [Path(path).stem for path in paths]}, dtype=object)
        table = self.with_stimuli(index, images_below(folder, index["path"]))
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        table.attrs[FINDINGS] = [f"ignored files that are no images: {counts}"] if ignored else []
        return table


DATASET = _Folder(
    name="folder",
    title="Every image below a folder, by relative path",
    data_module="ImageFolderDataModule",
    id_column="path",
    id_meaning="path of the image relative to data.root",
)
