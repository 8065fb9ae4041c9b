"""Checkpoints of vision models: read them, unwrap them, and check that they are what runs."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.modules.pooling import HEAD

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
# Parts for pretraining only, or after the blocks: a model without a place for them loses nothing, unless a layer needs
# them.
_OF_PRETRAINING = {"mask_token"}
_AFTER_BLOCKS = {"head", "head_dist", "fc", "fc_norm", "norm", "attn_pool"}
_STATISTICS = ("running_mean", "running_var")  # of batch norm; no gradients reach them


@dataclass
class Loaded:
    """Report of how a library loaded weights."""

    happened: bool = False
    missing: list[str] = field(default_factory=list)  # parameters and buffers of the model that are not in the weights
    unexpected: list[str] = field(default_factory=list)  # weights without a place in the model


@contextmanager
def loading_noted() -> Iterator[Loaded]:
    """Note the tensors that each ``load_state_dict`` leaves out, whichever library calls it, strict or not.

    timm is not strict when ``num_classes`` differs from the published number, and returns no report.
    Each tensor that is not missing was copied by name, and its shape was checked.
    """
    original, loaded = nn.Module.load_state_dict, Loaded()

    def load(self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        result = original(self, state_dict, strict=False, assign=assign)
        loaded.happened = True
        loaded.missing, loaded.unexpected = list(result.missing_keys), list(result.unexpected_keys)
        return result

    nn.Module.load_state_dict = load  # type: ignore[method-assign]
    try:
        yield loaded
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def read_weights(file: str) -> Any:
    """Return the content of an untrusted checkpoint.

    Raises:
        InputError: The file can't be read, or is a pickle of more than tensors and plain values.
    """
    try:
        if Path(file).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the settings that timm and others save
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # raised by the disk, the format, and pickles of other objects
        raise InputError(
            f"model.checkpoint: {file!r} can't be read as weights: {one_line(error)}; save its state dict as "
            "safetensors"
        ) from error


def unwrap(content: Any, own: set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Take weights out of the wrappers of training programs.

    Returns:
        The weights, and the removed wrappers, the outermost first.
    """
    removed: list[str] = []
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        name = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        content = content[name]
        removed.append(name)
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)} if content else {}
    if not weights:
        raise InputError(f"model.checkpoint: no weights found; looked for tensors, also in {', '.join(WRAPPERS)}")
    prefixes = _best_prefixes(weights, own)
    for prefix in prefixes:
        weights = _without(weights, prefix)
    return weights, removed + prefixes


def _without(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights under this prefix; the other parts of the wrapping module do not belong to the model."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _best_prefixes(weights: Mapping[str, Tensor], own: set[str]) -> list[str]:
    """Return the prefixes whose removal matches most of the model's names; none if it matches no more than before."""
    best: list[str] = []
    most = len(own & weights.keys())
    for prefix in PREFIXES:
        if inner := _without(weights, prefix):
            further = _best_prefixes(inner, own)
            found = inner
            for part in further:
                found = _without(found, part)
            if (count := len(own & found.keys())) > most:
                best, most = [prefix, *further], count
    return best


def tensors_behind(skeleton: nn.Module, run: Callable[[], Iterable[Tensor]]) -> set[str]:
    """Return the names of the parameters and buffers that layers depend on, found by their gradients.

    The skeleton is on the meta device, and ``run`` sends an image through it and returns its layers.
    """
    tensors = dict(skeleton.named_parameters()) | dict(skeleton.named_buffers())
    statistics = [name for name in tensors if name.endswith(_STATISTICS)]
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    floating = {name: tensor for name, tensor in floating.items() if name not in statistics}
    for tensor in floating.values():
        tensor.requires_grad_(True)
    with torch.enable_grad():
        total = torch.stack([layer.sum() for layer in run()]).sum()
        gradients = torch.autograd.grad(total, list(floating.values()), allow_unused=True)
    needed = {name for name, gradient in zip(floating, gradients, strict=True) if gradient is not None}
    return needed | {name for name in statistics if f"{name.rpartition('.')[0]}.weight" in needed}


def refuse_random(source: str, random: Mapping[str, str], is_needed: Callable[[str], bool]) -> None:
    """Raise InputError if needed parameters did not come from a checkpoint; ``random`` has their names and reasons."""
    if missing := [f"{name} ({reason})" for name, reason in sorted(random.items()) if is_needed(name)]:
        raise InputError(
            f"model.checkpoint: {source!r} has no weights {name_some(missing)}, which would be random; give a "
            "checkpoint that has them"
        )


def check_loaded(loaded: Loaded, needed: set[str], layers: list[str], source: str, model: str) -> None:
    """Raise InputError unless the weights have everything that the layers need, and nothing else."""
    if not loaded.happened:
        raise InputError(f"model.checkpoint: nothing was loaded from {source!r} for {model!r}")
    if missing := [name for name in loaded.missing if name in needed]:
        instead = f", and has instead {name_some(loaded.unexpected, limit=3)}" if loaded.unexpected else ""
        raise InputError(
            f"model.checkpoint: {source!r} does not fit {model!r}: it has no {name_some(missing)}, which the layers "
            f"need{instead}; check model.name and model.options"
        )
    unused = set() if HEAD in layers else _AFTER_BLOCKS - {*layers}  # norm may be a requested layer
    not_needed = _parts(loaded.missing) - _parts(needed)
    kept_out = not_needed | _OF_PRETRAINING | unused
    unknown = [
        name
        for name in loaded.unexpected
        if (part := name.partition(".")[0]) not in kept_out and not part.startswith("decoder")
    ]
    if unknown:
        raise InputError(
            f"model.checkpoint: {source!r} does not fit {model!r}, which has no place for {name_some(unknown)}; "
            "check model.name and model.options"
        )


def _parts(names: Iterable[str]) -> set[str]:
    """Return the parts of a model that contain these tensors: the first components of their names."""
    return {name.partition(".")[0] for name in names}
