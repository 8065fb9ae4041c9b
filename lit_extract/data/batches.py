"""Batches of images, as data loaders get them: decoded, and made into pixels or into what a model's processor makes.

Both are made of one image at a time, so that a row never depends on its neighbours. Decoded by Pillow,
``convert("RGB")`` (grayscale and palette expanded, CMYK converted, alpha dropped, EXIF rotation not applied; 16-bit
grayscale scaled like its 8-bit twin, which Pillow would clip).

B batch, H height, W width.
"""

import errno
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from lit_extract.common.errors import one_line
from lit_extract.data.pixels import Noted, PixelCache, geometry, image_state
from lit_extract.data.processors import ProcessorSettings, image_processing
from lit_extract.datasets import table
from lit_extract.datasets.decode import Reading, read_stimulus
from lit_extract.storage.layout import INPUT_COLUMNS, INPUTS, ROTATED


class _Batches(Dataset[dict[str, Any]]):
    """A dataset whose items are the batches of a plan."""

    def __init__(self, stimuli: pd.DataFrame, batches: Sequence[Sequence[int]]) -> None:
        # Arrays, not the table: touching a DataFrame's Python objects would copy its pages into every worker.
        self.paths = np.array(stimuli["image"], dtype=np.str_)
        self.rows = np.array(stimuli["image_row"], dtype=np.int64) if "image_row" in stimuli else None
        self.batches = batches
        self.root: str = stimuli.attrs[table.ROOT]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Return ``index`` (B,), what is made of the images, ``bad`` (B,), ``errors``, and ``inputs`` (B, 4).

        The latter are noted of each image: size and time of its file, content, rotation.
        """
        index = self.batches[item]
        inputs = np.zeros((len(index), len(INPUT_COLUMNS)), dtype=np.int64)
        made, errors = self.load(index, inputs)
        return {
            "index": torch.tensor(index),
            **made,
            "bad": torch.tensor([row in errors for row in index]),
            "errors": errors,
            INPUTS: torch.from_numpy(inputs),
        }

    @abstractmethod
    def load(self, index: Sequence[int], inputs: NDArray[np.int64]) -> tuple[dict[str, Any], dict[int, str]]:
        """Return what is made of the images of B rows, with B items each, and why of some it could not be made.

        ``inputs`` (B, 4) is filled in.
        """

    def read(self, row: int) -> Reading:
        """Return the stimulus in a row, as it is now."""
        return read_stimulus(str(self.paths[row]), self._image_row(row))

    def decode(self, row: int, inputs: NDArray[np.int64]) -> tuple[Reading, Image.Image]:
        """Return the stimulus in a row, and its image; note in ``inputs`` (4,) what it is.

        Pillow raises almost anything on a broken file.
        """
        reading = self.read(row)
        inputs[:] = reading.stat.st_size, reading.stat.st_mtime_ns, reading.content, False
        image, inputs[ROTATED] = reading.decode()
        return reading, image

    def reason(self, row: int, error: Exception) -> str:
        """Return why nothing can be made of an image; raise an error that is the machine's."""
        raise_if_of_the_machine(error)
        return f"{self.paths[row]}: {type(error).__name__}: {one_line(error)}"

    def _image_row(self, row: int) -> int | None:
        return None if self.rows is None else int(self.rows[row])


class ImageBatches(_Batches):
    """Pixels as timm's evaluation transform makes them; ``places`` are rows in the cache, by default the same."""

    def __init__(
        self,
        stimuli: pd.DataFrame,
        batches: Sequence[Sequence[int]],
        preprocessing: dict[str, Any],
        cache: PixelCache | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(stimuli, batches)
        self.size = tuple(preprocessing["input_size"])
        self.cache, self.places = cache, np.arange(len(stimuli)) if places is None else places
        self.transform = create_transform(**geometry(preprocessing), is_training=False, use_prefetcher=True)

    def load(self, index: Sequence[int], inputs: NDArray[np.int64]) -> tuple[dict[str, Any], dict[int, str]]:
        """Return ``image`` (B, 3, H, W) uint8, and errors.

        Decoded by as many threads as the forward pass has; in a worker process that is one. Pixels of earlier models
        are read sooner than threads start.
        """
        images = np.empty((len(index), *self.size), dtype=np.uint8)
        left = [place for place, row in enumerate(index) if not self._from_cache(images[place], inputs[place], row)]
        errors = {}
        if left:
            rows = [index[place] for place in left]
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                places = ([values[place] for place in left] for values in (images, inputs))
                reasons = threads.map(self._decode_into, *places, rows)
                errors = {row: reason for row, reason in zip(rows, reasons, strict=True) if reason is not None}
        return {"image": torch.from_numpy(images)}, errors

    def _from_cache(self, pixels: NDArray[np.uint8], inputs: NDArray[np.int64], row: int) -> bool:
        """Fill in a row's pixels, and what was noted of them, if the cache has them of the image as it is now."""
        if self.cache is None:
            return False
        try:
            stat = os.stat(self.paths[row])  # noqa: PTH116 (half the time of Path.stat, 73,000 times)
        except OSError:  # decoding reports what is wrong with it
            return False
        noted = self.cache.read(int(self.places[row]), self._state(row, stat), pixels)
        if noted is None:
            return False
        inputs[:] = stat.st_size, stat.st_mtime_ns, *noted
        return True

    def _decode_into(self, pixels: NDArray[np.uint8], inputs: NDArray[np.int64], row: int) -> str | None:
        """Fill in a row's pixels, note what they are of, keep both in the cache; or return why they can't be had."""
        try:
            reading, image = self.decode(row, inputs)
            pixels[:] = self.transform(image)
            if self.cache is not None:
                noted = Noted(reading.content, bool(inputs[ROTATED]))
                self.cache.write(int(self.places[row]), self._state(row, reading.stat), pixels, noted)
        except Exception as error:  # Pillow raises almost anything on a broken file
            pixels[:] = 0
            return self.reason(row, error)
        return None

    def _state(self, row: int, stat: os.stat_result) -> bytes:
        return image_state(str(self.paths[row]), self._image_row(row), self.root, stat)


class ProcessedBatches(_Batches):
    """What a processor of Transformers makes of each image.

    A batch has each of the tensors that the processor returns, as ``pixel_values``, under its name: row k of it is what
    the processor gives for that image alone. It is one tensor (B, …) if all rows have the same shape, else a list of B.
    """

    def __init__(
        self, stimuli: pd.DataFrame, batches: Sequence[Sequence[int]], preprocessing: ProcessorSettings
    ) -> None:
        super().__init__(stimuli, batches)
        self.preprocessing = preprocessing

    @cached_property
    def process(self) -> Callable[[Image.Image], dict[str, Tensor]]:
        """The processor, made in the process that uses it: a tokenizer does not cross a fork well."""
        return image_processing(self.preprocessing)

    @cached_property
    def instead(self) -> dict[str, Tensor]:
        """What stands for an image that can't be decoded: its row is not kept, but others are in its batch."""
        return self.process(Image.new("RGB", (224, 224)))

    def load(self, index: Sequence[int], inputs: NDArray[np.int64]) -> tuple[dict[str, Any], dict[int, str]]:
        """Return the processor's tensors, and errors; of an image that it refuses too."""
        made, errors = [], {}
        for place, row in enumerate(index):
            try:
                made.append(self.process(self.decode(row, inputs[place])[1]))
            except Exception as error:  # of Pillow on a broken file, or of the processor
                errors[row] = self.reason(row, error)
                made.append(self.instead)
        return {name: _together([one[name] for one in made]) for name in made[0]}, errors


def _together(rows: list[Tensor]) -> Tensor | list[Tensor]:
    return torch.stack(rows) if len({row.shape for row in rows}) == 1 else rows


# None: Pillow's own; the others are of a path that leads to something other than a file of modest size.
_OF_THE_IMAGE = (
    *(None, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ENXIO),
)


def raise_if_of_the_machine(error: Exception) -> None:
    """Raise an error that is the machine's, not the image's: a disk that does not answer, or no memory."""
    is_of_the_image = isinstance(error, OSError) and error.errno in _OF_THE_IMAGE
    if isinstance(error, OSError | MemoryError | RuntimeError) and not is_of_the_image:
        raise error
