"""Caption data module: all captions are tokenized in advance, batched by token budget, and padded on the right.

B rows of a batch, C captions of a batch, T tokens.
"""

import hashlib
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lit_extract.common.errors import InputError, counted, name_some
from lit_extract.common.untrusted import check_name, shorten
from lit_extract.data.base import WHOLE_SUBSET, Batch, StimulusDataModule
from lit_extract.data.plan import TOKENS_ON_CPU, TOKENS_ON_GPU, Plan
from lit_extract.data.pooled import pooled_tokens
from lit_extract.data.tokens import load_tokenizer
from lit_extract.datasets import DATASETS, load_captions, load_dataset, table
from lit_extract.datasets.ids import id_key
from lit_extract.datasets.matching import places_of
from lit_extract.storage.layout import CONTENT, INPUT_COLUMNS, INPUTS, ROW_OF, SIZE
from lit_extract.storage.provenance import CAPTIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """Token ids of the captions of N rows, one caption after the other."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]  # start of each caption among the ids, and the end of the last one
    rows: NDArray[np.int64]  # start of each row among the captions, and the end of the last one (N + 1,)
    n_bytes: NDArray[np.int64]  # of each caption, in UTF-8
    pooled: NDArray[np.bool_]  # of each token: true if poolings include it

    def spans_of(self, row: int) -> list[slice]:
        """Return the slices of the token ids of each caption of a row."""
        return [slice(*self.starts[k : k + 2]) for k in range(self.rows[row], self.rows[row + 1])]


class TokenBatches(Dataset[Batch]):
    """A dataset whose items are the batches of a plan; ``inputs`` (N, 4) is the record of each row's input.

    Captions are padded with ``pad_id`` to the longest of their batch, or all to ``pad_to`` tokens.
    """

    def __init__(
        self,
        tokens: Tokens,
        inputs: NDArray[np.int64],
        batches: Sequence[Sequence[int]],
        pad_id: int = 0,
        pad_to: int | None = None,
    ) -> None:
        self.tokens, self.inputs, self.batches = tokens, inputs, batches
        self.pad_id, self.pad_to = pad_id, pad_to

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> Batch:
        """Return a batch of B rows with C captions.

        It has ``index`` and ``bad`` (B,), ``inputs`` (B, 4), and for the captions ``input_ids``, ``attention_mask`` and
        ``pooled``, the tokens that poolings include (C, T), ``n_bytes`` (C,) and, if a row has several captions,
        ``row_of`` (C,), the place of each caption's row in the batch.
        """
        rows, tokens = list(self.batches[item]), self.tokens
        by_row = [tokens.spans_of(row) for row in rows]
        captions = list(chain.from_iterable(by_row))
        lengths = [caption.stop - caption.start for caption in captions]
        # Padding is on the right. Language models never attend to it, so any token of the vocabulary will do.
        n_tokens = self.pad_to or max(lengths)
        input_ids = torch.full((len(captions), n_tokens), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        pooled = torch.zeros(mask.shape, dtype=torch.bool)
        for place, (caption, length) in enumerate(zip(captions, lengths, strict=True)):
            input_ids[place, :length] = torch.from_numpy(tokens.ids[caption])
            mask[place, :length] = 1
            pooled[place, :length] = torch.from_numpy(tokens.pooled[caption])
        n_bytes = np.concatenate([tokens.n_bytes[tokens.rows[row] : tokens.rows[row + 1]] for row in rows])
        of_rows = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(of_row) for of_row in by_row]))
        return {
            "index": torch.tensor(rows),
            "input_ids": input_ids,
            "attention_mask": mask,
            "pooled": pooled,
            "n_bytes": torch.from_numpy(n_bytes),
            **({ROW_OF: of_rows} if len(tokens.rows) < len(tokens.starts) else {}),
            INPUTS: torch.from_numpy(self.inputs[rows]),
            "bad": torch.zeros(len(rows), dtype=torch.bool),
        }


class CaptionDataModule(StimulusDataModule):
    """The captions of a file, tokenized for the model, in the order of their dataset.

    Args:
        captions: CSV or Parquet with a column caption, or captions (several per row, separated by ";"), and an id
            column: that of the dataset (nsd_id, bold_id, things_id, demo_id, or path for an image folder), else
            stimulus_id.
        dataset: Dataset that the captions belong to; names the output folder.
        root: Folder of the dataset, whose index gives the order of the rows. Default: the dataset's environment
            variable, else the known ids of the dataset or the features in the output folder.
        prompt_name: Name of the captions, such as "coco"; part of the name of the features file.
        captions_used: "first" uses the first caption of a row; "all" computes every caption by itself and averages
            their features and losses.
        query: pandas query that chooses captions, such as "nsd_id < 1000"; requires a subset name.
        subset: Name of the chosen rows; names the output folder.
        limit: Use only the first N stimuli of the dataset, or of the rows that the query chooses. Their subset is
            called firstN, such as first50, or NAME-firstN with a query.
        token_budget: Maximum number of tokens per forward pass, padding included. Default: the value of the run to
            resume, else 2,048 on a CPU and 16,384 on a GPU. A batch that does not fit in memory is split.
        shard_rows: Captions per shard, the unit of writing and resuming. Default: the value of the run to resume, else
            at most 2,048 captions and 128 MB of activations, chosen so that ranks have even shares.
        truncate: Cut captions that are longer than the model's context instead of refusing them; the cut is recorded.
        show_tokens: Number of captions to print as the model's tokens, from the first one on.
        num_workers: Number of processes that assemble batches; default: none, because the tokens are in memory.
        preprocessing: Tokenizer and context length; linked from the model.
    """

    unit = "captions"
    input_columns = INPUT_COLUMNS
    takes_changed = True

    def __init__(
        self,
        captions: str | None = None,
        prompt_name: str | None = None,
        dataset: str = "captions",
        root: str | None = None,
        query: str | None = None,
        subset: str = WHOLE_SUBSET,
        token_budget: int | None = None,
        shard_rows: int | None = None,
        truncate: bool = False,
        show_tokens: int = 0,
        num_workers: int | None = None,
        preprocessing: dict[str, Any] | None = None,
        captions_used: Literal["first", "all"] = "first",
        limit: int | None = None,
    ) -> None:
        super().__init__(query, subset, shard_rows, num_workers, preprocessing, limit)
        if token_budget is not None and token_budget < 1:
            raise InputError(f"data.token_budget: {token_budget} must be 1 or more")
        if captions is not None and prompt_name is None:
            raise InputError("data.prompt_name: not given; name the captions with --data.prompt_name NAME")
        for setting, name in (("dataset", dataset), ("prompt_name", prompt_name)):
            if name is not None and not re.fullmatch(r"[\w+-][\w.+-]*", name):
                raise InputError(f"data.{setting}: {name!r} names files: use letters, digits and ._+-")
            check_name(name or "none", f"data.{setting}")
        self.captions, self.dataset_name, self.root, self.prompt_name = captions, dataset, root, prompt_name
        self.file_suffix = f"_prompt-{prompt_name}"
        if captions_used not in ("first", "all"):
            raise InputError(f"data.captions_used: {captions_used!r} must be first or all")
        self.captions_used = captions_used
        self.token_budget, self.truncate, self.show_tokens = token_budget, truncate, show_tokens

    @property
    def source(self) -> str:
        """The caption file."""
        return f"data.captions: {self.captions!r}"

    def read_table(self) -> pd.DataFrame:
        """Return the captions of the file, in the order of the dataset."""
        if self.captions is None:
            raise InputError("data.captions: not given; give --data.captions FILE and --data.prompt_name NAME")
        captions = load_captions(self.captions, self.query, self.dataset_name)
        attrs, ids = captions.attrs, captions["stimulus_id"].tolist()
        stimuli, is_part = self._stimuli_of_dataset(ids), self.subset not in (WHOLE_SUBSET, f"first{self.limit}")
        if self.limit is not None and not is_part:  # only the first stimuli must have a caption
            stimuli = stimuli[: self.limit]
            captions = captions[captions["stimulus_id"].map(id_key).isin([id_key(stimulus) for stimulus in stimuli])]
            ids = captions["stimulus_id"].tolist()
        places = places_of(stimuli, ids, self.source, self.dataset_name, is_part)
        if places != list(range(len(ids))):
            logger.info(f"{self.captions}: rows are sorted in the order of {self.dataset_name}")
        ordered = captions.iloc[places].reset_index(drop=True)
        if self.limit is not None:
            ordered = table.first(ordered, self.limit)
        ordered.attrs = attrs
        return ordered

    def _stimuli_of_dataset(self, ids: list[int] | list[str]) -> Sequence[int] | Sequence[str]:
        """Return the ids of the whole dataset in its order, from the best available source.

        The sources are its index, its known ids, the features in the output folder, and the ids of the captions, which
        are sorted if they are numbers of a known dataset.
        """
        if self.dataset_name in DATASETS:
            dataset = DATASETS[self.dataset_name]
            if dataset.has_root(self.root):
                stimuli: list[Any] = load_dataset(self.dataset_name, self.root)["stimulus_id"].tolist()
                return stimuli
            if dataset.ids is not None:
                return dataset.ids
        elif self.root is not None:
            raise InputError(f"data.root: data.dataset {self.dataset_name!r} is not one of {', '.join(DATASETS)}")
        in_folder = self.connection.ids_in_folder
        if {id_key(stimulus) for stimulus in ids} == {id_key(stimulus) for stimulus in in_folder}:
            return in_folder
        numbers = [stimulus for stimulus in ids if isinstance(stimulus, int)]
        return sorted(numbers) if self.dataset_name in DATASETS and len(numbers) == len(ids) else ids

    @cached_property
    def input_states(self) -> NDArray[np.int64]:
        """UTF-8 bytes of the captions of each row, and 0 in place of a time (N, 2)."""
        sizes = [sum(len(text.encode()) for text in texts) for texts in self._texts]
        return np.array([(size, 0) for size in sizes], dtype=np.int64)

    @cached_property
    def _texts(self) -> list[list[str]]:
        """The used captions of each row."""
        return [texts if self.captions_used == "all" else texts[:1] for texts in self.stimuli["captions"]]

    @cached_property
    def _tokens(self) -> Tokens:
        """Token ids of all captions."""
        texts = list(chain.from_iterable(self._texts))
        stimuli = self.stimuli["stimulus_id"].tolist()
        ids = [stimulus for stimulus, of_row in zip(stimuli, self._texts, strict=True) for _ in of_row]
        settings = self.preprocessing
        tokenizer = load_tokenizer(settings["tokenizer"], settings["source"], settings["options"])
        prefix, n_after = settings.get("prefix", ""), settings.get("tokens_after", 0)
        captions = tokenizer.encode([prefix + text for text in texts])
        for text, caption in zip(texts[: self.show_tokens], captions, strict=False):
            pieces = zip(caption, tokenizer.token_texts(caption), strict=True)
            shown = " ".join(f"{token}|{piece}" for token, piece in pieces)
            logger.info(f"{text!r} has {counted(len(caption), 'token')}: {shown}")
        if empty := [shorten(str(stimulus)) for stimulus, caption in zip(ids, captions, strict=True) if not caption]:
            raise InputError(f"data.captions: the tokenizer finds no token in the caption of {name_some(empty)}")
        length = self._check_lengths(captions, ids)
        are_special = None
        if "special" in settings.get("exclude", ()):
            are_special = [_cut(marks, length, n_after) for marks in tokenizer.are_special([prefix + x for x in texts])]
        captions = [_cut(caption, length, n_after) for caption in captions]
        starts = np.cumsum([0, *map(len, captions)], dtype=np.int64)
        return Tokens(
            np.fromiter(chain.from_iterable(captions), np.int32, int(starts[-1])),
            starts,
            np.cumsum([0, *map(len, self._texts)], dtype=np.int64),
            np.array([len(text.encode()) for text in texts], dtype=np.int64),
            pooled_tokens(captions, are_special, tokenizer.bos_id, settings, ids),
        )

    @cached_property
    def contents(self) -> NDArray[np.int64]:
        """A hash of the caption tokens of each row (N,); never 0, which means unknown."""
        tokens = self._tokens
        by_row = ([bytes(tokens.ids[span]) for span in tokens.spans_of(row)] for row in range(len(self._texts)))
        parts = map(b"\xff\xff\xff\xff".join, by_row)
        digests = b"".join(hashlib.blake2b(part, digest_size=8).digest() for part in parts)
        return np.frombuffer(digests, "<i8") | 1

    def changed(self, recorded: NDArray[np.int64], rows: NDArray[np.bool_]) -> list[int]:
        """Return the rows whose caption tokens have changed, or whose size has if the old tokens are unknown."""
        known, sizes = recorded[:, CONTENT], recorded[:, SIZE]
        others = np.where(known != 0, known != self.contents, sizes != self.input_bytes)
        found: list[int] = np.flatnonzero(rows & others).tolist()
        return found

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row: of its caption; or, for several, of its longest one times the most captions of a row."""
        tokens = self._tokens
        pad_to = self.preprocessing.get("pad_to")
        of_captions = np.maximum(np.diff(tokens.starts), pad_to or 0)
        longest = np.maximum.reduceat(of_captions, tokens.rows[:-1])
        lengths: list[int] = (longest * np.diff(tokens.rows).max()).tolist()
        return lengths

    @property
    def tokens_a_row(self) -> int:
        """Average number of tokens of a row."""
        return math.ceil(np.mean(self.lengths))

    @property
    def longest(self) -> int | None:  # type: ignore[override]
        """Tokens of the longest caption; None if a row may have several captions."""
        return None if self.captions_used == "all" else int(np.diff(self._tokens.starts).max())

    def setup(self, stage: str | None = None) -> None:
        """Load and tokenize the captions, once."""
        super().setup(stage)
        _ = self._tokens

    @property
    def tokens_a_batch(self) -> int:
        """The token budget: as given, as recorded by the run to resume, or the default of the device."""
        recorded = self.connection.recorded.get("token_budget")
        known = self.token_budget or (recorded if isinstance(recorded, int) and recorded > 0 else None)
        return known or (TOKENS_ON_GPU if self.connection.on_gpu else TOKENS_ON_CPU)

    def plan_all(self) -> Plan:
        """Return a plan with captions of similar length in a batch."""
        n_rows = len(self.lengths)
        return Plan(n_rows, self.rows_a_shard(n_rows), self.tokens_a_batch, self.lengths)

    def provenance(self) -> dict[str, Any]:
        """Return everything about the captions that determines the numbers.

        The hash of the tokens covers the text, the tokenizer, its version and truncation.
        """
        identity = hashlib.sha256()
        tokens, several = self._tokens, self.captions_used == "all"
        parts: list[NDArray[Any]] = [tokens.ids, tokens.starts, *([tokens.rows] if several else [])]
        for part in parts:
            identity.update(part.tobytes())
        identity.update("\0".join(map(str, self.stimuli["stimulus_id"])).encode())
        return {
            **super().provenance(),
            "subset": self.subset,
            "prompt_name": self.prompt_name,
            CAPTIONS: identity.hexdigest(),
            "truncate": self.truncate,
            **({"captions_used": "all"} if several else {}),
            "token_budget": self.plan.batch_size,
            "transformers": version("transformers"),
        }

    def batches_of(self, batches: Sequence[Sequence[int]]) -> TokenBatches:
        """Return tokens padded on the right."""
        inputs = np.zeros((len(self.lengths), len(INPUT_COLUMNS)), dtype=np.int64)
        inputs[:, SIZE], inputs[:, CONTENT] = self.input_bytes, self.contents
        settings = self.preprocessing
        return TokenBatches(self._tokens, inputs, batches, settings.get("pad_id", 0), settings.get("pad_to"))

    def _check_lengths(self, captions: list[list[int]], ids: list[Any]) -> int | None:
        """Return the number of tokens to which captions are cut; None if no caption is cut."""
        context: int | None = self.preprocessing["context"]
        too_long = [row for row, caption in enumerate(captions) if context is not None and len(caption) > context]
        if not too_long:
            return None
        named = name_some([f"{ids[row]} ({len(captions[row])} tokens)" for row in too_long])
        if not self.truncate:
            raise InputError(
                f"data.captions: longer than the model's context of {context} tokens: {named}; shorten them, "
                "leave them out with data.query, or pass --data.truncate true"
            )
        logger.info(f"truncated to {context} tokens: {named}")
        return context


def _cut(caption: list[Any], length: int | None, n_after: int) -> list[Any]:
    """Cut a list with one item per token to a length; the last ``n_after`` items, of special tokens, stay."""
    if length is None or len(caption) <= length:
        return caption
    return [*caption[: length - n_after], *caption[len(caption) - n_after :]]
