"""Selection of layers: pure functions of the requested layers and the number of blocks.

``blocks.0``, ``blocks.1``, … are the outputs of the blocks, and ``norm`` is the output of the last block after the
final norm. Language models also have ``embeddings``, the input of the first block.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from lit_extract.common.errors import InputError, name_some, nearest

EMBEDDINGS, NORM = "embeddings", "norm"
_BLOCK = "blocks."


def all_blocks(n_blocks: int) -> list[str]:
    """Return the names of all blocks."""
    return [f"{_BLOCK}{k}" for k in range(n_blocks)]


def hidden_states(n_blocks: int) -> list[str]:
    """Return the names of the layers that Transformers returns as hidden_states for most models."""
    return [EMBEDDINGS, *all_blocks(n_blocks - 1), NORM]


# Values of --model.layers besides single blocks, and the layers that they stand for.
VISION_LAYERS = {"blocks": all_blocks, NORM: lambda n_blocks: [NORM]}
LANGUAGE_LAYERS = {"blocks": all_blocks, "hidden_states": hidden_states}

# Values of --model.layers: names and indices. jsonargparse tries the types in this order.
Layers: TypeAlias = list[int | str] | int | str


def select_layers(
    layers: Layers | Sequence[str | int],
    n_blocks: int,
    known: Mapping[str, Callable[[int], list[str]]],
    stages: Sequence[str] = (),
) -> list[str]:
    """Return the names of the wanted layers, in the requested order; a stage counts as a block.

    Args:
        layers: One of ``known``, the index or the name of a block, or a list of these; -1 is the last block.
        n_blocks: Number of blocks of the model.
        known: ``VISION_LAYERS`` or ``LANGUAGE_LAYERS``.
        stages: Names of the stages of a model that has stages instead of blocks.

    Raises:
        InputError: A layer is unknown, out of range or given twice, or there is none.
    """
    names, unit = [*stages] or all_blocks(n_blocks), "stages" if stages else "blocks"
    given = [layers] if isinstance(layers, str | int) else list(layers)
    wanted = [names.index(name) if name in names and name not in known else name for name in given]
    if unknown := [name for name in wanted if isinstance(name, str) and name not in known]:
        raise InputError(
            f"model.layers: {name_some([*map(repr, unknown)])} must be {', '.join(known)}, one of the {unit} "
            f"{name_some(names, 12)} or its index, or a list of these, such as '[0, -1]'"
            f"{nearest(unknown[0], [*known, *names])}"
        )
    if outside := [k for k in wanted if isinstance(k, int) and not -n_blocks <= k < n_blocks]:
        raise InputError(
            f"model.layers: {name_some([str(k) for k in outside])} out of range; the model has {n_blocks} {unit}, "
            f"{-n_blocks} to {n_blocks - 1}"
        )
    parts = [known[k](n_blocks) if isinstance(k, str) else [f"{_BLOCK}{k % n_blocks}"] for k in wanted]
    chosen = [layer for part in parts for layer in part]
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"model.layers: {layers} must name at least one layer, and none twice")
    return chosen


def blocks_among(layers: Sequence[str]) -> dict[str, int]:
    """Return the index of each layer that is the output of a block, by its name."""
    return {layer: int(layer.removeprefix(_BLOCK)) for layer in layers if layer.startswith(_BLOCK)}
