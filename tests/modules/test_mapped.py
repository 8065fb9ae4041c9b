"""Tensors in memory of their own, which is the system's again when they are gone."""

import os

import pytest
import torch
from helpers.runs import anonymous_memory

from lit_extract.modules.mapped import converted, mapped

MB = 2**20


def test_memory_goes_back_at_once_whatever_lies_between():
    before = anonymous_memory(os.getpid())
    tensors, between = [], []
    for _ in range(64):
        tensors.append(mapped((MB,), torch.uint8).fill_(1))
        between.append(torch.ones(3000))
    assert anonymous_memory(os.getpid()) - before > 60 * MB
    del tensors
    assert anonymous_memory(os.getpid()) - before < 8 * MB
    assert len(between) == 64


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_converted_numbers_are_those_of_torch(shape, dtype):
    numbers = torch.randn(shape)
    found = converted(numbers, dtype)
    assert (found.dtype, found.shape, found.stride()) == (dtype, numbers.shape, numbers.stride())
    assert torch.equal(found, numbers.to(dtype))


def test_other_strides_stay():
    numbers = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert converted(numbers, torch.bfloat16).stride() == numbers.stride()


def test_more_than_there_is():
    with pytest.raises(OSError, match="memory"):
        mapped((2**50,), torch.float32)
