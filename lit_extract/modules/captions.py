"""The base of extractors of captions: poolings of tokens, and rows as long as the longest caption.

B batch, L layers, T tokens, D hidden size, P poolings.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lit_extract.common.errors import InputError
from lit_extract.modules.hugging_face import HuggingFaceExtractor
from lit_extract.modules.pooling import (
    CLS,
    LANGUAGE_POOLINGS,
    SINKS,
    SINKS_ABOVE,
    TOKENS,
    find_sinks,
    full_columns,
)
from lit_extract.storage.layout import N_EXCLUDED, N_SINKS, TOKEN_IDS, Shape


class _Mask(NamedTuple):
    tokens: Tensor  # the tokens that a pooling includes, (B, T) bool
    full: tuple[int, int]  # their full_columns()


class CaptionExtractor(HuggingFaceExtractor):
    """A model of Transformers that reads captions as tokens, padded on the right."""

    parts = "tokenizer"
    exclude: Sequence[str] = ()  # kinds of EXCLUDED tokens that poolings leave out
    sees_all: Sequence[str] = (TOKENS,)  # poolings that leave out no tokens
    longest: int | None = None  # tokens of the longest caption; None: not known yet

    def shape_rows(self, pools: Sequence[str], token_shapes: Sequence[Shape]) -> None:
        """Take the poolings, and the shape of a token in each layer."""
        self.pools, self.keeps_tokens = pools, TOKENS in pools
        self.token_width = max(map(math.prod, token_shapes))
        self.layer_shapes = list(token_shapes)
        if self.keeps_tokens:
            self.layer_shapes = [(1, math.prod(shape)) for shape in token_shapes]  # until the captions are known
            self.extras = {**self.extras, TOKEN_IDS: "int32"}
            self.makes_files = False
        if set(self.exclude) - {SINKS}:
            self.extras = {**self.extras, N_EXCLUDED: "int32"}
        if SINKS in self.exclude:
            self.extras = {**self.extras, N_SINKS: "int32"}

    def take_longest(self, n_tokens: int | None) -> None:
        """Take the length of the longest caption in tokens; if all tokens are kept, each row is as long."""
        self.longest = n_tokens
        if self.keeps_tokens:
            if n_tokens is None:
                raise InputError(
                    "model.pool: tokens needs one caption per row, but data.captions_used is 'all'; use 'first'"
                )
            self.layer_shapes = [(n_tokens, width) for _, width in self.layer_shapes]

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model that determines the numbers, such as the tokens that are left out."""
        own: dict[str, Any] = {"longest_caption": self.longest} if self.keeps_tokens else {}
        own |= {"exclude": list(self.exclude)} if self.exclude else {}
        own |= {"sinks_above": SINKS_ABOVE} if SINKS in self.exclude else {}
        return {**super().provenance(), **own}

    def masks(self, inputs: Mapping[str, Tensor]) -> dict[str, _Mask]:
        """Return the mask of the tokens that each pooling includes."""
        every, some = inputs["attention_mask"].bool(), inputs["pooled"]
        seen = {name: every if name in self.sees_all else some for name in self.pools}
        seen |= {TOKENS: self._fill_up(every)} if self.keeps_tokens else {}
        return {name: _Mask(mask, full_columns(mask)) for name, mask in seen.items()}

    def pool(self, hidden: Tensor, masks: Mapping[str, _Mask]) -> Tensor:
        """Pool a layer's tokens (B, T, D) into (B, P, W) float32.

        If sinks, which depend on the layer, are left out, each row has one more number: the count of its sinks.
        """
        if SINKS not in self.exclude:
            return self._pool(hidden, masks)
        (mask, _), *_ = masks.values()  # all poolings include the same tokens
        is_sink = find_sinks(hidden, mask)
        kept = mask & ~is_sink
        pooled = self._pool(hidden, dict.fromkeys(masks, _Mask(kept, full_columns(kept))))
        counts = is_sink.sum(dim=1)[:, None, None].expand(-1, len(self.pools), -1)
        return torch.cat([pooled, counts], dim=2)

    def _pool(self, hidden: Tensor, masks: Mapping[str, _Mask]) -> Tensor:
        pooled = [
            hidden[:, 0].float() if name == CLS else LANGUAGE_POOLINGS[name](hidden, *masks[name])
            for name in self.pools
        ]
        return torch.stack(pooled, dim=1)

    def _fill_up(self, by_token: Tensor) -> Tensor:
        """Pad values of each token (B, T) to the length of the longest caption."""
        return functional.pad(by_token, (0, (self.longest or by_token.shape[1]) - by_token.shape[1]))

    def outputs(self, pooled: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features (B, P, L·W) from the pooled layers, and the extras (B, …)."""
        mask, layers = inputs["attention_mask"].bool(), [pooled[layer] for layer in self.layers]
        outputs = {"n_tokens": mask.sum(dim=1)}
        if SINKS in self.exclude:
            outputs[N_SINKS] = torch.stack([layer[:, 0, -1] for layer in layers], dim=1).int()
            layers = [layer[..., :-1] for layer in layers]
        if N_EXCLUDED in self.extras:
            outputs[N_EXCLUDED] = (mask & ~inputs["pooled"]).sum(dim=1)
        if self.keeps_tokens:
            outputs[TOKEN_IDS] = self._fill_up(inputs["input_ids"].masked_fill(~mask, 0)).int()
        return {"feats": torch.cat(layers, dim=2), **outputs}
