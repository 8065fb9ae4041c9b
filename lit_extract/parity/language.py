"""Language models, from Hugging Face's own hidden states.

L layers, T tokens, D hidden size.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import shorten
from lit_extract.datasets import load_captions
from lit_extract.datasets.ids import id_key
from lit_extract.modules.pooling import TOKENS
from lit_extract.modules.pretrained import auto_class_of, find_backbone
from lit_extract.parity.certificate import RebuildSettings
from lit_extract.parity.hugging_face import HuggingFaceReference, before_final_norm
from lit_extract.parity.reference import check_same, check_sizes
from lit_extract.storage.features import Features
from lit_extract.storage.layout import N_SINKS, TOKEN_IDS

# For each pooling, a function from tokens (T, D) to (D,), or to all tokens.
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda tokens: tokens.float().mean(0),
    "last": lambda tokens: tokens[-1],
    TOKENS: lambda tokens: tokens.flatten(1),
}


class LanguageReference(HuggingFaceReference):
    """Hugging Face's own hidden states, loss and tokens of one caption."""

    parts = "tokenizer"
    way = "transformers output_hidden_states"
    begins_with_a_block: bool | None = None  # the list of hidden states; None: not yet known

    def __init__(self, features: Features, settings: RebuildSettings) -> None:
        super().__init__(features, settings)
        self.exclude = self.provenance.get("exclude", [])
        # With several captions per row it is their sum, which does not give the number for each.
        self._n_sinks = None if self.provenance.get("captions_used") else features.extras.get(N_SINKS)
        if TOKEN_IDS in features.extras:
            self._check_ids(features)

    def find_model(self) -> None:
        """Find the model and read its configuration."""
        super().find_model()
        self.auto_class = auto_class_of(self.config)

    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """Read the captions, whose tokens must be exactly those of the file."""
        known = self.provenance
        file = self.settings.captions
        if file is None:
            raise InputError(
                f"captions: missing; pass the file with the captions {known['prompt_name']!r} of {known['dataset']}, "
                "--captions FILE"
            )
        captions = load_captions(file, known["query"], known["dataset"])
        of_stimulus = dict(zip(map(id_key, captions["stimulus_id"]), captions["captions"], strict=True))
        if missing := [shorten(str(stimulus)) for stimulus in ids if id_key(stimulus) not in of_stimulus]:
            raise InputError(f"captions: {file!r} has no caption for {name_some(missing)}, which the features file has")
        n_used = None if known.get("captions_used") == "all" else 1
        self.texts: list[list[str]] = [of_stimulus[id_key(stimulus)][:n_used] for stimulus in ids]
        check_sizes(n_bytes_sha256, [sum(len(text.encode()) for text in texts) for texts in self.texts])
        self.find_model()
        self.tokens = self.tokenize()
        found = _tokens_sha256(self.tokens, ids, of_several=n_used is None)
        check_same("tokens_sha256", known["tokens_sha256"], found)

    def tokenize(self) -> list[list[list[int]]]:
        """Return the tokens of the captions of each row, truncated as in the run."""
        self._tokenize_text = self._tokenizer(self.other_options)
        text_config = self.config.get_text_config(decoder=True)
        self._context = getattr(text_config, "max_position_embeddings", None) if self.provenance["truncate"] else None
        return [[self._tokenize_text(text)[0][: self._context] for text in texts] for texts in self.texts]

    def are_special(self, text: str) -> list[bool]:
        """Return for each token of a caption whether the tokenizer added it, or it is a special token."""
        return self._tokenize_text(text)[1][: self._context]

    def compute(self, row: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send the captions of a row through the model, one by one, and return their means."""
        self._row = row
        found = [self.compute_caption(*caption) for caption in zip(self.tokens[row], self.texts[row], strict=True)]
        layers = [
            torch.stack(of_layer).float().mean(0) for of_layer in zip(*(layers for layers, _ in found), strict=True)
        ]
        if self.provenance["pool"] == TOKENS:
            longest = max(len(caption) for of_row in self.tokens for caption in of_row)
            layers = [functional.pad(layer, (0, 0, 0, longest - len(layer))) for layer in layers]
        losses = {name: torch.stack([of_one[name].cpu() for _, of_one in found]).nanmean() for name in found[0][1]}
        return layers, losses

    def compute_caption(self, tokens: list[int], text: str) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send one caption through the model; twice, if the last block's output before the final norm is needed."""
        ids = torch.tensor([tokens], device=self.device)
        has_loss = self.provenance["loss"] and ids.shape[1] > 1
        output = self.model(input_ids=ids, labels=ids if has_loss else None, output_hidden_states=True, use_cache=False)
        states = [_tokens_first(state, ids) for state in output.hidden_states]
        tokens_of = self._layers(ids, states)
        first = 1 if self.provenance["exclude_bos"] else 0
        layers = [self.pool(tokens_of[layer][0], text, layer, first) for layer in self.layers]
        if not self.provenance["loss"]:
            return layers, {}
        loss = output.loss if has_loss else torch.tensor(torch.nan)
        total = loss.double() * (ids.shape[1] - 1)
        return layers, {"loss": loss, "bpb": total / math.log(2) / len(text.encode())}

    def pool(self, tokens: Tensor, text: str, layer: str, first: int = 0) -> Tensor:
        """Pool a caption's tokens (T, D) in a layer, from ``first`` on, without excluded tokens."""
        stay = range(max(first, "bos" in self.exclude), len(tokens))
        if "special" in self.exclude:
            are_special = self.are_special(text)
            stay = [place for place in stay if not are_special[place]]  # type: ignore[assignment]
        tokens = tokens[list(stay)]
        if "sinks" in self.exclude:
            tokens = tokens[~self._are_sinks(tokens.float().flatten(1).norm(dim=-1), layer)]
        return POOLINGS[self.provenance["pool"]](tokens)

    def _are_sinks(self, norms: Tensor, layer: str) -> Tensor:
        """Return which tokens of a caption are sinks in a layer, by their norms (T,).

        Their number is the one noted in the file, if the norms of all tokens in doubt are so close to the limit that
        the precision of the run can't decide.
        """
        above = self.provenance["sinks_above"]
        times = norms / norms.sort().values[(len(norms) - 1) // 2]
        over: Tensor = times > above
        if self._n_sinks is None:
            return over
        noted = int(self._n_sinks[self._row, self.layers.index(layer)])
        chosen = torch.zeros_like(times, dtype=torch.bool)
        chosen[times.argsort(descending=True)[:noted]] = True
        in_doubt = times[chosen != over] / above
        if (in_doubt.log().abs() > (1e-3 if self.provenance["precision"] == "32-true" else 0.1)).any():
            raise InputError(f"n_sinks: row {self._row} has {noted} in {layer}, but the model gives {int(over.sum())}")
        return chosen

    def _check_ids(self, features: Features) -> None:
        """Check that each row of the file has the token ids of its caption."""
        pairs = enumerate(zip(features.extras[TOKEN_IDS].tolist(), self.tokens, strict=True))
        if others := [str(row) for row, (ids, (own,)) in pairs if ids != own + [0] * (len(ids) - len(own))]:
            raise InputError(f"token_ids: these rows do not have the tokens of their captions: {name_some(others)}")

    def _layers(self, ids: Tensor, states: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the layers (1, T, …) by name.

        Most models return the input of the first block, the outputs of all blocks but the last, and the last output
        after the final norm. Some begin with the first block. Some have no norm: then the last state is a block's,
        which is assumed if the file has exactly these layers.
        """
        blocks = [f"blocks.{k}" for k in range(len(states) - 1)]
        if self.layers == ["embeddings", *blocks]:
            return dict(zip(self.layers, states, strict=True))
        found = dict(zip(["embeddings", *blocks[:-1], "norm"], states, strict=True))
        if unknown := [layer for layer in self.layers if layer not in (*found, *blocks)]:
            raise InputError(f"layers: the file has {name_some(unknown)}, but the model has {len(blocks)} blocks")
        if self.begins_with_a_block is None:
            self.begins_with_a_block = not torch.equal(self._without_first_block(ids), states[0])
        if self.begins_with_a_block:
            return dict(zip([*blocks, "norm"], states, strict=True))
        if blocks[-1] in self.layers:
            found[blocks[-1]] = before_final_norm(
                self.model.base_model, lambda: _tokens_first(self._states(ids)[-1], ids), states[-1]
            )
        return found

    def _without_first_block(self, ids: Tensor) -> Tensor:
        """Return the first of the hidden states with the first block's parameters set to zero."""
        parameters = list(find_backbone(self.model)[1][0].parameters())
        kept = [parameter.data for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.data = torch.zeros_like(parameter)
            return _tokens_first(self._states(ids)[0], ids)
        finally:
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.data = values

    def _states(self, ids: Tensor) -> tuple[Tensor, ...]:
        states: tuple[Tensor, ...] = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        return states

    def _tokenizer(self, options: dict[str, Any]) -> Callable[[str], tuple[list[int], list[bool]]]:
        """Return a function from a text to its token ids, and to whether each is special."""
        if self.provenance["tokenizer"] == "sentencepiece":
            import sentencepiece

            path = Path(self.source, "tokenizer.model")
            if not path.is_file():
                from huggingface_hub import hf_hub_download

                path = Path(hf_hub_download(self.source, path.name, revision=options.get("revision")))
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            return lambda text: (
                ids := [processor.bos_id(), *processor.encode(text)],
                [token in (processor.bos_id(), processor.eos_id(), processor.pad_id()) for token in ids],
            )
        tokenizer = self.load("tokenizer", "AutoTokenizer", options)

        def tokenize(text: str) -> tuple[list[int], list[bool]]:
            made = tokenizer(text, verbose=False, return_special_tokens_mask=True)
            return made["input_ids"], marked_special(tokenizer, made)

        return tokenize


def marked_special(tokenizer: Any, made: Mapping[str, list[int]]) -> list[bool]:
    """Return for each token of a text whether it was added, or is special by the tokenizer's own list."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    special = special - {tokenizer.unk_token_id} | named
    pairs = zip(made["input_ids"], made["special_tokens_mask"], strict=True)
    return [bool(mark) or token in special for token, mark in pairs]


def _tokens_first(state: Tensor, ids: Tensor) -> Tensor:
    """Return states of one caption as (1, T, …); a token may have several, which Gemma-3n puts on the first axis."""
    return state if state.shape[:2] == ids.shape else state.permute(1, 2, 0, 3)


def _tokens_sha256(by_row: list[list[list[int]]], ids: list[Any], of_several: bool) -> str:
    """Return the hash in docs/store-format.md: token ids, starts of captions, with several those of rows too, ids."""
    captions = [caption for of_row in by_row for caption in of_row]
    digest = hashlib.sha256(b"".join(np.array(caption, "<i4").tobytes() for caption in captions))
    lengths = [[len(caption) for caption in captions], *([[len(of_row) for of_row in by_row]] if of_several else [])]
    for sizes in lengths:
        digest.update(np.concatenate([[0], np.cumsum(sizes)]).astype("<i8").tobytes())
    digest.update("\0".join(map(str, ids)).encode())
    return digest.hexdigest()
