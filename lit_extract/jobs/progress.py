"""Progress of a run: a bar in a terminal, now and then a line in a log file."""

import logging
import sys
import time
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
        self.done = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this rank has to do."""
        self.world_size = trainer.world_size
        self.total = sum(map(len, self.plan.shards(0, self.world_size)))
        self.last_record, self.started = 0.0, time.monotonic()
        self.last_line = self.started
        self.what = f"{pl_module.model_name}{f' (rank 0 of {self.world_size})' if self.world_size > 1 else ''}"
        disable, unit = not sys.stderr.isatty(), f" {self.unit}"
        self.bar = tqdm(total=self.total, desc=self.what, unit=unit, dynamic_ncols=True, disable=disable)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Count a batch, and show it now and then."""
        rows, now = len(outputs["index"]), time.monotonic()
        self.done += rows
        self.bar.set_postfix_str(f"{as_size(self.writer.bytes_written)} written", refresh=False)
        self.bar.update(rows)
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
        record(progress=RunProgress(self.unit, rows, max(0, rows - left * self.world_size), rate, left / rate))

    def _print_line(self) -> None:
        if self.bar.disable:
            rate = self._rate()
            left = tqdm.format_interval((self.total - self.done) / rate)
            done = f"{self.done} of {self.total} {self.unit}, {rate:.1f} {self.unit}/s"
            logger.info("%s: %s, %s left, %s written", self.what, done, left, as_size(self.writer.bytes_written))
