"""Language extractor: any Hugging Face causal language model.

B batch, L layers, T tokens, D hidden size, P poolings, V vocabulary.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_extract.common.errors import InputError
from lit_extract.modules.captions import CaptionExtractor
from lit_extract.modules.hidden_states import find_states
from lit_extract.modules.hooks import capture
from lit_extract.modules.logits import logits_of
from lit_extract.modules.pooling import LANGUAGE_POOLINGS, TOKENS, Excluded, LanguagePooling, check_exclude, check_pools
from lit_extract.modules.pretrained import (
    auto_class_of,
    bos_id,
    check_decoder,
    create_skeleton,
    find_backbone,
    find_with_head,
    text_config_of,
)
from lit_extract.modules.probe import check_model
from lit_extract.modules.selection import EMBEDDINGS, LANGUAGE_LAYERS, NORM, Layers, blocks_among, select_layers
from lit_extract.modules.streaming import call_each
from lit_extract.modules.weights import widest_output

LOGITS_BYTES = 256 * 2**20


class LanguageExtractor(CaptionExtractor):
    """Pooled activations of a causal language model's blocks.

    The constructor only reads the model's configuration; weights are loaded in :meth:`configure_model`,
    straight to the device and in the run's precision.

    Args:
        name: The model on the Hugging Face hub, such as "bigscience/bloomz-560m", or a local folder in the same format.
        untrained: Use random weights (the architecture's own initialisation) instead of trained ones.
        seed: Seed of the random weights.
        checkpoint: Local folder or repository on the hub to load instead of name. An untrained model takes its
            configuration and tokenizer from there.
        revision: Branch, tag or commit on the hub.
        options: Further arguments for from_pretrained, such as {gguf_file: model.gguf}. Arguments that neither the
            configuration nor the loading of weights takes go to the tokenizer, such as {add_bos_token: true}.
        pool: "avg" (mean of the tokens), "last" (last token), or a list of these, one file per pooling; or "tokens"
            (all tokens, unpooled; every row has as many places as the longest caption has tokens), which stay in the
            store.
        layers: "blocks" (raw block outputs), "hidden_states" (the hidden states of Hugging Face: embeddings, then
            blocks, the last one after the final norm), one block, by its index or its name ("blocks.3"), or a list of
            these; negative indices count from the end.
        exclude_bos: Leave the BOS token, whose activations are massive in some models, out of the average. "first":
            leave out the first token, whatever it is, for tokenizers without a BOS token, such as those of Qwen and
            GPT-2.
        loss: Also compute the loss and the bits per byte of each caption, which needs the head.
        tokenizer: "huggingface", or "sentencepiece" to read tokenizer.model with the sentencepiece library.
        trust_remote_code: Run code that comes with the model.
        models: YAML file with settings for named models; default: ./models.yml, else the one that ships with the
            package.
        stream: Read the weights of each block from disk when they are needed, for many captions at once, so only two
            blocks and the rest of the model must fit in memory. The numbers are the same. Default: only when the
            weights do not fit in memory.
        dtype: Data type of the written features, whatever the precision of the run. float16 and bfloat16 halve their
            size. In float16, values beyond 65,504 become infinite, and their rows are listed.
        exclude: Tokens to leave out of avg and last: "bos" (the BOS token), "special" (the tokens that the tokenizer
            adds, and its special tokens), "sinks" (attention sinks: tokens whose norm in a layer is more than 10 times
            the median of their caption), or a list of these.
    """

    kind = "language"
    auto_class = "AutoModelForCausalLM"
    inputs = ("input_ids", "attention_mask", "pooled", "n_bytes")

    def __init__(
        self,
        name: str,
        untrained: bool = False,
        seed: int = 0,
        checkpoint: str | None = None,
        revision: str | None = None,
        options: dict[str, Any] | None = None,
        pool: LanguagePooling | list[LanguagePooling] = "avg",
        layers: Layers = "blocks",
        exclude_bos: bool | Literal["first"] = False,
        loss: bool = False,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        models: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        exclude: Excluded | list[Excluded] | None = None,
        stream: bool | None = None,
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models, trust_remote_code, dtype)
        if exclude_bos not in (True, False, "first"):
            raise InputError(f"model.exclude_bos: {exclude_bos!r} must be true, false or 'first'")
        self.exclude_bos, self.loss, self.stream = exclude_bos, loss, stream
        self._from.pop("tokenizer", None)
        backend = tokenizer or self.options.pop("tokenizer", "huggingface")
        pools = check_pools(pool, LANGUAGE_POOLINGS, [*LANGUAGE_POOLINGS], "")
        self.exclude = check_exclude(exclude, pools, f"model.exclude_bos {exclude_bos!r}" if exclude_bos else None)
        if TOKENS in pools and exclude_bos:
            raise InputError(
                f"model.exclude_bos: {exclude_bos!r} can't be combined with model.pool tokens, which keeps all tokens"
            )
        self.constant_bytes = 3 * LOGITS_BYTES if loss else 0
        self.extras = {"n_tokens": "int32"} | ({"loss": "float32", "bpb": "float32"} if loss else {})
        self.config = self.load_config()
        self.text_config = text_config_of(self.config, name)
        self.auto_class = auto_class_of(self.config)
        if getattr(self.text_config, "attn_logit_softcapping", None) is not None:
            # the default attention of Transformers silently leaves out Gemma-2's soft cap
            self.options.setdefault("attn_implementation", "eager")
        skeleton = create_skeleton(self.config, self.settings, name, self.auto_class)
        check_decoder(skeleton, name)
        if not hasattr(skeleton.get_input_embeddings(), "weight"):
            raise InputError(f"model.name: {name!r} ({type(skeleton).__name__}) has no token embeddings")
        if loss and skeleton.get_output_embeddings() is None:
            raise InputError(f"model.loss: {name!r} ({type(skeleton).__name__}) has no language model head")
        if self._is_mxfp4 and not untrained:
            self.notes = {"quantization": "mxfp4, dequantized"}
        backbone, blocks = find_backbone(skeleton)
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        self.block_width = widest_output(blocks[0])
        self._forms = find_states(backbone, blocks, int(self.text_config.hidden_size))
        self.layers = select_layers(
            layers, len(blocks), {**LANGUAGE_LAYERS, "hidden_states": lambda n_blocks: self._forms.names}
        )
        self.shape_rows(pools, [self._forms.shapes[layer] for layer in self.layers])
        self._needs_end = loss or NORM in self.layers
        self._hooked = blocks_among(self.layers)
        self.note_blocks(blocks)
        self.preprocessing = {
            "tokenizer": backend,
            "source": self.source,
            "options": self.other_options,
            "context": getattr(self.text_config, "max_position_embeddings", None),
            "exclude_bos": exclude_bos,
            "exclude": self.exclude,
            "bos_id": bos_id(self.text_config),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Return the arguments of from_pretrained; MXFP4 (gpt-oss) is dequantized, whichever kernels are installed."""
        from transformers import Mxfp4Config

        own = {"quantization_config": Mxfp4Config(dequantize=True)} if self._is_mxfp4 else {}
        return {**super().settings, **own}

    @property
    def _is_mxfp4(self) -> bool:
        quantization = getattr(self.config, "quantization_config", None)
        return isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4"

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model that determines the numbers."""
        own = {"exclude_bos": self.exclude_bos, "loss": self.loss, "tokenizer": self.preprocessing["tokenizer"]}
        return {**super().provenance(), **own}

    def use_revision(self, commit: str) -> None:
        """Take the tokenizer from a commit on the hub."""
        self.preprocessing["options"]["revision"] = commit

    def check_loaded(self, model: Any, random: dict[str, str]) -> None:
        """Refuse a model that is not causal, or whose layers depend on random parameters."""
        run = call_each if self.streamed is None else self.streamed.run
        check_model(self.model_name, self.source, model, random, self.layers, self._forms, self.loss, run)

    def blocks_of(self, model: Any) -> nn.ModuleList:
        """Return the transformer blocks."""
        return find_backbone(model)[1]

    def activations(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn tokens (B, T), padded on the right, into pooled activations (B, P, L·D) float32 and extras (B,)."""
        backbone, blocks = find_backbone(self.model)
        masks = self.masks(inputs)
        output = None
        with capture(
            {layer: blocks[k] for layer, k in self._hooked.items()},
            lambda states: self.pool(self._forms.tokens(states), masks),
            last=None if self._needs_end else max(self._hooked, key=self._hooked.__getitem__),
            entrances={EMBEDDINGS: blocks[0]} if EMBEDDINGS in self.layers else None,
        ) as pooled:
            # No attention mask: padding is on the right, where a causal model never looks, and the fast attention
            # kernels run without a mask.
            output = backbone(input_ids=inputs["input_ids"], use_cache=False)
        if NORM in self.layers:
            assert output is not None
            pooled[NORM] = self.pool(output.last_hidden_state, masks)
        outputs = self.outputs(pooled, inputs)
        if self.loss:
            assert output is not None
            mask = inputs["attention_mask"].bool()
            outputs |= self._losses(backbone, output, inputs["input_ids"], mask, inputs["n_bytes"])
        return outputs

    def numbers_a_row(self, n_tokens: int) -> int:
        """Estimate the numbers of a block's MLP, which may be gated, and the scores of eager attention."""
        is_eager = self.options.get("attn_implementation") == "eager"
        scores = 3 * n_tokens * getattr(self.text_config, "num_attention_heads", 0) if is_eager else 0
        return n_tokens * (4 * self.token_width + 4 * self.block_width + scores)

    def numbers_between_blocks(self, n_tokens: int) -> int:
        """Estimate the numbers of its hidden state and of the arguments of a block, such as rotary tables."""
        return 3 * n_tokens * self.token_width

    def input_bytes(self, n_tokens: int) -> int:
        """Return the bytes of a row's token ids and attention mask (int64) and of its pooling mask (bool)."""
        return 17 * n_tokens

    def _losses(
        self, backbone: nn.Module, output: Any, input_ids: Tensor, mask: Tensor, n_bytes: Tensor
    ) -> dict[str, Tensor]:
        """Return loss (nats per predicted token) and bits per byte of each row (B,), from the backbone's output.

        Logits are computed for a few tokens at a time: (B, T, V) is never in memory. The first token is not predicted;
        the loss of a row of one token is NaN.
        """
        predicted = mask[:, 1:]
        before = output.last_hidden_state[:, :-1][predicted]  # (predicted tokens, D)
        ids, targets = input_ids[:, :-1][predicted], input_ids[:, 1:][predicted]
        chunk = max(1, LOGITS_BYTES // (4 * len(self.model.get_output_embeddings().weight)))
        with_head = find_with_head(self.model, backbone)
        parts = [torch.split(part, chunk) for part in (before, ids, targets)] if len(before) else []
        losses = [
            functional.cross_entropy(
                logits_of(with_head, backbone, output, states, of_states).float(), target, reduction="none"
            )
            for states, of_states, target in zip(*parts, strict=True)
        ]
        total = torch.zeros(len(mask), device=before.device)
        rows = predicted.nonzero()[:, 0]
        total.index_add_(0, rows, torch.cat(losses) if losses else total[:0])
        count = predicted.sum(dim=1)
        return {"loss": total / count, "bpb": torch.where(count > 0, total / math.log(2) / n_bytes, torch.nan)}
