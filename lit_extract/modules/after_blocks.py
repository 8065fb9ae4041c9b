"""The final norm and the output of a timm model, which come after its blocks.

Skeletons are on the meta device. B batch, T tokens, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import infer_imagenet_subset
from timm.models import get_arch_pretrained_cfgs
from torch import Tensor, nn

from lit_extract.common.errors import InputError
from lit_extract.modules.hooks import capture
from lit_extract.modules.layer_set import CannotComputeError, LayerSet, Pool, held_at_once, outputs_noted
from lit_extract.modules.pooling import HEAD, VISION_POOLINGS, LayerForm
from lit_extract.modules.selection import NORM, Layers


class Output(LayerSet):
    """The output of a model for an image, (B, D), as its only layer.

    Args:
        name: Name of the model.
        skeleton: The model on the meta device.
        layers: The requested layers, which must be the default.
        size: Size (3, H, W) of its images.
    """

    allowed = tuple(VISION_POOLINGS)

    def __init__(self, name: str, skeleton: Any, layers: Layers, size: Sequence[int]) -> None:
        if layers != "blocks":
            raise InputError(f"model.layers: {layers} can't be combined with model.pool head, which has one layer only")
        self._model_name = name
        self.layers, self.notes = [HEAD], {"head_meaning": output_meaning(skeleton)}
        self.measure(skeleton, size)

    def measure(self, skeleton: nn.Module, size: Sequence[int]) -> None:
        """Note the dimensions of the output; raise InputError unless it is one vector."""
        with outputs_noted(skeleton) as outputs:
            shape = _output_shape(self._model_name, skeleton, skeleton, HEAD, size)
        if len(shape) != 2:
            raise InputError(
                f"model.pool: {self._model_name!r} outputs {shape[1:]} for an image, not one vector, so it has no "
                "head; use another pooling"
            )
        self._forms, self.held = [LayerForm(0, 0, None, shape[1])], held_at_once(outputs)

    @property
    def forms(self) -> list[LayerForm]:
        """Return the form of the output, which has no tokens."""
        return self._forms

    def run(self, model: nn.Module, images: Tensor, pool: Pool) -> dict[str, Tensor]:
        """Send images through the model."""
        return {HEAD: pool(model(images), self._forms[0])}


def norm_tokens(name: str, skeleton: nn.Module, trunk: str, size: Sequence[int], block: tuple[int, int]) -> int:
    """Return the number of tokens that the final norm outputs, after a last ``block`` that outputs (T, D).

    ``trunk`` is the prefix of the layers' names in the model.

    Raises:
        InputError: No norm covers these tokens, with or without tokens that join after the blocks (CaiT, XCiT).
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
    joining = getattr(part, "num_prefix_tokens", 0)
    shape = _output_shape(name, skeleton, part.get_submodule(NORM), NORM, size)
    if shape not in [(1, block[0] + more, block[1]) for more in (0, joining)]:
        raise InputError(
            f"model.layers: the final norm of {name!r} outputs {shape[1:]}, its last block {block} (T, D), which is "
            "not supported; for the normed vector use pool: head"
        )
    return shape[1]


def output_meaning(skeleton: Any) -> str:
    """Describe the output of a model in words.

    In timm the projection of a CLIP model is its classifier, with as many classes as the embedding has dimensions.
    """
    if not (n_classes := skeleton.num_classes):
        kind = getattr(skeleton, "global_pool", None)
        how = f" (global_pool: {kind or 'none'})" if isinstance(kind, str) else ""  # in other models it is a module
        return f"embedding: the pooled vector{how}, without a classifier"
    published = get_arch_pretrained_cfgs(skeleton.pretrained_cfg.get("architecture", ""))
    alike = [name for name, config in published.items() if config.num_classes == n_classes]
    if any("clip" in name or "pe_core" in name for name in alike) and not infer_imagenet_subset(skeleton):
        return "embedding: the pooled and projected vector"
    return f"logits of {n_classes:,} classes"


def _is_missing(skeleton: nn.Module, part: str) -> bool:
    return isinstance(getattr(skeleton, part, nn.Identity()), nn.Identity)


def _output_shape(
    name: str, skeleton: nn.Module, module: nn.Module, layer: str, size: Sequence[int]
) -> tuple[int, ...]:
    """Return the shape of the output of a layer's module for one image; () if it is not a tensor."""
    shapes: list[tuple[int, ...]] = []

    def note(output: Any) -> Any:
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())
        return output

    try:
        with capture({layer: module}, note, last=layer), torch.no_grad():
            skeleton(torch.empty(1, *size, device="meta"))
    except Exception as error:  # a timm model may raise anything
        raise CannotComputeError(name, f"{layer} for an image", size, error) from error
    return shapes[0] if shapes else ()
