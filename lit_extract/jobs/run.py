"""One pass of a Trainer over the remaining rows, with the callbacks of one job, until the end or a stop."""

import signal
import subprocess
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lit_extract.common import signals
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.exit_codes import STOPPED
from lit_extract.common.ranks import ranks_end_with_rank_zero
from lit_extract.jobs.trainer import lightning_warnings_only

SECONDS_TO_END = 30.0  # for the other ranks to finish a batch and write a shard
SECONDS_TO_FAIL_ALIKE = 10.0
SAFE = "Finished shards are safe: run the same command again to resume"

# These warnings do not apply: rows carry their index, the data module chooses workers, a rank may have nothing left to
# do, and a single process needs no srun.
_EXPECTED = (
    "Couldn't infer the batch indices",
    ".*does not have many workers",
    "Consider setting `persistent_workers",
    ".*zero length",
    ".*zero across",
    ".*treespec, LeafSpec",
    "The `srun` command is available",
)


def run_predict(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, callbacks: Sequence[Callback]
) -> None:
    """Run ``trainer.predict`` in all ranks until all are done; the Trainer is restored afterwards.

    Raises:
        Interrupted: A signal stopped the run; all finished shards are written.
        InputError: A rank or a data-loading worker died, or a callback raised it.
        SystemExit: Another rank failed, and has printed the reason.
    """
    stopping = Stopping(trainer)
    added = [*callbacks, stopping]
    with warnings.catch_warnings(), lightning_warnings_only(), ranks_end_with_rank_zero():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message)
        trainer.callbacks.extend(added)  # type: ignore[attr-defined]
        try:
            trainer.predict(model, datamodule=data, return_predictions=False)
            stopping.wait_for_others()
        except BaseException as error:
            raise stopping.end(error) from None
        finally:
            stopping.in_loop.close()
            for callback in added:
                trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
    if (number := signals.requested()) is not None:
        raise signals.Interrupted(number)


class Stopping(Callback):
    """Callback that ends the run after a batch, on a signal or when another rank dies.

    Ranks do not tell each other why they end. Rank zero checks the processes that Lightning launched for it, and the
    barrier at the end breaks if a rank dies, whoever launched it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.in_loop = ExitStack()
        self._has_begun = False
        self._launched: list[subprocess.Popen[bytes]] = []
        self._group: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the barrier: over sockets, also for GPUs, with a long timeout, because ranks differ in their work."""
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=365))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, finish the current batch when a signal comes."""
        self._has_begun = True
        self._take_over_watch()
        self.in_loop.enter_context(signals.deferred())

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """Stop if there is a reason."""
        self._check()

    def wait_for_others(self) -> None:
        """Wait until all ranks have finished their shares, or there is a reason to stop."""
        if self._group is None:
            return
        self._take_over_watch()
        barrier = dist.barrier(group=self._group, async_op=True)
        assert barrier is not None
        while not barrier.is_completed():
            self._check()
            time.sleep(0.05)
        barrier.wait()

    def end(self, error: BaseException) -> BaseException:
        """End the ranks launched by this one; return the cause of an error, which may be another rank."""
        self._take_over_watch()
        cause = self._cause(error)
        if cause is error and isinstance(error, InputError) and self.trainer.global_rank and not self._has_begun:
            time.sleep(SECONDS_TO_FAIL_ALIKE)  # rank zero may report the same error, and then ends this rank
        for process in self._launched:
            process.terminate()  # it stops after its batch
        for process in self._launched:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return cause

    def _check(self) -> None:
        if (number := signals.requested()) is not None:
            raise signals.Interrupted(number)
        if (lost := self._lost_rank()) is not None:
            raise lost

    def _cause(self, error: BaseException) -> BaseException:
        number = signals.requested()
        is_worker = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
        # error of a collective when another rank dies; gloo has no error type of its own
        is_cut_off = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if number is not None and (is_worker or is_cut_off):
            return signals.Interrupted(number)
        if is_worker:
            return InputError(f"{one_line(error)}; if memory ran out, reduce --data.num_workers. {SAFE}")
        if not is_cut_off:
            return error
        if self.trainer.global_rank:
            return SystemExit(1)  # rank zero reports it
        since = time.monotonic()
        while (lost := self._lost_rank()) is None and self._launched and time.monotonic() - since < SECONDS_TO_END:
            time.sleep(0.05)
        return lost or InputError(f"another rank ended; see its own output, or that of srun, for the reason. {SAFE}")

    def _lost_rank(self) -> BaseException | None:
        """Return the exception to raise if a launched rank has ended; normally, all ranks wait for this one."""
        for rank, process in enumerate(self._launched, start=self.trainer.global_rank + 1):
            if (code := process.poll()) is None:
                continue
            if code > STOPPED:
                return signals.Interrupted(code - STOPPED)
            if code > 0:
                return SystemExit(code)  # it has printed the reason
            name = f"was killed by {signal.Signals(-code).name}" if code else "ended too early"
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            return InputError(f"rank {rank} {name}{memory}. {SAFE}")
        return None

    def _take_over_watch(self) -> None:
        """Take over watching the launched ranks from Lightning, which would kill rank zero silently."""
        launched = getattr(self.trainer.strategy.launcher, "procs", [])
        self._launched += launched
        launched.clear()
