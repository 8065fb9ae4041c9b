"""Language models by Hugging Face's own hidden states.

T tokens, D hidden size.
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
from lit_extract.parity.reference import Reference, check_same, check_sizes, no_weights


class LanguageReference(Reference):
    """Hugging Face's own hidden states, loss and tokens of one caption; attention written out ("eager")."""

    packages = ("torch", "transformers")
    way = "transformers output_hidden_states"

    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """The captions, which must be those of the file, to the token."""
        known = self.provenance
        if self.where.captions is None:
            raise InputError(
                f"captions: which file has the captions {known['prompt_name']!r} of {known['dataset']}? "
                "Give --captions FILE"
            )
        captions = load_captions(self.where.captions, known["query"])
        of_stimulus = dict(zip(map(id_key, captions["stimulus_id"]), captions["caption"], strict=True))
        if missing := [shorten(str(stimulus)) for stimulus in ids if id_key(stimulus) not in of_stimulus]:
            raise InputError(f"captions: {self.where.captions!r} has none of {name_some(missing)}, which the file has")
        self.texts: list[str] = [of_stimulus[id_key(stimulus)] for stimulus in ids]
        check_sizes(n_bytes_sha256, [len(text.encode()) for text in self.texts])
        self.source = known["source"] if "source" in known else self._folder()
        self.settings = {key: value for key, value in known["options"].items() if key != "attn_implementation"}
        self.settings |= {"trust_remote_code": self.where.trust_remote_code}
        if "revision" in known:
            self.settings["revision"] = known["revision"]
        self.config, unused = self._load("config", "AutoConfig", return_unused_kwargs=True)
        self.settings, self.tokenizer_settings = split_options(self.settings, unused)
        tokenize = self._tokenizer()
        context = getattr(self.config, "max_position_embeddings", None) if known["truncate"] else None
        self.tokens = [tokenize(text)[:context] for text in self.texts]
        check_same("tokens_sha256", known["tokens_sha256"], _tokens_sha256(self.tokens, ids))

    def build(self) -> nn.Module:
        """The model as the file says, in float32."""
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        known = self.provenance
        if known["weights"] == "untrained":
            try:
                with on_cpu_in_float32(known["seed"]):
                    model: nn.Module = AutoModelForCausalLM.from_config(
                        self.config,
                        dtype=torch.float32,
                        attn_implementation="eager",
                        trust_remote_code=self.where.trust_remote_code,
                    )
            except Exception as error:  # of the model's own code
                raise no_weights(known["model"], self.source, error) from error
        else:
            model = self._load("weights", "AutoModelForCausalLM", dtype=torch.float32, attn_implementation="eager")
        self.final_norm = FinalNorm(model)
        return model

    def compute(self, row: int) -> dict[str, Tensor]:
        """One caption through the model; twice, when the last block is wanted as it is before the final norm."""
        ids = torch.tensor([self.tokens[row]], device=self.device)
        has_loss = self.provenance["loss"] and ids.shape[1] > 1
        output = self.model(input_ids=ids, labels=ids if has_loss else None, output_hidden_states=True, use_cache=False)
        states: list[Tensor] = list(output.hidden_states)
        n_blocks = self.config.num_hidden_layers
        if len(states) != n_blocks + 1:
            raise InputError(f"parity: {self.source!r} gives {len(states)} hidden states, not {n_blocks + 1}")
        last = f"blocks.{n_blocks - 1}"
        places = {"embeddings": 0, "norm": n_blocks} | {f"blocks.{k}": k + 1 for k in range(n_blocks)}
        if missing := [layer for layer in self.layers if layer not in places]:
            raise InputError(f"layers: the file has {name_some(missing)}, but the model has {n_blocks} blocks")
        raw = self.final_norm.input(ids, states[-1]) if last in self.layers else None
        chosen = [raw if layer == last else states[places[layer]] for layer in self.layers]
        first = 1 if self.provenance["exclude_bos"] else 0
        pooled = [
            tokens[0, -1] if self.provenance["pool"] == "last" else tokens[0, first:].float().mean(0)
            for tokens in chosen
            if tokens is not None
        ]
        outputs = {"feats": torch.stack(pooled)}
        if self.provenance["loss"]:
            loss = output.loss if has_loss else torch.tensor(torch.nan)
            total = loss.double() * (ids.shape[1] - 1)
            outputs |= {"loss": loss, "bpb": total / math.log(2) / len(self.texts[row].encode())}
        return outputs

    def cast(self) -> None:
        """Parameters, not buffers: rotary frequencies stay float32."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.bfloat16()

    def _folder(self) -> str:
        """The local folder of a model: the one with these weights, or, of an untrained one, with this configuration."""
        if self.provenance["weights"] != "untrained":
            check_shards(checkpoint := self.checkpoint())
            return checkpoint
        folder = self.where.checkpoint
        if folder is None or not Path(folder).is_dir():
            what = f"{folder!r} is not a folder; " if folder else ""
            raise InputError(f"checkpoint: {what}give --checkpoint DIR with config.json and the tokenizer")
        check_shards(folder)
        return folder

    def _load(self, what: str, loader: str, **settings: Any) -> Any:
        import transformers

        try:
            own = self.tokenizer_settings if what == "tokenizer" else self.settings
            loaded = getattr(transformers, loader).from_pretrained(self.source, **own, **settings)
        except Exception as error:  # of the hub, the network, the disk and the format
            raise no_weights(f"{what} of {self.provenance['model']}", self.source, error) from error
        if what == "config" and "config_sha256" in self.provenance:
            check_same("config_sha256", self.provenance["config_sha256"], config_sha256(loaded[0]))
        return loaded

    def _tokenizer(self) -> Callable[[str], list[int]]:
        if self.provenance["tokenizer"] == "sentencepiece":
            import sentencepiece

            path = Path(self.source, "tokenizer.model")
            if not path.is_file():
                from huggingface_hub import hf_hub_download

                path = Path(hf_hub_download(self.source, path.name, revision=self.settings.get("revision")))
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            return lambda text: [processor.bos_id(), *processor.encode(text)]
        tokenizer = self._load("tokenizer", "AutoTokenizer")
        return lambda text: tokenizer(text, verbose=False)["input_ids"]


class FinalNorm:
    """What the last block gives, of which transformers returns only what leaves the final norm.

    The norm is replaced by nothing for a second forward pass. That it was the norm is proven each time: applied to
    what is then returned, it must give what was returned before.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name: str | None = None

    def input(self, ids: Tensor, normed: Tensor) -> Tensor:
        """(1, T, D) of the last block, from (1, T, D) behind the norm."""
        base = self.model.base_model
        blocks = next((name for name, module in base.named_modules() if isinstance(module, nn.ModuleList)), "")
        names = [
            name
            for name, module in base.named_modules()
            if "norm" in type(module).__name__.lower() and not name.startswith(f"{blocks}.")
        ]
        for name in [self.name] if self.name else reversed(names):
            assert name is not None
            norm = base.get_submodule(name)
            base.set_submodule(name, nn.Identity())
            try:
                raw: Tensor = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
            finally:
                base.set_submodule(name, norm)
            if torch.allclose(norm(raw).float(), normed.float(), rtol=1e-2, atol=1e-2):
                self.name = name
                return raw
        raise InputError(f"parity: no final norm found in {type(base).__name__}, so its last block can't be checked")


def _tokens_sha256(captions: list[list[int]], ids: list[Any]) -> str:
    """As docs/store-format.md has it: token ids, where each caption begins, stimulus ids."""
    starts = np.concatenate([[0], np.cumsum([len(caption) for caption in captions])])
    digest = hashlib.sha256(b"".join(np.array(caption, "<i4").tobytes() for caption in captions))
    digest.update(starts.astype("<i8").tobytes())
    digest.update("\0".join(map(str, ids)).encode())
    return digest.hexdigest()
