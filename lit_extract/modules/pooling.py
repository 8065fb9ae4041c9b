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


def pool_text(hidden: Tensor, pooling: str, mask: Tensor) -> Tensor:
    """Pool a language layer, whose rows are padded on the right.

    Args:
        hidden: (B, T, D).
        pooling: ``avg`` the mean of the tokens of the mask, ``last`` the last of them.
        mask: (B, T) bool, the tokens to pool; at least one in each row.

    Returns:
        (B, D), float32.
    """
    if pooling == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, places, 0).amax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    # not a product with the mask: what stands in the padding may be NaN
    total = hidden.masked_fill(~mask[:, :, None], 0).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, keepdim=True)
