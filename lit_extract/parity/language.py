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
from torch import Tensor, nn

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import shorten
from lit_extract.datasets import load_captions
from lit_extract.datasets.ids import id_key
from lit_extract.modules.pretrained import split_options
from lit_extract.modules.weights import check_shards, config_sha256, on_cpu_in_float32
from lit_extract.parity.provenance_form import UNTRAINED
from lit_extract.parity.reference import Reference, check_same, check_sizes, no_weights

# By the name of a pooling: tokens (T, D) to (D,).
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda tokens: tokens.float().mean(0),
    "last": lambda tokens: tokens[-1],
}


class LanguageReference(Reference):
    """Hugging Face's own hidden states, loss and tokens of one caption; attention written out ("eager")."""

    packages = ("torch", "transformers")
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
        of_stimulus = dict(zip(map(id_key, captions["stimulus_id"]), captions["caption"], strict=True))
        if missing := [shorten(str(stimulus)) for stimulus in ids if id_key(stimulus) not in of_stimulus]:
            raise InputError(f"captions: {file!r} has none of {name_some(missing)}, which the file has")
        self.texts: list[str] = [of_stimulus[id_key(stimulus)] for stimulus in ids]
        check_sizes(n_bytes_sha256, [len(text.encode()) for text in self.texts])
        self.source: str = known["source"] if "source" in known else self._folder()
        options = {key: value for key, value in known["options"].items() if key != "attn_implementation"}
        options["trust_remote_code"] = self.settings.trust_remote_code
        if "revision" in known:
            options["revision"] = known["revision"]
        self.config, unused = self._load("config", "AutoConfig", options, return_unused_kwargs=True)
        if "config_sha256" in known:
            check_same("config_sha256", known["config_sha256"], config_sha256(self.config))
        self.options, tokenizer_options = split_options(options, unused)
        tokenize = self._tokenizer(tokenizer_options)
        context = getattr(self.config, "max_position_embeddings", None) if known["truncate"] else None
        self.tokens = [tokenize(text)[:context] for text in self.texts]
        check_same("tokens_sha256", known["tokens_sha256"], _tokens_sha256(self.tokens, ids))

    def build(self) -> nn.Module:
        """Make the model of the provenance, in float32."""
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        known, own = self.provenance, {"dtype": torch.float32, "attn_implementation": "eager"}
        if known["weights"] != UNTRAINED:
            loaded: nn.Module = self._load("weights", "AutoModelForCausalLM", self.options, **own)
            return loaded
        try:
            with on_cpu_in_float32(known["seed"]):
                drawn: nn.Module = AutoModelForCausalLM.from_config(
                    self.config, trust_remote_code=self.settings.trust_remote_code, **own
                )
                return drawn
        except Exception as error:  # of the model's own code
            raise no_weights(known["model"], self.source, error) from error

    def compute(self, row: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send one caption through the model; twice, when the last block is wanted as it is before the final norm."""
        ids = torch.tensor([self.tokens[row]], device=self.device)
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
            tokens_of[last] = before_final_norm(self.model, ids, states[-1])
        first = 1 if self.provenance["exclude_bos"] else 0
        pool = POOLINGS[self.provenance["pool"]]
        layers = [pool(tokens_of[layer][0, first:]) for layer in self.layers]
        if not self.provenance["loss"]:
            return layers, {}
        loss = output.loss if has_loss else torch.tensor(torch.nan)
        total = loss.double() * (ids.shape[1] - 1)
        return layers, {"loss": loss, "bpb": total / math.log(2) / len(self.texts[row].encode())}

    def cast(self) -> None:
        """Change parameters to bf16, not buffers: rotary frequencies stay float32."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.bfloat16()

    def _folder(self) -> str:
        """Return the model's local folder: with these weights or, if it is untrained, with this configuration."""
        folder = self.settings.checkpoint
        if self.provenance["weights"] != UNTRAINED:
            folder = self.checkpoint()
        elif folder is None or not Path(folder).is_dir():
            what = f"{folder!r} is not a folder; " if folder else ""
            raise InputError(f"checkpoint: {what}give --checkpoint DIR with config.json and the tokenizer")
        check_shards(folder)
        return folder

    def _load(self, what: str, loader: str, options: dict[str, Any], **own: Any) -> Any:
        import transformers

        try:
            return getattr(transformers, loader).from_pretrained(self.source, **options, **own)
        except Exception as error:  # of the hub, the network, the disk and the format
            raise no_weights(f"{what} of {self.provenance['model']}", self.source, error) from error

    def _tokenizer(self, options: dict[str, Any]) -> Callable[[str], list[int]]:
        if self.provenance["tokenizer"] == "sentencepiece":
            import sentencepiece

            path = Path(self.source, "tokenizer.model")
            if not path.is_file():
                from huggingface_hub import hf_hub_download

                path = Path(hf_hub_download(self.source, path.name, revision=options.get("revision")))
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            return lambda text: [processor.bos_id(), *processor.encode(text)]
        tokenizer = self._load("tokenizer", "AutoTokenizer", options)
        return lambda text: tokenizer(text, verbose=False)["input_ids"]


def before_final_norm(model: Any, ids: Tensor, normed: Tensor) -> Tensor:
    """Return the last block's output (1, T, D), which transformers returns only after the final norm.

    The norm is replaced by nothing for a second forward pass. That it was the norm is proven each time: applied to
    what is then returned, it must give what was returned before, ``normed`` (1, T, D) of the tokens ``ids`` (1, T).
    InputError if there is no such norm.
    """
    base = model.base_model
    inside = {part for blocks in base.modules() if isinstance(blocks, nn.ModuleList) for part in blocks.modules()}
    for name, norm in reversed(list(base.named_modules())):
        if norm in inside or "norm" not in type(norm).__name__.lower():
            continue
        base.set_submodule(name, nn.Identity())
        try:
            raw: Tensor = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
        finally:
            base.set_submodule(name, norm)
        if torch.allclose(norm(raw).float(), normed.float(), rtol=1e-2, atol=1e-2):
            return raw
    raise InputError(f"parity: no final norm found in {type(base).__name__}, so its last block can't be checked")


def _tokens_sha256(captions: list[list[int]], ids: list[Any]) -> str:
    """As docs/store-format.md has it: token ids, where each caption begins, stimulus ids."""
    starts = np.concatenate([[0], np.cumsum([len(caption) for caption in captions])])
    digest = hashlib.sha256(b"".join(np.array(caption, "<i4").tobytes() for caption in captions))
    digest.update(starts.astype("<i8").tobytes())
    digest.update("\0".join(map(str, ids)).encode())
    return digest.hexdigest()
