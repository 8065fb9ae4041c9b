"""The parts of a Transformers vision model: its tower, blocks, tokens, final norm and output.

They are found by sending the inputs of one image through skeletons, which are on the meta device. A tower is the part
that takes images: the vision model of a CLIP or SigLIP model, else the model itself.

T tokens, D hidden size.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import shorten
from lit_extract.modules.hooks import capture
from lit_extract.modules.pooling import LayerForm
from lit_extract.modules.pretrained import MAX_LAYERS, MAX_WIDTH, find_blocks
from lit_extract.modules.selection import all_blocks

MASK = "pixel_attention_mask"  # input of models with a variable number of patches: 1 = real patch
_CLASS_TOKENS = ("cls_token", "class_embedding")
_PREFIX_TOKENS = (*_CLASS_TOKENS, "register_tokens", "distillation_token")  # names of parameters


@dataclass(frozen=True)
class Anatomy:
    """The output of each block for an image, and the other parts of a tower."""

    form: LayerForm
    has_class_token: bool  # a single one, before all other tokens
    norm: str | None  # path in the tower of the final norm over the tokens of the last block


def vision_config(config: Any, name: str) -> Any:
    """Return the configuration of the part that takes images; raise InputError unless it is a sequence of blocks."""
    config = getattr(config, "vision_config", None) or config
    for field, most in (("num_hidden_layers", MAX_LAYERS), ("hidden_size", MAX_WIDTH)):
        value = getattr(config, field, None)
        if not isinstance(value, int):
            raise InputError(
                f"model.name: {name!r} ({config.model_type}) has no {field}: it is no sequence of blocks of equal "
                "width; if timm has it, use --model VisionExtractor"
            )
        if not 1 <= value <= most:
            raise InputError(
                f"model.name: the configuration of {name!r} has {field} {shorten(value)}; it must be 1 to {most:,}"
            )
    return config


def find_tower(model: Any, name: str) -> Any:
    """Return the part of a model that takes images."""
    config = getattr(model.config, "vision_config", None)
    tower = model if config is None else next((part for part in model.modules() if _is_of(part, config)), None)
    if tower is None or not str(getattr(tower, "main_input_name", "")).startswith("pixel_values"):
        raise InputError(f"model.name: {name!r} ({type(model).__name__}) has no part that takes images alone")
    return tower


def _is_of(part: nn.Module, config: Any) -> bool:
    return type(getattr(part, "config", None)) is type(config) and hasattr(part, "main_input_name")


def arguments_of(tower: Any, made: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the processor's outputs that the tower takes."""
    taken = inspect.signature(tower.forward).parameters
    return [name for name in made if name in taken]


def run_tower(tower: Any, inputs: Mapping[str, Any]) -> Any:
    """Return the output of a tower for images; V-JEPA 2's predictor, which comes after all layers, is skipped."""
    takes_it = "skip_predictor" in inspect.signature(tower.forward).parameters
    return tower(**inputs, **({"skip_predictor": True} if takes_it else {}))


def dissect(name: str, tower: Any, config: Any, inputs: Mapping[str, Any]) -> Anatomy:
    """Identify the tokens of a tower, from the inputs of one image (1, …) with pixels on the meta device.

    Raises:
        InputError: The blocks differ in shape, or the patch tokens can't be identified.
    """
    blocks = find_blocks(tower, config.num_hidden_layers)
    shapes: list[tuple[int, ...]] = []
    last: list[Any] = []
    norms: list[tuple[str, Any]] = []
    path_of = {module: path for path, module in tower.named_modules() if "norm" in type(module).__name__.lower()}
    within = set(blocks.modules())

    def note(output: Any) -> Any:
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())
        last[:] = [output]
        return output

    def note_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if last and args and args[0] is last[0]:
            norms.append((path_of[module], output))

    handles = [module.register_forward_hook(note_norm) for module in path_of if module not in within]
    try:
        with torch.no_grad(), capture(dict(zip(all_blocks(len(blocks)), blocks, strict=True)), note):
            output = run_tower(tower, inputs)
    except Exception as error:  # raised by the model's own code
        raise InputError(
            f"model.name: {name!r} can't compute the features of an image from its processor; if timm has the "
            f"model, use --model VisionExtractor ({type(error).__name__}: {one_line(error)})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if len(set(shapes)) > 1 or len(shapes) < len(blocks) or len(shapes[0]) != 3:
        raise InputError(
            f"model.name: the blocks of {name!r} output {_in_short(shapes)}, not the same (T, D) each, which is not "
            "supported; if timm has the model, use --model VisionExtractor"
        )
    _, n_tokens, n_dim = shapes[0]
    n_patches, columns = _count_patches(name, config, inputs)
    tokens = _prefix_tokens(tower, n_dim)
    n_prefix = n_tokens - n_patches
    if n_prefix != sum(tokens.values()):
        known = ", ".join(f"{count} of {token}" for token, count in tokens.items()) or "none"
        raise InputError(
            f"model.name: the blocks of {name!r} have {n_tokens} tokens for {n_patches} patches, and the known prefix "
            f"tokens are: {known}; models that mask or merge patches, or have other tokens, are not supported; if timm "
            "has the model, use --model VisionExtractor"
        )
    normed = getattr(output, "last_hidden_state", None)
    norm = next((path for path, found in norms if found is normed), None)
    form = LayerForm(n_prefix, n_patches, columns, n_dim)
    return Anatomy(form, any(tokens.get(token) == 1 for token in _CLASS_TOKENS), norm)


def _in_short(shapes: list[tuple[int, ...]]) -> str:
    return " … ".join(dict.fromkeys(str(shape[1:]) for shape in (shapes[0], shapes[-1]))) if shapes else "nothing"


def _count_patches(name: str, config: Any, inputs: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return the numbers of patches and of their columns in an image, from its pixels (1, …, H, W).

    If the pixels are patches already (1, T, …), the first number includes padding, and the second is None.
    """
    pixels = next(iter(inputs.values()))
    if MASK in inputs:
        return int(pixels.shape[1]), None
    size = getattr(config, "patch_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(f"model.name: the configuration of {name!r} has no patch_size, so its patches are not known")
    rows, columns = (whole // side for whole, side in zip(pixels.shape[-2:], sides, strict=True))
    return rows * columns, columns


def _prefix_tokens(tower: nn.Module, n_dim: int) -> dict[str, int]:
    """Return the number of tokens that the embeddings put before the patches, by the names of their parameters.

    Tokens of a head, such as AIMv2's class token, do not count.
    """
    named = {path.rpartition(".")[2]: (path, tensor) for path, tensor in tower.named_parameters()}
    return {
        token: tensor.numel() // n_dim
        for token, (path, tensor) in named.items()
        if token in _PREFIX_TOKENS and "embeddings." in path
    }


def own_output(model: Any, tower: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """Return a model's own output for images (B, D): the projected embedding, or its ``pooler_output``."""
    is_part = tower is not model and hasattr(model, "get_image_features")
    output = model.get_image_features(**inputs) if is_part else run_tower(tower, inputs)
    vectors = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    return vectors if isinstance(vectors, Tensor) and vectors.ndim == 2 else None


def output_width(name: str, model: Any, tower: Any, inputs: Mapping[str, Any]) -> int:
    """Return the dimensions of a skeleton's own output for an image; raise InputError unless it is one vector."""
    try:
        output = own_output(model, tower, inputs)
    except Exception as error:  # raised by the model's own code
        raise InputError(
            f"model.pool: {name!r} can't compute its own output for an image: {type(error).__name__}: {one_line(error)}"
        ) from error
    if output is None:
        raise InputError(
            f"model.pool: {name!r} outputs no vector for an image, so it has no head; for its last tokens use "
            "layers: norm or [-1]"
        )
    return output.shape[1]


def output_meaning(model: Any, tower: Any) -> str:
    """Describe :func:`own_output` in words."""
    if tower is not model and hasattr(model, "get_image_features"):
        return f"embedding: get_image_features of {type(model).__name__}"
    return f"embedding: pooler_output of {type(tower).__name__}"
