"""Progress of a run: a bar in a terminal, now and then a line in a log file."""

import logging
import sys
import time
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lit_extract.common.console import as_size
from lit_extract.jobs.run_state import RunProgress, record

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_RECORDS = 1.0


class Writer(Protocol):
    """A writer, as progress needs it."""

    bytes_written: int


class Progress(Callback):
    """Shows stimuli done, stimuli/s, time left and bytes written, of rank zero's share.

    Args:
        writer: The writer, which counts its bytes.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.bar: tqdm[Any] | None = None
        self.done = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this rank has to do."""
        self.unit = trainer.datamodule.unit  # type: ignore[attr-defined]
        self.total = trainer.datamodule.planned_rows  # type: ignore[attr-defined]
        self.n_stimuli, self.world_size = len(trainer.datamodule.stimuli), trainer.world_size  # type: ignore[attr-defined]
        self.done, self.last_record = 0, 0.0
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
        """Advance."""
        rows = len(outputs["index"])
        self.done += rows
        if trainer.is_global_zero and time.monotonic() - self.last_record >= SECONDS_BETWEEN_RECORDS:
            self.last_record = time.monotonic()
            self._record()
        if self.bar is not None:
            self.bar.set_postfix_str(f"{as_size(self.writer.bytes_written)} written", refresh=False)
            self.bar.update(rows)
        elif trainer.is_global_zero and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self._print_line()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show how it went, when all is written."""
        if trainer.is_global_zero and self.done:
            self._record()
        if self.bar is not None:
            self.bar.close()
        elif trainer.is_global_zero and self.done:
            self._print_line()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        if trainer.is_global_zero and self.done:
            self._record()
        if self.bar is not None:
            self.bar.close()

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def _record(self) -> None:
        left = self.total - self.done
        seconds = left / self.rate if self.done else 0.0
        rows_done = max(0, self.n_stimuli - left * self.world_size)
        record(progress=RunProgress(self.unit, self.n_stimuli, rows_done, self.rate, seconds))

    def _print_line(self) -> None:
        rate = self.rate
        left = tqdm.format_interval((self.total - self.done) / rate)
        done = f"{self.done} of {self.total} {self.unit}, {rate:.1f} {self.unit}/s"
        logger.info("%s: %s, %s left, %s written", self.what, done, left, as_size(self.writer.bytes_written))
