"""Masks of the caption tokens that poolings include: pure functions of token ids.

Attention sinks, which depend on the model, are found while it runs.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError, name_some

logger = logging.getLogger(__name__)


def pooled_tokens(
    captions: Sequence[Sequence[int]],
    are_special: Sequence[Sequence[bool]] | None,
    bos_id: int | None,
    settings: Mapping[str, Any],
    ids: Sequence[Any],
) -> NDArray[np.bool_]:
    """Return a mask of the tokens that poolings include, one caption after the other.

    Args:
        captions: Token ids of each caption.
        are_special: For each token, true if the tokenizer added it or it is a special token; only used if special
            tokens are left out.
        bos_id: The tokenizer's BOS token.
        settings: Preprocessing of an extractor: ``exclude_bos`` (true, false, "first"), ``exclude`` ("bos", "special")
            and ``around`` (how many tokens are left out at the beginning and at the end).
        ids: Stimulus id of each caption.

    Raises:
        InputError: Captions do not begin with the excluded BOS token, or a caption has no token left.
    """
    exclude_bos, exclude = settings["exclude_bos"], settings.get("exclude", ())
    _check_bos({caption[0] for caption in captions}, bos_id, settings)
    n_before, n_after = settings.get("around", (0, 0))
    n_before = max(n_before, bool(exclude_bos) or "bos" in exclude)
    if "special" in exclude and are_special is not None and not any(map(any, are_special)):
        logger.warning("model.exclude: special has no effect: the tokenizer adds no tokens to the captions")
    masks = []
    for row, caption in enumerate(captions):
        mask = np.ones(len(caption), dtype=np.bool_)
        mask[:n_before] = mask[max(0, len(caption) - n_after) :] = False
        if "special" in exclude and are_special is not None:
            mask &= ~np.array(are_special[row], dtype=np.bool_)
        masks.append(mask)
    if empty := [str(ids[row]) for row, mask in enumerate(masks) if not mask.any()]:
        if exclude_bos:
            why = f"model.exclude_bos: {exclude_bos!r} leaves no token of captions with a single token"
        elif exclude:
            known = [kind for kind in exclude if kind != "sinks"]  # which always leave one token
            why = f"model.exclude: {', '.join(known)} leaves no token of captions"
        else:
            why = "model.special_tokens: excluded leaves no token of captions with special tokens only"
        raise InputError(f"{why}: {name_some(empty)}; leave them out with data.query")
    return np.concatenate(masks)


def _check_bos(firsts: set[int], bos_id: int | None, settings: Mapping[str, Any]) -> None:
    """Refuse to leave out a BOS token if captions begin with another token; warn if one seems to be missing."""
    if settings["exclude_bos"] is True and firsts != {bos_id}:
        raise InputError(
            "model.exclude_bos is true, but the model's tokenizer does not start captions with a BOS token; "
            "to leave out the first token, whatever it is, pass --model.exclude_bos first"
        )
    if "bos" in settings.get("exclude", ()) and firsts != {bos_id}:
        raise InputError(
            "model.exclude: bos, but the model's tokenizer does not start captions with a BOS token; use "
            "special (all tokens that it adds) or sinks (tokens with massive activations)"
        )
    # No warning for BOS tokens that are never used: tokens that also end texts (GPT-2), or that the tokenizer does not
    # know as its BOS (Qwen).
    if bos_id is not None and settings.get("bos_id") == bos_id and bos_id not in firsts:
        logger.warning(
            f"the model's configuration names a BOS token ({bos_id}), but its tokenizer does not put it "
            "before captions; if the model was trained with it, pass --model.options '{add_bos_token: true}'"
        )
