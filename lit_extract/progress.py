"""Progress of a run: a bar in a terminal, now and then a line in a log file."""

import sys
import time
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Writer(Protocol):
    """What progress asks a writer."""

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

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this rank has to do."""
        self.unit = trainer.datamodule.unit  # type: ignore[attr-defined]
        self.total = trainer.datamodule.planned_rows  # type: ignore[attr-defined]
        self.done, self.started, self.last_line = 0, time.monotonic(), time.monotonic()
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
        if self.bar is not None:
            self.bar.set_postfix_str(f"{_bytes(self.writer.bytes_written)} written", refresh=False)
            self.bar.update(rows)
        elif trainer.is_global_zero and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self._print_line()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say how it went, when all is written."""
        if self.bar is not None:
            self.bar.close()
        elif trainer.is_global_zero and self.done:
            self._print_line()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.close()

    def _print_line(self) -> None:
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        left = tqdm.format_interval((self.total - self.done) / rate)
        done = f"{self.done} of {self.total} {self.unit}, {rate:.1f} {self.unit}/s"
        print(f"{self.what}: {done}, {left} left, {_bytes(self.writer.bytes_written)} written", flush=True)


def _bytes(number: float) -> str:
    return f"{tqdm.format_sizeof(number, 'B', 1000)}"
