"""Progress of a run: one bar for all ranks in a terminal or a notebook, occasional lines in a log."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, Self

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError
from lit_extract.common.progress import clock, new_bar, seconds_to_next_line
from lit_extract.common.timing import stopwatch
from lit_extract.data.plan import Plan
from lit_extract.jobs.run_state import RunProgress, record

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_RECORDS = 1.0
SECONDS_BETWEEN_LOOKS = 5.0  # checks of the shards of other ranks
WAITING = "waiting for data"  # includes decoding, if the process decodes itself
WAITING_SHOWN = 0.2  # fraction of the time; less is not worth showing


class Writer(Protocol):
    """The part of a writer that progress needs."""

    bytes_written: int


class Progress(Callback):
    """Display of finished stimuli, stimuli/s and time left, on rank zero, for the whole run.

    Ranks do not report to each other: the progress of the others is counted in shards, from ``done_shards``.
    """

    def __init__(
        self, writer: Writer, plan: Plan, unit: str, done_shards: Callable[[], Collection[int]] | None = None
    ) -> None:
        self.writer, self.plan, self.unit, self.done_shards = writer, plan, unit, done_shards
        self.total = sum(map(len, plan.shards()))
        self.own = 0.0  # rows of rank zero; rows within streamed blocks count by the blocks passed
        self.of_others = 0
        self.in_blocks = ""
        self.rows_after = 0.0
        self.bar: Any = None  # None before the first batch
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._watch: threading.Thread | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the rows to compute."""
        world_size = trainer.world_size
        self.what = f"{pl_module.model_name}{f' ({world_size} ranks)' if world_size > 1 else ''}"
        self.started = time.monotonic()
        self.last_record, self.next_line = 0.0, self.started + seconds_to_next_line(0)
        self.waited_before = stopwatch.seconds[WAITING]
        self.bar = new_bar(self.what, self.total, unit=f" {self.unit}")
        if world_size > 1 and self.done_shards is not None:
            self._watch = threading.Thread(target=self._look, args=(world_size,), name="lit-extract ranks", daemon=True)
            self._watch.start()

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        """Prepare to count the blocks that a list of batches passes."""
        if isinstance(batch, list):
            rows = sum(len(one["index"]) for one in batch)
            streamed: Any = pl_module.streamed
            streamed.on_block = partial(self._count_block, self.own, rows)
            self.rows_after = self.own + rows

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Count a batch, and show the progress from time to time."""
        if isinstance(outputs, list):
            streamed: Any = pl_module.streamed
            streamed.on_block = None
            self.own, self.in_blocks = self.rows_after, ""
        else:
            self.own += len(outputs["index"])
        self._show()

    def _count_block(self, before: float, rows: int, blocks: int, of: int) -> None:
        """Count a block that rows have passed."""
        self.own, self.in_blocks = before + rows * blocks / of, f"block {blocks} of {of} of {rows} {self.unit}"
        self._show()

    def _look(self, world_size: int) -> None:
        """Count the shards of the other ranks until all ranks have ended."""
        assert self.done_shards is not None
        shares = [self.plan.shards(rank, world_size) for rank in range(1, world_size)]
        left = {rows[0] // self.plan.shard_rows: len(rows) for shards in shares for rows in shards}
        for shard in self.done_shards():  # done before: repaired now
            left.pop(shard, None)
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            with suppress(InputError, OSError):
                self.of_others = sum(left.get(shard, 0) for shard in self.done_shards())
            self._show()

    def _show(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._draw()
            if now - self.last_record >= SECONDS_BETWEEN_RECORDS and self.done:
                self.last_record = now
                self._record()
            if now >= self.next_line and 0 < self.done < self.total:  # the end has its own line
                self.next_line = now + seconds_to_next_line(now - self.started)
                self._print_line()

    def _draw(self) -> None:
        self.bar.set_postfix_str(", ".join(self._besides()), refresh=False)
        self.bar.update(int(self.done) - self.bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show the result if all ranks have finished; always restore the terminal."""
        self._ended.set()
        if self._watch is not None:
            self._watch.join()
        if self.bar is None:
            return
        if kind is None:
            self.own = self.total - self.of_others
            self._draw()
        if self.done:
            self._record()
        if kind is None:
            self._print_line()
        self.bar.close()

    @property
    def done(self) -> float:
        """Return the number of rows that this run has finished."""
        return self.own + self.of_others

    def _rate(self) -> float:
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def _besides(self) -> list[str]:
        """Return further details: blocks passed, time spent waiting, and bytes written."""
        passed = max(time.monotonic() - self.started, 1e-9)
        waiting = (stopwatch.seconds[WAITING] - self.waited_before) / passed
        parts = [self.in_blocks, f"{waiting:.0%} reading" if waiting >= WAITING_SHOWN else ""]
        if self.writer.bytes_written and self._watch is None:  # unknown for other ranks
            parts.append(f"{as_size(self.writer.bytes_written)} written")
        return [*filter(None, parts)]

    def _record(self) -> None:
        left, rate, rows = self.total - self.done, self._rate(), self.plan.n_rows
        record(progress=RunProgress(self.unit, rows, max(0, round(rows - left)), rate, left / rate))

    def _print_line(self) -> None:
        if self.bar.disable:
            rate, passed = self._rate(), clock(time.monotonic() - self.started)
            left = f"{clock((self.total - self.done) / rate)} left" if self.done < self.total else "all done"
            per_second = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
            done = f"{int(self.done)} of {self.total} {self.unit}, {per_second} {self.unit}/s"
            logger.info("%s: %s", self.what, ", ".join((done, f"{passed} passed", left, *self._besides())))
