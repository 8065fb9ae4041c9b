"""Check whether a language model looks ahead, with two texts that differ at the end only.

T tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_extract.common.errors import InputError

N_TOKENS = 8
# In float32 these hidden states of a causal model are equal bit by bit, as both passes have the same shape; only
# experts, which get other numbers of tokens, may round otherwise. A model that looks ahead differs by more than this.
TOLERANCE = 1e-5


def probe_tokens(vocabulary: int, context: int | None) -> tuple[Tensor, Tensor]:
    """Return two texts (1, T) with the same first half, and a second half that differs in each token."""
    n = min(N_TOKENS, context or N_TOKENS)
    start = vocabulary // 4  # special tokens are mostly first
    ids = torch.tensor([start + k * (vocabulary - 1 - start) // (2 * n) for k in range(2 * n)])
    first, other = ids[:n].clone(), ids[:n].clone()
    other[n // 2 :] = ids[n + n // 2 :]
    return first[None], other[None]


def check_causal(name: str, states_of: Callable[[Tensor], Sequence[Tensor]], texts: tuple[Tensor, Tensor]) -> None:
    """Refuse a model in which an early token depends on a later one, as it would on padding.

    This needs no list of architectures. It is done in float32, where nothing but looking ahead makes a difference.

    Args:
        name: The model's.
        states_of: From a text (1, T) to the hidden states (1, T, D) of the blocks, in their order.
        texts: From :func:`probe_tokens`.

    Raises:
        InputError: It is not causal.
    """
    n_same = texts[0].shape[1] // 2
    for block, (first, other) in enumerate(zip(*map(states_of, texts), strict=True)):
        before, after = first[0, :n_same], other[0, :n_same]
        if not (before.isfinite().all() and after.isfinite().all()):
            continue
        change = ((before - after).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)).max().item()
        if change > TOLERANCE:
            raise InputError(
                f"model.name: {name!r} is not a causal language model: its tokens attend to later ones (a later token "
                f"changes earlier activations by {change:.2g} of their size in blocks.{block}), so a caption's "
                "features would depend on padding; choose a causal model"
            )
