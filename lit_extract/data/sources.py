"""Image sources: the places of images, which are read when a request is made."""

import base64
import io
import logging
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from lit_extract.common.errors import InputError, name_some
from lit_extract.data.base import WHOLE_SUBSET, Batch, StimulusDataModule
from lit_extract.data.plan import Plan
from lit_extract.datasets import DatasetName, table
from lit_extract.datasets.decode import open_image, read_stimulus
from lit_extract.storage.layout import INPUTS

logger = logging.getLogger(__name__)

# Enough to keep vLLM's batches full; few enough to hold in memory and to ask again after a kill.
SHARD_ROWS = 256

MISSING = -1  # size of a missing image file


class ImageSource(NamedTuple):
    """One stimulus: its id, its file, and its row if the file is HDF5."""

    stimulus: Any
    path: str
    image_row: int | None = None


def encode(source: ImageSource, max_size: int | None = None) -> str:
    """Return a stimulus as a PNG in a data URL, with the same pixels for every engine and file format.

    It is decoded as for vision features: RGB, transparency dropped, EXIF rotation not applied. An image whose longer
    side has more than ``max_size`` pixels is reduced.
    """
    image = open_image(source.path, source.image_row)
    if max_size is not None:
        image.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # size hardly matters, as requests mostly stay on this machine
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class SourceBatches(Dataset[Batch]):
    """A dataset whose items are the shards of a plan: ``index`` (B,), ``sources``, B of them, and ``inputs`` (B, 4)."""

    def __init__(self, sources: list[ImageSource], batches: Sequence[Sequence[int]]) -> None:
        self.sources, self.batches = sources, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> Batch:
        rows = self.batches[item]
        sources = [self.sources[row] for row in rows]
        # noted before the images are sent, so a change in between is noticed
        return {"index": torch.tensor(rows), "sources": sources, INPUTS: torch.tensor([_note(s) for s in sources])}


def _note(source: ImageSource) -> tuple[int, int, int, bool]:
    """Return the size and time of an image's file, its content, and whether it has an EXIF rotation."""
    try:
        reading = read_stimulus(source.path, source.image_row)
    except OSError:
        return MISSING, 0, 0, False
    return reading.stat.st_size, reading.stat.st_mtime_ns, reading.content, reading.has_rotation()


class ImageSourceDataModule(StimulusDataModule):
    """The images of a dataset for captioning, one shard of requests at a time.

    Args:
        dataset: Name of the dataset.
        root: Folder of the dataset; default: the dataset's environment variable.
        query: pandas query that chooses rows, such as "nsd_id < 1000".
        limit: Use only the first N stimuli of the dataset, or of the rows that the query chooses.
        shard_rows: Images per shard: they are sent together, and are the unit of writing and resuming.
        preprocessing: Maximum size of an image; linked from the model.
    """

    unit = "images"

    def __init__(
        self,
        dataset: DatasetName,
        root: str | None = None,
        query: str | None = None,
        shard_rows: int = SHARD_ROWS,
        preprocessing: dict[str, Any] | None = None,
        limit: int | None = None,
    ) -> None:
        # The user names the output file, so a query needs no subset name.
        super().__init__(None, WHOLE_SUBSET, shard_rows, 0, preprocessing, limit)
        self.dataset_name, self.root, self.query = dataset, root, query

    @cached_property
    def sources(self) -> list[ImageSource]:
        """The source of each image."""
        ids, places = self.stimuli["stimulus_id"].tolist(), self.image_places(range(len(self.stimuli)))
        return [ImageSource(stimulus, *place) for stimulus, place in zip(ids, places, strict=True)]

    @cached_property
    def input_states(self) -> NDArray[np.int64]:
        """Size and time of each image's file (N, 2); missing files have size -1."""
        known: dict[str, tuple[int, int]] = {}
        for path in dict.fromkeys(source.path for source in self.sources):
            try:
                stat = Path(path).stat()
                known[path] = stat.st_size, stat.st_mtime_ns
            except OSError:
                known[path] = MISSING, 0
        missing = [path for path, (size, _) in known.items() if size == MISSING]
        if len(missing) == len(known):
            raise InputError(f"all {len(known)} images are missing: {name_some(missing)}; check data.root")
        if missing:
            logger.warning(f"{len(missing)} of {len(known)} images are missing and will fail: {name_some(missing)}")
        return np.array([known[source.path] for source in self.sources], dtype=np.int64)

    def plan_all(self) -> Plan:
        """Return a plan with one batch per shard."""
        shard_rows = self.shard_rows or SHARD_ROWS
        return Plan(len(self.sources), shard_rows, shard_rows)

    def provenance(self) -> dict[str, Any]:
        """Return everything about the images that determines the captions."""
        return {
            **super().provenance(),
            "stimuli_sha256": table.fingerprint(self.stimuli),
            **self.preprocessing,
            "pillow": version("pillow"),
        }

    def batches_of(self, batches: Sequence[Sequence[int]]) -> SourceBatches:
        """Return batches of sources, without pixels."""
        return SourceBatches(self.sources, batches)
