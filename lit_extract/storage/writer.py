"""Write predictions to shards on disk: rows are placed by index, and a thread writes complete shards.

B batch.
"""

import queue
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.common.timing import WRITING, stopwatch
from lit_extract.storage.layout import (
    BAD_INPUT,
    INPUT_COLUMNS,
    INPUTS,
    KEPT_AS,
    MISSING,
    NOT_FINITE,
    OK,
    SIZE,
    feats_arrays,
)
from lit_extract.storage.numbers import is_finite
from lit_extract.storage.places import RemoteError
from lit_extract.storage.repair import Rows
from lit_extract.storage.store import Store
from lit_extract.storage.tensors import to_numbers


class _ShardBuffer:
    """Rows of one shard on their way to disk."""

    def __init__(self, store: Store, shard: int) -> None:
        self.shard = shard
        self.rows = store.rows_of(shard)
        self.by_pool = {pool: feats_arrays(pool, store.layer_shapes) for pool in store.pools}
        self.feats = {
            array.name: np.empty((len(self.rows), *array.row_shape), dtype=KEPT_AS[store.dtype])
            for array in store.feats_arrays.values()
        }
        self.extras: dict[str, NDArray[Any]] = {}
        self.names = [name for name in store.extras if name not in INPUT_COLUMNS]
        self.inputs = np.zeros((len(self.rows), len(INPUT_COLUMNS)), dtype=np.int64)
        self.status = np.full(len(self.rows), MISSING, dtype=np.uint8)
        self.replaces = False

    def fill(self, there: Rows, left: Sequence[int], input_bytes: NDArray[np.int64]) -> None:
        """Copy the rows that exist already, except those left to compute.

        An input without other notes gets its current size, from ``input_bytes`` (N,); it was checked to be unchanged.
        """
        rows = slice(self.rows.start, self.rows.stop)
        self.inputs[:, SIZE] = input_bytes[rows]
        status = [there.status(pool)[rows] for pool in self.by_pool]
        self.status = np.where(np.any([one == BAD_INPUT for one in status], 0), BAD_INPUT, np.max(status, 0))
        for pool, arrays in self.by_pool.items():
            for array in arrays:
                self.feats[array.name][:] = there.shard(pool, array, self.shard)
            inputs = there.inputs(pool)
            if inputs is not None:
                self.inputs = inputs[rows].copy()
        for name in self.names:
            self.extras[name] = there.extra(name, next(iter(self.by_pool)))[rows].copy()
        self.status[np.array(left) - rows.start] = MISSING
        self.replaces = self.shard in there.done

    def put(self, prediction: dict[str, Any], inputs: NDArray[np.int64]) -> None:
        """Place a batch's rows by their global index, with the notes on their inputs (B, 4)."""
        places: NDArray[np.int64] = prediction["index"].numpy() - self.rows.start
        assert (self.status[places] == MISSING).all(), "a row came twice"
        for pool, feats in prediction["feats"].items():
            numbers = to_numbers(feats).reshape(len(places), -1)
            for array in self.by_pool[pool]:
                part = numbers[:, array.first : array.end]
                self.feats[array.name][places] = part.reshape(len(places), *array.row_shape)
        for name in self.names:
            values = prediction[name].numpy()
            all_values = np.zeros((len(self.rows), *values.shape[1:]), dtype=values.dtype)
            self.extras.setdefault(name, all_values)[places] = values
        self.inputs[places] = inputs
        self.status[places] = np.where(prediction["bad"].numpy(), BAD_INPUT, OK)

    def is_full(self) -> bool:
        return bool((self.status != MISSING).all())

    def mark_not_finite(self) -> None:
        """Mark rows with NaN or infinity that did not come from bad input."""
        for feats in self.feats.values():
            finite = is_finite(feats).reshape(len(feats), -1).all(axis=1)
            self.status[~finite & (self.status == OK)] = NOT_FINITE

    def write(self, store: Store) -> int:
        """Write the shard; return the bytes written."""
        inputs = {name: self.inputs[:, k] for k, name in enumerate(INPUT_COLUMNS) if name in store.extras}
        return store.write_shard(self.shard, self.feats, self.status, {**self.extras, **inputs}, self.replaces)


class ActivationWriter(BasePredictionWriter):
    """Streams predictions into a store.

    A thread writes shards from a queue, which holds one by default: then at most three shards are in memory (filling,
    waiting, being written), however long the run is. If the thread fails, the next batch raises its error.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.bytes_written = 0
        self._on_its_way: Any = None  # a prediction that is still being copied from the GPU
        self._buffers: dict[int, _ShardBuffer] = {}
        self._full: queue.Queue[_ShardBuffer | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(
        self, store: Store, left: Mapping[int, Sequence[int]], input_bytes: NDArray[np.int64], waiting: int = 1
    ) -> None:
        """Start to write.

        ``left`` has, for each shard whose other rows are kept, the rows to compute. ``input_bytes`` (N,) is the size of
        each row's input, for rows whose batch does not note it. Up to ``waiting`` shards may wait.
        """
        self._full = queue.Queue(maxsize=waiting)
        self.store, self.left, self.input_bytes = store, left, input_bytes
        self._thread = threading.Thread(target=self._write, name="lit-extract writer", daemon=True)
        self._thread.start()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Put the batch's rows into their shard: at once, or from a GPU after it got the next batch.

        Batches that went through the model together come as lists.
        """
        if isinstance(prediction, list):
            for place, one in enumerate(prediction):
                self.write_on_batch_end(trainer, pl_module, one, None, batch[place], batch_idx, dataloader_idx)
            return
        inputs = (batch or {}).get(INPUTS)
        before, self._on_its_way = self._on_its_way, {**prediction, INPUTS: inputs}
        if before is not None:
            self._place(before)
        if prediction["arrived"] is None:
            self._place_last()
        self._raise_failure()

    def _place_last(self) -> None:
        prediction, self._on_its_way = self._on_its_way, None
        if prediction is not None:
            self._place(prediction)

    def _place(self, prediction: dict[str, Any]) -> None:
        """Put a batch's rows into their shard; hand the shard over when it is full."""
        if prediction["arrived"] is not None:
            with stopwatch("to the host"):
                prediction["arrived"].synchronize()
        shard = int(prediction["index"][0]) // self.store.shard_rows
        with stopwatch("into the shard"):
            if shard not in self._buffers:
                self._buffers[shard] = _ShardBuffer(self.store, shard)
                if shard in self.left:
                    self._buffers[shard].fill(self._there, self.left[shard], self.input_bytes)
            buffer = self._buffers[shard]
            buffer.put(prediction, self._inputs(prediction))
            if buffer.is_full():
                self._hand_over(self._buffers.pop(shard))

    @cached_property
    def _there(self) -> Rows:
        """All rows as they were before this run."""
        return Rows(self.store)

    def _inputs(self, prediction: dict[str, Any]) -> NDArray[np.int64]:
        """Return the notes on the inputs of a batch (B, 4)."""
        if (noted := prediction[INPUTS]) is not None:
            return np.asarray(noted.numpy())
        inputs = np.zeros((len(prediction["index"]), len(INPUT_COLUMNS)), dtype=np.int64)
        inputs[:, SIZE] = self.input_bytes[prediction["index"].numpy()]
        return inputs

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait until all shards of this rank are on disk."""
        self._finish()
        self._raise_failure()
        assert not self._buffers, "rows of an unfinished shard were left"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait for the finished shards to reach the disk; the others are lost and computed again."""
        self._finish()

    def _hand_over(self, buffer: _ShardBuffer | None) -> None:
        """Queue a shard, unless the thread has failed and nothing will take it."""
        while self._failure is None:
            try:
                self._full.put(buffer, timeout=0.2)
                break
            except queue.Full:
                continue

    def _finish(self) -> None:
        if self._thread is not None:
            self._place_last()
            self._hand_over(None)
            self._thread.join()
            self._thread = None

    def _write(self) -> None:
        try:
            while (buffer := self._full.get()) is not None:
                with stopwatch(WRITING):
                    buffer.mark_not_finite()
                    self.bytes_written += buffer.write(self.store)
        except BaseException as error:  # handed to the main thread
            self._failure = error

    def _raise_failure(self) -> None:
        failure, advice = self._failure, "fix that and run the same command again"
        if isinstance(failure, RemoteError):  # a server that could not count the shards now
            raise InputError(f"{failure}; finished shards are safe: {advice}") from failure
        if isinstance(failure, OSError):
            raise InputError(
                f"can't write to {str(self.store.path)!r}: {failure}; {len(self.store.done_shards())} of "
                f"{self.store.n_shards} shards are safe: {advice}"
            ) from failure
        if failure is not None:
            raise failure
