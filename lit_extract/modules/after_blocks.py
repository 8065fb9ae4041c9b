"""What comes after the blocks of a timm model: its final norm, and what it outputs itself.

Skeletons are on the meta device. T tokens, D hidden size.
"""

from typing import Any

import torch
from timm.data import infer_imagenet_subset
from timm.models import get_arch_pretrained_cfgs
from torch import Tensor, nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.modules.hooks import capture, find_layers
from lit_extract.modules.pooling import HEAD
from lit_extract.modules.selection import NORM


def check_norm(name: str, skeleton: nn.Module, trunk: str, input_size: list[int], block: tuple[int, int]) -> None:
    """Raise InputError unless the model has a final norm over the tokens (T, D) of its last block.

    ``trunk`` comes before the names of layers in the model.
    """
    part = skeleton.get_submodule(trunk.rstrip("."))
    if _is_missing(part, NORM):
        if _is_missing(part, "fc_norm"):
            why = (
                "has no final norm over its tokens; for its last block use layers: [-1], for its own output pool: head"
            )
        else:
            why = (
                "norms after pooling (fc_norm), so its tokens have no final norm; for the normed vector use pool: head"
            )
        raise InputError(f"model.layers: {name!r} {why}")
    if (shape := _output_shape(name, skeleton, NORM, input_size, trunk)) != (1, *block):
        raise InputError(
            f"model.layers: the final norm of {name!r} puts out {shape[1:]}, its last block {block} (T, D), which is "
            "not supported; for the normed vector use pool: head"
        )


def output_width(name: str, skeleton: nn.Module, input_size: list[int]) -> int:
    """Return the dimensions of what a model itself outputs for an image; InputError unless that is one vector."""
    shape = _output_shape(name, skeleton, HEAD, input_size)
    if len(shape) != 2:
        raise InputError(
            f"model.pool: {name!r} outputs {shape[1:]} for an image, not one vector, so it can't give head; use another"
        )
    return shape[1]


def output_meaning(skeleton: Any) -> str:
    """Return in words what a model itself outputs.

    In timm the projection of a CLIP model is its classifier, with as many classes as the embedding has dimensions.
    """
    if not (n_classes := skeleton.num_classes):
        return f"embedding: the pooled vector (global_pool: {skeleton.global_pool or 'none'}), without a classifier"
    published = get_arch_pretrained_cfgs(skeleton.pretrained_cfg.get("architecture", ""))
    alike = [name for name, config in published.items() if config.num_classes == n_classes]
    if any("clip" in name or "pe_core" in name for name in alike) and not infer_imagenet_subset(skeleton):
        return "embedding: the pooled and projected vector"
    return f"logits of {n_classes:,} classes"


def _is_missing(skeleton: nn.Module, part: str) -> bool:
    return isinstance(getattr(skeleton, part, nn.Identity()), nn.Identity)


def _output_shape(
    name: str, skeleton: nn.Module, layer: str, input_size: list[int], trunk: str = ""
) -> tuple[int, ...]:
    """Return the shape of a layer's output for one image; () if it is no tensor."""
    shapes: list[tuple[int, ...]] = []

    def note(output: Any) -> Any:
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())
        return output

    try:
        with capture(find_layers(skeleton, [layer], trunk), note, last=layer), torch.no_grad():
            skeleton(torch.empty(1, *input_size, device="meta"))
    except Exception as error:  # of any model of timm's
        raise InputError(
            f"model.name: {name!r} can't compute its {layer} of an image of {input_size}: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    return shapes[0] if shapes else ()
