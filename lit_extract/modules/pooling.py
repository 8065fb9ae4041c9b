"""From the tokens of a layer to one vector a stimulus. Sums run in float32, whatever comes in.

A pooling is an entry of ``VISION_POOLINGS`` or ``LANGUAGE_POOLINGS``, or of both. ``verify --parity`` has a
second implementation of each, in parity/, which shares nothing with this one.

B batch, T tokens, D hidden size.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lit_extract.common.errors import InputError, name_some


def _mean_of_mask(hidden: Tensor, mask: Tensor, full: tuple[int, int]) -> Tensor:
    total = hidden[:, slice(*full)].sum(dim=1, dtype=torch.float32)
    for rest in (slice(0, full[0]), slice(full[1], None)):
        # not a product with the mask: what stands in the padding may be NaN
        total += hidden[:, rest].masked_fill(~mask[:, rest, None], 0).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, keepdim=True)


def _last_of_mask(hidden: Tensor, mask: Tensor, full: tuple[int, int]) -> Tensor:
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, 0).amax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last].float()


class _OfImage(NamedTuple):
    pool: Callable[[Tensor, int], Tensor]
    needs_class_token: bool = False


VISION_POOLINGS = {
    "cls": _OfImage(lambda hidden, n_prefix: hidden[:, 0].float(), needs_class_token=True),
    "avg": _OfImage(lambda hidden, n_prefix: hidden[:, n_prefix:].mean(dim=1, dtype=torch.float32)),
    "avg_all": _OfImage(lambda hidden, n_prefix: hidden.mean(dim=1, dtype=torch.float32)),
}
LANGUAGE_POOLINGS = {
    "avg": _mean_of_mask,
    "last": _last_of_mask,
}

if TYPE_CHECKING:
    VisionPooling: TypeAlias = str
    LanguagePooling: TypeAlias = str
else:  # what --model.pool may be
    VisionPooling = Literal[tuple(VISION_POOLINGS)]
    LanguagePooling = Literal[tuple(LANGUAGE_POOLINGS)]


def check_pools(pool: str | Sequence[str], known: Collection[str], allowed: Sequence[str], reason: str) -> list[str]:
    """Return the wanted poolings as a list.

    Args:
        pool: One, or several.
        known: All that there are.
        allowed: Those that the model can give.
        reason: Why it can't give the others.
    """
    pools = [pool] if isinstance(pool, str) else list(pool)
    if not pools or len(set(pools)) < len(pools) or not set(pools) <= set(known):
        raise InputError(f"model.pool: {pool!r} must be one or more of {', '.join(allowed)}, none twice")
    if refused := [p for p in pools if p not in allowed]:
        what = name_some([repr(p) for p in refused])
        raise InputError(f"model.pool: {reason}, so it can't give {what}; allowed: {', '.join(allowed)}")
    return pools


def pool_image(hidden: Tensor, pooling: str, n_prefix: int) -> Tensor:
    """Pool a vision layer, whose first tokens are class and register tokens and the others image patches.

    Args:
        hidden: (B, T, D).
        pooling: ``cls`` the class token, ``avg`` the mean of the patch tokens, ``avg_all`` the mean
            of all tokens.
        n_prefix: Tokens before the patches.

    Returns:
        (B, D), float32.
    """
    return VISION_POOLINGS[pooling].pool(hidden, n_prefix)


def pool_text(hidden: Tensor, pooling: str, mask: Tensor, full: tuple[int, int] = (0, 0)) -> Tensor:
    """Pool a language layer, whose rows are padded on the right.

    Args:
        hidden: (B, T, D).
        pooling: ``avg`` the mean of the tokens of the mask, ``last`` the last of them.
        mask: (B, T) bool, the tokens to pool; at least one in each row.
        full: First column that the mask has in all rows, and the one after the last such: these need no copy.

    Returns:
        (B, D), float32.
    """
    return LANGUAGE_POOLINGS[pooling](hidden, mask, full)


def full_columns(mask: Tensor) -> tuple[int, int]:
    """Return the first run of columns that the mask (B, T) has in all rows, for :func:`pool_text`.

    Of a GPU none: it would have to be waited for, and copies in no time.
    """
    if mask.device.type != "cpu":
        return 0, 0
    of_all = mask.all(dim=0).numpy()
    start = int(of_all.argmax())
    rest = of_all[start:]
    return start, start + (len(rest) if rest.all() else int(rest.argmin()))
