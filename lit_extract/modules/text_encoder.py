"""Text encoders: Transformers models that read a whole caption at once, as used by sentence-transformers.

B batch, L layers, T tokens, D hidden size, P poolings.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lit_extract.common.errors import InputError
from lit_extract.modules.captions import CaptionExtractor
from lit_extract.modules.checkpoint import refuse_random, tensors_behind
from lit_extract.modules.hooks import capture
from lit_extract.modules.pooling import (
    CLS,
    HEAD,
    TEXT_POOLINGS,
    TOKENS,
    Excluded,
    TextPooling,
    check_exclude,
    check_pools,
)
from lit_extract.modules.pretrained import find_blocks
from lit_extract.modules.probe import check_padding
from lit_extract.modules.selection import (
    EMBEDDINGS,
    LANGUAGE_LAYERS,
    NORM,
    Layers,
    blocks_among,
    select_layers,
)
from lit_extract.modules.sentence_head import ModelFiles, SentenceHead, default_prompt, longest_text
from lit_extract.modules.text_tower import (
    attends_to_padding,
    encoder_class,
    find_example,
    find_tower,
    hidden_states,
    make_skeleton,
    positions,
    run_tower,
    text_config,
    text_features,
)
from lit_extract.modules.weights import widest_output

SPECIAL_TOKENS = ("included", "excluded")
_EXAMPLES = ("a dog", "two people with a dog ride a red car down the street")
_NO_LIMIT = 10**6  # tokenizers without a limit report a far larger number


class TextEncoderExtractor(CaptionExtractor):
    """Pooled activations of a text encoder's blocks: BERT, MPNet, E5, BGE, T5's encoder, CLIP's text model, ….

    The constructor only reads configurations and the tokenizer; weights are loaded in :meth:`configure_model`.

    Args:
        name: The model on the Hugging Face hub, such as "sentence-transformers/all-mpnet-base-v2", or a local folder in
            the same format. Of a model of images and text, such as CLIP, the text model is used.
        untrained: Use random weights (the architecture's own initialisation) instead of trained ones.
        seed: Seed of the random weights.
        checkpoint: Local folder or repository on the hub to load instead of name. An untrained model takes its
            configuration and tokenizer from there.
        revision: Branch, tag or commit on the hub.
        options: Further arguments for from_pretrained. Arguments that neither the configuration nor the loading of
            weights takes go to the tokenizer.
        pool: "avg" (mean of the tokens), "cls" (class token), "last" (last token), or a list of these, one file per
            pooling; "head" (the vector that sentence-transformers returns for the caption, or the projected embedding
            of CLIP and SigLIP), a single layer called head; or "tokens" (all tokens, unpooled; every row has as many
            places as the longest caption has tokens), which stay in the store.
        layers: "blocks" (raw block outputs), "hidden_states" (the hidden states of Hugging Face: embeddings, then
            blocks, the last one after a final norm in some models), one block, by its index or its name ("blocks.3"),
            or a list of these; negative indices count from the end.
        special_tokens: "included" or "excluded": whether avg includes the tokens that the tokenizer puts around a
            caption, such as [CLS] and [SEP]. The model always receives them.
        prefix: Text to put before each caption, such as "query: " for E5. Default: the default prompt that the model's
            folder defines for sentence-transformers, if any; else none.
        models: YAML file with settings for named models; default: ./models.yml, else the one that ships with the
            package.
        dtype: Data type of the written features, whatever the precision of the run. float16 and bfloat16 halve their
            size. In float16, values beyond 65,504 become infinite, and their rows are listed.
        exclude: Tokens to leave out of avg and last: "bos" (the BOS token), "special" (the tokens that the tokenizer
            adds, and its special tokens), "sinks" (attention sinks: tokens whose norm in a layer is more than 10 times
            the median of their caption), or a list of these.
    """

    kind = "text_encoder"
    auto_class = "AutoModel"
    inputs = ("input_ids", "attention_mask", "pooled")
    extras = {"n_tokens": "int32"}  # noqa: RUF012 (the other extractors set it per instance)

    def __init__(
        self,
        name: str,
        untrained: bool = False,
        seed: int = 0,
        checkpoint: str | None = None,
        revision: str | None = None,
        options: dict[str, Any] | None = None,
        pool: TextPooling | list[TextPooling] = "avg",
        layers: Layers = "blocks",
        special_tokens: Literal["included", "excluded"] = "included",
        prefix: str | None = None,
        models: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        exclude: Excluded | list[Excluded] | None = None,
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models, dtype=dtype)
        if special_tokens not in SPECIAL_TOKENS:
            raise InputError(f"model.special_tokens: {special_tokens!r} must be {' or '.join(SPECIAL_TOKENS)}")
        self.special_tokens, self._given_prefix = special_tokens, prefix
        other = "model.special_tokens excluded" if special_tokens == "excluded" else None
        self.exclude = check_exclude(exclude, pool, other)
        self.sees_all = (TOKENS, "last") if other else (TOKENS,)
        self.config = self.load_config()
        self._of_tower = text_config(self.config, name)
        self.auto_class = encoder_class(self.config)
        if getattr(self._of_tower, "attn_logit_softcapping", None) is not None:
            # the default attention of Transformers silently leaves out Gemma-2's soft cap
            self.options.setdefault("attn_implementation", "eager")
        skeleton = self._skeleton()
        tower = find_tower(skeleton, name)
        blocks = find_blocks(tower, self._of_tower.num_hidden_layers)
        self._sees_padding = attends_to_padding(self._of_tower)
        self._positions = positions(tower, self._of_tower)
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        self.n_dim = int(self._of_tower.hidden_size)
        self.block_width = widest_output(blocks[0])
        self._example = find_example(name, tower)
        states = hidden_states(name, tower, self._of_tower, self._example)
        known = {**LANGUAGE_LAYERS, "hidden_states": lambda n_blocks: states}
        self.layers = select_layers(layers, len(blocks), known)
        self._load_tokenizer()
        allowed = [pooling for pooling in TEXT_POOLINGS if pooling != CLS or self._has_class_token]
        pools = check_pools(pool, TEXT_POOLINGS, allowed, f"the tokenizer of {name!r} puts no class token first")
        if TOKENS in pools and special_tokens == "excluded":
            raise InputError(
                "model.special_tokens: excluded can't be combined with model.pool tokens, which keeps all tokens"
            )
        self.shape_rows(pools, [(self.n_dim,)] * len(self.layers))
        self.head: SentenceHead | None = None
        if HEAD in self.pools:
            self._find_head(layers, skeleton)
        self._hooked = blocks_among(self.layers)

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model that determines the numbers."""
        own = {
            "special_tokens": self.special_tokens,
            "prefix": self.preprocessing["prefix"],
            "context": self.preprocessing["context"],
        }
        return {**super().provenance(), **own}

    def use_revision(self, commit: str) -> None:
        """Take the tokenizer and the sentence-transformers files from a commit on the hub."""
        self.other_options["revision"] = commit
        self._load_tokenizer()
        if self.head is not None:
            self._find_head("blocks", self._skeleton())

    def check_loaded(self, model: Any, random: dict[str, str]) -> None:
        """Refuse a model whose features depend on padding or on random parameters."""
        if random:
            skeleton, example = self._skeleton(), self._example
            needed = tensors_behind(skeleton, lambda: self._layers_of(skeleton, example, Tensor.sum).values())
            refuse_random(self.source, random, needed.__contains__)
        if self.head is not None:
            self.head.load(model.device, self.seed if self.untrained else None)
        if not self._sees_padding:
            check_padding(self.model_name, model, self._run, self._examples, self.preprocessing["pad_id"])

    def activations(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn tokens (B, T), padded on the right, into pooled activations (B, P, L·D) float32 and extras (B,)."""
        mask = inputs["attention_mask"].bool()
        given = {"input_ids": inputs["input_ids"]}
        given |= {} if self._sees_padding else {"attention_mask": inputs["attention_mask"]}
        keep = partial(self._embed, mask=mask) if HEAD in self.pools else partial(self.pool, masks=self.masks(inputs))
        pooled = self._layers_of(self.model, given, keep)
        return self.outputs(pooled, inputs)

    def _embed(self, output: Tensor, mask: Tensor) -> Tensor:
        """Return the embeddings (B, 1, D) of last hidden states (B, T, D), or of embeddings (B, D)."""
        return (output.float() if self.head is None else self.head(output, mask))[:, None]

    def _layers_of(
        self, model: Any, inputs: Mapping[str, Tensor], keep: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Return ``keep`` of each layer's output for texts; for the head, of the tensor that it is made from."""
        if self.layers == [HEAD] and self.head is None:
            return {HEAD: keep(text_features(model, inputs))}
        tower = find_tower(model, self.model_name)
        blocks = find_blocks(tower, self._of_tower.num_hidden_layers)
        needs_end = HEAD in self.layers or NORM in self.layers
        output = None
        with capture(
            {layer: blocks[k] for layer, k in self._hooked.items()},
            keep,
            last=None if needs_end else max(self._hooked, key=self._hooked.__getitem__),
            entrances={EMBEDDINGS: blocks[0]} if EMBEDDINGS in self.layers else None,
        ) as kept:
            output = run_tower(tower, inputs).last_hidden_state
        if needs_end:
            assert output is not None
            kept[HEAD if HEAD in self.layers else NORM] = keep(output)
        return kept

    def _run(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the layers of texts, (L, B, T, D), or the embeddings of CLIP's head, (1, B, D)."""
        layers = self._layers_of(model, inputs, lambda output: output.float())
        return torch.stack([layers[layer] for layer in self.layers])

    def numbers_a_row(self, n_tokens: int) -> int:
        """Estimate the numbers of a block's MLP, which may be gated, and the scores of eager attention."""
        is_eager = self.options.get("attn_implementation") == "eager"
        scores = 3 * n_tokens * self._of_tower.num_attention_heads if is_eager else 0
        return n_tokens * (4 * self.n_dim + 4 * self.block_width + scores)

    def input_bytes(self, n_tokens: int) -> int:
        """Return the bytes of a row's token ids and attention mask (int64) and of its pooling mask (bool)."""
        return 17 * n_tokens

    def _skeleton(self) -> Any:
        return make_skeleton(self.config, self.settings, self.model_name)

    def _find_head(self, layers: Any, skeleton: Any) -> None:
        """Note the one layer of the head, its meaning and its width."""
        if layers != "blocks":
            raise InputError(f"model.layers: {layers} can't be combined with model.pool head, which has one layer only")
        self.layers = [HEAD]
        if hasattr(skeleton, "get_text_features"):
            width = text_features(skeleton, self._example).shape[1]
            self.notes = {"head_meaning": f"embedding: get_text_features of {type(skeleton).__name__}"}
        else:
            self.head = SentenceHead(self._files, self.model_name, self.n_dim, self.preprocessing["prefix"])
            width, self.notes = self.head.width, {"head_meaning": self.head.meaning}
        self.layer_shapes = [(width,)]

    def _count_special(self, tokens: list[int], bare: list[int]) -> tuple[int, int]:
        """Count the special tokens before and after a text, given its tokens with and without them."""
        n_all = len(tokens) - len(bare)
        n_before = next((n for n in range(n_all + 1) if tokens[n : n + len(bare)] == bare), None)
        if n_before is None:
            raise InputError(f"model.name: the tokenizer of {self.model_name!r} puts special tokens inside a text")
        return n_before, n_all - n_before

    def _load_tokenizer(self) -> None:
        """Read the tokenizer and the files of sentence-transformers, and describe them for the data module."""
        from transformers import AutoTokenizer

        where: dict[str, Any] = {name: self._from[name] for name in ("revision", "subfolder") if name in self._from}
        self._files = ModelFiles(self.source, where)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source, **self.other_options)
            made = tokenizer([*_EXAMPLES], verbose=False)
            bare = tokenizer([*_EXAMPLES], add_special_tokens=False, verbose=False)
            limit, prefix = longest_text(self._files), default_prompt(self._files)
        except InputError:
            raise
        except Exception as error:  # raised by the hub, the disk and the format
            raise self.unavailable(error) from error
        self._examples: list[list[int]] = made["input_ids"]
        self._n_special = self._count_special(self._examples[0], bare["input_ids"][0])
        first = tokenizer.cls_token_id
        self._has_class_token = first is not None and self._examples[0][0] == first
        limits = [limit or tokenizer.model_max_length, self._positions or _NO_LIMIT]
        context = min(int(number) for number in limits)
        self.preprocessing = {
            "tokenizer": "huggingface",
            "source": self.source,
            "options": self.other_options,
            "context": context if context < _NO_LIMIT else None,
            "exclude_bos": False,
            "prefix": prefix if self._given_prefix is None else self._given_prefix,
            "tokens_after": self._n_special[1],
            "exclude": self.exclude,
            "around": self._n_special if self.special_tokens == "excluded" else (0, 0),
            "pad_id": tokenizer.pad_token_id or 0,
            "pad_to": self._positions if self._sees_padding else None,
        }
