"""The blocks of a timm model that is a sequence of blocks of equal width, and the final norm after them.

B batch, T tokens, D hidden size, H height, W width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError, name_some
from lit_extract.modules.after_blocks import norm_tokens
from lit_extract.modules.hooks import capture
from lit_extract.modules.layer_set import CannotComputeError, LayerSet, Pool, columns_of, held_at_once, outputs_noted
from lit_extract.modules.pooling import CLS, GRID, VISION_POOLINGS, LayerForm
from lit_extract.modules.selection import NORM, VISION_LAYERS, Layers, all_blocks, blocks_among, select_layers


class NoBlocks(Exception):  # noqa: N818  (a finding, not an error: other layers may do)
    """The model is no sequence of blocks that output tokens of one width; the message gives the reason."""


class Blocks(LayerSet):
    """Tokens of a model's blocks, and of the norm after the last block.

    Args:
        name: Name of the model.
        skeleton: The model on the meta device.
        layers: The requested layers.
        size: Size (3, H, W) of its own images.

    Raises:
        NoBlocks: The model has no blocks that can be layers.
    """

    def __init__(self, name: str, skeleton: Any, layers: Layers, size: list[int]) -> None:
        self._model_name = name
        self._trunk = find_trunk(skeleton)
        trunk = skeleton.get_submodule(self._trunk.rstrip("."))
        with outputs_noted(skeleton) as outputs:
            tokens, width = block_tokens(name, skeleton, self._trunk, size)
        prefix = prefix_tokens(name, trunk, tokens)
        self._width, self._last_prefix, self.held = width, prefix[-1], held_at_once(outputs)
        self.layers = select_layers(layers, len(tokens), VISION_LAYERS)
        self._n_blocks, blocks = len(tokens), blocks_among(self.layers)
        self.stop_after = NORM if NORM in self.layers else max(blocks, key=blocks.__getitem__)
        self.n_prefix = {layer: prefix[k] for layer, k in blocks.items()}
        self._patches_of(tokens[-1] - prefix[-1], size)
        if NORM in self.layers:
            n_tokens = norm_tokens(name, skeleton, self._trunk, size, (tokens[-1], width))
            self.n_prefix[NORM] = n_tokens - self.n_patches
        self._allow_pools(trunk, prefix)

    def _patches_of(self, n_patches: int, size: Sequence[int]) -> None:
        """Note the number of patches in every layer, for images of some size (3, H, W)."""
        self.n_patches, self._columns = n_patches, columns_of(n_patches, size)

    @property
    def forms(self) -> list[LayerForm]:
        """Return the form of each layer."""
        return [self._form(self.n_prefix[layer]) for layer in self.layers]

    def _form(self, n_prefix: int) -> LayerForm:
        return LayerForm(n_prefix, self.n_patches, self._columns, self._width)

    def _allow_pools(self, trunk: Any, of_blocks: list[int]) -> None:
        """Note the possible poolings, given the tokens before the patches in each block and each wanted layer."""
        embeddings = getattr(trunk, "embeds", trunk)  # NaFlexViT has it there
        of_layers = self.n_prefix.values()
        has_class_token = all(of_layers) and getattr(embeddings, "cls_token", None) is not None
        known = VISION_POOLINGS if self._columns is None else [*VISION_POOLINGS, GRID]
        self.allowed = [pool for pool in known if has_class_token or pool != CLS]
        self.why_no_others = f"{self._model_name!r} has no class token"
        if any(of_blocks) and not all(of_layers):
            self.why_no_others += f" before blocks.{of_blocks.count(0)}"
        elif getattr(trunk, "attn_pool", None) is not None:
            self.why_no_others += " (it pools by attention; its output is head)"

    def blocks_of(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return all of the blocks."""
        return [model.get_submodule(f"{self._trunk}{block}") for block in all_blocks(self._n_blocks)]

    def measure(self, skeleton: nn.Module, size: Sequence[int]) -> None:
        """Note the tokens of images of another size; the number of tokens before the patches stays the same."""
        with outputs_noted(skeleton) as outputs:
            tokens, _ = block_tokens(self._model_name, skeleton, self._trunk, size)
        self._patches_of(tokens[-1] - self._last_prefix, size)
        self.held = held_at_once(outputs)

    def run(self, model: nn.Module, images: Tensor, pool: Pool) -> dict[str, Tensor]:
        """Send images through the model up to its last wanted layer, pooling each layer as it is reached."""
        modules = {layer: model.get_submodule(f"{self._trunk}{layer}") for layer in self.layers}

        def keep(tokens: Tensor) -> Tensor:
            return pool(tokens, self._form(tokens.shape[1] - self.n_patches))

        with capture(modules, keep, last=self.stop_after) as pooled:
            model(images)
        return pooled


def find_trunk(skeleton: nn.Module) -> str:
    """Return the prefix of ``blocks`` in the path of the sequence of blocks: "", or for example "encoder.".

    Raises:
        NoBlocks: There is no such sequence, several, or only sequences within stages (``stages.0.blocks``).
    """
    trunks = [
        f"{path}." if path else ""
        for path, module in skeleton.named_modules()
        if isinstance(getattr(module, "blocks", None), nn.Sequential | nn.ModuleList)
        and len(module.blocks)
        and not any(part.isdigit() for part in path.split("."))
    ]
    if not trunks:
        raise NoBlocks("it has no sequence of blocks")
    if "" not in trunks and len(trunks) > 1:
        raise NoBlocks(f"it has several sequences of blocks (of {name_some(trunks)})")
    return "" if "" in trunks else trunks[0]


def block_tokens(name: str, skeleton: nn.Module, trunk: str, size: Sequence[int]) -> tuple[list[int], int]:
    """Return the number of tokens that each block outputs, and their width, from a forward pass without data.

    Raises:
        NoBlocks: A block outputs something other than tokens (B, T, D), or the widths differ.
        InputError: The model does not take images of this size (3, H, W).
    """
    blocks = skeleton.get_submodule(f"{trunk}blocks")
    assert isinstance(blocks, nn.Sequential | nn.ModuleList)
    calls: list[tuple[int, tuple[int, ...]]] = []

    def note(k: int, module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append((k, tuple(output.shape) if isinstance(output, Tensor) else ()))

    handles = [block.register_forward_hook(partial(note, k)) for k, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            skeleton(torch.empty(1, *size, device="meta"))
    except Exception as error:  # a timm model may raise anything
        if len(calls) < len(blocks):  # later, the error comes from a part that extraction does not reach
            raise CannotComputeError(name, "an image", size, error) from error
    finally:
        for handle in handles:
            handle.remove()
    shapes = [shape for _, shape in calls]
    if any(len(shape) == 0 or shape[0] != 1 for shape in shapes):  # CrossViT: two sequences; TNT: pixels of each patch
        raise NoBlocks("its blocks do not output one sequence of tokens for an image")
    if [k for k, _ in calls] != [*range(len(blocks))]:  # Twins: groups of blocks; the groups are not called
        raise NoBlocks("its blocks are not called once each, one after the other")
    shown = name_some([" × ".join(map(str, shape[1:])) for shape in dict.fromkeys(shapes)], limit=4)
    if any(len(shape) != 3 for shape in shapes):
        raise NoBlocks(f"its blocks output maps, not tokens ({shown})")
    if len({shape[2] for shape in shapes}) > 1:
        raise NoBlocks(f"its blocks differ in width ({shown})")
    return [shape[1] for shape in shapes], shapes[0][2]


def prefix_tokens(name: str, trunk: nn.Module, tokens: list[int]) -> list[int]:
    """Return how many tokens come before the patches in each block.

    They are counted, because in some models the class token joins only after the blocks (CaiT, XCiT) or between them
    (ConViT).
    """
    declared = getattr(trunk, "num_prefix_tokens", None)
    stem = getattr(trunk, "patch_embed", None) or getattr(trunk, "stem", None)
    n_patches = getattr(stem, "num_patches", None)
    if n_patches is None and declared is not None:  # NaFlexViT: any number of patches
        n_patches = tokens[0] - declared
    n_prefix = [] if n_patches is None else [n_tokens - n_patches for n_tokens in tokens]
    if n_prefix != sorted(n_prefix) or not {0, declared or 0}.issuperset(n_prefix) or not n_prefix:
        counts = name_some([str(n_tokens) for n_tokens in dict.fromkeys(tokens)])
        raise InputError(
            f"model.name: {name!r} is not supported: timm declares {n_patches} patches and {declared} tokens "
            f"before them, but its blocks have {counts} tokens, so the patches can't be identified; if the model is "
            "built for images of another size, give that size, as in --model.options '{img_size: 224}'"
        )
    return n_prefix
