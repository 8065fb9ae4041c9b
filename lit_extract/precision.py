"""float32 that is float32: cuDNN's convolutions use TF32, with 10 bits of 23, unless they are told not to."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import backends


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Matrix products and convolutions of float32 are computed in it, whatever was set before; afterwards that holds.

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
