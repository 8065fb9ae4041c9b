"""Image data modules: decode, resize and crop in workers, whole batches at a time.

Images go through the model's own preprocessing. timm's transform (``timm.data.create_transform``) resizes and crops in
the workers; images travel as uint8, and the extractor normalizes them in float32 on the device. A processor of
Transformers does all of this in the workers.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lit_extract.common.console import EVERY_RANK, as_size
from lit_extract.common.errors import InputError
from lit_extract.common.host import cores_of_rank, usable_cores
from lit_extract.common.untrusted import absolute_path
from lit_extract.data.base import WHOLE_SUBSET, StimulusDataModule
from lit_extract.data.batches import ImageBatches, ProcessedBatches, raise_if_of_the_machine
from lit_extract.data.pixels import DECODERS, PixelCache, folder_name
from lit_extract.data.plan import Plan
from lit_extract.data.processors import IMAGE_PROCESSOR, PACKAGES, ProcessorSettings, image_processing, recorded
from lit_extract.datasets import DATASETS, load_dataset, table
from lit_extract.datasets.dataset import Dataset as StimulusDataset
from lit_extract.datasets.decode import hdf5_closed_after, read_stimulus
from lit_extract.storage.disk import free_bytes
from lit_extract.storage.layout import INPUT_COLUMNS

logger = logging.getLogger(__name__)

WORKERS_AT_MOST = 16


class ImageDataModule(StimulusDataModule):
    """The images of one dataset, in whole batches, in the order of its stimulus table.

    Args:
        root: Folder of the dataset, or the file of your own table; default: the dataset's environment variable.
        query: pandas query that chooses rows, such as "nsd_id < 1000"; requires a subset name.
        subset: Name of the chosen rows; names the output folder.
        limit: Use only the first N stimuli of the dataset, or of the rows that the query chooses. Their subset is
            called firstN, such as first50, or NAME-firstN with a query.
        batch_size: Images per forward pass.
        shard_rows: Images per shard, the unit of writing and resuming; a multiple of batch_size. Default: the value of
            the run to resume, else at most 512 images and 128 MB of activations, chosen so that ranks have even shares.
        num_workers: Number of processes that decode images; default: chosen for the machine.
        on_bad_image: What to do with an image that can't be decoded: "stop" ends the run; "skip" leaves its row NaN,
            lists it in the output and ends with exit code 3.
        cache: Folder in which decoded images are kept for other models with the same preprocessing; "auto" is .pixels
            in the output folder, "off" keeps none. Images for a processor of Transformers are never kept.
        preprocessing: Preprocessing of each image: size, crop and interpolation, or a processor; linked from the model.
    """

    unit = "images"
    input_columns = INPUT_COLUMNS
    shard_rows_at_most = 512  # a kill loses minutes at most, at an image or two per second

    def __init__(
        self,
        root: str | None = None,
        query: str | None = None,
        subset: str = WHOLE_SUBSET,
        batch_size: int = 64,
        shard_rows: int | None = None,
        num_workers: int | None = None,
        on_bad_image: Literal["stop", "skip"] = "stop",
        cache: str = "auto",
        preprocessing: dict[str, Any] | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(query, subset, shard_rows, num_workers, preprocessing, limit)
        if batch_size < 1:
            raise InputError(f"data.batch_size: {batch_size} must be 1 or more")
        if shard_rows is not None and shard_rows % batch_size:
            raise InputError(f"data.shard_rows: {shard_rows} must be a multiple of data.batch_size ({batch_size})")
        self.root, self.batch_size, self.on_bad_image, self.cache = root, batch_size, on_bad_image, cache

    @cached_property
    def input_states(self) -> NDArray[np.int64]:
        """Size and time of each image's file (N, 2); raise InputError unless all exist."""
        return np.array([(stat.st_size, stat.st_mtime_ns) for stat in table.image_stats(self.stimuli)], dtype=np.int64)

    @cached_property
    def stimuli_sha256(self) -> str:
        """Hash of the stimulus table."""
        return table.fingerprint(self.stimuli)

    def plan_all(self) -> Plan:
        """Return a plan with batches of consecutive rows."""
        n_rows = len(self.stimuli)
        return Plan(n_rows, self.rows_a_shard(n_rows), self.batch_size)

    def provenance(self) -> dict[str, Any]:
        """Return everything about the data that determines the numbers."""
        return {
            **super().provenance(),
            "subset": self.subset,
            "stimuli_sha256": self.stimuli_sha256,
            "preprocessing": recorded(self.preprocessing),
            "batch_size": self.batch_size,
            **{package: version(package) for package in (PACKAGES if self._processor else DECODERS)},
        }

    def readable(self, rows: Sequence[int]) -> list[int]:
        """Return the rows whose images can be decoded now, and processed if the model has a processor."""
        process = image_processing(self._processor) if rows and self._processor else None

        def decodes(source: tuple[str, int | None]) -> bool:
            try:
                image, _ = read_stimulus(*source).decode()
                if process is not None:
                    process(image)
            except Exception as error:  # of Pillow on a broken file, or of the processor
                raise_if_of_the_machine(error)
                return False
            return True

        with hdf5_closed_after(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return [row for row, good in zip(rows, threads.map(decodes, self.image_places(rows)), strict=True) if good]

    @property
    def _processor(self) -> ProcessorSettings | None:
        """The processor of Transformers, if images go through one; its output is not cached."""
        return cast("ProcessorSettings", self.preprocessing) if IMAGE_PROCESSOR in self.preprocessing else None

    def batches_of(self, batches: Sequence[Sequence[int]]) -> ImageBatches | ProcessedBatches:
        """Return batches of images, preprocessed by timm's transform or by the model's processor."""
        if self._processor:
            return ProcessedBatches(self.stimuli, batches, self._processor)
        return ImageBatches(self.stimuli, batches, self.preprocessing, *self._open_cache())

    def _open_cache(self) -> tuple[PixelCache | None, NDArray[np.int64] | None]:
        """Return the cache for this geometry, and the place of each row of the table in it."""
        folder = self.connection.output_dir and self.connection.output_dir.absolute() / ".pixels"
        if self.cache != "auto":
            folder = None if self.cache == "off" else absolute_path(self.cache, "data.cache")
        if folder is None:
            return None, None
        is_whole = self.query is None and self.limit is None
        whole = self.stimuli if is_whole else load_dataset(self.dataset_name, self.root)
        whole_sha256 = self.stimuli_sha256 if is_whole else table.fingerprint(whole)
        places = pd.Index(whole["stimulus_id"]).get_indexer(self.stimuli["stimulus_id"]).astype(np.int64)
        name = folder_name(self.dataset_name, whole_sha256, self.preprocessing)
        cache = PixelCache(folder / name, len(whole), self.preprocessing["input_size"])
        missing, free = cache.bytes_missing(len(self.stimuli)), free_bytes(folder)
        cache.may_write = missing + self.connection.reserved_bytes <= free
        if not cache.may_write:
            logger.info(
                f"decoded images are not kept for the next model: they need {as_size(missing)}, but only "
                f"{as_size(free)} are free at {str(folder)!r}; to keep them elsewhere, pass --data.cache DIR"
            )
        elif not cache.folder.exists():
            logger.info(
                f"decoded images are kept for the next model: {as_size(missing)} in {str(folder)!r}, where "
                f"{as_size(free)} are free; to keep none, pass --data.cache off"
            )
        return cache, places

    def workers(self, on_gpu: bool, ranks_here: int) -> int:
        """Return the number of decoding processes per rank on this machine: one per core with a GPU, else none.

        On a CPU, decoding and the model take turns, each with all threads; at the same time, their threads would slow
        each other down in every layer.
        """
        return min(cores_of_rank(ranks_here, usable_cores()), WORKERS_AT_MOST) if on_gpu else 0

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Stop at a bad image in a batch, or in several batches, or report that it is skipped."""
        if isinstance(batch, list):
            return [self.on_before_batch_transfer(one, dataloader_idx) for one in batch]
        errors: dict[int, str] = batch.pop("errors")
        for row, reason in errors.items():
            what = f"stimulus {self.stimuli['stimulus_id'][row]} (row {row}) can't be decoded: {reason}"
            if self.on_bad_image == "stop":
                raise InputError(
                    f"{what}; repair or replace the file and run the same command again, or pass "
                    "--data.on_bad_image skip"
                )
            logger.warning("skipped: %s", what, extra=EVERY_RANK)
        return batch


def _module_of(dataset: StimulusDataset) -> type[ImageDataModule]:
    root = f"; root from {dataset.root_variable}" if dataset.root_variable else ""
    described = f"{dataset.title}{root}. See ImageDataModule for the settings."
    members = {"__doc__": described, "__module__": __name__, "dataset_name": dataset.name}
    return type(dataset.data_module, (ImageDataModule,), members)


# one class per dataset, such as NSDDataModule
DATA_MODULES = {dataset.data_module: _module_of(dataset) for dataset in DATASETS.values()}
globals().update(DATA_MODULES)


def __getattr__(name: str) -> type[ImageDataModule]:  # for type checkers, which do not know these classes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
