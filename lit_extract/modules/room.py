"""The decision to stream the blocks of a model from disk, and the number of rows that pass them together.

A model is streamed if its weights do not fit in memory, but two of its blocks and the rest of the model do. Streaming
changes no number, so it is not part of the provenance.
"""

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer

from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError
from lit_extract.common.host import free_host_memory, resident_memory
from lit_extract.common.progress import step

if TYPE_CHECKING:
    from lit_extract.modules.base import Extractor

logger = logging.getLogger(__name__)

# Maximum number of tokens that pass a block while its weights are in memory. With so many, reading takes less time than
# computing: on an A40 at 75 TFLOP/s and a disk at 0.6 GB/s, on two cores with AMX at 2 TFLOP/s and a disk at 0.07 GB/s.
TOKENS_ON_CPU, TOKENS_ON_GPU = 32_768, 131_072


def where_it_runs(trainer: Trainer | None) -> tuple[torch.dtype, torch.device, int]:
    """Return the data type of the weights, the device, and the number of processes that share its memory."""
    if trainer is None:
        return torch.float32, torch.device("cpu"), 1
    device: torch.device = trainer.strategy.root_device
    dtype = torch.bfloat16 if trainer.precision == "bf16-true" else torch.float32
    return dtype, device, trainer.num_devices if device.type == "cpu" else 1


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that this process may still use on a device."""
    if device.type != "cuda":
        return free_host_memory()
    free, total = torch.cuda.mem_get_info(device)
    allowed = round(torch.cuda.get_per_process_memory_fraction(device) * total) - torch.cuda.memory_reserved(device)
    return min(free, allowed)


def loading_shown(
    model: "Extractor", dtype: torch.dtype, device: torch.device, is_streamed: bool
) -> AbstractContextManager[None]:
    """Show the progress of loading a model's weights, in ``dtype``, onto a device."""

    def held() -> int:
        return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_memory()

    before = held()
    total = 0 if is_streamed else model.num_params * dtype.itemsize
    what = "making random weights" if model.untrained else "loading weights"
    return step(f"{model.model_name}: {what}", total, lambda: held() - before)


def bytes_when_streamed(model: "Extractor", dtype: torch.dtype) -> int:
    """Return the bytes of weights in memory when blocks are streamed: two blocks and the rest of the model.

    While the model is checked, the block at work and the rest are float32.
    """
    at_work = max(0, model.num_params - sum(model.block_params)) + max(model.block_params)
    return torch.float32.itemsize * at_work + dtype.itemsize * max(model.block_params)


def is_streamed(model: "Extractor", dtype: torch.dtype, free: int) -> bool:
    """Return whether a model with weights of this type is streamed, given the free memory in bytes.

    Raises:
        InputError: Streaming is requested, but the model's layers are not a list of blocks.
    """
    if model.stream and not model.block_params:
        raise InputError(
            f"model.stream: {model.model_name!r} can't be streamed, because its layers are not a list of blocks; "
            "leave it out"
        )
    too_large = model.num_params * dtype.itemsize > free and len(model.block_params) > 0
    return too_large if model.stream is None else model.stream


def check_room(model: "Extractor", dtype: torch.dtype, free: int) -> None:
    """Report that a model is streamed.

    Raises:
        InputError: Even streaming needs more memory than is free.
    """
    weights, least = model.num_params * dtype.itemsize, bytes_when_streamed(model, dtype)
    if least > free:
        raise InputError(
            f"model.stream: {model.model_name!r} needs {as_size(least)} of memory even if its blocks are streamed (two "
            f"blocks and the rest of the model), but only {as_size(free)} are free; use a machine with more memory"
        )
    logger.info(
        f"{model.model_name}: {as_size(weights - least)} of {as_size(weights)} of weights stay on disk and are read "
        f"block by block ({as_size(free)} of memory are free)"
    )


def rows_of_a_pass(model: "Extractor", dtype: torch.dtype, on_gpu: bool, free: int, host: int, n_tokens: int) -> int:
    """Return the number of rows that pass each block while its weights are in memory.

    With so many rows, reading takes less time than computing, if they fit in memory.

    Args:
        model: The extractor.
        dtype: Data type of its weights in the run.
        on_gpu: True if it computes on a GPU; then the host also holds the results.
        free: Free bytes of the device, without the model.
        host: Bytes of the host.
        n_tokens: Average number of tokens of a caption; not used for images.
    """
    results = 4 * len(model.pools) * model.n_numbers  # collected from all layers, and stacked: twice
    waiting = dtype.itemsize * model.numbers_between_blocks(n_tokens) + model.input_bytes(n_tokens)
    a_row = waiting + (2 if on_gpu else 4) * results
    room = (free - bytes_when_streamed(model, dtype)) * 2 // 3  # a third is for the batch at work
    tokens = max(1, model.tokens_a_row(n_tokens))
    most = (TOKENS_ON_GPU if on_gpu else TOKENS_ON_CPU) // tokens
    return max(1, min(most, room // a_row, host // 2 // (2 * results)))
