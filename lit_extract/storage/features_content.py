"""The content of a features file, made from all rows of a job.

N stimuli, L layers, D hidden size, T tokens.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.storage.archive import TensorRecord
from lit_extract.storage.features_form import MEANS
from lit_extract.storage.layout import (
    BAD_INPUT,
    FEATURES_FORMAT,
    INPUTS,
    MISSING,
    N_BYTES,
    N_EXCLUDED,
    N_SINKS,
    N_TOKENS,
    NOT_FINITE,
    PLAIN_FEATURES_FORMAT,
    ROTATED,
    SIZE,
    TOKEN_IDS,
    Shape,
    is_plain,
)
from lit_extract.storage.provenance import CAPTIONS, features_provenance
from lit_extract.storage.repair import Rows


@dataclass(frozen=True)
class Numbers:
    """A tensor to be written; its numbers come in chunks, in order."""

    shape: Shape
    chunks: Iterable[NDArray[Any]]
    dtype: torch.dtype


Tensors = Numbers | dict[str, Numbers]  # one tensor, or one for each layer


def content_of(there: Rows, pool: str) -> dict[str, Any]:
    """Return the content of a features file except its tensors; raise InputError if its source is damaged."""
    store, status, inputs = there.store, there.status(pool), there.inputs(pool)
    if (status == MISSING).any():
        raise InputError(f"{str(store.path)!r} has rows without a status; run the same predict command again")
    before = there.files[pool].metadata if pool in there.files else {"notes": {}}
    notes = {**store.notes, **before["notes"]}
    if repaired := there.repaired(pool):
        notes["repaired_rows"] = sorted({*before["notes"].get("repaired_rows", []), *repaired})
    if edited := there.edited(pool):
        earlier = {"created": before["notes"].get("created"), CAPTIONS: before["provenance"].get(CAPTIONS)}
        now = {"created": store.notes.get("created"), CAPTIONS: store.provenance[CAPTIONS], "rows": edited}
        notes["captions_of_rows"] = [*before["notes"].get("captions_of_rows", [earlier]), now]
    if inputs is not None and CAPTIONS not in store.provenance:
        notes["exif_rotations"] = int((inputs[:, ROTATED] != 0).sum())
    return {
        "num_params": store.notes["num_params"],
        "layers": store.layers,
        "stimulus_ids": store.stimulus_ids(),
        "metadata": {
            "format": PLAIN_FEATURES_FORMAT if is_plain(store.layer_shapes, store.dtype) else FEATURES_FORMAT,
            "provenance": features_provenance(store.provenance, pool),
            "notes": {key: value for key, value in notes.items() if key != "files"},
            "n_bytes_sha256": _sizes_sha256(there, inputs, before),
            "bad_input_rows": np.flatnonzero(status == BAD_INPUT).tolist(),
            "not_finite_rows": np.flatnonzero(status == NOT_FINITE).tolist(),
        },
        **{name: _mean(there.extra(name, pool)) for name in MEANS if name in store.extras},
    }


def _sizes_sha256(there: Rows, inputs: NDArray[np.int64] | None, before: dict[str, Any]) -> str | None:
    """Return a hash of the sizes of the inputs, by which earlier versions detect changes."""
    if inputs is not None:
        return sizes_sha256(inputs[:, SIZE])
    if there.files:  # of an earlier version; the sizes of their images have not changed
        return before.get("n_bytes_sha256")
    return sizes_sha256(there.store.extra(N_BYTES)) if N_BYTES in there.store.extras else None


def sizes_sha256(sizes: NDArray[np.int64]) -> str:
    """Return a hash of the size of each row's input, the only note on inputs in features files of earlier versions."""
    return hashlib.sha256(sizes.astype("<i8").tobytes()).hexdigest()


def _mean(values: NDArray[np.float32]) -> float:
    """Return the mean of the values that are not NaN."""
    numbers = values[~np.isnan(values)]
    with np.errstate(over="ignore", invalid="ignore"):  # if values are damaged
        return float(np.mean(numbers)) if len(numbers) else float("nan")


def tensors_of(there: Rows, pool: str) -> dict[str, Tensors]:
    """Return the tensors of a features file except its features."""
    tensors: dict[str, Tensors] = {}
    store = there.store
    if (inputs := there.inputs(pool)) is not None:
        tensors[INPUTS] = Numbers(inputs.shape, [inputs], torch.int64)
    if N_TOKENS in store.extras:
        lengths = there.extra(N_TOKENS, pool)
        tensors["mask"] = Numbers((len(lengths), int(lengths.max())), _mask(lengths), torch.uint8)
    for name in MEANS:
        if name in store.extras:
            tensors[f"row_{name}"] = Numbers((store.n_stimuli,), [there.extra(name, pool)], torch.float32)
    for name in (TOKEN_IDS, N_EXCLUDED, N_SINKS):
        if name in store.extras:
            values = there.extra(name, pool)
            tensors[name] = Numbers(values.shape, [values], torch.int32)
    return tensors


def tokens_bytes(there: Rows) -> int:
    """Return the bytes of a row's mask and, if they are kept, of its token ids; 0 for images."""
    if N_TOKENS not in there.store.extras:
        return 0
    longest = max(int(there.extra(N_TOKENS, pool).max()) for pool in there.store.pools)
    return longest * (5 if TOKEN_IDS in there.store.extras else 1)


def _mask(lengths: NDArray[np.int32]) -> Iterator[NDArray[np.uint8]]:
    """Yield the mask, 1 where a caption has a token (rows, T), some rows at a time."""
    longest = int(lengths.max())
    at_once = max(1, _MASK_BYTES // max(1, longest))
    for first in range(0, len(lengths), at_once):
        yield (np.arange(longest) < lengths[first : first + at_once, None]).astype(np.uint8)


_MASK_BYTES = 2**24  # made at once


def save_skeleton(content: Mapping[str, Any], part: Path) -> list[Numbers]:
    """Write a features file with a hole in place of each tensor's numbers; return these in the order of its records.

    A sparse file as large as each tensor is left next to it; neither needs disk space.
    """
    made: list[Numbers] = []

    def hole(numbers: Numbers) -> torch.Tensor:
        size, name = math.prod(numbers.shape), f"{part}.{len(made)}"
        made.append(numbers)
        empty = torch.empty(0, dtype=numbers.dtype)
        filled = torch.from_file(name, shared=True, size=size, dtype=numbers.dtype) if size else empty
        return filled.reshape(numbers.shape)

    with torch.serialization.skip_data():
        torch.save(with_tensors(hole, content), part)
    return made


def with_tensors(make: Callable[[Any], Any], content: Any) -> Any:
    """Return the content of a features file with ``make`` applied to each tensor, or to what stands for it."""
    if isinstance(content, Numbers | TensorRecord):
        return make(content)
    return {name: with_tensors(make, value) for name, value in content.items()} if type(content) is dict else content
