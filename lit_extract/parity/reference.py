"""Features once more by another way: one stimulus at a time, in float32, with nothing of what made the file.

No hooks, pooling, decoding, normalizing or batching of ours: timm and transformers give the layers themselves, and
the few lines of pooling here are written for one stimulus. Only how weights are built is shared, as a seed means the
same model in both.

L layers, T tokens, D hidden size.
"""

import hashlib
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.host import host_memory
from lit_extract.common.untrusted import shorten
from lit_extract.datasets.ids import id_key
from lit_extract.modules.weights import path_sha256
from lit_extract.parity.certificate import Where
from lit_extract.parity.recorded import check_recorded
from lit_extract.storage.features import Features


class Reference(ABC):
    """A model and its stimuli, rebuilt from what a features file says of itself.

    Args:
        features: The file.
        where: What it does not say.

    Raises:
        InputError: Something that the file was made of is not there, or is another.
    """

    way: str  # which interface the layers come from
    packages: tuple[str, ...]

    def __init__(self, features: Features, where: Where) -> None:
        check_recorded(features.provenance, features.layers, where)
        self.provenance, self.layers = features.provenance, features.layers
        self.where, self.device = where, _pick(where.device)
        self.dtype, self.autocast = torch.float32, False
        self.check_stimuli(features.stimulus_ids, features.metadata.get("n_bytes_sha256"))
        if self.device == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions too
        self.model: Any = self.build().eval().requires_grad_(False).to(self.device)
        self.num_params = sum(parameter.numel() for parameter in self.model.parameters())

    @abstractmethod
    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """Find the stimuli and see that they are those of the file."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The model with its weights, float32."""

    @abstractmethod
    def compute(self, row: int) -> dict[str, Tensor]:
        """``feats`` (L, D) of a stimulus, and its ``loss`` and ``bpb`` if the file has them; on the device."""

    def recompute(self, row: int) -> dict[str, Tensor]:
        """:meth:`compute`, without gradients, as float32 on the host."""
        autocast = torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext()
        try:
            with torch.inference_mode(), autocast:
                return {name: values.float().cpu() for name, values in self.compute(row).items()}
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of a model that can't have made the file, or of an image
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"parity: the stimulus of row {row} can't be computed: {reason}") from error

    def round_as(self, precision: str) -> None:
        """From now on compute in the precision of a run: what that costs by itself."""
        if precision == "bf16-mixed":
            self.autocast = True
            return
        self.dtype = torch.bfloat16
        self.cast()

    @abstractmethod
    def cast(self) -> None:
        """The weights to bf16."""

    def checkpoint(self) -> str:
        """The local weights, if they are those of the file.

        Raises:
            InputError: None were given, or others.
        """
        expected = self.provenance["checkpoint_sha256"]
        path = self.where.checkpoint
        if path is None or not Path(path).exists():
            what = f"{path!r} is not there" if path else "give --checkpoint PATH"
            raise InputError(f"checkpoint: {what}; the file is of local weights with SHA-256 {expected}")
        if (found := path_sha256(path)) != expected:
            raise InputError(f"checkpoint: {path!r} has SHA-256 {found}; the file is of weights with {expected}")
        return path


def _pick(device: str | None) -> str:
    has_gpu = torch.cuda.is_available()
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not has_gpu):
        raise InputError(f"device: {device!r} must be cpu{' or cuda' if has_gpu else ', as there is no GPU here'}")
    return device or ("cuda" if has_gpu else "cpu")


def check_ids(ids: list[Any], stimuli: pd.DataFrame) -> None:
    """Raise InputError unless the stimuli are those of the file, in its order."""
    theirs = stimuli["stimulus_id"].tolist()
    if len(ids) != len(theirs):
        raise InputError(f"the file has {len(ids)} rows, the stimuli are {len(theirs)}: they are not those of the file")
    for row, (ours, other) in enumerate(zip(ids, theirs, strict=True)):
        if id_key(ours) != id_key(other):
            ours, other = shorten(repr(ours)), shorten(repr(other))
            raise InputError(f"row {row} of the file is stimulus {ours}, but of the dataset {other}")


def check_memory(skeleton: nn.Module) -> None:
    """Raise InputError if a model, of which the skeleton has the shape, is too large for the memory of this machine."""
    needed, there = 4 * sum(parameter.numel() for parameter in skeleton.parameters()), host_memory()
    if needed > there:
        raise InputError(
            f"parity: in float32 the model has {as_size(needed)}, more than the {as_size(there)} of memory"
        )


def check_sizes(expected: str | None, sizes: list[int]) -> None:
    """Raise InputError unless the inputs have the sizes that they had."""
    found = hashlib.sha256(np.array(sizes, "<i8").tobytes()).hexdigest()
    if expected is not None and found != expected:
        raise InputError("stimuli have changed since the file was made: some have another size; restore them")


def check_same(what: str, expected: Any, found: Any) -> None:
    """Raise InputError unless both are equal."""
    if expected != found:
        expected, found = shorten(expected, 500), shorten(found, 500)
        raise InputError(f"{what}: the file was made with {expected}, here it is {found}")


def no_weights(name: str, source: str, error: Exception) -> InputError:
    """Of another library's error in loading."""
    return InputError(f"{name} can't be loaded from {source!r}: {type(error).__name__}: {one_line(error)}")
