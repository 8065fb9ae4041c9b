"""The images of a review: requested by row only, and none outside the dataset's folder."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.datasets import DATASETS, load_dataset, table
from lit_extract.datasets.decode import Reading, read_stimulus
from lit_extract.datasets.ids import id_key

# Formats that all browsers show as the models see them; others are decoded here.
AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp", "BMP": "image/bmp"}
PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
LARGEST = 8 * 2**20  # bytes of a file that is sent unchanged
LONGER_SIDE = 2000  # pixels of a reduced image


class NoImageError(Exception):
    """A row has no image to show; the message says why."""


@dataclass(frozen=True)
class Images:
    """The images of rows."""

    paths: Sequence[str | None]  # absolute path of each row's image; None: there is no image
    image_rows: Sequence[int] | None  # rows in an HDF5 file; None: each image is a file
    root: Path  # of the dataset; images outside are not shown
    follow_links: bool = False  # also show images outside that links in the folder point to

    def read(self, row: int) -> tuple[bytes, str]:
        """Return the image of a row in a form that browsers show, and its media type."""
        if (path := self.paths[row]) is None:
            raise NoImageError("The dataset has no image with this id.")
        file = Path(path).resolve()
        if not self.follow_links and not file.is_relative_to(self.root.resolve()):
            raise NoImageError(
                f"{path} is a link out of the dataset's folder, to {file}; --follow_links shows such images."
            )
        if not file.is_file():
            raise NoImageError(f"There is no file {path}.")
        try:
            return _for_browser(read_stimulus(str(file), self.image_rows[row] if self.image_rows else None))
        except Exception as error:  # Pillow raises almost anything on a broken file
            raise NoImageError(f"{path} can't be shown: {one_line(error)}") from None


def find_images(
    captions: pd.DataFrame, dataset: str, root: str | None = None, follow_links: bool = False
) -> tuple[Images, str]:
    """Return the images of captions, and the name of the column with their ids."""
    stimuli = load_dataset(dataset, root)
    candidates = (DATASETS[dataset].id_column, "stimulus_id")
    column = next((name for name in candidates if name in captions.columns), None)
    if column is None:
        raise InputError(
            f"dataset: captions of {dataset} have their ids in a column {' or '.join(candidates)}; these have "
            f"{', '.join(captions.columns)}"
        )
    places = {id_key(stimulus): place for place, stimulus in enumerate(stimuli["stimulus_id"])}
    found = [places.get(id_key(stimulus)) for stimulus in captions[column]]
    if all(place is None for place in found):
        raise InputError(
            f"dataset: no id in column {column} is in {dataset}, such as "
            f"{name_some(captions[column].tolist(), 3)}; it has {name_some(list(places), 3)}"
        )
    files = stimuli["image"].tolist()
    paths = [None if place is None else files[place] for place in found]
    image_rows = [stimuli["image_row"].iloc[place or 0] for place in found] if "image_row" in stimuli else None
    return Images(paths, image_rows, Path(stimuli.attrs[table.ROOT]), follow_links), column


def _for_browser(reading: Reading) -> tuple[bytes, str]:
    if isinstance(reading.data, bytes) and len(reading.data) <= LARGEST:
        with reading.opened() as image:
            media_type = AS_THEY_ARE.get(image.format or "")
            if media_type and image.mode in PLAIN_MODES:
                return reading.data, media_type
    image, _ = reading.decode()
    image.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if image.width * image.height <= 2**20:
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "image/png"
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), "image/jpeg"
