"""Language models by Hugging Face's own hidden states.

L layers, T tokens, D hidden size.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import shorten
from lit_extract.datasets import load_captions
from lit_extract.datasets.ids import id_key
from lit_extract.parity.hugging_face import HuggingFaceReference, before_final_norm
from lit_extract.parity.reference import check_same, check_sizes

# By the name of a pooling: tokens (T, D) to (D,).
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda tokens: tokens.float().mean(0),
    "last": lambda tokens: tokens[-1],
}


class LanguageReference(HuggingFaceReference):
    """Hugging Face's own hidden states, loss and tokens of one caption."""

    auto_class = "AutoModelForCausalLM"
    parts = "tokenizer"
    way = "transformers output_hidden_states"

    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """Read the captions, which must be those of the file, to the token."""
        known = self.provenance
        file = self.settings.captions
        if file is None:
            raise InputError(
                f"captions: which file has the captions {known['prompt_name']!r} of {known['dataset']}? "
                "Give --captions FILE"
            )
        captions = load_captions(file, known["query"])
        of_stimulus = dict(zip(map(id_key, captions["stimulus_id"]), captions["captions"], strict=True))
        if missing := [shorten(str(stimulus)) for stimulus in ids if id_key(stimulus) not in of_stimulus]:
            raise InputError(f"captions: {file!r} has none of {name_some(missing)}, which the file has")
        n_used = None if known.get("captions_used") == "all" else 1
        self.texts: list[list[str]] = [of_stimulus[id_key(stimulus)][:n_used] for stimulus in ids]
        check_sizes(n_bytes_sha256, [sum(len(text.encode()) for text in texts) for texts in self.texts])
        self.find_model()
        self.tokens = self.tokenize()
        found = _tokens_sha256(self.tokens, ids, of_several=n_used is None)
        check_same("tokens_sha256", known["tokens_sha256"], found)

    def tokenize(self) -> list[list[list[int]]]:
        """Return the tokens of the captions of each row, cut as they were."""
        tokenize = self._tokenizer(self.other_options)
        context = getattr(self.config, "max_position_embeddings", None) if self.provenance["truncate"] else None
        return [[tokenize(text)[:context] for text in texts] for texts in self.texts]

    def compute(self, row: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send the captions of a row through the model, one by one, and return their means."""
        found = [self.compute_caption(*caption) for caption in zip(self.tokens[row], self.texts[row], strict=True)]
        layers = [
            torch.stack(of_layer).float().mean(0) for of_layer in zip(*(layers for layers, _ in found), strict=True)
        ]
        losses = {name: torch.stack([of_one[name].cpu() for _, of_one in found]).nanmean() for name in found[0][1]}
        return layers, losses

    def compute_caption(self, tokens: list[int], text: str) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send one caption through the model; twice, when the last block is wanted as it is before the final norm."""
        ids = torch.tensor([tokens], device=self.device)
        has_loss = self.provenance["loss"] and ids.shape[1] > 1
        output = self.model(input_ids=ids, labels=ids if has_loss else None, output_hidden_states=True, use_cache=False)
        states, n_blocks = output.hidden_states, self.config.num_hidden_layers
        if len(states) != n_blocks + 1:
            raise InputError(f"parity: {self.source!r} gives {len(states)} hidden states, not {n_blocks + 1}")
        names = ["embeddings", *(f"blocks.{k}" for k in range(n_blocks - 1)), "norm"]
        last = f"blocks.{n_blocks - 1}"
        tokens_of = dict(zip(names, states, strict=True))
        if missing := [layer for layer in self.layers if layer not in (*names, last)]:
            raise InputError(f"layers: the file has {name_some(missing)}, but the model has {n_blocks} blocks")
        if last in self.layers:
            tokens_of[last] = before_final_norm(self.model.base_model, lambda: self._states(ids)[-1], states[-1])
        first = 1 if self.provenance["exclude_bos"] else 0
        pool = POOLINGS[self.provenance["pool"]]
        layers = [pool(tokens_of[layer][0, first:]) for layer in self.layers]
        if not self.provenance["loss"]:
            return layers, {}
        loss = output.loss if has_loss else torch.tensor(torch.nan)
        total = loss.double() * (ids.shape[1] - 1)
        return layers, {"loss": loss, "bpb": total / math.log(2) / len(text.encode())}

    def _states(self, ids: Tensor) -> tuple[Tensor, ...]:
        states: tuple[Tensor, ...] = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        return states

    def _tokenizer(self, options: dict[str, Any]) -> Callable[[str], list[int]]:
        if self.provenance["tokenizer"] == "sentencepiece":
            import sentencepiece

            path = Path(self.source, "tokenizer.model")
            if not path.is_file():
                from huggingface_hub import hf_hub_download

                path = Path(hf_hub_download(self.source, path.name, revision=options.get("revision")))
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            return lambda text: [processor.bos_id(), *processor.encode(text)]
        tokenizer = self.load("tokenizer", "AutoTokenizer", options)
        return lambda text: tokenizer(text, verbose=False)["input_ids"]


def _tokens_sha256(by_row: list[list[list[int]]], ids: list[Any], of_several: bool) -> str:
    """As docs/store-format.md has it: token ids, where each caption begins, of several where each row does, ids."""
    captions = [caption for of_row in by_row for caption in of_row]
    digest = hashlib.sha256(b"".join(np.array(caption, "<i4").tobytes() for caption in captions))
    lengths = [[len(caption) for caption in captions], *([[len(of_row) for of_row in by_row]] if of_several else [])]
    for sizes in lengths:
        digest.update(np.concatenate([[0], np.cumsum(sizes)]).astype("<i8").tobytes())
    digest.update("\0".join(map(str, ids)).encode())
    return digest.hexdigest()
