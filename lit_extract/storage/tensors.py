"""Convert between stored numbers and tensors.

K rows, W numbers in a row, in which all L layers are concatenated.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_extract.storage.layout import Shape


def to_tensor(numbers: NDArray[Any]) -> Tensor:
    """Return stored numbers as a tensor, bits of bfloat16 as bfloat16; the memory is shared."""
    tensor = torch.from_numpy(numbers)
    return tensor.view(torch.bfloat16) if numbers.dtype == np.uint16 else tensor


def to_numbers(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor on the host as stored numbers; the memory is shared."""
    numbers: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return numbers


def pad_layers(rows: Tensor, layer_shapes: Sequence[Shape]) -> Tensor:
    """Turn rows (K, W) into float32 (K, L, size of the widest layer), each layer flattened and padded with zeros.

    The zeros do not change norms, distances and products within a layer.
    """
    sizes = [math.prod(shape) for shape in layer_shapes]
    padded = rows.new_zeros(len(rows), len(sizes), max(sizes)).float()
    for k, (first, end) in enumerate(pairwise([0, *accumulate(sizes)])):
        padded[:, k, : end - first] = rows[:, first:end]
    return padded
