"""From the tokens of a layer to one vector a stimulus. Sums run in float32, whatever comes in.

B batch, T tokens, D hidden size.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

VisionPooling = Literal["cls", "avg", "avg_all"]
VISION_POOLINGS: tuple[str, ...] = get_args(VisionPooling)

LanguagePooling = Literal["avg", "last"]
LANGUAGE_POOLINGS: tuple[str, ...] = get_args(LanguagePooling)


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
    if pooling == "cls":
        return hidden[:, 0].float()
    patches = hidden if pooling == "avg_all" else hidden[:, n_prefix:]
    return patches.mean(dim=1, dtype=torch.float32)


def pool_text(hidden: Tensor, pooling: str, mask: Tensor, full: tuple[int, int] = (0, 0)) -> Tensor:
    """Pool a language layer, whose rows are padded on the right.

    Args:
        hidden: (B, T, D).
        pooling: ``avg`` the mean of the tokens of the mask, ``last`` the last of them.
        mask: (B, T) bool, the tokens to pool; at least one in each row.
        full: First column that the mask has in all rows, and the one behind the last such: these need no copy.

    Returns:
        (B, D), float32.
    """
    if pooling == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, places, 0).amax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    total = hidden[:, slice(*full)].sum(dim=1, dtype=torch.float32)
    for rest in (slice(0, full[0]), slice(full[1], None)):
        # not a product with the mask: what stands in the padding may be NaN
        total += hidden[:, rest].masked_fill(~mask[:, rest, None], 0).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, keepdim=True)


def full_columns(mask: Tensor) -> tuple[int, int]:
    """The first run of columns that the mask (B, T) has in all rows, for :func:`pool_text`.

    Of a GPU none: it would have to be waited for, and copies in no time.
    """
    if mask.device.type != "cpu":
        return 0, 0
    of_all = mask.all(dim=0).numpy()
    start = int(of_all.argmax())
    behind = of_all[start:]
    return start, start + (len(behind) if behind.all() else int(behind.argmin()))
