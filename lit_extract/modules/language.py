"""Language extractor: any Hugging Face causal language model.

B batch, L layers, T tokens, D hidden size, P poolings, V vocabulary.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.timing import stopwatch
from lit_extract.modules.base import Extractor
from lit_extract.modules.hooks import capture
from lit_extract.modules.pooling import LANGUAGE_POOLINGS, LanguagePooling, check_pools, full_columns
from lit_extract.modules.pretrained import (
    bos_id,
    check_config,
    create_random,
    create_skeleton,
    find_blocks,
    load_pretrained,
    split_options,
)
from lit_extract.modules.probe import check_model
from lit_extract.modules.selection import EMBEDDINGS, LANGUAGE_LAYERS, NORM, LanguageLayers, blocks_among, select_layers
from lit_extract.modules.weights import check_shards, config_sha256, widest_output

LOGITS_BYTES = 256 * 2**20


class LanguageExtractor(Extractor):
    """Pooled activations of a causal language model's blocks.

    The constructor reads the model's configuration only; weights are loaded in :meth:`configure_model`,
    straight to the device and in the run's precision.

    Args:
        name: The model on the Hugging Face hub, such as "bigscience/bloomz-560m", or a local folder of the same format.
        untrained: Random weights (the architecture's own initialisation) instead of trained ones.
        seed: Seed of the random weights.
        checkpoint: Local folder, or repository on the hub, to load instead of the one that is called name; for
            an untrained model, its configuration and tokenizer.
        revision: Branch, tag or commit on the hub.
        options: Further arguments for from_pretrained of the configuration, the weights and the tokenizer, such as
            {gguf_file: model.gguf}. What neither the configuration nor loading weights knows is the tokenizer's, such
            as {add_bos_token: true}.
        pool: "avg" (mean of the tokens), "last" (last token), or a list of these, each its own file.
        layers: "blocks" (raw block outputs), "hidden_states" (what Hugging Face calls so: embeddings, then blocks, of
            which the last is after the final norm), or the indices of some blocks; negative ones count from the end.
        exclude_bos: Leave the BOS token out of the average, whose activations are massive in some models; "first":
            leave out the first token whatever it is, for tokenizers without BOS, such as Qwen's and GPT-2's.
        loss: Also compute each caption's loss and bits per byte, which needs the head.
        tokenizer: "huggingface", or "sentencepiece" to read tokenizer.model with sentencepiece itself.
        trust_remote_code: Run code that comes with the model.
        models: The models.yml in which settings of a name are looked up; default: ./models.yml, else the one shipped.
        dtype: Data type in which features are written, whatever the precision of the run: float16 and bfloat16 take
            half the room; what float16 can't hold (beyond 65,504) becomes infinite, and its row is listed.
    """

    kind = "language"
    checkpoint_on_hub = True
    inputs = ("input_ids", "attention_mask", "n_bytes")

    def __init__(
        self,
        name: str,
        untrained: bool = False,
        seed: int = 0,
        checkpoint: str | None = None,
        revision: str | None = None,
        options: dict[str, Any] | None = None,
        pool: LanguagePooling | list[LanguagePooling] = "avg",
        layers: LanguageLayers | list[int] = "blocks",
        exclude_bos: bool | Literal["first"] = False,
        loss: bool = False,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        models: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models, dtype)
        self.source = self.checkpoint or name
        if exclude_bos not in (True, False, "first"):
            raise InputError(f"model.exclude_bos: {exclude_bos!r} must be true, false or 'first'")
        self.exclude_bos, self.loss = exclude_bos, loss
        backend = tokenizer or self.options.pop("tokenizer", "huggingface")
        self._from = {"trust_remote_code": trust_remote_code, **self.options}
        if not self.local_checkpoint():
            self._from["revision"] = self.commit
        self.pools = check_pools(pool, LANGUAGE_POOLINGS, [*LANGUAGE_POOLINGS], "")
        self.constant_bytes = 3 * LOGITS_BYTES if loss else 0
        self.extras = {"n_tokens": "int32"} | ({"loss": "float32", "bpb": "float32"} if loss else {})
        self.config = self._load_config()
        if getattr(self.config, "attn_logit_softcapping", None) is not None:
            # transformers' default attention silently leaves out Gemma-2's soft cap
            self.options.setdefault("attn_implementation", "eager")
        skeleton = create_skeleton(self.config, self._settings, name)
        if skeleton.get_output_embeddings() is None or not hasattr(skeleton.get_input_embeddings(), "weight"):
            raise InputError(f"model.name: {name!r} ({type(skeleton).__name__}) has no embeddings or no head of tokens")
        blocks = find_blocks(skeleton, self.config.num_hidden_layers)
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        self.n_dim = int(self.config.hidden_size)
        self.block_width = widest_output(blocks[0])
        self.layers = select_layers(layers, len(blocks), LANGUAGE_LAYERS)
        self.layer_shapes = [(self.n_dim,)] * len(self.layers)
        self._needs_end = loss or NORM in self.layers
        self._hooked = blocks_among(self.layers)
        width = int(skeleton.get_output_embeddings().in_features)  # what the head takes
        if NORM in self.layers and width != self.n_dim:
            raise InputError(
                f"model.layers: the last hidden state of {name!r} has {width} dimensions, its blocks have "
                f"{self.n_dim}; use layers: blocks"
            )
        self.preprocessing = {
            "tokenizer": backend,
            "source": self.source,
            "options": self._tokenizer_options,
            "context": getattr(self.config, "max_position_embeddings", None),
            "exclude_bos": exclude_bos,
            "bos_id": bos_id(self.config),
        }
        self._model: list[Any] = []

    def provenance(self) -> dict[str, Any]:
        """Return what about the model changes the numbers."""
        own = {"source": self.source, "exclude_bos": self.exclude_bos, "loss": self.loss}
        if self.local_checkpoint():
            del own["source"]  # the same weights elsewhere are the same weights
        if self.untrained:
            own["config_sha256"] = config_sha256(self.config)
        return {**super().provenance(), **own, "tokenizer": self.preprocessing["tokenizer"]}

    def use_commit_of(self, recorded: Mapping[str, Any]) -> None:
        """Use the commit of an earlier run, if its configuration is the one that was read.

        Raises:
            InputError: It is another; or code of that commit would run, and only a file asks for it.
        """
        latest = self.commit if "revision" in self._from else None
        super().use_commit_of(recorded)
        if latest is None or self.commit == latest:
            return
        if self._from["trust_remote_code"]:
            raise InputError(
                f"model.trust_remote_code: the features to resume are of commit {self.commit}, whose code would "
                f"run; if you trust it, pass --model.revision {self.commit}"
            )
        self._from["revision"] = self.commit
        self.preprocessing["options"]["revision"] = self.commit
        if config_sha256(self._load_config()) != config_sha256(self.config):
            raise InputError(
                f"model.revision: the configuration of {self.source!r} has changed since the run to resume, "
                f"which is of {self.commit}; resume it with --model.revision {self.commit}"
            )

    def configure_model(self) -> None:
        """Load the weights, once, onto the device and in the run's precision.

        Lightning, which would cast rotary frequencies to bf16 with all else, does not see the model.
        """
        if self._model:
            return
        trainer = self._trainer
        device = trainer.strategy.root_device if trainer is not None else torch.device("cpu")
        dtype = torch.bfloat16 if trainer is not None and trainer.precision == "bf16-true" else torch.float32
        random: dict[str, str] = {}
        with stopwatch("weights"):
            if self.untrained:
                model = create_random(self.config, self._settings, self.seed, dtype, device)
            else:
                try:
                    model, random = load_pretrained(self.source, self._settings, dtype, device)
                except Exception as error:  # of the hub, the network, the disk and the format
                    raise self._unavailable(error) from error
        model.eval().requires_grad_(False)
        last = None if self._needs_end else max(self._hooked.values())
        check_model(self.model_name, self.source, model, random, last, self.loss)
        self._model.append(model)

    @property
    def model(self) -> Any:
        """Return the causal language model, with its head."""
        assert self._model, "configure_model() loads the model"
        return self._model[0]

    def activations(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn tokens (B, T), padded on the right, into pooled activations (B, P, L·D) float32 and extras (B,)."""
        mask = inputs["attention_mask"].bool()
        base = self.model.base_model
        blocks = find_blocks(base, self.config.num_hidden_layers)
        pooled_tokens = mask.clone()
        pooled_tokens[:, 0] &= not self.exclude_bos
        full = full_columns(pooled_tokens)
        poolings = [LANGUAGE_POOLINGS[name] for name in self.pools]

        def pool(hidden: Tensor) -> Tensor:
            return torch.stack([pooling(hidden, pooled_tokens, full) for pooling in poolings], dim=1)

        output = None
        with capture(
            {layer: blocks[k] for layer, k in self._hooked.items()},
            pool,
            last=None if self._needs_end else max(self._hooked, key=self._hooked.__getitem__),
            entrances={EMBEDDINGS: blocks[0]} if EMBEDDINGS in self.layers else None,
        ) as pooled:
            # No attention mask: padding is on the right, where a causal model never looks, and without
            # one the fast attention kernels can run.
            output = base(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
        if NORM in self.layers:
            assert output is not None
            pooled[NORM] = pool(output)
        outputs = {
            "feats": torch.cat([pooled[layer] for layer in self.layers], dim=2),
            "n_tokens": mask.sum(dim=1),
        }
        if self.loss:
            assert output is not None
            outputs |= self._losses(output, inputs["input_ids"], mask, inputs["n_bytes"])
        return outputs

    def numbers_a_row(self, n_tokens: int) -> int:
        """Estimate them in a block's MLP, which may be gated; and eager attention's scores."""
        is_eager = self.options.get("attn_implementation") == "eager"
        scores = 3 * n_tokens * self.config.num_attention_heads if is_eager else 0
        return n_tokens * (4 * self.n_dim + 4 * self.block_width + scores)

    def input_bytes(self, n_tokens: int) -> int:
        """Return those of its tokens and mask, int64."""
        return 16 * n_tokens

    @property
    def loaded(self) -> nn.Module | None:
        """Return the model with its weights and its head, once it is loaded."""
        return self._model[0] if self._model else None

    def local_checkpoint(self) -> str | None:
        """Return the folder, when the weights are local."""
        return self.source if os.path.exists(self.source) else None  # noqa: PTH110 (Path's raises if it is too long)

    def weights_source(self) -> tuple[str, Sequence[str]]:
        """Return the repository on the hub."""
        return self.source, ["config.json"]

    @property
    def _settings(self) -> dict[str, Any]:
        """Return the arguments of from_pretrained as they are now: options may have got another attention."""
        known = (*self._from, "attn_implementation")
        return {**self._from, **{name: value for name, value in self.options.items() if name in known}}

    def _losses(self, hidden: Tensor, input_ids: Tensor, mask: Tensor, n_bytes: Tensor) -> dict[str, Tensor]:
        """Return loss (nats a predicted token) and bits per byte of each row (B,), from the last states (B, T, D).

        A few tokens' logits at a time: (B, T, V) is never in memory. The first token is not predicted; a row of
        one token has no loss: NaN.
        """
        predicted = mask[:, 1:]
        before = hidden[:, :-1][predicted]  # (predicted tokens, D)
        targets = input_ids[:, 1:][predicted]
        chunk = max(1, LOGITS_BYTES // (4 * len(self.model.get_output_embeddings().weight)))
        losses = [
            functional.cross_entropy(self._logits(states).float(), target, reduction="none")
            for states, target in zip(torch.split(before, chunk), torch.split(targets, chunk), strict=True)
        ]
        total = torch.zeros(len(mask), device=hidden.device)
        rows = predicted.nonzero()[:, 0]
        total.index_add_(0, rows, torch.cat(losses) if losses else total[:0])
        count = predicted.sum(dim=1)
        return {"loss": total / count, "bpb": torch.where(count > 0, total / math.log(2) / n_bytes, torch.nan)}

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(states)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _load_config(self) -> Any:
        from transformers import AutoConfig

        if local := self.local_checkpoint():
            check_shards(local)
        try:
            config, unused = AutoConfig.from_pretrained(self.source, return_unused_kwargs=True, **self._from)
        except Exception as error:  # of the hub, the network, the disk and the format
            raise self._unavailable(error) from error
        self._from, self._tokenizer_options = split_options(self._from, unused)
        check_config(config, self.model_name)
        for unsupported in ("logit_scale", "logits_scaling", "lm_head_multiplier"):
            if self.loss and getattr(config, unsupported, None) not in (None, 1, 1.0):
                raise InputError(
                    f"model.loss: {self.model_name!r} scales its logits ({unsupported}), which is not supported"
                )
        return config

    def _unavailable(self, error: Exception) -> InputError:
        if self.local_checkpoint():
            what = "a local folder needs config.json, the weights and the tokenizer in Transformers format"
        else:
            what = "of a gated model, accept the conditions on its page and log in with hf auth login"
        reason = f"{type(error).__name__}: {one_line(error)}"
        return InputError(f"model.name: {self.model_name!r} can't be loaded from {self.source!r}: {what} ({reason})")
