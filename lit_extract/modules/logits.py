"""The logits of last hidden states, with the scale, cap and head of the language model.

N tokens, D hidden size, V vocabulary.
"""

from typing import Any

from torch import Tensor, nn


def logits_of(model: Any, backbone: nn.Module, output: Any, states: Tensor, ids: Tensor) -> Tensor:
    """Return the logits (N, V) of last hidden states (N, D): the model's forward pass without its backbone.

    Args:
        model: The model with its head.
        backbone: The part of the model that returns last hidden states.
        output: The backbone's output for some tokens; the model may read its other fields.
        states: The last hidden states.
        ids: Tokens (N,) of these states.
    """
    given = type(output)(**{**output, "last_hidden_state": states[None]})
    own = vars(backbone).get("forward")
    backbone.forward = lambda *_, **__: given
    try:
        logits: Tensor = model(input_ids=ids[None], use_cache=False).logits
    finally:
        del backbone.forward
        if own is not None:
            backbone.forward = own
    return logits[0]
