"""Which of a language model's hidden states is what: the tensors that Transformers returns, by the layers they are of.

Most models return what enters the first block, the outputs of all blocks but the last, and the last hidden state. Some
begin with the first block's output (Mamba, RWKV), or have no norm after the last (BERT); in some a token has several
rows of numbers until the last (DeepSeek-V4). So it is looked up, by the identity of tensors in a forward pass without
memory for them.

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
    """What a model's hidden states are, and the form of each layer."""

    names: list[str]  # of the layers that Transformers returns as hidden_states, in this order
    shapes: Mapping[str, tuple[int, ...]]  # of a token, in each layer
    before: int = 0  # axes of a block's states before those of the batch and the tokens, as in Gemma-3n

    def tokens(self, states: Tensor) -> Tensor:
        """Return what a block takes or gives as (B, T, D)."""
        return states.movedim((self.before, self.before + 1), (0, 1)).flatten(2)


def find_states(backbone: nn.Module, blocks: nn.ModuleList, width: int) -> StateForms:
    """Return the hidden states of a model without memory for its weights.

    Where it can't run so, they are those of most models, each as wide as ``width``; whether that is true is checked
    when the weights are there.
    """
    usual = hidden_states(len(blocks))
    ids = torch.zeros(1, _N_TOKENS, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"), _WithoutNumbers():
            seen, returned = observe(backbone.eval(), blocks, ids, lambda hidden: hidden)
    except Exception:  # of the model's own code, which may need numbers
        return StateForms(usual, dict.fromkeys([*usual, *all_blocks(len(blocks))], (width,)))
    found = [next((name for name in seen if seen[name] is state), "") for state in returned or ()]
    before = 1 if seen[EMBEDDINGS].shape[1:3] == ids.shape else 0
    shapes = {name: token_shape(state, 0 if name == NORM else before) for name, state in seen.items()}
    return StateForms(found if found and all(found) else usual, shapes, before)


def token_shape(states: Tensor, before: int) -> tuple[int, ...]:
    """Return the shape of a token in a layer, from the states with so many axes before those of batch and tokens."""
    return (*states.shape[:before], *states.shape[before + 2 :])


def observe(
    backbone: nn.Module, blocks: nn.ModuleList, ids: Tensor, keep: Callable[[Tensor], Tensor] = Tensor.clone
) -> tuple[dict[str, Tensor], Sequence[Tensor] | None]:
    """Return each layer (1, T, …) of a forward pass of tokens (1, T), and the hidden_states that it returns."""
    layers = dict(zip(all_blocks(len(blocks)), blocks, strict=True))
    with capture(layers, keep, entrances={EMBEDDINGS: blocks[0]}) as seen:
        output: Any = backbone(input_ids=ids, use_cache=False, output_hidden_states=True)
    seen[NORM] = output.last_hidden_state
    return seen, getattr(output, "hidden_states", None)


class _WithoutNumbers(TorchFunctionMode):
    """Let forward passes run on tensors without numbers: a condition is true, as it is of masks without padding."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("__bool__", "is_nonzero") and args[0].is_meta:
            return True
        if name in ("grouped_mm", "_grouped_mm") and args[0].is_meta:  # of experts; there it takes bfloat16 alone
            return args[0].new_empty(len(args[0]), args[1].shape[-1])
        return function(*args, **(kwargs or {}))
