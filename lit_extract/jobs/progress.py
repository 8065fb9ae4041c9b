"""Progress of a run: a bar in a terminal, now and then a line in a log file."""

import logging
import sys
import time
from functools import partial
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lit_extract.common.console import as_size
from lit_extract.data.plan import Plan
from lit_extract.jobs.run_state import RunProgress, record

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_RECORDS = 1.0


class Writer(Protocol):
    """A writer, as progress needs it."""

    bytes_written: int


class Progress(Callback):
    """Shows stimuli done, stimuli/s, time left and bytes written, of rank zero's share; for rank zero only."""

    def __init__(self, writer: Writer, plan: Plan, unit: str) -> None:
        self.writer, self.plan, self.unit = writer, plan, unit
        self.done = 0.0  # rows; those that are in a model's streamed blocks count by how many they have passed
        self.in_blocks = ""
        self.rows_after = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this rank has to do."""
        self.world_size = trainer.world_size
        self.total = sum(map(len, self.plan.shards(0, self.world_size)))
        self.last_record, self.started = 0.0, time.monotonic()
        self.last_line = self.started
        self.what = f"{pl_module.model_name}{f' (rank 0 of {self.world_size})' if self.world_size > 1 else ''}"
        disable, unit = not sys.stderr.isatty(), f" {self.unit}"
        self.bar = tqdm(total=self.total, desc=self.what, unit=unit, dynamic_ncols=True, disable=disable)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        """Prepare to count the blocks that the batches of a list pass together."""
        if isinstance(batch, list):
            rows = sum(len(one["index"]) for one in batch)
            streamed: Any = pl_module.streamed
            streamed.on_block = partial(self._count_block, self.done, rows)
            self.rows_after = self.done + rows

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Count a batch, and show it now and then."""
        if isinstance(outputs, list):
            streamed: Any = pl_module.streamed
            streamed.on_block = None
            self.done, self.in_blocks = self.rows_after, ""
        else:
            self.done += len(outputs["index"])
        self._show()

    def _count_block(self, before: float, rows: int, blocks: int, of: int) -> None:
        """Count a block that rows have passed."""
        self.done, self.in_blocks = before + rows * blocks / of, f"block {blocks} of {of} of {rows} {self.unit}, "
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        self.bar.set_postfix_str(f"{self.in_blocks}{as_size(self.writer.bytes_written)} written", refresh=False)
        self.bar.update(int(self.done) - self.bar.n)
        if now - self.last_record >= SECONDS_BETWEEN_RECORDS:
            self.last_record = now
            self._record()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self._print_line()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show how it went, when all is written."""
        self._end()
        if self.done:
            self._print_line()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._end()

    def _end(self) -> None:
        if self.done:
            self._record()
            self.bar.close()

    def _rate(self) -> float:
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def _record(self) -> None:
        left, rate, rows = self.total - self.done, self._rate(), self.plan.n_rows
        done = max(0, round(rows - left * self.world_size))
        record(progress=RunProgress(self.unit, rows, done, rate, left / rate))

    def _print_line(self) -> None:
        if self.bar.disable:
            rate = self._rate()
            left = tqdm.format_interval((self.total - self.done) / rate)
            per_second = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
            done = f"{int(self.done)} of {self.total} {self.unit}, {per_second} {self.unit}/s"
            left = f"{self.in_blocks}{left}"
            logger.info("%s: %s, %s left, %s written", self.what, done, left, as_size(self.writer.bytes_written))
