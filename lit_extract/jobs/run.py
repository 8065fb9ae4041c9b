"""One pass of a Trainer over what is left, with the callbacks of one job, until it is done or asked to stop."""

import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lit_extract.common import signals
from lit_extract.common.errors import InputError, one_line
from lit_extract.jobs.team import Team

SECONDS_TO_FINISH = 10.0

# Rows travel with their index, workers are chosen by us, a rank may have nothing left to do, and a single process needs
# no srun.
_EXPECTED = (
    "Couldn't infer the batch indices",
    ".*does not have many workers",
    ".*zero length",
    ".*zero across",
    ".*treespec, LeafSpec",
    "The `srun` command is available",
)


def run_predict(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, callbacks: Sequence[Callback]
) -> None:
    """``trainer.predict``, without Lightning's warnings of what is meant; the Trainer is left as it was.

    Raises:
        Interrupted: It was asked to stop; all finished shards are written.
        ToldError: Something is wrong that rank zero says.
        InputError: A rank or a data-loading worker is gone, or a callback's.
    """
    error: BaseException | None = None
    with ExitStack() as stack:
        team = stack.enter_context(Team(trainer))
        added = [*callbacks, Stopping(team)]
        trainer.callbacks.extend(added)  # type: ignore[attr-defined]
        # Lightning's handlers would have ranks wait for each other inside of a signal, and under SLURM save a
        # checkpoint of the model.
        connector = trainer._signal_connector
        connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        stack.enter_context(warnings.catch_warnings())
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message)
        try:
            trainer.predict(model, datamodule=data, return_predictions=False)
        except BaseException as raised:
            error = raised
        finally:
            del connector.register_signal_handlers
            for callback in added:
                trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        with signals.held():
            error = team.conclude(_of_a_worker(error))
    if error is not None:
        raise error
    if (number := signals.asked()) is not None:
        raise signals.Interrupted(number)


class Stopping(Callback):
    """Ends the run when it is asked to: after the shard in hand, if that takes seconds, else where it is.

    Args:
        team: The ranks, each of which does so.
    """

    def __init__(self, team: Team) -> None:
        self.team = team
        self._in_loop = ExitStack()
        self._rows_left = 0  # of the shard in hand
        self._rows_since = 0  # the first batch has ended, which is slower than the others
        self._first_end: float | None = None
        self._last_end = 0.0
        self._seconds_a_row: float | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there may be something worth finishing."""
        self.team.has_begun = True
        self._last_end = time.monotonic()
        self._in_loop.enter_context(signals.wait_while(self.is_worth_finishing))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note what is in hand."""
        self._rows_left = len(batch["index"])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the time, and stop."""
        rows, now = len(outputs["index"]), time.monotonic()
        self._rows_left -= rows
        if self._first_end is None:
            self._first_end = now
            self._seconds_a_row = (now - self._last_end) / rows
        else:
            self._rows_since += rows
            self._seconds_a_row = (now - self._first_end) / self._rows_since
        self._last_end = now
        if (number := signals.asked()) is not None and not self.is_worth_finishing():
            raise signals.Interrupted(number)

    def is_worth_finishing(self) -> bool:
        """Whether the rest of the shard in hand is done within seconds of being asked, at the rate so far."""
        if self._rows_left == 0 or self._seconds_a_row is None:
            return False
        seconds = self._last_end + self._rows_left * self._seconds_a_row - signals.asked_at()
        return seconds <= SECONDS_TO_FINISH

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All is computed."""
        self._in_loop.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The loop is left."""
        self._in_loop.close()


def _of_a_worker(error: BaseException | None) -> BaseException | None:
    """What torch says when a data-loading worker is gone, as an error that says how to go on."""
    if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader worker"):
        return error
    return InputError(
        f"{one_line(error)}; for want of memory? Fewer --data.num_workers need less. Finished shards are safe: run the "
        "same command again to go on"
    )
