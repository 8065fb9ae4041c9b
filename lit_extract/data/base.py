"""The base of all data modules: their connection to a job, the plan, and a DataLoader of whole batches."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lit_extract.common.errors import InputError, counted
from lit_extract.common.signals import ignore_in_worker
from lit_extract.common.timing import stopwatch
from lit_extract.common.untrusted import check_name, shorten
from lit_extract.data.plan import Plan, even_shard_rows, passes
from lit_extract.datasets import load_dataset, table
from lit_extract.datasets.decode import contents
from lit_extract.storage.layout import CONTENT, MTIME, N_BYTES, SIZE

logger = logging.getLogger(__name__)

WHOLE_SUBSET = "all"
SUBSET_BYTES_AT_MOST = 200  # names get additions, and file systems take 255 bytes
MAX_WORKERS, MAX_SHARD_ROWS = 4096, 2**31  # more than any machine needs

Batch = dict[str, Any]


@dataclass(frozen=True)
class Connection:
    """Settings and state of a job, for its data module."""

    preprocessing: dict[str, Any] | None = None
    row_bytes: int = 1  # of the activations of a row in all layers; determines the default of shard_rows
    on_gpu: bool = False
    recorded: Mapping[str, Any] = field(default_factory=dict)  # provenance of the run to resume
    ids_in_folder: Sequence[int] | Sequence[str] = ()  # stimulus ids of the features in the output folder, in order
    output_dir: Path | None = None  # folder of all features, if it is local
    plan: Plan | None = None  # rows that are left; None: all
    reserved_bytes: int = 0  # on the disk, for the features
    pass_rows: int | None = None  # rows that pass streamed blocks together; None: not streamed


class StimulusDataModule(LightningDataModule):
    """The stimuli of one dataset, in whole batches of a plan."""

    unit = "stimuli"
    input_columns: Sequence[str] = (N_BYTES,)  # columns noted for the input of each row
    longest: int | None = 0  # tokens of the longest caption; 0: images; None: a row may have several captions
    takes_changed = False  # rows whose inputs have changed are computed again, not refused
    file_suffix = ""  # added to the name of a features file
    batch_size = 1  # a shard has a multiple of it, if shares stay even
    shard_rows_at_most = 2048
    dataset_name: str
    root: str | None

    def __init__(
        self,
        query: str | None,
        subset: str,
        shard_rows: int | None,
        num_workers: int | None,
        preprocessing: dict[str, Any] | None,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        # A rank may have nothing left to do in a resumed run. Lightning's constructor sets this to False.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        if query is not None and subset == WHOLE_SUBSET:
            raise InputError(
                f"data.query: {query!r} chooses some of the rows, but data.subset is {subset!r}; "
                "name the chosen rows with --data.subset NAME"
            )
        if limit is not None and limit < 1:
            raise InputError(f"data.limit: {limit} must be 1 or more")
        if limit is not None and (query is not None or subset == WHOLE_SUBSET):
            first = f"first{limit}"
            subset = first if subset == WHOLE_SUBSET else f"{subset}-{first}"
        check_name(subset, "data.subset")
        if subset.startswith(".") or len(subset.encode()) > SUBSET_BYTES_AT_MOST:
            raise InputError(
                f"data.subset: {shorten(repr(subset))} must be the name of one folder, of at most "
                f"{SUBSET_BYTES_AT_MOST} bytes"
            )
        for setting, value, least, most in (
            ("num_workers", num_workers, 0, MAX_WORKERS),
            ("shard_rows", shard_rows, 1, MAX_SHARD_ROWS),
        ):
            if value is not None and not least <= value <= most:
                raise InputError(f"data.{setting}: {shorten(value)} must be {least} to {most:,}")
        self.query, self.subset, self.limit = query, subset, limit
        self.shard_rows, self.num_workers = shard_rows, num_workers
        self.connection = Connection(preprocessing)

    def connect(self, connection: Connection) -> None:
        """Take the state of the job: first its model and output, and later, in each rank, the rows that are left."""
        self.connection = connection

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing of the model."""
        if self.connection.preprocessing is None:
            raise InputError(
                "data.preprocessing: not set; pass the extractor's, as in DataModule(preprocessing=model.preprocessing)"
            )
        return self.connection.preprocessing

    @property
    def plan(self) -> Plan:
        """The batches of rows, and the rows that are left."""
        return self.connection.plan or self.plan_all()

    @property
    def source(self) -> str:
        """The setting that chose the stimuli, for errors."""
        return f"data.root: {str(self.root or self.stimuli.attrs[table.ROOT])!r}"

    def read_table(self) -> pd.DataFrame:
        """Return the table of the chosen stimuli, without reading the stimuli themselves."""
        return load_dataset(self.dataset_name, self.root, self.query, self.limit)

    @cached_property
    def stimuli(self) -> pd.DataFrame:
        """The stimulus table, one row per stimulus (N rows); read once."""
        stimuli = self.read_table()
        for finding in stimuli.attrs.get(table.FINDINGS, []):
            logger.info(f"{stimuli.attrs[table.ROOT]}: {finding}")
        return stimuli

    @cached_property
    @abstractmethod
    def input_states(self) -> NDArray[np.int64]:
        """Size in bytes and modification time in ns of each row's input (N, 2); for captions, the time is 0."""

    @property
    def tokens_a_row(self) -> int:
        """Average number of caption tokens of a row; 0 for images."""
        return 0

    @property
    def input_bytes(self) -> NDArray[np.int64]:
        """Size of each row's input (N,)."""
        return self.input_states[:, SIZE]

    def setup(self, stage: str | None = None) -> None:
        """Read the stimulus table once, and check that the stimuli exist."""
        _ = self.input_states

    def rows_a_shard(self, n_rows: int) -> int:
        """Return the rows per shard: as given, as recorded by the run to resume, or as suits so many rows."""
        recorded = self.connection.recorded.get("shard_rows")
        known = self.shard_rows or (recorded if type(recorded) is int and 0 < recorded <= MAX_SHARD_ROWS else None)
        return known or even_shard_rows(n_rows, self.batch_size, self.connection.row_bytes, self.shard_rows_at_most)

    @abstractmethod
    def plan_all(self) -> Plan:
        """Return the plan of all rows."""

    def provenance(self) -> dict[str, Any]:
        """Return everything about the data that determines the numbers."""
        return {
            "dataset": self.dataset_name,
            "query": self.query,
            **({} if self.limit is None else {"limit": self.limit}),
            "n_stimuli": len(self.stimuli),
            "shard_rows": self.plan.shard_rows,
        }

    def image_places(self, rows: Sequence[int]) -> list[tuple[str, int | None]]:
        """Return the image file of each row in ``rows``, and the row within the file if it is HDF5."""
        chosen = self.stimuli.iloc[list(rows)]
        in_file = chosen["image_row"].tolist() if "image_row" in chosen else [None] * len(chosen)
        return list(zip(chosen["image"].tolist(), in_file, strict=True))

    def readable(self, rows: Sequence[int]) -> list[int]:
        """Return the rows among ``rows`` whose inputs are readable now."""
        return []

    def changed(self, recorded: NDArray[np.int64], rows: NDArray[np.bool_]) -> list[int]:
        """Return the rows whose inputs have changed since they were read.

        A file of the same size and time counts as unchanged, as for Git and make; any other file is read, and its
        content compared. If no content was noted (earlier versions, and captions), sizes are compared. ``recorded`` is
        the record of each row's input (N, 4), ``rows`` a mask of the rows to check (N,).
        """
        sizes, times = self.input_states.T
        other_size = recorded[:, SIZE] != sizes
        is_known = recorded[:, CONTENT] != 0
        changed = rows & ~is_known & other_size
        touched = np.flatnonzero(rows & is_known & (other_size | (recorded[:, MTIME] != times)))
        if len(touched):
            named = counted(len(touched), "stimulus", "stimuli")
            logger.info(f"comparing the content of {named} whose file size or time has changed")
            now = np.array(contents(self.image_places(touched.tolist())), dtype=np.int64)
            changed[touched] = now != recorded[touched, CONTENT]
        rows_changed: list[int] = np.flatnonzero(changed).tolist()
        return rows_changed

    @abstractmethod
    def batches_of(self, batches: Sequence[Sequence[int]]) -> Dataset[Batch]:
        """Return a dataset whose items are whole batches, because Lightning would re-create a batch sampler."""

    def workers(self, on_gpu: bool, ranks_here: int) -> int:
        """Return the default number of processes that prepare batches for each rank on this machine."""
        return 0

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the model's inputs in a batch, or in each of several batches, to the device.

        The rest stays on the host, where the writer needs it.
        """
        assert self.trainer is not None
        if isinstance(batch, list):
            return [self.transfer_batch_to_device(one, device, dataloader_idx) for one in batch]
        names: Any = self.trainer.lightning_module.inputs
        with stopwatch("to the device"):
            inputs = {name: move_data_to_device(batch[name], device) for name in names}
        return {**batch, **inputs}

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return this rank's remaining batches, or lists of batches that pass the model together."""
        known = self.trainer
        rank, world_size, ranks_here = (known.global_rank, known.world_size, known.num_devices) if known else (0, 1, 1)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        batches = self.plan.batches(rank, world_size)
        workers = self.num_workers if self.num_workers is not None else self.workers(on_gpu, ranks_here)
        dataset: Dataset[Any] = self.batches_of(batches)
        if self.connection.pass_rows is not None:
            dataset = _Passes(dataset, passes(batches, self.plan.shard_rows, self.connection.pass_rows))
        return _TimedLoader(
            dataset,
            batch_size=None,
            num_workers=min(workers, len(batches)),
            pin_memory=on_gpu,
            worker_init_fn=ignore_in_worker,
        )


class _Passes(Dataset[list[Batch]]):
    """A dataset whose items are lists of batches."""

    def __init__(self, batches: Dataset[Batch], groups: Sequence[Sequence[int]]) -> None:
        self.batches, self.groups = batches, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, item: int) -> list[Batch]:
        return [self.batches[place] for place in self.groups[item]]


class _TimedLoader(DataLoader[Any]):
    """A DataLoader that measures the time spent waiting for batches."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            with stopwatch("waiting for data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
