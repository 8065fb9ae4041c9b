"""The stimuli themselves: pictures and captions."""

import base64
import hashlib
import io
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from lit_extract.common.errors import InputError, one_line
from lit_extract.datasets import load_captions, load_dataset
from lit_extract.datasets.decode import open_image
from lit_extract.datasets.ids import id_key
from lit_extract.storage.provenance import OF_CAPTIONS

THUMBNAIL_SIZE = 144  # pixels of each side: sharp also on screens with several pixels per page pixel


class Stimuli:
    """Pictures of a dataset, if it is available, and captions, if they are given.

    ``captions_are_theirs``: the captions are those of all language models of the report. If there are no pictures,
    ``note`` says why. Raises InputError if ``root`` or ``captions`` is given and wrong.
    """

    def __init__(
        self, dataset: str, root: str | None = None, captions: str | None = None, captions_are_theirs: bool = True
    ) -> None:
        self.note: str | None = None
        self.captions_are_theirs = captions_are_theirs
        self._places: dict[str, tuple[str, int | None]] = {}
        self._captions: dict[str, str] = {}
        try:
            table = load_dataset(dataset, root)
            rows = table["image_row"].tolist() if "image_row" in table else [None] * len(table)
            places = zip(table["image"], rows, strict=True)
            self._places = dict(zip(map(id_key, table["stimulus_id"]), places, strict=True))
        except InputError as error:
            if root is not None:
                raise
            self.note = f"No pictures: {str(error).removeprefix('data.root: ').replace('data.root', 'root')}"
        if captions is not None:
            texts = load_captions(Path(captions), dataset=dataset)
            self._captions = dict(zip(map(id_key, texts["stimulus_id"]), texts["caption"], strict=True))

    def open(self, stimulus: Hashable) -> Image.Image | None:
        """Return the picture, or None if it is not available."""
        if (key := id_key(stimulus)) not in self._places:
            return None
        try:
            return open_image(*self._places[key])
        except Exception as error:  # Pillow raises almost anything on a broken file
            self.note = f"Some pictures can't be read: {one_line(error)}"
            return None

    def caption(self, stimulus: Hashable) -> str | None:
        """Return the caption, or None if there is none."""
        return self._captions.get(id_key(stimulus))

    def thumbnail(self, stimulus: Hashable) -> str | None:
        """Return the middle square of the picture, small, as a data URL; None if there is no picture."""
        if (picture := self.open(stimulus)) is None:
            return None
        square = ImageOps.fit(picture, (THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        square.save(buffer, "JPEG", quality=72, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def alike(self, stimuli: Sequence[Hashable], kind: str) -> Literal["same", "different", "unknown"]:
        """Return whether stimuli are really the same: by captions for models of captions, else by pixels."""
        known = {self._identity(stimulus, kind) for stimulus in stimuli}
        if len(known - {None}) > 1:
            return "different"
        return "unknown" if None in known else "same"

    def _identity(self, stimulus: Hashable, kind: str) -> str | None:
        if kind in OF_CAPTIONS:
            return self.caption(stimulus) if self.captions_are_theirs else None
        if (picture := self.open(stimulus)) is None:
            return None
        return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
