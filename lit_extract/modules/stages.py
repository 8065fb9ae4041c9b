"""Stages of a timm model: maps that may differ in width, from timm's own ``forward_intermediates``.

B batch, T tokens (places of a map), C channels, H height, W width.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_extract.common.errors import InputError, name_some
from lit_extract.modules.layer_set import CannotComputeError, LayerSet, Pool, held_at_once, outputs_noted
from lit_extract.modules.pooling import GRID, HEAD, TOKENS, LayerForm
from lit_extract.modules.selection import NORM, VISION_LAYERS, Layers, blocks_among, select_layers


class Stages(LayerSet):
    """Maps of a model's stages, before any final norm.

    Args:
        name: Name of the model.
        skeleton: The model on the meta device.
        layers: The requested layers; "blocks" are all stages, and indices count stages, which also have names.
        size: Size (3, H, W) of its images.
        no_blocks: Reason why its blocks can't be layers, for the error about a model without stages.
    """

    allowed = ("avg", TOKENS, GRID, HEAD)

    def __init__(self, name: str, skeleton: Any, layers: Layers, size: Sequence[int], no_blocks: str) -> None:
        self._model_name, self._no_blocks = name, no_blocks
        self.why_no_others = f"the layers of {name!r} are maps, which have no class token"
        self._n_stages = len(getattr(skeleton, "feature_info", ()))
        if not (self._n_stages and hasattr(skeleton, "forward_intermediates")):
            raise self._unsupported("timm has no forward_intermediates for it")
        self._chosen = [*range(self._n_stages)]
        self.measure(skeleton, size)
        chosen = select_layers(layers, self._n_stages, VISION_LAYERS, stages=self.layers)
        if NORM in chosen:
            raise InputError(
                f"model.layers: {name!r} has stages, whose maps come before any final norm; for the normed vector use "
                "pool: head"
            )
        self._chosen = [*blocks_among(chosen).values()]
        self.measure(skeleton, size)

    def measure(self, skeleton: Any, size: Sequence[int]) -> None:
        """Note the names and widths of the stages, as listed by timm and checked against the maps."""
        try:
            with outputs_noted(skeleton) as outputs, torch.no_grad():
                maps = _maps_of(skeleton, torch.empty(1, *size, device="meta"), [*range(self._n_stages)])
        except Exception as error:  # a timm model may raise anything
            raise CannotComputeError(self._model_name, "an image", size, error) from error
        expected = [stage["num_chs"] for stage in skeleton.feature_info]
        if [found.shape[1] if found.ndim == 4 else None for found in maps] != expected:
            shapes = name_some([" × ".join(map(str, found.shape[1:])) for found in maps], limit=4)
            raise self._unsupported(f"timm lists stages of {name_some([*map(str, expected)])} channels, not {shapes}")
        names = _names_of(skeleton, maps, outputs)
        self.layers, self._forms = [names[k] for k in self._chosen], [_form(maps[k]) for k in self._chosen]
        self.held = held_at_once(outputs, kept=sum(maps[k].numel() for k in self._chosen))

    @property
    def forms(self) -> list[LayerForm]:
        """Return the form of each stage."""
        return self._forms

    def run(self, model: Any, images: Tensor, pool: Pool) -> dict[str, Tensor]:
        """Send images through the model as far as the last of the wanted stages."""
        in_order = sorted(zip(self._chosen, self.layers, strict=True))
        maps = _maps_of(model, images, [k for k, _ in in_order])
        return {name: pool(found.flatten(2).mT, _form(found)) for (_, name), found in zip(in_order, maps, strict=True)}

    def _unsupported(self, reason: str) -> InputError:
        return InputError(f"model.name: {self._model_name!r} is not supported: {self._no_blocks}, and {reason}")


def _form(found: Tensor) -> LayerForm:
    """Return the form of a map (B, C, H, W), whose places count as patches."""
    _, channels, rows, columns = found.shape
    return LayerForm(0, rows * columns, columns, channels)


def _maps_of(model: Any, images: Tensor, stages: list[int]) -> list[Tensor]:
    """Return the maps (B, C, H, W) of stages with ascending indices."""
    maps: list[Tensor] = model.forward_intermediates(
        images, indices=stages, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    return maps


def _names_of(skeleton: Any, maps: Sequence[Tensor], outputs: Mapping[str, Sequence[torch.Size]]) -> list[str]:
    """Name each stage after the module whose output it is, as timm lists it: ``layer1``.

    Some modules that timm lists are missing, occur several times, or output something else; their stage is called
    ``intermediates.k``.
    """
    listed = [stage["module"] for stage in skeleton.feature_info]
    counts = Counter(listed)

    def is_output(module: str, found: Tensor) -> bool:
        shapes = outputs.get(module, ()) if module and counts[module] == 1 else ()
        return any(shape.numel() == found.numel() and found.shape[1] in shape for shape in shapes)

    return [
        module if is_output(module, found) else f"intermediates.{k}"
        for k, (module, found) in enumerate(zip(listed, maps, strict=True))
    ]
