"""From the tokens of a layer to one vector a stimulus. Sums run in float32, whatever comes in.

B batch, T tokens, D hidden size. The first ``n_prefix`` tokens of a vision transformer are class and
register tokens, the others are image patches.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

VisionPooling = Literal["cls", "avg", "avg_all"]
VISION_POOLINGS: tuple[VisionPooling, ...] = get_args(VisionPooling)


def pool_tokens(hidden: Tensor, pooling: VisionPooling, n_prefix: int) -> Tensor:
    """Pool a vision layer.

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
