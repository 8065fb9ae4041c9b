"""Caption data module: tokens of all captions ahead, batches by token budget, padding on the right.

B batch, T tokens.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import check_name
from lit_extract.data.base import WHOLE_SUBSET, Batch, StimulusDataModule
from lit_extract.data.plan import default_shard_rows, default_token_budget, plan_token_batches
from lit_extract.data.tokens import load_tokenizer
from lit_extract.datasets import DATASETS, load_captions, load_dataset
from lit_extract.datasets.ids import id_key
from lit_extract.datasets.matching import places_of

logger = logging.getLogger(__name__)


class TokenBatches(Dataset[Batch]):
    """A dataset whose items are the batches of a plan.

    Args:
        tokens: Token ids of all captions, one behind the other.
        starts: Where each caption begins; one more than there are captions.
        n_bytes: UTF-8 bytes of each caption.
        batches: Global row indices of each batch.
    """

    def __init__(
        self, tokens: NDArray[np.int32], starts: NDArray[np.int64], n_bytes: NDArray[np.int64], batches: list[list[int]]
    ) -> None:
        self.tokens, self.starts, self.n_bytes, self.batches = tokens, starts, n_bytes, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> Batch:
        """The batch: ``index`` (B,), ``input_ids`` and ``attention_mask`` (B, T), ``n_bytes`` (B,), ``bad`` (B,)."""
        rows = self.batches[item]
        captions = [self.tokens[self.starts[row] : self.starts[row + 1]] for row in rows]
        # Padding is on the right and never attended to, so any token of the vocabulary does.
        input_ids = torch.zeros(len(rows), max(map(len, captions)), dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for place, caption in enumerate(captions):
            input_ids[place, : len(caption)] = torch.from_numpy(caption)
            mask[place, : len(caption)] = 1
        return {
            "index": torch.tensor(rows),
            "input_ids": input_ids,
            "attention_mask": mask,
            "n_bytes": torch.from_numpy(self.n_bytes[rows]),
            "bad": torch.zeros(len(rows), dtype=torch.bool),
        }


class CaptionDataModule(StimulusDataModule):
    """The captions of a file, as tokens of the model, in whole batches, in the order of their dataset.

    Args:
        captions: CSV or Parquet with a column caption, or captions (several separated by ";", of which
            the first counts), and an id column: nsd_id, bold_id, things_id, demo_id, path (of a folder of images) or
            stimulus_id.
        dataset: Name of the dataset the captions are of; names the output folder.
        root: Folder of the dataset, whose index gives the order of the rows; default: the dataset's environment
            variable. Without either, what is known of the dataset and the features in the output folder do.
        prompt_name: Name of the captions, such as "coco"; goes into the name of the features file.
        query: pandas query that chooses captions, such as "nsd_id < 1000"; needs a subset name of its own.
        subset: Name of the chosen rows; names the output folder.
        token_budget: Tokens a forward pass at most, padding included. Default: that of the run that this one
            resumes, else 2,048 on a CPU and 16,384 on a GPU. A batch that does not fit is split.
        shard_rows: Captions a shard, the unit of writing and resuming. Default: about 128 MB of
            activations, at most 2,048 captions.
        truncate: Cut captions that are longer than the model's context, which is recorded, instead of
            refusing them.
        show_tokens: Print so many of the first captions as the model sees them.
        num_workers: Processes that put batches together; default none, as the tokens are in memory.
        preprocessing: Tokenizer and context length; linked from the model.
    """

    unit = "captions"

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
    ) -> None:
        super().__init__(query, subset, shard_rows, num_workers, preprocessing)
        for setting, value in (("token_budget", token_budget), ("shard_rows", shard_rows)):
            if value is not None and value < 1:
                raise InputError(f"data.{setting}: {value} must be 1 or more")
        if captions is not None and prompt_name is None:
            raise InputError("data.prompt_name: not given; it names the captions in the name of the features file")
        for setting, name in (("dataset", dataset), ("prompt_name", "none" if prompt_name is None else prompt_name)):
            if not name or not all(letter.isalnum() or letter in "._+-" for letter in name) or name.startswith("."):
                raise InputError(f"data.{setting}: {name!r} names files: use letters, digits and ._+-")
            check_name(name, f"data.{setting}")
        self.captions, self.dataset_name, self.root, self.prompt_name = captions, dataset, root, prompt_name
        self.token_budget, self.truncate, self.show_tokens = token_budget, truncate, show_tokens
        self.tokens_a_batch = token_budget  # as given, adopted or chosen

    @property
    def source(self) -> str:
        """The caption file."""
        return f"data.captions: {self.captions!r}"

    @property
    def file_suffix(self) -> str:
        """The captions' name, in the name of a features file."""
        return f"_prompt-{self.prompt_name}"

    def read_table(self) -> pd.DataFrame:
        """The captions of the file, in the order of the dataset.

        Raises:
            InputError: There is none, anything is wrong with it, or its stimuli are not those of the dataset.
        """
        if self.captions is None:
            raise InputError("data.captions: not given; give --data.captions FILE and --data.prompt_name NAME")
        captions = load_captions(self.captions, self.query)
        self._check_dataset(list(captions.columns))
        ids = captions["stimulus_id"].tolist()
        places = places_of(
            self._stimuli_of_dataset(ids), ids, self.source, self.dataset_name, self.subset != WHOLE_SUBSET
        )
        if places != list(range(len(ids))):
            logger.info(f"{self.captions}: rows are put in the order of {self.dataset_name}")
        ordered = captions.iloc[places].reset_index(drop=True)
        ordered.attrs = captions.attrs
        return ordered

    def _stimuli_of_dataset(self, ids: list[int] | list[str]) -> Sequence[int] | Sequence[str]:
        """Ids of the whole dataset in its order, from the best there is.

        Its index, else what is known of it, else the features in the output folder, else the captions' own ids, which
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
        if {id_key(stimulus) for stimulus in ids} == {id_key(stimulus) for stimulus in self.ids_in_folder}:
            return self.ids_in_folder
        numbers = [stimulus for stimulus in ids if isinstance(stimulus, int)]
        return sorted(numbers) if self.dataset_name in DATASETS and len(numbers) == len(ids) else ids

    def setup(self, stage: str | None = None) -> None:
        """Load and tokenize the captions, once."""
        if self.stimuli is not None:
            return
        assert self.preprocessing is not None, "data.preprocessing is the model's"
        stimuli = self.read_table()
        texts = stimuli["caption"].tolist()
        settings = self.preprocessing
        tokenizer = load_tokenizer(settings["tokenizer"], settings["source"], settings["options"])
        captions = tokenizer.encode(texts)
        for text, caption in zip(texts[: self.show_tokens], captions, strict=False):
            shown = " ".join(
                f"{token}|{piece}" for token, piece in zip(caption, tokenizer.token_texts(caption), strict=True)
            )
            logger.info(f"{text!r} has {len(caption)} tokens: {shown}")
        if empty := [str(row) for row, caption in enumerate(captions) if not caption]:
            raise InputError(f"data.captions: the tokenizer makes no token of the captions in row {name_some(empty)}")
        captions = self._fit(captions, settings["context"], stimuli["stimulus_id"].tolist())
        if settings["exclude_bos"]:
            _check_bos(captions, tokenizer.bos_id, settings["exclude_bos"], stimuli["stimulus_id"].tolist())
        _warn_of_bos(captions, tokenizer.bos_id, settings.get("bos_id"))
        self.lengths = [len(caption) for caption in captions]
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self._tokens = np.fromiter(
            (token for caption in captions for token in caption), np.int32, int(self._starts[-1])
        )
        self.n_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        self.stimuli = stimuli

    def cut_shards(self, row_bytes: int) -> None:
        """Fix the rows a shard; another job, another budget, unless it is given."""
        super().cut_shards(row_bytes)
        self.tokens_a_batch = self.token_budget

    @property
    def is_settled(self) -> bool:
        """Whether the token budget is known."""
        return self.tokens_a_batch is not None

    def adopt(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Take the token budget."""
        if self.is_settled or "token_budget" not in recorded:
            return {}
        self.tokens_a_batch = recorded["token_budget"]
        return {"token_budget": self.tokens_a_batch}

    def choose(self, on_gpu: bool) -> dict[str, Any]:
        """Choose the token budget."""
        if self.is_settled:
            return {}
        self.tokens_a_batch = default_token_budget(on_gpu)
        return {"token_budget": self.tokens_a_batch}

    def default_shard_rows(self, row_bytes: int) -> int:
        """Captions of about 128 MB."""
        return default_shard_rows(len(self.lengths), 1, row_bytes)

    def provenance(self) -> dict[str, Any]:
        """What about the captions changes the numbers; :meth:`setup` must have run.

        The hash of the tokens stands for the text, the tokenizer, its version and truncation at once.
        """
        assert self.stimuli is not None
        identity = hashlib.sha256(self._tokens.tobytes() + self._starts.tobytes())
        identity.update("\0".join(map(str, self.stimuli["stimulus_id"])).encode())
        return {
            "dataset": self.dataset_name,
            "subset": self.subset,
            "query": self.query,
            "prompt_name": self.prompt_name,
            "n_stimuli": len(self.stimuli),
            "tokens_sha256": identity.hexdigest(),
            "truncate": self.truncate,
            "token_budget": self.tokens_a_batch,
            "shard_rows": self.rows_a_shard,
            **{package: version(package) for package in ("transformers",)},
        }

    def plan(self, rank: int, world_size: int) -> list[list[int]]:
        """Captions of like length together."""
        shard_rows = self.rows_a_shard or self.shard_rows or len(self.lengths)
        token_budget = self.tokens_a_batch or default_token_budget(on_gpu=False)
        return plan_token_batches(self.lengths, shard_rows, token_budget, self.done_shards, rank, world_size)

    def batches_of(self, plan: list[list[int]]) -> TokenBatches:
        """Tokens padded on the right."""
        return TokenBatches(self._tokens, self._starts, self.n_bytes, plan)

    def workers(self, on_gpu: bool, world_size: int) -> int:
        """None: a batch is put together in less time than it takes to hand it over."""
        return 0

    def _check_dataset(self, columns: list[str]) -> None:
        """The ids of one known dataset are not those of another."""
        wanted = DATASETS[self.dataset_name].id_column if self.dataset_name in DATASETS else None
        if wanted is not None and wanted not in columns:
            raise InputError(
                f"data.captions: {self.captions!r} has no column {wanted}, which captions of data.dataset "
                f"{self.dataset_name!r} need; it has {', '.join(columns)}"
            )

    def _fit(self, captions: list[list[int]], context: int | None, ids: list[Any]) -> list[list[int]]:
        too_long = [row for row, caption in enumerate(captions) if context is not None and len(caption) > context]
        if not too_long:
            return captions
        named = name_some([f"{ids[row]} ({len(captions[row])} tokens)" for row in too_long])
        if not self.truncate:
            raise InputError(
                f"data.captions: longer than the model's context of {context} tokens: {named}; shorten them, "
                "leave them out with data.query, or pass --data.truncate true"
            )
        logger.info(f"truncated to {context} tokens: {named}")
        return [caption[:context] for caption in captions]


def _check_bos(captions: list[list[int]], bos_id: int | None, exclude_bos: bool | str, ids: list[Any]) -> None:
    """Leaving the first token out must leave out the one that was meant, and something to average."""
    if exclude_bos is True and (bos_id is None or any(caption[0] != bos_id for caption in captions)):
        raise InputError(
            "model.exclude_bos is true, but the model's tokenizer does not begin captions with a BOS token; "
            "to leave out the first token whatever it is, pass --model.exclude_bos first"
        )
    if alone := [str(ids[row]) for row, caption in enumerate(captions) if len(caption) < 2]:
        raise InputError(
            f"model.exclude_bos: {exclude_bos!r} leaves nothing to average of captions of one token: "
            f"{name_some(alone)}; leave them out with data.query"
        )


def _warn_of_bos(captions: list[list[int]], bos_id: int | None, expected: int | None) -> None:
    """Say once that the tokenizer leaves out a BOS token that it has and the configuration names.

    Many configurations name a token that is never used: one that also ends texts (GPT-2's), or one that the tokenizer
    does not know as its BOS (Qwen's). These are no reason to warn.
    """
    if expected is not None and bos_id == expected and not any(caption[0] == bos_id for caption in captions):
        logger.warning(
            f"the model's configuration names a BOS token ({bos_id}), but its tokenizer does not put it "
            "before captions; if the model was trained with it, pass --model.options '{add_bos_token: true}'"
        )
