"""The base of all extractors: settings from models.yml, weights, and batches that do not fit in memory.

B batch, P poolings, W numbers of a row: all its layers, one after the other.
"""

import logging
import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_extract.common.errors import InputError, counted
from lit_extract.common.host import host_memory
from lit_extract.common.timing import stopwatch
from lit_extract.common.untrusted import expanded_path, shorten
from lit_extract.modules.hub import COMMIT, hub_commit
from lit_extract.modules.registry import find_model, own_name
from lit_extract.modules.room import check_room, free_memory, is_streamed, rows_of_a_pass, where_it_runs
from lit_extract.modules.streaming import StreamedBlocks, call_each
from lit_extract.modules.weights import default_float32, path_sha256
from lit_extract.storage.layout import FLOAT32, NUMBER_BYTES, ROW_OF

logger = logging.getLogger(__name__)


def _with_home(checkpoint: str | None) -> str | None:
    """Return a checkpoint, a path or a repository on the hub, with ``~`` replaced by the home."""
    if checkpoint is None or not checkpoint.startswith("~"):
        return checkpoint
    return str(expanded_path(checkpoint, "model.checkpoint"))


class Predictor(LightningModule):
    """A model that ``lit-extract predict`` runs; the data module uses its preprocessing."""

    preprocessing: dict[str, Any]
    inputs: Sequence[str] = ()  # keys of a batch that are needed on the device


class Extractor(Predictor):
    """A backbone, hooks on its layers, and pooling.

    Constructors only read configurations and refuse wrong settings; weights are loaded in ``configure_model``, when a
    run starts.
    """

    kind: ClassVar[str]
    copies_while_loading: ClassVar[int] = 0  # float32 copies of the weights on the host; 0: they go from file to device
    checkpoint_on_hub: ClassVar[bool] = False  # a checkpoint may be a repository
    rows_a_pass: ClassVar[int | None] = None  # None: a whole batch
    rows_a_pass_on_cpu: ClassVar[int | None] = None  # more do not fit in the caches; None: a whole batch
    constant_bytes: int = 0  # held by a pass, however few its rows are
    file_suffix: str = ""  # added to the name of a features file
    extras: Mapping[str, str] = MappingProxyType({})  # per-row outputs besides the features, with their dtype

    notes: Mapping[str, str] = MappingProxyType({})  # for the metadata of the features

    # set by the constructors of the subclasses
    layers: list[str]
    layer_shapes: list[tuple[int, ...]]  # of one row in each layer, with any pooling, such as (768,)
    pools: Sequence[str]
    dtype_written: str  # of the features
    makes_files: bool = True  # from the store when all rows are done, unless the user decides otherwise
    num_params: int

    # for models whose weights may stay on disk
    stream: bool | None = False  # None: if the weights do not fit in memory
    block_params: Sequence[int] = ()  # parameters of each block; empty: the blocks can't be streamed
    streamed: StreamedBlocks | None = None  # set when the model is loaded
    _is_streamed: bool | None = None

    def __init__(
        self,
        name: str,
        untrained: bool,
        seed: int,
        checkpoint: str | None,
        revision: str | None,
        options: dict[str, Any] | None,
        models: str | None,
        dtype: str = FLOAT32,
    ) -> None:
        super().__init__()
        check_seed(seed)
        if dtype not in NUMBER_BYTES:
            raise InputError(f"model.dtype: {dtype!r} must be one of {', '.join(NUMBER_BYTES)}")
        self.dtype_written = dtype
        entry = find_model(self.kind, name, models)
        self.model_name, self.untrained, self.seed = own_name(name), untrained, seed
        self.checkpoint, self.revision = _with_home(checkpoint), revision
        if entry and not checkpoint:
            # A revision belongs to a repository: if one is given, local weights of the entry are not used.
            theirs = _with_home(entry.checkpoint)
            is_local = not self.checkpoint_on_hub or (theirs and Path(theirs).exists())
            self.checkpoint = None if revision and is_local else theirs
            self.revision = revision or entry.revision
        self.options: dict[str, Any] = {**(entry.options if entry else {}), **(options or {})}
        self._largest_batch: int | None = None  # most rows that fitted in the device's memory in one forward pass
        self._batches_at_once: int | None = None

    @abstractmethod
    def activations(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn inputs of B rows into ``feats`` (B, P, W) float32 and the extras (B,), on the device."""

    @property
    def n_numbers(self) -> int:
        """Return the number of values in all layers of a row."""
        return sum(map(math.prod, self.layer_shapes))

    @property
    def row_bytes(self) -> int:
        """Return the bytes that one pooling of a row takes when it is written."""
        return self.n_numbers * NUMBER_BYTES[self.dtype_written]

    def take_longest(self, n_tokens: int | None) -> None:
        """Take the length of the longest caption in tokens: 0 for images, None if a row may have several captions."""

    @abstractmethod
    def numbers_a_row(self, n_tokens: int) -> int:
        """Estimate the numbers that a forward pass holds at once for a row; for images, ``n_tokens`` is not used."""

    @abstractmethod
    def input_bytes(self, n_tokens: int) -> int:
        """Return the bytes of a row's inputs."""

    def numbers_between_blocks(self, n_tokens: int) -> int:
        """Estimate the numbers that a row holds while it waits for the next block, as in :meth:`numbers_a_row`."""
        raise NotImplementedError

    def tokens_a_row(self, n_tokens: int) -> int:
        """Return the number of tokens that go through a block for a row with ``n_tokens`` input tokens."""
        return n_tokens

    def note_blocks(self, blocks: Iterable[nn.Module]) -> None:
        """Note the sizes of a model's blocks, so they can be streamed."""
        self.block_params = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]

    def is_streamed(self, trainer: Trainer | None) -> bool:
        """Return whether the blocks are streamed from disk in this process; the first answer is kept.

        Raises:
            InputError: The blocks can't be streamed, or do not fit in memory even then.
        """
        if self._is_streamed is None:
            dtype, device, sharing = where_it_runs(trainer)
            free = free_memory(device) // sharing
            if is_streamed(self, dtype, free):
                check_room(self, dtype, free)
                self._is_streamed = True
            else:
                self._is_streamed = False
        return self._is_streamed

    def pass_rows(self, trainer: Trainer, n_tokens: int) -> int | None:
        """Return how many rows of ``n_tokens`` pass streamed blocks together; None if the model is not streamed."""
        if not self.is_streamed(trainer):
            return None
        dtype, device, sharing = where_it_runs(trainer)
        free = free_memory(device) // sharing
        return rows_of_a_pass(self, dtype, device.type == "cuda", free, host_memory() // sharing, n_tokens)

    @property
    @abstractmethod
    def loaded(self) -> nn.Module | None:
        """The backbone with its weights, once it is loaded."""

    def loaded_backbone(self, trainer: Trainer) -> nn.Module:
        """Return the backbone with weights in the Trainer's precision; load it if that was not done."""
        if self.loaded is None:
            self.trainer = trainer
            self.configure_model()
            trainer.precision_plugin.convert_module(self)
        assert self.loaded is not None
        return self.loaded

    @abstractmethod
    def weights_source(self) -> tuple[str, Sequence[str]]:
        """Return the repository on the hub, and files of which a cached repository has at least one."""

    @abstractmethod
    def local_checkpoint(self) -> str | None:
        """Return the file or folder of local weights; None if the weights come from the hub."""

    @cached_property
    def commit(self) -> str:
        """The commit on the hub that the weights come from."""
        repository, files = self.weights_source()
        return hub_commit(repository, self.revision, files)

    def use_commit_of(self, recorded: Mapping[str, Any]) -> None:
        """Use the commit that an earlier run recorded, when no revision is given.

        A commit that only changes the model card moves the main branch, but not the weights.

        Args:
            recorded: Provenance of the run to resume; may be empty.
        """
        if self.revision is None and not self.untrained and not self.local_checkpoint():
            commit = recorded.get("revision")
            is_commit = isinstance(commit, str) and re.fullmatch(COMMIT, commit) is not None
            if is_commit and recorded.get("weights") == f"hub:{self.weights_source()[0]}":
                self.commit = str(commit)

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model that determines the numbers."""
        known: dict[str, Any] = {"model": self.model_name, "options": self.options, "layers": self.layers}
        known |= {"dtype": self.dtype_written} if self.dtype_written != FLOAT32 else {}
        if self.untrained:
            return {**known, "weights": "untrained", "seed": self.seed}
        if local := self.local_checkpoint():
            return {**known, "weights": "checkpoint", "checkpoint_sha256": path_sha256(local)}
        return {**known, "weights": f"hub:{self.weights_source()[0]}", "revision": self.commit}

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        """Return the pooled activations of a batch, or of each of several batches that pass streamed blocks together.

        Args:
            batch: ``index`` (B,) and ``bad`` (B,) on the host, and the ``inputs`` of this extractor on the device; or a
                list of such batches.
            batch_idx: Not used; the index travels in the batch.

        Returns:
            On the host: ``index`` (B,), ``feats`` with (B, W) for each pooling, in the data type of the written
            features, ``bad`` (B,), the extras (B,), and ``arrived``: from a GPU, an event to wait for before reading
            any of the others; else None. For several batches, a list of these.
        """
        batches = batch if isinstance(batch, list) else [batch]
        # backbones make tensors of the default type, which bf16-true sets to bf16
        with stopwatch("forward"), default_float32():
            outputs = self.compute([{name: one[name] for name in self.inputs} for one in batches])
        predictions = [self._to_prediction(one, outputs.pop(0)) for one in batches]
        return predictions if isinstance(batch, list) else predictions[0]

    def _to_prediction(self, batch: dict[str, Any], outputs: dict[str, Tensor]) -> dict[str, Any]:
        """Return the prediction of a batch, on its way to the host."""
        outputs = by_row(outputs, batch[ROW_OF]) if ROW_OF in batch else outputs
        if batch["bad"].any():
            outputs["feats"][batch["bad"].to(outputs["feats"].device)] = torch.nan
        outputs["feats"] = outputs["feats"].to(getattr(torch, self.dtype_written))
        with stopwatch("to the host"):
            host, arrived = _to_host(outputs)
        feats = host.pop("feats")
        by_pool = {pool: feats[:, place] for place, pool in enumerate(self.pools)}
        return {"index": batch["index"], "feats": by_pool, "bad": batch["bad"], **host, "arrived": arrived}

    def compute(self, batches: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return :meth:`activations` of each batch of inputs.

        When the device is out of memory, a large batch is computed in parts, and fewer batches pass streamed blocks at
        once; the size that fitted is remembered.
        """
        at_once = self._batches_at_once or len(batches)
        if at_once < len(batches):
            groups = [batches[first : first + at_once] for first in range(0, len(batches), at_once)]
            return [outputs for group in groups for outputs in self.compute(group)]
        rows = max(len(inputs[self.inputs[0]]) for inputs in batches)
        on_cpu = batches[0][self.inputs[0]].device.type == "cpu"
        limit = min(rows, self._largest_batch or (self.rows_a_pass_on_cpu if on_cpu else None) or rows)
        try:
            return self._compute_in_parts(batches, limit)
        except torch.OutOfMemoryError:
            if limit == 1 and len(batches) == 1:
                raise
        # Outside the except block: the exception would keep the activations of the failed pass alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._largest_batch is None and self._batches_at_once is None:
            n_rows = sum(len(inputs[self.inputs[0]]) for inputs in batches)
            logger.warning(
                f"{counted(n_rows, 'row does', 'rows do')} not fit in the device's memory; "
                "continuing with fewer at once (a smaller batch size avoids this)"
            )
        if len(batches) > 1:
            self._batches_at_once = -(-len(batches) // 2)
        else:
            self._largest_batch = -(-limit // 2)
        return self.compute(batches)

    def _compute_in_parts(self, batches: Sequence[dict[str, Tensor]], limit: int) -> list[dict[str, Tensor]]:
        """Return the activations of each batch of inputs, with at most ``limit`` rows per forward pass."""
        counts = [-(-len(inputs[self.inputs[0]]) // limit) for inputs in batches]
        calls = [
            partial(self.activations, {name: tensor[k * limit : (k + 1) * limit] for name, tensor in inputs.items()})
            for inputs, count in zip(batches, counts, strict=True)
            for k in range(count)
        ]
        outputs = call_each(calls) if self.streamed is None else self.streamed.run(calls)
        together = []
        for count in counts:
            parts, outputs = outputs[:count], outputs[count:]
            if count > 1:
                parts = [{name: torch.cat([part[name] for part in parts]) for name in parts[0]}]
            together += parts
        return together


def by_row(outputs: dict[str, Tensor], row_of: Tensor) -> dict[str, Tensor]:
    """Combine the outputs of several inputs of a row: means of numbers that are not NaN, and sums of counts.

    Outputs have one item for each of C inputs; ``row_of`` (C,) gives their rows, in ascending order without gaps.
    """
    sizes = torch.bincount(row_of).tolist()

    def together(parts: tuple[Tensor, ...]) -> Tensor:
        if not parts[0].is_floating_point():
            return torch.stack([part.sum(dim=0) for part in parts])
        return torch.stack([part.mean(dim=0) if part.ndim > 1 else part.nanmean(dim=0) for part in parts])

    return {name: together(torch.split(values, sizes)) for name, values in outputs.items()}


def check_seed(seed: int) -> None:
    """Raise InputError unless torch takes a seed."""
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"model.seed: {shorten(seed)} must be a 64-bit integer")


def _to_host(outputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """Send outputs to the host while the device computes on; return them, and an event that marks their arrival."""
    if not any(output.is_cuda for output in outputs.values()):
        return {name: output.cpu() for name, output in outputs.items()}, None
    host = {name: output.to("cpu", non_blocking=True) for name, output in outputs.items()}  # into pinned memory
    arrived: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return host, arrived
