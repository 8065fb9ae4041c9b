"""What extractors of captions share: poolings of tokens, and rows with as many tokens as the longest caption has.

B batch, L layers, T tokens, D hidden size, P poolings.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lit_extract.common.errors import InputError
from lit_extract.modules.hugging_face import HuggingFaceExtractor
from lit_extract.modules.pooling import CLS, LANGUAGE_POOLINGS, TOKENS, full_columns
from lit_extract.storage.layout import TOKEN_IDS, Shape


class CaptionExtractor(HuggingFaceExtractor):
    """A model of Transformers that reads captions, as tokens that are padded on the right."""

    parts = "tokenizer"
    longest: int | None = None  # tokens of a caption of the dataset; None: not known yet

    def shape_rows(self, pools: Sequence[str], token_shapes: Sequence[Shape]) -> None:
        """Take the poolings, and the shape of a token in each layer."""
        self.pools, self.keeps_tokens = pools, TOKENS in pools
        self.token_width = max(map(math.prod, token_shapes))
        self.layer_shapes = list(token_shapes)
        if self.keeps_tokens:
            self.layer_shapes = [(1, math.prod(shape)) for shape in token_shapes]  # until the captions are known
            self.extras = {**self.extras, TOKEN_IDS: "int32"}
            self.makes_files = False

    def take_longest(self, n_tokens: int | None) -> None:
        """Take how many tokens the longest caption has: where all are kept, each row has a place for so many."""
        self.longest = n_tokens
        if self.keeps_tokens:
            if n_tokens is None:
                raise InputError(
                    "model.pool: tokens of one caption a row can be kept, but data.captions_used is 'all'; use 'first'"
                )
            self.layer_shapes = [(n_tokens, width) for _, width in self.layer_shapes]

    def provenance(self) -> dict[str, Any]:
        """Return what about the model changes the numbers, and of all tokens how many places a row has."""
        return {**super().provenance(), **({"longest_caption": self.longest} if self.keeps_tokens else {})}

    def pool(self, hidden: Tensor, masks: Mapping[str, tuple[Tensor, tuple[int, int]]]) -> Tensor:
        """Pool tokens (B, T, D) into (B, P, W) float32; ``masks`` has the tokens that each pooling sees."""
        pooled = [
            hidden[:, 0].float() if name == CLS else LANGUAGE_POOLINGS[name](hidden, *masks[name])
            for name in self.pools
        ]
        return torch.stack(pooled, dim=1)

    def masks(self, tokens: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, tuple[int, int]]]:
        """Return the tokens that each pooling sees (B, T) bool, and the columns of them that all captions have."""
        filled = {name: self.fill_up(mask) if name == TOKENS else mask for name, mask in tokens.items()}
        return {name: (mask, full_columns(mask)) for name, mask in filled.items()}

    def fill_up(self, by_token: Tensor) -> Tensor:
        """Return what is known of each token (B, T) with a place for each token of the longest caption."""
        return functional.pad(by_token, (0, (self.longest or by_token.shape[1]) - by_token.shape[1]))

    def outputs(self, pooled: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features (B, P, L·W) of what was pooled of each layer, and the extras (B, …) of all captions."""
        mask = inputs["attention_mask"].bool()
        outputs = {"feats": torch.cat([pooled[layer] for layer in self.layers], dim=2), "n_tokens": mask.sum(dim=1)}
        if self.keeps_tokens:
            outputs[TOKEN_IDS] = self.fill_up(inputs["input_ids"].masked_fill(~mask, 0)).int()
        return outputs
