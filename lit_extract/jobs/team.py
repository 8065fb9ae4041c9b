"""The ranks of one run: a request to stop reaches all of them, and rank zero hears how it ended for each.

They talk through the key-value store of their process group. A barrier waits in C, deaf to signals, for ranks that may
be gone; whoever asks a store can look around in between.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import NamedTuple

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch._C._distributed_c10d import PrefixStore, Store

from lit_extract.common import signals
from lit_extract.common.errors import InputError, NothingLeft, ToldError, one_line
from lit_extract.common.ranks import LAUNCHER

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_END = 60.0  # after a rank was asked to stop: the rest of a shard, and writing it
SECONDS_TO_LEAVE_A_BARRIER = 10.0
SECONDS_OF_SILENCE = 300.0  # after which a rank counts as gone: it speaks in a thread, whatever else it does

# How a run ended for a rank, the worst first.
REFUSED, FAILED, GONE, STOPPED, DONE = "refused", "failed", "gone", "stopped", "done"

# What a collective says when a peer is gone.
_CUT_OFF = re.compile(r"gloo|nccl|socket|peer|broken pipe|connection (was )?(closed|reset)", re.IGNORECASE)

_runs = itertools.count()  # the same in all ranks, as they run the same script


class End(NamedTuple):
    """How a run ended for a rank, and why; of one that was stopped, by which signal."""

    kind: str
    reason: str = ""
    number: int = signals.BY_ANOTHER_RANK


class Team:
    """The ranks of a run; of one rank there is nothing to do.

    Args:
        trainer: Has launched them, or will.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.size = trainer, trainer.world_size
        self.has_begun = False  # from then on ranks wait for each other only in conclude()
        self.ends: dict[int, End] = {}
        self._prefix = f"lit-extract/{next(_runs)}"
        self._launched: list[subprocess.Popen[bytes]] = []
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_around, name="ranks", daemon=True)

    def __enter__(self) -> "Team":
        self._is_launcher = self.size > 1 and LAUNCHER not in os.environ
        if self._is_launcher:
            os.environ[LAUNCHER] = str(os.getpid())
        if self.size > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._is_launcher:
            os.environ.pop(LAUNCHER, None)

    def conclude(self, error: BaseException | None) -> BaseException | None:
        """Wait until the run has ended for all ranks, and say how.

        Args:
            error: How it ended for this one.

        Returns:
            What to raise: for rank zero what went wrong anywhere; the others have told it, and end quietly.
        """
        if self.size == 1:
            return error
        self._is_over.set()
        self._thread.join(SECONDS_TO_LEAVE_A_BARRIER)
        if self.trainer.global_rank:
            return self._tell(error) if _has_group() else error
        store = self._store() if _has_group() else None
        self._wait_for_others(store, error)
        verdict = self._verdict(error)
        if isinstance(verdict, signals.Interrupted) or any(end.kind == GONE for end in self.ends.values()):
            self._end_launched()
        return verdict

    def _tell(self, error: BaseException | None) -> BaseException | None:
        end = _end_of(error)
        try:
            store = self._store()
            if end.kind in (REFUSED, FAILED, STOPPED):
                _pass_on(store, end.number)
            store.set(f"end/{self.trainer.global_rank}", json.dumps(end))
        except RuntimeError:
            return SystemExit(1)  # rank zero is gone
        if end.kind == REFUSED:
            return ToldError(end.reason)
        return SystemExit(0) if end.kind in (GONE, STOPPED) else error

    def _wait_for_others(self, store: Store | None, error: BaseException | None) -> None:
        """Until it has ended for all of them; after an early end here, for some time only."""
        patience = SECONDS_TO_END if self.has_begun else SECONDS_TO_LEAVE_A_BARRIER if store else 0
        since: float | None = None
        while len(self.ends) < self.size - 1:
            if error is not None or signals.asked() is not None:
                since = since or time.monotonic()
                if store is not None:
                    _pass_on(store, signals.asked() or signals.BY_ANOTHER_RANK)
            self._look(store)
            if since is not None and time.monotonic() - since > patience:
                break
            time.sleep(0.05)

    def _verdict(self, error: BaseException | None) -> BaseException | None:
        """What rank zero raises."""
        by_kind = {end.kind: (rank, end.reason) for rank, end in sorted(self.ends.items(), reverse=True)}
        mine = _end_of(error)
        if mine.kind == REFUSED:
            return error
        if REFUSED in by_kind:
            return InputError(by_kind[REFUSED][1])
        if FAILED in by_kind:
            _complain("rank {} failed, as it says above: {}".format(*by_kind[FAILED]))
            return SystemExit(1)
        if mine.kind == FAILED or isinstance(error, NothingLeft):
            return error
        if (number := signals.asked()) and (mine.kind, *by_kind) != (DONE, DONE):
            return signals.Interrupted(number)
        if GONE in by_kind:
            return InputError(_lost("rank {} {}".format(*by_kind[GONE])))
        if mine.kind == GONE:
            return InputError(_lost(f"the connection to another rank broke: {mine.reason}"))
        return error

    def _look_around(self) -> None:
        """The thread: passes on who asks to stop and notices who is gone, also while the main thread is in C."""
        store: Store | None = None
        gone_since: float | None = None
        while not self._is_over.wait(SECONDS_BETWEEN_LOOKS):
            try:
                if store is None and _has_group():
                    store = self._store()
                if self.trainer.global_rank == 0:
                    self._look(store)
                if store is not None:
                    self._exchange(store)
            except RuntimeError:
                if self.trainer.global_rank and not self._is_over.is_set():
                    os._exit(1)  # rank zero is gone, and with it the right to write
            if any(end.kind != DONE for end in self.ends.values()):
                gone_since = gone_since or time.monotonic()
                signals.ask(signals.BY_ANOTHER_RANK)
                if not self.has_begun and time.monotonic() - gone_since > SECONDS_TO_LEAVE_A_BARRIER:
                    self._leave_barrier()

    def _exchange(self, store: Store) -> None:
        if (number := signals.asked()) is not None:
            _pass_on(store, number)
        if not number and store.check(["stop"]):
            signals.ask(int(store.get("stop")))
        if self.trainer.global_rank:
            store.set(f"alive/{self.trainer.global_rank}", str(time.monotonic()))

    def _look(self, store: Store | None) -> None:
        """Note for which ranks it has ended."""
        launcher = self.trainer.strategy.launcher
        if launched := getattr(launcher, "procs", None):
            # Lightning's own watch over them would kill rank zero, without a word and a shard in hand.
            self._launched += launched
            launched.clear()
        for rank in set(range(1, self.size)) - set(self.ends):
            # Before it is asked how it ended: it says so, and goes.
            code = self._launched[rank - 1].poll() if rank <= len(self._launched) else None
            if store is not None and store.check([f"end/{rank}"]):
                end = End(*json.loads(store.get(f"end/{rank}")))
                if end.number != signals.BY_ANOTHER_RANK:
                    signals.ask(end.number)  # it may have ended before it could pass that on
                self.ends[rank] = end
            elif code is not None:
                self.ends[rank] = End(GONE, _how_it_ended(code))
            elif store is not None and self._is_silent(store, rank):
                self.ends[rank] = End(GONE, f"has not been heard of for {SECONDS_OF_SILENCE:.0f} s")

    def _is_silent(self, store: Store, rank: int) -> bool:
        said = store.get(f"alive/{rank}") if store.check([f"alive/{rank}"]) else b""
        before, when = self._heard.get(rank, (None, 0.0))
        if said != before:
            self._heard[rank] = said, time.monotonic()
            return False
        return time.monotonic() - when > SECONDS_OF_SILENCE

    def _leave_barrier(self) -> None:
        """End rank zero, whose main thread waits in C for a rank that will not come."""
        verdict = self._verdict(RuntimeError("gloo"))
        if isinstance(verdict, signals.Interrupted):
            code = 128 + verdict.number
            signals.tell(verdict)
        else:
            code = 2
            _complain(f"error: {verdict}")
        self._end_launched()
        os._exit(code)

    def _end_launched(self) -> None:
        """See that no rank outlives a run that was stopped; what they had is on disk, or they do not answer."""
        for process in self._launched:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5 if self.has_begun else SECONDS_BETWEEN_LOOKS)
            if process.poll() is None:
                process.kill()
                process.wait()

    def _store(self) -> Store:
        """A connection of its own: two threads in one would wait for each other."""
        return PrefixStore(self._prefix, dist.distributed_c10d._get_default_store().clone())  # type: ignore[attr-defined]


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _pass_on(store: Store, number: int) -> None:
    """The first signal that is known, or until then that a rank failed."""
    if not store.check(["stop"]) or (number and int(store.get("stop")) == signals.BY_ANOTHER_RANK):
        store.set("stop", str(number))


def _end_of(error: BaseException | None) -> End:
    if error is None or isinstance(error, NothingLeft):
        return End(DONE)
    if isinstance(error, signals.Interrupted):
        return End(STOPPED, number=error.number)
    if isinstance(error, InputError):
        return End(REFUSED, str(error))
    if isinstance(error, RuntimeError) and _CUT_OFF.search(str(error)):
        return End(GONE, one_line(error))
    return End(FAILED, f"{type(error).__name__}: {one_line(error)}")


def _how_it_ended(code: int) -> str:
    if code < 0:
        memory = " (for want of memory?)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{memory}"
    return f"ended with exit code {code}"


def _lost(what: str) -> str:
    return f"{what}; finished shards are safe: run the same command again to go on"


def _complain(text: str) -> None:
    print(f"lit-extract: {text}", file=sys.stderr, flush=True)
