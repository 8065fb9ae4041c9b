"""Tensors in memory that the system gets back as soon as they are gone.

What malloc has given out, it keeps where something small lies above it: a process through which all blocks of a model
go would hold more with each of them.
"""

from collections.abc import Sequence
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor


def mapped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros on the CPU.

    Raises:
        OSError: There is no memory for it.
    """
    n_bytes = dtype.itemsize * torch.Size(shape).numel()
    memory = mmap(-1, max(1, n_bytes), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8)[:n_bytes].view(dtype).view(shape)


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another data type, on its device; as it is, if it has this one."""
    if tensor.dtype == dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor.to(dtype)
    return mapped(tensor.shape, dtype).copy_(tensor)
