"""Streamed blocks: each is read from disk once for many batches, while the previous block computes.

A model's ``forward`` is not changed. Each batch runs in its own coroutine, which stops before each block until all
other batches have arrived; then the block's weights are put in place, and each batch passes the block. The same kernels
receive the same batches as in an ordinary pass, so the results are bitwise the same. Masks, rotary tables and arguments
of layers stay with the model.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.timing import stopwatch
from lit_extract.modules.mapped import converted, mapped

T = TypeVar("T")


def call_each(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Return the results of calls of a model that has all of its weights."""
    return [call() for call in calls]


@dataclass(frozen=True)
class OnDisk:
    """Place of a tensor on disk, and its data type in the model."""

    file: str | FileIO  # a path, or an open file without a name
    offset: int  # in bytes
    shape: tuple[int, ...]
    dtype: torch.dtype  # in the file
    wanted: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Return the bytes of the tensor in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def read(self, device: torch.device) -> Tensor:
        """Return the tensor on a device.

        It is read, not mapped into memory, because a disk error in mapped memory ends the process.

        Raises:
            InputError: The file ends too early, the disk fails, or memory is too small.
        """
        try:
            if device.type == "cuda":
                numbers = torch.empty(self.n_bytes, dtype=torch.uint8, pin_memory=True)
            else:
                numbers = mapped((self.n_bytes,), torch.uint8)
            into = memoryview(numbers.numpy())  # type: ignore[arg-type]
            with FileIO(self.file) if isinstance(self.file, str) else nullcontext(self.file) as file:
                file.seek(self.offset)
                while into:
                    if not (count := file.readinto(into)):
                        raise OSError("the file ends too early")
                    into = into[count:]
            tensor = numbers.view(self.dtype).view(self.shape)
            if device.type == "cpu":
                return converted(tensor, self.wanted)
        except (OSError, RuntimeError) as error:  # RuntimeError: no memory
            what = self.file if isinstance(self.file, str) else "a temporary file"
            raise InputError(
                f"model.stream: weights can't be read from {what}: {one_line(error)}; fix that and run the same "
                "command again to resume"
            ) from error
        return tensor.to(device, non_blocking=True).to(self.wanted)


class StreamedBlocks:
    """The blocks of a model, with weights in memory for at most two: the block at work and the next.

    Args:
        blocks: All blocks, in the order of a forward pass.
        weights: The tensors of each block, and their places on disk.
        device: The device on which the model computes.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], weights: Sequence[Sequence[tuple[Tensor, OnDisk]]], device: torch.device
    ) -> None:
        self.weights, self.device = weights, device
        self.on_block: Callable[[int, int], None] | None = None  # called after each block of a run
        self._nothing = {on_disk.wanted: torch.empty(0, dtype=on_disk.wanted) for of in weights for _, on_disk in of}
        self._here: int | None = None  # the block that has its weights
        self._end = len(blocks)  # number of blocks that the last run needed
        self._reader = ThreadPoolExecutor(1, "lit-extract weights")
        self._next: tuple[int, Future[list[Tensor]]] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._tasks: list[greenlet] = []
        for k, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._enter, k))
            self._empty(k)

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results of calls, each of which sends a batch through all blocks.

        Raises:
            InputError: Weights can't be read.
        """
        self._tasks = [greenlet(call) for call in calls]
        results: dict[greenlet, T] = {}
        waits_for: dict[greenlet, int] = {}

        def resume(task: greenlet) -> None:
            answer: Any = task.switch()
            if task.dead:
                waits_for.pop(task, None)
                results[task] = answer
            else:
                waits_for[task] = answer

        try:
            for task in self._tasks:
                resume(task)
            while waits_for:
                block = min(waits_for.values())
                self._bring(block)
                for task in [task for task in waits_for if waits_for[task] == block]:
                    resume(task)
                if self.on_block is not None:
                    self.on_block(block + 1, self._end)
                if not waits_for:
                    self._end = block + 1
            return [results[task] for task in self._tasks]
        finally:
            for task in self._tasks:
                task.throw()  # after an error, ends unfinished batches, so their hooks are removed
            self._tasks = []

    def _enter(self, block: int, module: nn.Module, args: Any) -> None:
        """Stop a batch before a block until the block has its weights."""
        current = getcurrent()
        if current in self._tasks:
            assert current.parent is not None
            current.parent.switch(block)
        else:
            self._bring(block)

    def _bring(self, block: int) -> None:
        if self._here == block:
            return
        if self._here is not None:
            if self._stream is not None:
                torch.cuda.current_stream().synchronize()  # otherwise the host would run ahead and hold more blocks
            self._empty(self._here)
        with stopwatch("waiting for weights"):
            if self._next is None or self._next[0] != block:
                self._read_ahead(block)
            assert self._next is not None
            tensors = self._next[1].result()
        self._here = block
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        self._read_ahead((block + 1) % self._end)
        for (tensor, _), numbers in zip(self.weights[block], tensors, strict=True):
            if self._stream is not None:
                numbers.record_stream(torch.cuda.current_stream())
            tensor.data = numbers

    def _read_ahead(self, block: int) -> None:
        self._next = block, self._reader.submit(self._read, block)

    def _read(self, block: int) -> list[Tensor]:
        with torch.cuda.stream(self._stream):
            return [on_disk.read(self.device) for _, on_disk in self.weights[block]]

    def _empty(self, block: int) -> None:
        self._here = None
        for tensor, on_disk in self.weights[block]:
            tensor.data = self._nothing[on_disk.wanted]
