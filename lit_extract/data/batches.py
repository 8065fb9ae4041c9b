"""Batches of images for data loaders: decoded, and turned into pixels or into the output of a model's processor.

Images are processed one at a time, so a row never depends on its neighbours. They are decoded by Pillow,
``convert("RGB")`` (grayscale and palette expanded, CMYK converted, alpha dropped, EXIF rotation not applied; 16-bit
grayscale scaled like 8-bit grayscale, where Pillow would clip).

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
        """Return ``index`` (B,), the tensors of the images, ``bad`` (B,), ``errors``, and ``inputs`` (B, 4).

        ``inputs`` has size and time of each image's file, a hash of its content, and its rotation.
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
        """Return the tensors of the images of B rows, with B items each, and the reasons of failures by row.

        ``inputs`` (B, 4) is filled in.
        """

    def read(self, row: int) -> Reading:
        """Return the current state of the stimulus in a row."""
        return read_stimulus(str(self.paths[row]), self._image_row(row))

    def decode(self, row: int, inputs: NDArray[np.int64]) -> tuple[Reading, Image.Image]:
        """Return the stimulus in a row, and its image; note its state in ``inputs`` (4,).

        Pillow raises almost anything on a broken file.
        """
        reading = self.read(row)
        inputs[:] = reading.stat.st_size, reading.stat.st_mtime_ns, reading.content, False
        image, inputs[ROTATED] = reading.decode()
        return reading, image

    def reason(self, row: int, error: Exception) -> str:
        """Return why an image can't be processed; raise errors of the machine."""
        raise_if_of_the_machine(error)
        return f"{self.paths[row]}: {type(error).__name__}: {one_line(error)}"

    def _image_row(self, row: int) -> int | None:
        return None if self.rows is None else int(self.rows[row])


class ImageBatches(_Batches):
    """Pixels from timm's evaluation transform; ``places`` are rows in the cache, by default the same rows."""

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

        As many threads decode as the forward pass has; one in a worker process. Cached pixels are read without threads.
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
        """Fill in a row's pixels and state if the cache has them for the current image."""
        if self.cache is None:
            return False
        try:
            stat = os.stat(self.paths[row])  # noqa: PTH116 (half the time of Path.stat, 73,000 times)
        except OSError:  # decoding reports the error
            return False
        noted = self.cache.read(int(self.places[row]), self._state(row, stat), pixels)
        if noted is None:
            return False
        inputs[:] = stat.st_size, stat.st_mtime_ns, *noted
        return True

    def _decode_into(self, pixels: NDArray[np.uint8], inputs: NDArray[np.int64], row: int) -> str | None:
        """Fill in a row's pixels and state, and cache both; or return the reason of a failure."""
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
    """The output of a Transformers processor for each image.

    A batch has each tensor of the processor, such as ``pixel_values``, under its name: row k is the processor's output
    for that image alone. It is one tensor (B, …) if all rows have the same shape, else a list of B.
    """

    def __init__(
        self, stimuli: pd.DataFrame, batches: Sequence[Sequence[int]], preprocessing: ProcessorSettings
    ) -> None:
        super().__init__(stimuli, batches)
        self.preprocessing = preprocessing

    @cached_property
    def process(self) -> Callable[[Image.Image], dict[str, Tensor]]:
        """The processor, created in the process that uses it, because tokenizers do not survive a fork well."""
        return image_processing(self.preprocessing)

    @cached_property
    def instead(self) -> dict[str, Tensor]:
        """Placeholder for an image that can't be decoded; its row is not kept, but the batch has others."""
        return self.process(Image.new("RGB", (224, 224)))

    def load(self, index: Sequence[int], inputs: NDArray[np.int64]) -> tuple[dict[str, Any], dict[int, str]]:
        """Return the processor's tensors, and errors, also for images that it refuses."""
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


# None: Pillow's own errors; the others: the path is no file, or a file that is too large.
_OF_THE_IMAGE = (
    *(None, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ENXIO),
)


def raise_if_of_the_machine(error: Exception) -> None:
    """Raise an error of the machine, such as a failing disk or a lack of memory, but not of the image."""
    is_of_the_image = isinstance(error, OSError) and error.errno in _OF_THE_IMAGE
    if isinstance(error, OSError | MemoryError | RuntimeError) and not is_of_the_image:
        raise error
