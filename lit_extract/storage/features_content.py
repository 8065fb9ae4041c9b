"""The content of a features file, out of all rows of a job.

N stimuli, L layers, D hidden size, T tokens.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.storage.features_form import MEANS, TENSORS
from lit_extract.storage.layout import (
    BAD_INPUT,
    FEATURES_FORMAT,
    INPUTS,
    MISSING,
    N_BYTES,
    N_TOKENS,
    NOT_FINITE,
    ROTATED,
    SIZE,
)
from lit_extract.storage.provenance import features_provenance
from lit_extract.storage.repair import Rows
from lit_extract.storage.store import Store


@dataclass(frozen=True)
class Numbers:
    """A tensor to be, whose numbers come in chunks, in order; ``features_form.TENSORS`` has its data type."""

    shape: tuple[int, ...]
    chunks: Iterable[NDArray[Any]]


def content_of(there: Rows, pool: str) -> dict[str, Any]:
    """Return all of a features file but its tensors; raise InputError if what it is made of is damaged."""
    store, status, inputs = there.store, there.status(pool), there.inputs(pool)
    if (status == MISSING).any():
        raise InputError(f"{str(store.path)!r} has rows without a status; run the same predict command again")
    before = there.files[pool].metadata if pool in there.files else {"notes": {}}
    notes = {**store.notes, **before["notes"]}
    if repaired := there.repaired(pool):
        notes["repaired_rows"] = sorted({*before["notes"].get("repaired_rows", []), *repaired})
    if inputs is not None:
        notes["exif_rotations"] = int((inputs[:, ROTATED] != 0).sum())
    return {
        "num_params": store.notes["num_params"],
        "layers": store.layers,
        "stimulus_ids": store.stimulus_ids(),
        "metadata": {
            "format": FEATURES_FORMAT,
            "provenance": features_provenance(store.provenance, pool),
            "notes": {key: value for key, value in notes.items() if key != "files"},
            "n_bytes_sha256": _sizes_sha256(there, inputs, before),
            "bad_input_rows": np.flatnonzero(status == BAD_INPUT).tolist(),
            "not_finite_rows": np.flatnonzero(status == NOT_FINITE).tolist(),
        },
        **{name: _mean(store.extra(name)) for name in MEANS if name in store.extras},
    }


def _sizes_sha256(there: Rows, inputs: NDArray[np.int64] | None, before: dict[str, Any]) -> str | None:
    """Return a hash of the sizes of the inputs, by which earlier versions see that they changed."""
    if inputs is not None:
        return sizes_sha256(inputs[:, SIZE])
    if there.files:  # of an earlier version; its images still have the sizes that they had
        return before.get("n_bytes_sha256")
    return sizes_sha256(there.store.extra(N_BYTES)) if N_BYTES in there.store.extras else None


def sizes_sha256(sizes: NDArray[np.int64]) -> str:
    """Return a hash of the bytes of each row's input: all that earlier versions noted in a features file."""
    return hashlib.sha256(sizes.astype("<i8").tobytes()).hexdigest()


def _mean(values: NDArray[np.float32]) -> float:
    """Return the mean of the values that are numbers."""
    numbers = values[~np.isnan(values)]
    with np.errstate(over="ignore", invalid="ignore"):  # of damaged ones
        return float(np.mean(numbers)) if len(numbers) else float("nan")


def tensors_of(there: Rows, pool: str) -> dict[str, Numbers]:
    """Return the tensors of a features file but its features."""
    tensors, store = {}, there.store
    if (inputs := there.inputs(pool)) is not None:
        tensors[INPUTS] = Numbers(inputs.shape, [inputs])
    if N_TOKENS in store.extras:
        lengths = store.extra(N_TOKENS)
        tensors["mask"] = Numbers((len(lengths), int(lengths.max())), _mask(lengths))
    for name in MEANS:
        if name in store.extras:
            tensors[f"row_{name}"] = Numbers((store.n_stimuli,), [store.extra(name)])
    return tensors


def longest_caption(store: Store) -> int:
    """Return the tokens of the longest caption; 0 of images."""
    return int(store.extra(N_TOKENS).max()) if N_TOKENS in store.extras else 0


def _mask(lengths: NDArray[np.int32]) -> Iterator[NDArray[np.uint8]]:
    """Yield 1 where a caption has a token (rows, T), some rows at a time."""
    longest = int(lengths.max())
    at_once = max(1, _MASK_BYTES // max(1, longest))
    for first in range(0, len(lengths), at_once):
        yield (np.arange(longest) < lengths[first : first + at_once, None]).astype(np.uint8)


_MASK_BYTES = 2**24  # made at once


def save_skeleton(content: Mapping[str, Any], tensors: Mapping[str, Numbers], part: Path) -> None:
    """Write a features file with holes where the numbers go; the first tensor is its first record, and so on.

    Next to it a file with the size of each tensor is left, which takes no room either.
    """
    holes = {}
    for name, numbers in tensors.items():
        dtype, size = torch.from_numpy(np.empty(0, TENSORS[name][0])).dtype, math.prod(numbers.shape)
        hole = torch.from_file(f"{part}.{name}", shared=True, size=size, dtype=dtype) if size else torch.empty(0)
        holes[name] = hole.to(dtype).reshape(numbers.shape)
    with torch.serialization.skip_data():
        torch.save({**holes, **content}, part)
