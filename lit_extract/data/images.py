"""Image data modules: decode, resize and crop in workers, whole batches at a time.

Images are seen as timm's evaluation pipelines see them: decoded by Pillow, ``convert("RGB")``
(grayscale and palette expanded, CMYK converted, alpha dropped, EXIF rotation not applied), resized
and cropped by ``timm.data.create_transform``. They travel as uint8; the extractor normalizes them in
float32, on the device.

B batch, H height, W width.
"""

import errno
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset

from lit_extract.data.base import WHOLE_SUBSET, StimulusDataModule
from lit_extract.data.pixels import GEOMETRY, PixelCache, folder_name, image_state
from lit_extract.data.plan import check_shard_rows, default_shard_rows, plan_batches
from lit_extract.datasets import load_dataset, table
from lit_extract.datasets.decode import open_image
from lit_extract.disk import as_size, free_bytes
from lit_extract.errors import InputError, one_line
from lit_extract.host import usable_cores
from lit_extract.ranks import say

WORKERS_AT_MOST = 16


class ImageBatches(Dataset[dict[str, Any]]):
    """A dataset whose items are the batches of a plan.

    Args:
        stimuli: The stimulus table.
        batches: Global row indices of each batch.
        preprocessing: timm's data config: ``input_size``, ``interpolation``, ``crop_pct``, ``crop_mode``.
        cache: Pixels of earlier models, if they are kept.
        places: Row in the cache of each row of the table.
    """

    def __init__(
        self,
        stimuli: pd.DataFrame,
        batches: list[range],
        preprocessing: dict[str, Any],
        cache: PixelCache | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> None:
        # Arrays, not the table: touching a DataFrame's Python objects would copy its pages into every worker.
        self.paths = np.array(stimuli["image"], dtype=np.str_)
        self.rows = np.array(stimuli["image_row"], dtype=np.int64) if "image_row" in stimuli else None
        self.batches = batches
        self.size = tuple(preprocessing["input_size"])
        self.root: str = stimuli.attrs[table.ROOT]
        self.cache, self.places = cache, places
        shape_settings = {key: preprocessing[key] for key in GEOMETRY}
        self.transform = create_transform(**shape_settings, is_training=False, use_prefetcher=True)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """The batch: ``index`` (B,), ``image`` (B, 3, H, W) uint8, ``bad`` (B,) and ``errors``, why they are.

        Decoded by as many threads as the forward pass has; in a worker process that is one. Pixels of earlier models
        are there sooner than threads.
        """
        index = self.batches[item]
        images = np.empty((len(index), *self.size), dtype=np.uint8)
        left = [place for place, row in enumerate(index) if not self._read(images[place], row)]
        errors = {}
        if left:
            rows = [index[place] for place in left]
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                reasons = threads.map(self._decode_into, (images[place] for place in left), rows)
                errors = {row: reason for row, reason in zip(rows, reasons, strict=True) if reason is not None}
        return {
            "index": torch.tensor(index),
            "image": torch.from_numpy(images),
            "bad": torch.tensor([row in errors for row in index]),
            "errors": errors,
        }

    def _read(self, pixels: NDArray[np.uint8], row: int) -> bool:
        """Fill in a row's pixels if the cache has them, of the image as it is now."""
        if self.cache is None:
            return False
        try:
            return self.cache.read(self._place(row), self._state(row), pixels)
        except OSError:  # decoding says what is wrong with it
            return False

    def _decode_into(self, pixels: NDArray[np.uint8], row: int) -> str | None:
        """Fill in a row's pixels and keep them in the cache, or say why they can't be had."""
        try:
            state = self._state(row) if self.cache is not None else b""
            pixels[:] = self.transform(self.open(row))
            if self.cache is not None:
                self.cache.write(self._place(row), state, pixels)
        except Exception as error:  # Pillow raises almost anything on a broken file
            if _is_of_the_machine(error):
                raise
            pixels[:] = 0
            return f"{self.paths[row]}: {type(error).__name__}: {one_line(error)}"
        return None

    def _place(self, row: int) -> int:
        assert self.places is not None, "a cache comes with the places in it"
        return int(self.places[row])

    def _state(self, row: int) -> bytes:
        return image_state(str(self.paths[row]), self._image_row(row), self.root)

    def open(self, row: int) -> Image.Image:
        """The stimulus in a row, decoded, RGB."""
        return open_image(str(self.paths[row]), self._image_row(row))

    def _image_row(self, row: int) -> int | None:
        return None if self.rows is None else int(self.rows[row])


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error says nothing about the image: a disk that does not answer, no memory, a peer that is gone."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.ENOENT)  # Pillow's own have no number
    return isinstance(error, MemoryError | RuntimeError)


class ImageDataModule(StimulusDataModule):
    """The images of one dataset, in whole batches, in the order of its stimulus table.

    Args:
        root: Folder of the dataset; default: the dataset's environment variable.
        query: pandas query that chooses rows, such as "nsd_id < 1000"; needs a subset name of its own.
        subset: Name of the chosen rows; names the output folder.
        batch_size: Images a forward pass.
        shard_rows: Images a shard, the unit of writing and resuming; a multiple of batch_size.
            Default: about 128 MB of activations, at most 2,048 images.
        num_workers: Processes that decode images; default: chosen for the machine.
        on_bad_image: What an image that will not decode does: "stop" the run, or "skip", which
            leaves its row NaN, lists it in the output and ends with exit code 3.
        cache: Folder in which decoded images are kept for the next model that sees them alike; "auto" is
            .pixels in the output folder, "off" none.
        preprocessing: Size, crop and interpolation; linked from the model.
    """

    unit = "images"

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
    ) -> None:
        super().__init__(query, subset, shard_rows, num_workers, preprocessing)
        try:
            check_shard_rows(batch_size, shard_rows)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.root, self.batch_size, self.on_bad_image, self.cache = root, batch_size, on_bad_image, cache

    def read_table(self) -> pd.DataFrame:
        """The images that are asked for."""
        return load_dataset(self.dataset_name, self.root, self.query)

    def setup(self, stage: str | None = None) -> None:
        """Load the stimulus table, once, and see that its images are there."""
        if self.stimuli is None:
            stimuli = self.read_table()
            self.n_bytes = np.array(table.image_sizes(stimuli), dtype=np.int64)
            self.stimuli_hash = table.fingerprint(stimuli)
            self.stimuli = stimuli

    def default_shard_rows(self, row_bytes: int) -> int:
        """Whole batches of about 128 MB."""
        assert self.stimuli is not None
        return default_shard_rows(len(self.stimuli), self.batch_size, row_bytes)

    def provenance(self) -> dict[str, Any]:
        """What about the data changes the numbers; :meth:`setup` must have run."""
        assert self.stimuli is not None
        return {
            "dataset": self.dataset_name,
            "subset": self.subset,
            "query": self.query,
            "n_stimuli": len(self.stimuli),
            "stimuli_sha256": self.stimuli_hash,
            "preprocessing": self.preprocessing,
            "batch_size": self.batch_size,
            "shard_rows": self.rows_a_shard,
            **{package: version(package) for package in ("pillow", "timm", "torchvision")},
        }

    def plan(self, rank: int, world_size: int) -> list[range]:
        """Consecutive rows, a batch size at a time."""
        assert self.stimuli is not None
        shard_rows = self.rows_a_shard or self.shard_rows or self.batch_size
        return plan_batches(len(self.stimuli), shard_rows, self.batch_size, self.done_shards, rank, world_size)

    def batches_of(self, plan: list[range]) -> ImageBatches:
        """Images decoded, resized and cropped."""
        assert self.stimuli is not None
        assert self.preprocessing is not None
        return ImageBatches(self.stimuli, plan, self.preprocessing, *self._open_cache())

    def _open_cache(self) -> tuple[PixelCache | None, NDArray[np.int64] | None]:
        """The cache for this geometry, and the row in it of each row of the table."""
        if (folder := self._cache_folder()) is None:
            return None, None
        assert self.stimuli is not None
        assert self.preprocessing is not None
        whole = self.stimuli if self.query is None else load_dataset(self.dataset_name, self.root)
        whole_hash = self.stimuli_hash if self.query is None else table.fingerprint(whole)
        places = pd.Index(whole["stimulus_id"]).get_indexer(self.stimuli["stimulus_id"]).astype(np.int64)
        shape = self.preprocessing["input_size"]
        about = {"dataset": self.dataset_name, "root": whole.attrs[table.ROOT], "rows": len(whole), "shape": shape}
        name = folder_name(self.dataset_name, whole_hash, self.preprocessing)
        cache = PixelCache(folder / name, len(whole), shape, about)
        missing, free = cache.bytes_missing(), free_bytes(folder)
        cache.may_write = missing + self.room_for_features <= free
        if not cache.may_write:
            say(
                f"decoded images are not kept for the next model: they would need {as_size(missing)}, and "
                f"{as_size(free)} are free at {str(folder)!r}; --data.cache DIR puts them elsewhere"
            )
        return cache, places

    def _cache_folder(self) -> Path | None:
        if self.cache == "off":
            return None
        if self.cache != "auto":
            return Path(self.cache).expanduser().absolute()
        return None if self.output_dir is None else self.output_dir.absolute() / ".pixels"

    def workers(self, on_gpu: bool, world_size: int) -> int:
        """Decoding processes: with a GPU one a core; without, none.

        On a CPU decoding and the model take turns, each with all threads: side by side each would wait for
        the other's in every layer.
        """
        cores = usable_cores() // world_size
        return max(1, min(cores, WORKERS_AT_MOST)) if on_gpu else 0

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Stop at a bad image, or say that it is skipped."""
        errors: dict[int, str] = batch.pop("errors")
        for row, reason in errors.items():
            assert self.stimuli is not None
            stimulus = self.stimuli["stimulus_id"][row]
            if self.on_bad_image == "stop":
                raise InputError(
                    f"stimulus {stimulus} (row {row}) can't be decoded: {reason}; mend or replace the file and run the "
                    "same command again, or pass --data.on_bad_image skip"
                )
            print(f"skipped: stimulus {stimulus} (row {row}) can't be decoded: {reason}", flush=True)
        return batch


class NSDDataModule(ImageDataModule):
    """Natural Scenes Dataset; root from NSD_DATASET. See ImageDataModule for the settings."""

    dataset_name = "nsd"


class BOLD5000DataModule(ImageDataModule):
    """BOLD5000; root from BOLD_DATASET. See ImageDataModule for the settings."""

    dataset_name = "bold5000"


class THINGSDataModule(ImageDataModule):
    """THINGS; root from THINGS_DATASET. See ImageDataModule for the settings."""

    dataset_name = "things"


class ImageFolderDataModule(ImageDataModule):
    """Every image below a folder, by relative path. See ImageDataModule for the settings."""

    dataset_name = "folder"


class DemoDataModule(ImageDataModule):
    """The photographs that ship with the package. See ImageDataModule for the settings."""

    dataset_name = "demo"
