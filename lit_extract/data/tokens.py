"""Tokenizers: Hugging Face's, or sentencepiece itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lit_extract.errors import InputError, one_line


class Tokenizer(Protocol):
    """What the caption data module needs of a tokenizer."""

    bos_id: int | None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens the model was trained with."""

    def token_texts(self, ids: list[int]) -> list[str]:
        """Each token as the tokenizer writes it, to be looked at."""


class HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face model, special tokens as its configuration says.

    Args:
        source: Repository on the hub, or local folder.
        options: Further arguments for ``from_pretrained``.
    """

    def __init__(self, source: str, options: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
        self.bos_id: int | None = self.tokenizer.bos_token_id

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        # The length limit is ours to enforce, with the captions' ids; not a line in a log.
        ids: list[list[int]] = self.tokenizer(texts, verbose=False, return_attention_mask=False)["input_ids"]
        return ids

    def token_texts(self, ids: list[int]) -> list[str]:
        """Each token as the tokenizer writes it."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)]


class SentencePieceTokenizer:
    """``tokenizer.model`` as sentencepiece reads it, behind a BOS token.

    For models whose automatically converted tokenizer differs, as the authors of OpenLLaMA warn of
    theirs (https://github.com/openlm-research/open_llama).

    Args:
        source: Repository on the hub, or local folder.
        options: ``revision``, of a repository.
    """

    def __init__(self, source: str, options: dict[str, Any]) -> None:
        import sentencepiece

        path = Path(source, "tokenizer.model")
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, "tokenizer.model", revision=options.get("revision")))
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos_id: int | None = self.processor.bos_id()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; several threads share them, as those of the other tokenizers do."""
        ids: list[list[int]] = self.processor.encode(texts, add_bos=True, num_threads=-1)
        return ids

    def token_texts(self, ids: list[int]) -> list[str]:
        """Each token as sentencepiece writes it."""
        return [str(self.processor.id_to_piece(token)) for token in ids]


BACKENDS: dict[str, Callable[[str, dict[str, Any]], Tokenizer]] = {
    "huggingface": HuggingFaceTokenizer,
    "sentencepiece": SentencePieceTokenizer,
}


def load_tokenizer(backend: str, source: str, options: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        InputError: An unknown backend, or a tokenizer that can't be loaded.
    """
    if backend not in BACKENDS:
        raise InputError(f"model.tokenizer: {backend!r} must be one of {', '.join(BACKENDS)}")
    try:
        return BACKENDS[backend](source, options)
    except Exception as error:  # of several libraries, the hub and the disk
        raise InputError(
            f"model.tokenizer: the tokenizer of {source!r} can't be loaded: {type(error).__name__}: {one_line(error)}"
        ) from error
