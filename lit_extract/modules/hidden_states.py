"""The layers behind the hidden states that Transformers returns for a language model.

Most models return the input of the first block, the outputs of all blocks but the last, and the last hidden state. Some
start with the first block's output (Mamba, RWKV), or have no norm after the last block (BERT); in some, a token has
several rows of numbers up to the last hidden state (DeepSeek-V4). So the layers are identified, tensor by tensor, in a
forward pass on the meta device.

B batch, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_extract.modules.hooks import capture
from lit_extract.modules.selection import EMBEDDINGS, NORM, all_blocks, hidden_states

_N_TOKENS = 8


class StateForms(NamedTuple):
    """The layers of a model's hidden states, and the shape of a token in each layer."""

    names: list[str]  # layers that Transformers returns as hidden_states, in this order
    shapes: Mapping[str, tuple[int, ...]]  # of a token, in each layer
    before: int = 0  # axes of a block's states before the batch and token axes, as in Gemma-3n

    def tokens(self, states: Tensor) -> Tensor:
        """Return the input or output of a block as (B, T, D)."""
        return states.movedim((self.before, self.before + 1), (0, 1)).flatten(2)


def find_states(backbone: nn.Module, blocks: nn.ModuleList, width: int) -> StateForms:
    """Return the hidden states of a model on the meta device.

    If it can't run there, assume the layers of most models, all of width ``width``; this is checked when the weights
    are loaded.
    """
    usual = hidden_states(len(blocks))
    ids = torch.zeros(1, _N_TOKENS, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"), _WithoutNumbers():
            seen, returned = observe(backbone.eval(), blocks, ids, lambda hidden: hidden)
    except Exception:  # raised by the model's own code, which may need numbers
        return StateForms(usual, dict.fromkeys([*usual, *all_blocks(len(blocks))], (width,)))
    found = [next((name for name in seen if seen[name] is state), "") for state in returned or ()]
    before = 1 if seen[EMBEDDINGS].shape[1:3] == ids.shape else 0
    shapes = {name: token_shape(state, 0 if name == NORM else before) for name, state in seen.items()}
    return StateForms(found if found and all(found) else usual, shapes, before)


def token_shape(states: Tensor, before: int) -> tuple[int, ...]:
    """Return the shape of a token in a layer; ``before`` axes of its states precede the batch and token axes."""
    return (*states.shape[:before], *states.shape[before + 2 :])


def observe(
    backbone: nn.Module, blocks: nn.ModuleList, ids: Tensor, keep: Callable[[Tensor], Tensor] = Tensor.clone
) -> tuple[dict[str, Tensor], Sequence[Tensor] | None]:
    """Return each layer (1, T, …) in a forward pass of tokens (1, T), and the hidden_states that the pass returns."""
    layers = dict(zip(all_blocks(len(blocks)), blocks, strict=True))
    with capture(layers, keep, entrances={EMBEDDINGS: blocks[0]}) as seen:
        output: Any = backbone(input_ids=ids, use_cache=False, output_hidden_states=True)
    seen[NORM] = output.last_hidden_state
    return seen, getattr(output, "hidden_states", None)


class _WithoutNumbers(TorchFunctionMode):
    """Let forward passes run on meta tensors: conditions are true, as for masks without padding."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("__bool__", "is_nonzero") and args[0].is_meta:
            return True
        if name in ("grouped_mm", "_grouped_mm") and args[0].is_meta:  # experts; on meta it only takes bfloat16
            return args[0].new_empty(len(args[0]), args[1].shape[-1])
        return function(*args, **(kwargs or {}))
