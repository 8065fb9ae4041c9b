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
    pool: Callable[[Tensor, int], Tensor]  # tokens (B, T, D) and how many are before the patches: (B, D) float32
    needs_class_token: bool = False


HEAD = "head"  # a pooling, and the name of its one layer

# The class token; the mean of the patch tokens; the mean of all tokens; what the model itself outputs, (B, D) already.
VISION_POOLINGS = {
    "cls": _OfImage(lambda hidden, n_prefix: hidden[:, 0].float(), needs_class_token=True),
    "avg": _OfImage(lambda hidden, n_prefix: hidden[:, n_prefix:].mean(dim=1, dtype=torch.float32)),
    "avg_all": _OfImage(lambda hidden, n_prefix: hidden.mean(dim=1, dtype=torch.float32)),
    HEAD: _OfImage(lambda output, n_prefix: output.float()),
}
# The mean, or the last, of the tokens of a mask. From tokens (B, T, D), a mask (B, T) bool with at least one of them in
# each row, and its full_columns(), or (0, 0), to (B, D) float32.
LANGUAGE_POOLINGS = {"avg": _mean_of_mask, "last": _last_of_mask}
# Of a language model that looks at an image: the means of these tokens of its text.
VISION_LANGUAGE_POOLINGS = ("image", "prompt", "last")

if TYPE_CHECKING:
    VisionPooling: TypeAlias = str
    LanguagePooling: TypeAlias = str
    VisionLanguagePooling: TypeAlias = str
else:  # what --model.pool may be
    VisionPooling = Literal[tuple(VISION_POOLINGS)]
    VisionLanguagePooling = Literal[VISION_LANGUAGE_POOLINGS]
    LanguagePooling = Literal[tuple(LANGUAGE_POOLINGS)]


def check_pools(pool: str | Sequence[str], known: Collection[str], allowed: Sequence[str], reason: str) -> list[str]:
    """Return the wanted poolings, one or several of ``known``, as a list.

    The model can give only those that are ``allowed``, for a reason that the error has.
    """
    pools = [pool] if isinstance(pool, str) else list(pool)
    if not pools or len(set(pools)) < len(pools) or not set(pools) <= set(known):
        raise InputError(f"model.pool: {pool!r} must be one or more of {', '.join(allowed)}, none twice")
    if refused := [p for p in pools if p not in allowed]:
        what = name_some([repr(p) for p in refused])
        raise InputError(f"model.pool: {reason}, so it can't give {what}; allowed: {', '.join(allowed)}")
    if HEAD in pools and len(pools) > 1:
        raise InputError(f"model.pool: {pools}: {HEAD} has other layers than the rest, so it is a job of its own")
    return pools


def full_columns(mask: Tensor) -> tuple[int, int]:
    """Return the first run of columns that the mask (B, T) has in all rows, which need no copy.

    Of a GPU none: it would have to be waited for, and copies in no time.
    """
    if mask.device.type != "cpu":
        return 0, 0
    of_all = mask.all(dim=0).numpy()
    start = int(of_all.argmax())
    rest = of_all[start:]
    return start, start + (len(rest) if rest.all() else int(rest.argmin()))
