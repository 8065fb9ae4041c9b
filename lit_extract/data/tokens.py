"""Tokenizers of Hugging Face, and of the sentencepiece library."""

import inspect
from pathlib import Path
from typing import Any

from lit_extract.common.errors import InputError, name_some, one_line

_LOCATION = frozenset(("trust_remote_code", "revision", "gguf_file", "subfolder"))
# Hugging Face's tokenizers take any argument, and ignore unknown ones. They know these, although their constructors do
# not list them.
_ARGUMENTS = frozenset(
    "add_bos_token add_eos_token add_prefix_space additional_special_tokens bos_token clean_up_tokenization_spaces "
    "cls_token do_lower_case eos_token fix_mistral_regex from_slow legacy mask_token model_max_length pad_token "
    "sep_token sp_model_kwargs split_special_tokens tokenizer_type truncation_side unk_token use_fast".split()
)


class HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face model, from the hub or a folder, with the special tokens of its configuration."""

    def __init__(self, source: str, options: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if unknown := sorted(set(options) - _LOCATION - _arguments_of(type(self.tokenizer))):
            raise InputError(
                f"model.options: {name_some(unknown)}: neither the configuration, the weights nor the tokenizer "
                f"({type(self.tokenizer).__name__}) has an argument of that name"
            )
        self.bos_id: int | None = self.tokenizer.bos_token_id

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, with the special tokens that the model was trained with."""
        # The data module enforces the length limit and names the captions; no warning in a log.
        return list(self.tokenizer(texts, verbose=False, return_attention_mask=False)["input_ids"])

    def are_special(self, texts: list[str]) -> list[list[bool]]:
        """Return for each token of each text whether it was added or is special; the unknown token does not count."""
        own = self.tokenizer
        named = {own.bos_token_id, own.eos_token_id, own.cls_token_id, own.sep_token_id}
        listed = {token for token, added in own.added_tokens_decoder.items() if added.special}
        special = listed.union(own.all_special_ids) - {own.unk_token_id} | named
        made = own(texts, verbose=False, return_attention_mask=False, return_special_tokens_mask=True)
        pairs = zip(made["input_ids"], made["special_tokens_mask"], strict=True)
        return [[bool(mark) or token in special for token, mark in zip(*pair, strict=True)] for pair in pairs]

    def token_texts(self, ids: list[int]) -> list[str]:
        """Return each token in the tokenizer's own spelling, for display."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)]


class SentencePieceTokenizer:
    """``tokenizer.model`` as sentencepiece reads it, after a BOS token.

    It is for models whose automatically converted tokenizer differs, such as OpenLLaMA
    (https://github.com/openlm-research/open_llama).
    """

    def __init__(self, source: str, options: dict[str, Any]) -> None:
        import sentencepiece

        if unknown := sorted(set(options) - _LOCATION):
            raise InputError(f"model.options: {name_some(unknown)}: the sentencepiece tokenizer takes no options")
        path = Path(source, "tokenizer.model")
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, "tokenizer.model", revision=options.get("revision")))
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos_id: int | None = self.processor.bos_id()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, with BOS; several threads share the texts."""
        return list(self.processor.encode(texts, add_bos=True, num_threads=-1))

    def are_special(self, texts: list[str]) -> list[list[bool]]:
        """Return for each token of each text whether it is BOS or another control token."""
        return [[self.processor.is_control(token) for token in ids] for ids in self.encode(texts)]

    def token_texts(self, ids: list[int]) -> list[str]:
        """Return each token in sentencepiece's spelling."""
        return [str(self.processor.id_to_piece(token)) for token in ids]


Tokenizer = HuggingFaceTokenizer | SentencePieceTokenizer
BACKENDS: dict[str, type[Tokenizer]] = {"huggingface": HuggingFaceTokenizer, "sentencepiece": SentencePieceTokenizer}


def _arguments_of(tokenizer: type) -> set[str]:
    constructors = [vars(base)["__init__"] for base in tokenizer.__mro__[:-1] if "__init__" in vars(base)]
    return set(_ARGUMENTS).union(*(inspect.signature(constructor).parameters for constructor in constructors))


def load_tokenizer(backend: str, source: str, options: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of a model, from a repository on the hub or a local folder."""
    if backend not in BACKENDS:
        raise InputError(f"model.tokenizer: {backend!r} must be one of {', '.join(BACKENDS)}")
    try:
        return BACKENDS[backend](source, options)
    except InputError:
        raise
    except Exception as error:  # raised by several libraries, the hub and the disk
        raise InputError(
            f"model.tokenizer: the tokenizer of {source!r} can't be loaded: {type(error).__name__}: {one_line(error)}"
        ) from error
