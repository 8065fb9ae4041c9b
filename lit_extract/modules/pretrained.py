"""A causal language model as Hugging Face loads it, and proof that its weights came from the checkpoint."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lit_extract.common.errors import InputError, name_some


def load_pretrained(
    source: str, settings: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> tuple[Any, dict[str, str]]:
    """Load a model with its head.

    Args:
        source: Repository on the hub, or local folder.
        settings: Further arguments for from_pretrained.
        dtype: Of the parameters.
        device: Where they go.

    Returns:
        The model, and the parameters and buffers that did not come from the checkpoint (they are random), with the
        reason: missing, or of another shape.
    """
    from transformers import AutoModelForCausalLM

    # Mismatched shapes are always let through here, so that they are refused with their names, and only where the
    # requested layers depend on them.
    settings = {**settings, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map={"": device}, **settings)
    random = dict.fromkeys(info["missing_keys"], "missing")
    for name, found, wanted in info["mismatched_keys"]:
        random[name] = f"{list(found)} in the checkpoint, {list(wanted)} in the model"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            random.setdefault(name, "missing")
    return model, random


def check_complete(
    source: str, model: Any, random: dict[str, str], last_block: int, run: Callable[[], object], needs_head: bool
) -> None:
    """Refuse a model if the requested layers depend on weights that did not come from the checkpoint.

    They do not depend on the head (without a loss), on blocks after the last requested one, nor on a norm outside
    the blocks that a forward pass does not reach.

    Args:
        source: Where the model is from.
        model: With its head.
        random: From :func:`load_pretrained`.
        last_block: Index of the last block that is needed.
        run: A forward pass as the run will do it.
        needs_head: Whether the loss is asked for.

    Raises:
        InputError: It lacks some; they are named.
    """
    if not random:
        return
    from lit_extract.modules.language import find_blocks

    base = model.base_model
    blocks = find_blocks(base, model.config.num_hidden_layers)
    unneeded = [block for k, block in enumerate(blocks) if k > last_block]
    if not needs_head and (head := model.get_output_embeddings()) is not None:
        unneeded.append(head)
    reached = _modules_of(run, base)
    inside = set(blocks.modules())
    unneeded += [
        module
        for module in base.modules()
        if "norm" in type(module).__name__.lower() and module not in inside and module not in reached
    ]
    skipped = {module for outer in unneeded for module in outer.modules()}
    lacking = [
        f"{name} ({reason})"
        for name, reason in sorted(random.items())
        if model.get_submodule(name.rpartition(".")[0]) not in skipped
    ]
    if lacking:
        raise InputError(
            f"model.checkpoint: {source!r} lacks the weights {name_some(lacking)}, which would be random; give a "
            "checkpoint that has them"
        )


def _modules_of(run: Callable[[], object], base: nn.Module) -> set[nn.Module]:
    """The modules that a forward pass runs."""
    reached: set[nn.Module] = set()
    handles = [m.register_forward_pre_hook(lambda module, _: reached.add(module)) for m in base.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return reached
