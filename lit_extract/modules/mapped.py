"""Tensors whose memory returns to the system as soon as they are deleted.

malloc keeps freed memory below any small allocation, so a process that reads block after block of a model would hold
more memory with each block.
"""

from collections.abc import Sequence
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor


def mapped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros on the CPU.

    Raises:
        OSError: There is not enough memory.
    """
    n_bytes = dtype.itemsize * torch.Size(shape).numel()
    memory = mmap(-1, max(1, n_bytes), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8)[:n_bytes].view(dtype).view(shape)


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another data type, on its device; unchanged if it has this type."""
    if tensor.dtype == dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor.to(dtype)
    return mapped(tensor.shape, dtype).copy_(tensor)
