"""Progress of a run: a bar in a terminal, now and then a line in a log file."""

import logging
import sys
import time
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lit_extract.common.console import as_size
from lit_extract.data.plan import Plan
from lit_extract.jobs.relay import Advance, tell

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_TELLING = 1.0


class Writer(Protocol):
    """What progress needs to know of a writer."""

    bytes_written: int


class Progress(Callback):
    """Stimuli done, stimuli/s, time left and bytes written, of rank zero's share.

    Args:
        writer: Knows how much is written.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.bar: tqdm[Any] | None = None
        self.done = 0

    def open(self, plan: Plan, unit: str) -> None:
        """Take the plan of the run, and what its rows are, such as "images"."""
        self.plan, self.unit = plan, unit

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this rank has to do."""
        self.total = sum(map(len, self.plan.shards(trainer.global_rank, trainer.world_size)))
        self.world_size = trainer.world_size
        self.done, self.last_told = 0, 0.0
        self.started = self.last_line = time.monotonic()
        whose = f" (rank 0 of {trainer.world_size})" if trainer.world_size > 1 else ""
        self.what = f"{pl_module.model_name}{whose}"
        if trainer.is_global_zero and sys.stderr.isatty():
            self.bar = tqdm(total=self.total, desc=self.what, unit=f" {self.unit}", dynamic_ncols=True, smoothing=0.1)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch, and show it."""
        rows = len(outputs["index"])
        self.done += rows
        if trainer.is_global_zero and time.monotonic() - self.last_told >= SECONDS_BETWEEN_TELLING:
            self.last_told = time.monotonic()
            self._tell()
        if self.bar is not None:
            self.bar.set_postfix_str(f"{as_size(self.writer.bytes_written)} written", refresh=False)
            self.bar.update(rows)
        elif trainer.is_global_zero and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self._print_line()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show how it went, when all is written."""
        if trainer.is_global_zero and self.done:
            self._tell()
        if self.bar is not None:
            self.bar.close()
        elif trainer.is_global_zero and self.done:
            self._print_line()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        if trainer.is_global_zero and self.done:
            self._tell()
        if self.bar is not None:
            self.bar.close()

    @property
    def rate(self) -> float:
        """Rows a second of this rank."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def _tell(self) -> None:
        left = self.total - self.done
        seconds = left / self.rate if self.done else 0.0
        rows = self.plan.n_rows
        tell(Advance(self.unit, rows, max(0, rows - left * self.world_size), self.rate, seconds))

    def _print_line(self) -> None:
        rate = self.rate
        left = tqdm.format_interval((self.total - self.done) / rate)
        done = f"{self.done} of {self.total} {self.unit}, {rate:.1f} {self.unit}/s"
        logger.info("%s: %s, %s left, %s written", self.what, done, left, as_size(self.writer.bytes_written))
