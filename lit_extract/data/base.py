"""What all data modules share: the plan, and a DataLoader whose items are whole batches."""

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lit_extract.common.errors import InputError
from lit_extract.common.signals import ignore_in_worker
from lit_extract.common.timing import stopwatch
from lit_extract.common.untrusted import is_name, shorten
from lit_extract.data.plan import rows_to_shard_ends
from lit_extract.datasets import table
from lit_extract.storage.layout import N_BYTES

logger = logging.getLogger(__name__)

WHOLE_SUBSET = "all"
SUBSET_BYTES_AT_MOST = 200  # with what is added, file systems take 255
MAX_WORKERS, MAX_SHARD_ROWS = 4096, 2**31  # more than any machine has use for

Batch = dict[str, Any]


class StimulusDataModule(LightningDataModule):
    """The stimuli of one dataset, in whole batches of a plan that this module owns.

    Args:
        query: pandas query that chooses rows; needs a subset name of its own.
        subset: Name of the chosen rows; names the output folder.
        shard_rows: Rows a shard.
        num_workers: Processes that prepare batches; default: chosen for the machine.
        preprocessing: What the backbone expects of its input; linked from the model.
    """

    unit = "stimuli"
    input_columns: Sequence[str] = (N_BYTES,)  # what is noted of each row's input
    dataset_name: str
    output_dir: Path | None = None  # of the features; set by the job
    ids_in_folder: Sequence[int] | Sequence[str] = ()  # of features that are in the output folder; set by the job
    room_for_features = 0  # bytes of the disk that the features will still take; set by the job

    def __init__(
        self,
        query: str | None,
        subset: str,
        shard_rows: int | None,
        num_workers: int | None,
        preprocessing: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        # A rank may have nothing left to do when a run is resumed. Lightning's constructor sets it to False.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        if query is not None and subset == WHOLE_SUBSET:
            raise InputError(
                f"data.query: {query!r} chooses some of the rows, but data.subset is {subset!r}; "
                "name the rows with --data.subset NAME, so that no one takes them for the whole dataset"
            )
        if subset.startswith(".") or not is_name(subset) or len(subset.encode()) > SUBSET_BYTES_AT_MOST:
            raise InputError(
                f"data.subset: {shorten(repr(subset))} must be the name of one folder, of {SUBSET_BYTES_AT_MOST} bytes "
                "at most"
            )
        for setting, value, least, most in (
            ("num_workers", num_workers, 0, MAX_WORKERS),
            ("shard_rows", shard_rows, 1, MAX_SHARD_ROWS),
        ):
            if value is not None and not least <= value <= most:
                raise InputError(f"data.{setting}: {shorten(value)} must be {least} or more, and {most:,} at most")
        self.query, self.subset = query, subset
        self.shard_rows, self.num_workers = shard_rows, num_workers
        self.preprocessing = preprocessing
        self.done_shards: Collection[int] = ()
        self.planned_rows = 0
        self.rows_to_shard_ends: list[int] = []  # of each planned batch
        self.rows_a_shard = 0  # as given, or as cut_shards() chooses for a model
        self.stimuli: pd.DataFrame | None = None
        self.again: Mapping[int, Sequence[int]] = {}  # rows to compute again of shards that are done
        # of each row's input, once it is set up; of files only, the time
        self.n_bytes: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.mtimes_ns: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    @property
    def source(self) -> str:
        """What chose the stimuli, for errors."""
        return f"data.dataset: {self.dataset_name}"

    @property
    def file_suffix(self) -> str:
        """What the data adds to the name of a features file."""
        return ""

    @abstractmethod
    def read_table(self) -> pd.DataFrame:
        """The stimulus table, without a look at the stimuli themselves."""

    def cut_shards(self, row_bytes: int) -> None:
        """Fix the rows a shard: as given, else for a model with activations of ``row_bytes`` a row."""
        self.rows_a_shard = self.shard_rows or self.default_shard_rows(row_bytes)

    @property
    def is_settled(self) -> bool:
        """Whether all that changes the numbers is given, and nothing is left to :meth:`adopt` or :meth:`choose`."""
        return True

    def adopt(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Take what was not given from the provenance of a run that this one goes on with; return what was taken."""
        return {}

    def choose(self, on_gpu: bool) -> dict[str, Any]:
        """Choose for a kind of device what was neither given nor recorded; return that part of the provenance."""
        return {}

    @abstractmethod
    def default_shard_rows(self, row_bytes: int) -> int:
        """Rows a shard, when not given: from the bytes of one row's activations."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What about the data changes the numbers; ``setup`` must have run."""

    def contents(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Hash of the content of some rows' inputs as they are now, 0 where there is none; they are read."""
        return np.zeros(len(rows), dtype=np.int64)

    def readable(self, rows: Sequence[int]) -> list[int]:
        """Those of the rows whose inputs are not bad now."""
        return []

    @abstractmethod
    def plan(self, rank: int, world_size: int) -> list[Any]:
        """Global row indices of each batch that this rank has left to do."""

    @abstractmethod
    def batches_of(self, plan: list[Any]) -> Dataset[Batch]:
        """A dataset whose items are the batches of a plan.

        Lightning passes such a dataset through its predict loop untouched, where it would re-create a
        batch sampler.
        """

    @abstractmethod
    def workers(self, on_gpu: bool, world_size: int) -> int:
        """Processes that prepare batches, when not given."""

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """What the model needs goes to the device; the rest stays, as the writer would wait to have it back."""
        assert self.trainer is not None
        names: Any = self.trainer.lightning_module.inputs
        with stopwatch("to the device"):
            inputs = {name: batch[name].to(device, non_blocking=True) for name in names}
        return {**batch, **inputs}

    def predict_dataloader(self) -> DataLoader[Batch]:
        """This rank's batches of the shards that are not done."""
        if self.preprocessing is None:
            raise InputError(
                "data.preprocessing: not set; pass the extractor's, as in DataModule(preprocessing=model.preprocessing)"
            )
        self.setup("predict")
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        plan = self.plan(rank, world_size)
        self.planned_rows = sum(map(len, plan))
        self.rows_to_shard_ends = rows_to_shard_ends(plan, self.rows_a_shard or self.shard_rows or 1)
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        workers = self.num_workers if self.num_workers is not None else self.workers(on_gpu, world_size)
        workers = min(workers, len(plan))
        return _TimedLoader(
            self.batches_of(plan),
            batch_size=None,
            num_workers=workers,
            pin_memory=on_gpu,
            worker_init_fn=ignore_in_worker,
        )


def say_what_is_ignored(stimuli: pd.DataFrame) -> None:
    """Print how many files of a folder are no images, by suffix."""
    if ignored := stimuli.attrs.get(table.IGNORED):
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        logger.info(f"{stimuli.attrs[table.ROOT]}: files that are no images are ignored: {counts}")


class _TimedLoader(DataLoader[Batch]):
    """A DataLoader that counts how long its batches are waited for."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            with stopwatch("waiting for data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
