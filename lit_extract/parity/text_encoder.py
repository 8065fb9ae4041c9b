"""Text encoders, from Transformers' own hidden states; the vector of sentence-transformers is computed by hand.

T tokens, D hidden size.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_extract.common.errors import InputError, name_some
from lit_extract.modules.sentence_head import ModelFiles
from lit_extract.modules.text_tower import encoder_class
from lit_extract.modules.weights import on_cpu_in_float32
from lit_extract.parity.hugging_face import before_final_norm
from lit_extract.parity.language import LanguageReference, marked_special
from lit_extract.parity.provenance_form import UNTRAINED

# For each pooling of sentence-transformers, by its name, a function from tokens (T, D) float32 to (D,).
_MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(0).values,
    "mean": lambda tokens: tokens.mean(0),
    "mean_sqrt_len_tokens": lambda tokens: tokens.sum(0) / len(tokens) ** 0.5,
    "weightedmean": lambda tokens: sum(k * token for k, token in enumerate(tokens, 1)) / sum(range(len(tokens) + 1)),
    "lasttoken": lambda tokens: tokens[-1],
}
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class TextEncoderReference(LanguageReference):
    """The hidden states of one caption, without padding unless the model needs it."""

    def find_model(self) -> None:
        """Find the model and read its configuration."""
        super().find_model()
        self.auto_class = encoder_class(self.config)

    def tokenize(self) -> list[list[list[int]]]:
        """Return the tokens of the captions of each row, truncated by the tokenizer itself."""
        self.tokenizer = self.load("tokenizer", "AutoTokenizer", self.other_options)
        return [[self._tokenize(text)["input_ids"] for text in texts] for texts in self.texts]

    def _tokenize(self, text: str) -> dict[str, list[int]]:
        known = self.provenance
        cut: dict[str, Any] = {"truncation": True, "max_length": known["context"]} if known["truncate"] else {}
        return dict(self.tokenizer(known["prefix"] + text, return_special_tokens_mask=True, verbose=False, **cut))

    def build(self) -> nn.Module:
        """Make the model, and the dense layers that may follow it."""
        model = super().build()
        if self.layers == ["head"] and not hasattr(model, "get_text_features"):
            self._read_head()
        return model

    def compute_caption(self, tokens: list[int], text: str) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send one caption through the model."""
        inputs = self._inputs(tokens)
        if self.layers == ["head"] and hasattr(self.model, "get_text_features"):
            return [self.model.get_text_features(**inputs).pooler_output[0]], {}
        tower = getattr(self.model, "text_model", self.model)
        tower = getattr(tower, "language_model", tower)
        tower = tower.get_encoder() if self.config.is_encoder_decoder and self.auto_class == "AutoModel" else tower
        tower.config.tie_last_hidden_states = False  # keep the last state from before a final norm
        output, n = tower(**inputs, output_hidden_states=True), len(tokens)
        last = output.last_hidden_state[0, :n]
        if self.layers == ["head"]:
            return [self._embed(last.float())], {}
        states = [state[0, :n] for state in output.hidden_states]
        tokens_of = {
            "embeddings": states[0],
            **{f"blocks.{k}": state for k, state in enumerate(states[1:])},
            "norm": last,
        }
        final = f"blocks.{len(states) - 2}"
        if final in self.layers and torch.equal(states[-1], last):
            tokens_of[final] = self._before_norm(tower, inputs, last)
        if missing := [layer for layer in self.layers if layer not in tokens_of]:
            raise InputError(f"layers: the file has {name_some(missing)}, but the model has {name_some([*tokens_of])}")
        return [self.pool(tokens_of[layer], text, layer) for layer in self.layers], {}

    def _before_norm(self, tower: Any, inputs: dict[str, Tensor], last: Tensor) -> Tensor:
        """Return the last block's output (T, D), which models with a final norm return only after it."""
        modules = list(tower.modules())
        blocks = [part for parts in modules if isinstance(parts, nn.ModuleList) for part in parts.modules()]
        after = modules[max(modules.index(part) for part in blocks) + 1 :]
        if not any("norm" in type(module).__name__.lower() for module in after):
            return last
        try:
            return before_final_norm(tower, lambda: tower(**inputs).last_hidden_state[:, : len(last)], last[None])[0]
        except InputError:  # the norm is that of the embeddings, as in BART
            return last

    def _inputs(self, caption: list[int]) -> dict[str, Tensor]:
        tokens = torch.tensor([caption], device=self.device)
        if "siglip" not in self.config.model_type:
            return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        width = getattr(self.config, "text_config", self.config).max_position_embeddings
        padding = width - tokens.shape[1], self.tokenizer.pad_token_id
        return {"input_ids": functional.pad(tokens, (0, padding[0]), value=padding[1])}

    def are_special(self, text: str) -> list[bool]:
        """Return for each token of a caption whether the tokenizer added it, or it is a special token."""
        return marked_special(self.tokenizer, self._tokenize(text))

    def pool(self, tokens: Tensor, text: str, layer: str, first: int = 0) -> Tensor:
        """Pool a caption's tokens (T, D) in a layer, without excluded tokens."""
        pool = self.provenance["pool"]
        if pool == "cls":
            return tokens[0]
        if pool == "avg" and self.provenance["special_tokens"] == "excluded":
            is_special = self._tokenize(text)["special_tokens_mask"]
            tokens = tokens[[place for place, special in enumerate(is_special) if not special]]
        return super().pool(tokens, text, layer, first)

    def _read_head(self) -> None:
        """Read the files that describe the steps after the last hidden states."""
        where: dict[str, Any] = {name: self.options[name] for name in ("revision", "subfolder") if name in self.options}
        files, seed = ModelFiles(self.source, where), self.provenance.get("seed", 0)
        found = files.find("modules.json")
        if found is None:
            raise InputError(f"parity: {self.source!r} has no modules.json")
        self._steps: list[Callable[[Tensor], Tensor]] = []
        with on_cpu_in_float32(seed):
            for module in json.loads(found.read_text(encoding="utf-8"))[1:]:
                kind, path = module["type"].rpartition(".")[2], module["path"]
                config = files.find(f"{path}/config.json")
                settings = json.loads(config.read_text(encoding="utf-8")) if config else {}
                if kind == "Pooling":
                    old = [mode for name, mode in _OLD_MODES.items() if settings.get(name)]
                    modes = settings.get("pooling_mode", old or ["mean"])
                    self._modes: list[str] = [modes] if isinstance(modes, str) else modes
                elif kind == "Dense":
                    self._steps.append(self._dense(files, path, settings))
                else:
                    self._steps.append(lambda vector: vector / vector.norm())

    def _dense(self, files: ModelFiles, path: str, settings: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        layer = nn.Linear(settings["in_features"], settings["out_features"], settings.get("bias", True))
        if self.provenance["weights"] != UNTRAINED:
            from safetensors.torch import load_file

            stored = files.find(f"{path}/model.safetensors")
            old = files.find(f"{path}/pytorch_model.bin")
            weights = load_file(stored) if stored else torch.load(str(old), map_location="cpu", weights_only=True)
            layer.load_state_dict({name.rpartition(".")[2]: tensor.float() for name, tensor in weights.items()})
        layer.requires_grad_(False).to(self.device)
        name = settings.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
        activation: nn.Module = getattr(nn, name)()
        return lambda vector: activation(layer(vector))

    def _embed(self, tokens: Tensor) -> Tensor:
        """Return the vector of a caption, from its last hidden states (T, D) float32."""
        vector = torch.cat([_MODES[mode](tokens) for mode in self._modes])
        with torch.autocast(self.device, enabled=False):
            for step in self._steps:
                vector = step(vector)
        return vector
