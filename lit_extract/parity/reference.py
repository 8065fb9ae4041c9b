"""Compute features in an independent way: one stimulus at a time, in float32, without the code that made the file.

Our hooks, pooling, decoding, normalization and batching are not used: timm and transformers give the layers themselves,
and the few lines of pooling here are written for one stimulus. Only the code that builds weights is shared, so that a
seed means the same model in both.

K stimuli, L layers.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.host import host_memory
from lit_extract.common.untrusted import shorten
from lit_extract.modules.weights import path_sha256
from lit_extract.parity.certificate import RebuildSettings
from lit_extract.parity.provenance_form import check_provenance
from lit_extract.storage.features import Features
from lit_extract.storage.layout import Shape
from lit_extract.storage.tensors import pad_layers


@dataclass(frozen=True)
class Recomputed:
    """Some stimuli, computed again: ``feats`` is float64, padded as by :meth:`Features.padded`.

    ``rounded`` is the same in the precision of the run, unless that is float32. ``losses`` are ``loss`` and ``bpb``,
    (K,) float64 each, for captions if the file has them.
    """

    feats: Tensor
    rounded: Tensor | None
    losses: dict[str, Tensor]
    layer_shapes: list[Shape]
    num_params: int

    def kept_as(self, dtype: str) -> "Recomputed":
        """Return the same, rounded to the data type of a features file."""
        kept = [
            None if feats is None else feats.to(getattr(torch, dtype)).double() for feats in (self.feats, self.rounded)
        ]
        assert kept[0] is not None
        return replace(self, feats=kept[0], rounded=kept[1])


class Reference(ABC):
    """A model and its stimuli, rebuilt from the provenance of a features file; InputError where that differs."""

    way: str  # the interface from which the layers come
    packages: tuple[str, ...]
    remarks: Sequence[str] = ()  # on things that are allowed but should be known

    def __init__(self, features: Features, settings: RebuildSettings) -> None:
        check_provenance(features.provenance, features.layers, settings)
        self.provenance, self.layers, self.settings = features.provenance, features.layers, settings
        self.device = _pick(settings.device)
        self.check_stimuli(features.stimulus_ids, features.metadata.get("n_bytes_sha256"))
        if self.device == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # real float32, also in convolutions
        self.model: Any = self.build().eval().requires_grad_(False).to(self.device)

    @abstractmethod
    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """Find the stimuli and check that they are those of the file."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the model with its weights, in float32."""

    @abstractmethod
    def compute(self, row: int) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
        """Return the layers of a stimulus, and its ``loss`` and ``bpb`` if the file has them, on the device."""

    @abstractmethod
    def cast(self) -> None:
        """Change the weights to bf16."""

    def recompute(self, rows: list[int]) -> Recomputed:
        """Compute K stimuli in float32, then in the precision of the run, which gives the error of that precision."""
        computed = [self._compute_on_host(row) for row in rows]
        layer_shapes = [tuple(layer.shape) for layer in computed[0][0]]
        losses = {name: torch.stack([of_row[name] for _, of_row in computed]).double() for name in computed[0][1]}
        rounded, precision = None, self.provenance["precision"]
        if precision != "32-true":
            if precision == "bf16-true":
                self.cast()
            is_mixed = precision == "bf16-mixed"
            rounded = _padded([self._compute_on_host(row, is_mixed)[0] for row in rows], layer_shapes)
        num_params = sum(parameter.numel() for parameter in self.model.parameters())
        feats = _padded([layers for layers, _ in computed], layer_shapes)
        return Recomputed(feats, rounded, losses, layer_shapes, num_params)

    def _compute_on_host(self, row: int, is_mixed: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
        autocast = torch.autocast(self.device, torch.bfloat16) if is_mixed else nullcontext()
        try:
            with torch.inference_mode(), autocast:
                layers, losses = self.compute(row)
                on_host = {name: value.float().cpu() for name, value in losses.items()}
                return [layer.float().cpu() for layer in layers], on_host
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # from a model that can't have made the file, or from an image
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"parity: the stimulus of row {row} can't be computed: {reason}") from error

    def checkpoint(self) -> str:
        """Return the path of the local weights, if they are those of the file."""
        expected, path = self.provenance["checkpoint_sha256"], self.settings.checkpoint
        if path is None or not Path(path).exists():
            what = f"no file {path!r}" if path else "missing; pass --checkpoint PATH"
            raise InputError(f"checkpoint: {what}; the file was made with local weights with SHA-256 {expected}")
        if (found := path_sha256(path)) != expected:
            raise InputError(f"checkpoint: {path!r} has SHA-256 {found}; the weights of the file had {expected}")
        return path


def _padded(rows: Sequence[Sequence[Tensor]], layer_shapes: Sequence[Shape]) -> Tensor:
    """Return the layers of K rows, flattened and padded (K, L, size of the widest layer), float64."""
    numbers = torch.stack([torch.cat([layer.flatten() for layer in layers]) for layers in rows])
    return pad_layers(numbers, layer_shapes).double()


def _pick(device: str | None) -> str:
    has_gpu = torch.cuda.is_available()
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not has_gpu):
        raise InputError(f"device: {device!r} must be cpu{' or cuda' if has_gpu else ', as there is no GPU here'}")
    return device or ("cuda" if has_gpu else "cpu")


def check_memory(skeleton: nn.Module) -> None:
    """Raise InputError unless the host has enough memory for a model in float32; ``skeleton`` has no weights."""
    needed, there = 4 * sum(parameter.numel() for parameter in skeleton.parameters()), host_memory()
    if needed > there:
        raise InputError(
            f"parity: in float32 the model needs {as_size(needed)}, more than the {as_size(there)} of memory"
        )


def check_sizes(expected: str | None, sizes: list[int]) -> None:
    """Raise InputError unless the inputs have the sizes that they had in the run."""
    found = hashlib.sha256(np.array(sizes, "<i8").tobytes()).hexdigest()
    if expected is not None and found != expected:
        raise InputError("stimuli have changed since the file was made: some have another size; restore them")


def check_same(what: str, expected: Any, found: Any) -> None:
    """Raise InputError unless both are equal."""
    if expected != found:
        expected, found = shorten(expected, 500), shorten(found, 500)
        raise InputError(f"{what}: the file was made with {expected}, here it is {found}")


def no_weights(name: str, source: str, error: Exception) -> InputError:
    """Return the error for whatever another library raises while loading."""
    return InputError(f"{name} can't be loaded from {source!r}: {type(error).__name__}: {one_line(error)}")
