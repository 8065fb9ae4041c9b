"""IEEE float32 arithmetic, also temporarily for bf16 models."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, backends, nn

from lit_extract.modules.mapped import converted


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Compute float32 matrix products and convolutions in float32; restore the earlier setting afterwards.

    By default cuDNN's convolutions use TF32, with 10 bits of 23.
    PyTorch has two sets of switches; the older set can't be read if they contradict each other. Libraries read it, so
    both are set: the older first, because it changes the newer.
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
            with suppress(RuntimeError):  # the two sets already contradict each other
                before.callback(write, read())
            write(value)
        for switch in new:
            switch.fp32_precision = "ieee"
        yield


@contextmanager
def in_float32(model: nn.Module, streamed: bool = False) -> Iterator[None]:
    """Let a model with bf16 weights compute in float32; its weights are bitwise the same afterwards.

    A block's weights are float32 only while it runs, so memory for one more block is enough. In a ``streamed`` model
    they stay float32 until all batches have passed the block, and are dropped then.
    """
    parts = [part for parts in model.modules() if isinstance(parts, nn.ModuleList | nn.Sequential) for part in parts]
    nested = {inner for part in parts for inner in part.modules() if inner is not part}
    blocks = [part for part in parts if part not in nested]
    in_blocks = {id(tensor) for block in blocks for tensor in _numbers(block)}
    dtypes = {id(tensor): tensor.dtype for tensor in _numbers(model)}

    def widen(tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.data = converted(tensor.data, torch.float32)

    def narrow(tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.data = converted(tensor.data, dtypes[id(tensor)])

    with ExitStack() as handles:
        handles.callback(lambda: narrow(_numbers(model)))
        for block in blocks:
            before = block.register_forward_pre_hook(lambda module, _: widen(_numbers(module)))
            handles.callback(before.remove)
            if not streamed:
                after = block.register_forward_hook(lambda module, *_: narrow(_numbers(module)), always_call=True)
                handles.callback(after.remove)
        widen(tensor for tensor in _numbers(model) if id(tensor) not in in_blocks)
        yield


def _numbers(module: nn.Module) -> list[Tensor]:
    """Return the weights and buffers to widen, or to narrow again."""
    half_or_single = (torch.bfloat16, torch.float16, torch.float32)
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.dtype in half_or_single]
