"""From predictions to shards on disk: rows are put in place by index, whole shards written by a thread.

B batch, L layers, D hidden size.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from lit_extract.errors import InputError, NothingLeft, one_line
from lit_extract.layout import BAD_INPUT, MISSING, N_BYTES, NOT_FINITE, OK
from lit_extract.paths import AnyPath, RemoteError
from lit_extract.signals import held
from lit_extract.store import Store
from lit_extract.timing import WRITING, stopwatch


class _ShardBuffer:
    """Rows of one shard on their way to disk."""

    def __init__(self, store: Store, shard: int) -> None:
        self.shard = shard
        self.rows = store.rows_of(shard)
        shape = (len(self.rows), len(store.layers), store.n_dim)
        self.feats = {pool: np.empty(shape, dtype=np.float32) for pool in store.pools}
        self.extras: dict[str, NDArray[Any]] = {}
        self.names = [name for name in store.extras if name != N_BYTES]
        self.status = np.full(len(self.rows), MISSING, dtype=np.uint8)

    def put(self, prediction: dict[str, Any]) -> None:
        """Place a batch's rows by their global index."""
        places: NDArray[np.int64] = prediction["index"].numpy() - self.rows.start
        assert (self.status[places] == MISSING).all(), "a row came twice"
        for pool, feats in prediction["feats"].items():
            self.feats[pool][places] = feats.numpy()
        for name in self.names:
            values = prediction[name].numpy()
            self.extras.setdefault(name, np.zeros(len(self.rows), dtype=values.dtype))[places] = values
        self.status[places] = np.where(prediction["bad"].numpy(), BAD_INPUT, OK)

    def is_full(self) -> bool:
        return bool((self.status != MISSING).all())

    def mark_not_finite(self) -> None:
        """Rows with NaN or infinity that did not come from bad input."""
        for feats in self.feats.values():
            finite = np.isfinite(feats).all(axis=(1, 2))
            self.status[~finite & (self.status == OK)] = NOT_FINITE


class ActivationWriter(BasePredictionWriter):
    """Streams predictions into a store.

    A thread writes, behind a queue of one shard: at most three shards are in memory (filling, waiting,
    being written), however long the run. When the thread fails, the next batch raises its error.

    Args:
        open_store: Opens the store, creating it or checking that it may be resumed; called once, on
            rank zero. The other ranks open what it returned, or raise what it raised.
    """

    def __init__(self, open_store: Callable[[], Store]) -> None:
        super().__init__(write_interval="batch")
        self.open_store = open_store
        self.bytes_written = 0
        self._on_its_way: Any = None  # a prediction that is still being copied from the GPU
        self._buffers: dict[int, _ShardBuffer] = {}
        self._full: queue.Queue[_ShardBuffer | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Rank zero creates or checks the store; all ranks learn which shards are done."""
        opened: tuple[AnyPath, set[int]] | None = None
        error: Exception | None = None
        if trainer.is_global_zero:
            try:
                store = self.open_store()
                opened = store.path, store.done_shards()
            except Exception as raised:  # all ranks must hear of it, or they would wait forever
                error = raised
        said = error if error is None or isinstance(error, NothingLeft) else InputError(one_line(error))
        opened, said = trainer.strategy.broadcast((opened, said))
        if error is not None or said is not None:
            raise error or said  # type: ignore[misc]
        assert opened is not None
        path, done = opened
        self.store = Store(path)
        self.n_bytes = trainer.datamodule.n_bytes  # type: ignore[attr-defined]
        trainer.datamodule.done_shards = done  # type: ignore[attr-defined]
        trainer.datamodule.adopt(self.store.provenance)  # type: ignore[attr-defined]  # what rank zero chose
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
        """Put the batch's rows into their shard: at once, or from a GPU when it has been given the next batch."""
        with held():
            before, self._on_its_way = self._on_its_way, prediction
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
            buffer = self._buffers[shard]
            buffer.put(prediction)
            if buffer.is_full():
                self._hand_over(self._buffers.pop(shard))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait until all of this rank's is on disk."""
        self._finish()
        self._raise_failure()
        assert not self._buffers, "rows of an unfinished shard were left"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the finished shards reach the disk; the others are lost and computed again."""
        self._finish()

    def _hand_over(self, buffer: _ShardBuffer | None) -> None:
        """Queue a shard, unless the thread has failed and no one will take it."""
        while self._failure is None:
            try:
                self._full.put(buffer, timeout=0.2)
                break
            except queue.Full:
                continue

    def _finish(self) -> None:
        with held():
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
                extras = {**buffer.extras, N_BYTES: self.n_bytes[buffer.rows.start : buffer.rows.stop]}
                with stopwatch(WRITING):
                    self.bytes_written += self.store.write_shard(buffer.shard, buffer.feats, buffer.status, extras)
        except BaseException as error:  # handed to the main thread
            self._failure = error

    def _raise_failure(self) -> None:
        if isinstance(self._failure, RemoteError):  # who would not count the shards now
            raise InputError(
                f"{self._failure}; finished shards are safe: mend it and run the same command again"
            ) from self._failure
        if isinstance(self._failure, OSError):
            raise InputError(
                f"can't write to {str(self.store.path)!r}: {self._failure}; {len(self.store.done_shards())} of "
                f"{self.store.n_shards} shards are safe: mend it and run the same command again"
            ) from self._failure
        if self._failure is not None:
            raise self._failure
