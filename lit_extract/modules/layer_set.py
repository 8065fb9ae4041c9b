"""The wanted layers of a timm model.

There are three kinds: the tokens of its blocks (``Blocks``), the maps of its stages (``Stages``), and the output of the
model (``Output``). The rest of :class:`~lit_extract.modules.vision.VisionExtractor` is the same for all kinds.

B batch, T tokens, D hidden size, P poolings, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.modules.pooling import LayerForm

# From a layer's tokens (B, T, D) and their form to the pooled numbers (B, P, numbers)
Pool: TypeAlias = Callable[[Tensor, LayerForm], Tensor]


class CannotComputeError(InputError):
    """The model does not take images of this size. The message does not name the setting that is wrong."""

    def __init__(self, name: str, what: str, size: Sequence[int], error: Exception) -> None:
        super().__init__(f"{name!r} can't compute {what} of {[*size]}: {type(error).__name__}: {one_line(error)}")


class LayerSet(ABC):
    """Names and forms of the wanted layers, and the forward pass that computes them.

    Constructors take a model on the meta device, and raise InputError if it does not have the layers.
    """

    layers: list[str]  # in the requested order
    allowed: Sequence[str]  # possible poolings; why_no_others explains the rest
    why_no_others: str = ""
    held: int  # numbers per image that a forward pass holds at once, without the image
    notes: Mapping[str, str] = MappingProxyType({})  # for the metadata of the features

    @property
    @abstractmethod
    def forms(self) -> list[LayerForm]:
        """The form of each layer."""

    def blocks_of(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the blocks that all tokens pass one after the other; none if the model has no such list."""
        return ()

    @abstractmethod
    def measure(self, skeleton: nn.Module, size: Sequence[int]) -> None:
        """Note what depends on the image size (3, H, W); raise InputError if the model does not take it."""

    @abstractmethod
    def run(self, model: nn.Module, images: Tensor, pool: Pool) -> dict[str, Tensor]:
        """Send images (B, 3, H, W) through the model, no further than needed, and pool each layer."""


def columns_of(n_patches: int, size: Sequence[int]) -> int | None:
    """Return the columns of an image's patches, given its size (3, H, W); None if they form no grid of its shape."""
    height, width = size[1:]
    rows = max(1, round((n_patches * height / width) ** 0.5))
    columns = n_patches // rows
    has_its_shape = abs(rows * width / (max(1, columns) * height) - 1) < 0.2  # not exact, as images may be padded
    return columns if rows * columns == n_patches and has_its_shape else None


def held_at_once(outputs: Mapping[str, Sequence[torch.Size]], kept: int = 0) -> int:
    """Estimate the numbers that a forward pass holds for an image, besides the outputs that are kept until its end.

    At its widest point, the model holds a module's input, its output, and a skip connection.
    """
    return kept + 3 * max((shape.numel() for shapes in outputs.values() for shape in shapes), default=0)


@contextmanager
def outputs_noted(model: nn.Module) -> Iterator[dict[str, list[torch.Size]]]:
    """Note the shapes of each module's outputs in the ``with`` block, by the module's name."""
    shapes: dict[str, list[torch.Size]] = {}

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else [output]
        shapes[path] = [tensor.shape for tensor in outputs if isinstance(tensor, Tensor)]

    handles = [module.register_forward_hook(partial(note, path)) for path, module in model.named_modules()]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()
