"""float32 that is float32, and bf16 models that compute in it for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, backends, nn


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Matrix products and convolutions of float32 are computed in it, whatever was set before; afterwards that holds.

    cuDNN's convolutions use TF32, with 10 bits of 23, unless they are told not to.
    PyTorch has two sets of switches, of which the older can't be read when they contradict each other. Libraries do
    read it, so both are set: the older first, since it changes the newer.
    """
    with ExitStack() as before:
        old: list[tuple[Callable[[], Any], Callable[[Any], Any], Any]] = [
            (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
            (lambda: backends.cudnn.allow_tf32, lambda value: setattr(backends.cudnn, "allow_tf32", value), False),
        ]
        new: list[Any] = [
            backends.cuda.matmul,
            backends.cudnn.conv,  # type: ignore[attr-defined]
            backends.cudnn.rnn,
            backends.mkldnn.matmul,  # type: ignore[attr-defined]
            backends.mkldnn.conv,  # type: ignore[attr-defined]
        ]
        for switch in new:
            before.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
        for read, write, value in old:
            with suppress(RuntimeError):  # they contradict each other already
                before.callback(write, read())
            write(value)
        for switch in new:
            switch.fp32_precision = "ieee"
        yield


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Have a model of bf16 weights compute in float32; afterwards it has the same bits as before.

    A block's weights are float32 only while it runs, so that the memory for one more block is enough.
    """
    blocks = [block for parts in model.modules() if isinstance(parts, nn.ModuleList | nn.Sequential) for block in parts]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    blocks = [block for block in blocks if id(block) not in inside]  # those that are part of no other
    in_blocks = {id(tensor) for block in blocks for tensor in _numbers(block)}
    outside = [tensor for tensor in _numbers(model) if id(tensor) not in in_blocks]
    dtypes = {id(tensor): tensor.dtype for tensor in _numbers(model)}

    def widen(tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.data = tensor.data.float()

    def narrow(tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.data = tensor.data.to(dtypes[id(tensor)])

    handles = []
    for block in blocks:
        handles.append(block.register_forward_pre_hook(lambda module, _: widen(_numbers(module))))
        handles.append(block.register_forward_hook(lambda module, *_: narrow(_numbers(module)), always_call=True))
    try:
        widen(outside)
        yield
    finally:
        for handle in handles:
            handle.remove()
        narrow(_numbers(model))


def _numbers(module: nn.Module) -> list[Tensor]:
    """Weights and buffers with fewer bits than float32, or that had."""
    half_or_single = (torch.bfloat16, torch.float16, torch.float32)
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dtype in half_or_single]
