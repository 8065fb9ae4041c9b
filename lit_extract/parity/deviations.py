"""Measure how far features are from the reference, and find faults: pure functions of tensors.

K stimuli that are compared, N stimuli, L layers, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_extract.common.errors import name_some

ROWS_AT_ONCE = 1024
FLOAT32_ERROR = 1e-5  # largest relative error of float32 itself
HIDDEN = 0.5  # an error of this share of a distance hides differences


@dataclass(frozen=True)
class Limits:
    """The largest deviations allowed from the reference; docs/store-format.md has measurements."""

    cosine: float  # cosine similarity of each stimulus and layer, at least
    relative_error: float  # norm of the difference, divided by the norm
    of_spread: float  # error divided by the median distance to other stimuli, in the layer that separates them best
    times_rounding: float | None  # error divided by that of the reference in the run's precision; None: no limit
    loss: float  # relative error of loss and bpb


# Kernels for other batch sizes and devices differ by 1e-6; cuDNN's convolutions in TF32, which 32-true allows, by 3e-4.
FLOAT32 = Limits(cosine=0.999999, relative_error=1e-3, of_spread=0.25, times_rounding=None, loss=1e-3)
BF16 = Limits(cosine=0.99, relative_error=0.15, of_spread=0.25, times_rounding=3.0, loss=0.02)


@dataclass(frozen=True)
class LayerDeviation:
    """The deviation of one layer: the worst of K stimuli, ``times_rounding`` over all; errors as in :class:`Limits`.

    ``max_abs_error`` is that of a single number; ``of_spread`` is NaN if there is only one stimulus.
    """

    layer: str
    max_abs_error: float
    relative_error: float
    cosine: float
    of_spread: float
    times_rounding: float | None


def compare(
    layers: list[str], found: Tensor, again: Tensor, rounded: Tensor | None, spread: Tensor
) -> list[LayerDeviation]:
    """Measure how far each layer is from the reference.

    ``found`` are the features of the file, ``again`` those of the reference, ``rounded`` those of the reference in the
    precision of the run, each (K, L, D) float64; ``spread`` (K, L) is the distance between stimuli.
    """
    error, norm = (found - again).norm(dim=-1), again.norm(dim=-1)  # (K, L)
    largest = (found - again).abs().amax(dim=(0, 2)).tolist()
    relative = _ratio(error, norm).amax(dim=0).tolist()
    cosine = torch.where(error == 0, 1.0, torch.cosine_similarity(found, again, dim=-1)).amin(dim=0).tolist()
    of_spread = torch.where((spread > 0).all(dim=0), _ratio(error, spread).amax(dim=0), torch.nan).tolist()
    times: list[float | None] = [None] * len(layers)
    if rounded is not None:  # a layer that is not rounded still has the error of float32
        own = torch.maximum((rounded - again).norm(dim=-1), FLOAT32_ERROR * norm)
        times = _ratio(_rms(error), _rms(own)).tolist()
    columns = zip(layers, largest, relative, cosine, of_spread, times, strict=True)
    return [LayerDeviation(*column) for column in columns]


def _ratio(of: Tensor, to: Tensor) -> Tensor:
    """Return the ratio; 0 where both are 0, infinite where only the second is."""
    return torch.where(of == 0, 0.0, of / to)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=0).sqrt()


def beyond(deviations: list[LayerDeviation], limits: Limits, precision: str) -> list[str]:
    """Name the layers that differ by more than the precision of the run explains, in one sentence."""
    offenders = [
        f"{layer.layer} (cosine similarity {layer.cosine:.6f}, error {layer.relative_error:.2g} of the norm"
        + (f", {layer.times_rounding:.2g} times what rounding costs)" if layer.times_rounding is not None else ")")
        for layer in deviations
        if layer.cosine < limits.cosine
        or layer.relative_error > limits.relative_error
        or (layer.times_rounding or 0) > (limits.times_rounding or 0)
    ]
    return [f"layers that differ by more than {precision} explains: {name_some(offenders, 3)}"] if offenders else []


def misplaced(layers: list[str], found: Tensor, again: Tensor) -> list[str]:
    """Name the layers of the file, (K, L, D), that match another layer of the reference."""
    distance = _rms(_distances(found, again))  # (L, L), over all stimuli
    return [
        f"{layers[k]} of the file is {layers[other]}"
        for k, other in enumerate(distance.argmin(dim=1).tolist())
        if distance[k, other] < distance[k, k] / 2
    ]


def _distances(of: Tensor, to: Tensor) -> Tensor:
    """Return Euclidean distances between rows, without a matrix product, which loses digits."""
    return torch.cdist(of, to, compute_mode="donot_use_mm_for_euclid_dist")


def median_distances(again: Tensor, rows: list[int], feats: Tensor, others: list[int]) -> Tensor:
    """Return the median distance of each of K stimuli to the ``others``, (K, L); 0 if there are none.

    ``feats`` are the features of the others in the file, as many as there are ``others``.
    """
    spread = torch.zeros(again.shape[:2], dtype=torch.float64)
    for place, row in enumerate(rows):
        if apart := [at for at, other in enumerate(others) if other != row]:
            spread[place] = (feats[apart] - again[place]).norm(dim=-1).median(dim=0).values
    return spread


def most_telling(found: Tensor, again: Tensor, spread: Tensor) -> int:
    """Return the layer in which the error is smallest relative to the distance between stimuli."""
    error = (found - again).norm(dim=-1)
    of_spread = torch.where(spread > 0, error / spread, torch.inf).median(dim=0).values
    return int(of_spread.argmin())


def row_distances(feats: Tensor, again: Tensor, bad: set[int]) -> Tensor:
    """Return the distances of K stimuli, (K, D), to all rows, (N, D), as (K, N); infinite for bad rows."""
    parts = [_distances(again, rows.double()) for rows in torch.split(feats, ROWS_AT_ONCE)]
    distances = torch.cat(parts, dim=1)
    distances[:, sorted(bad)] = torch.inf
    return distances


def place_rows(
    rows: list[int], ids: list[Any], distances: Tensor, spread: Tensor, limit: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Find the row of the file that is nearest to each stimulus, and name the stimuli that are not in their own row.

    ``distances`` (K, N) are those to every row, ``spread`` (K,) the median ones to other stimuli, 0 if there are none.
    ``limit`` is the largest allowed distance to a stimulus' own row, as a share of the spread.
    """
    placed, mistaken = [], []
    for row, to_rows, apart in zip(rows, distances, spread.tolist(), strict=True):
        own, nearest = float(to_rows[row]), int(to_rows.argmin())
        nearest = row if to_rows[nearest] == own else nearest
        rank = 1 + int((to_rows < own).sum())
        placed.append({"row": row, "stimulus_id": ids[row], "rank": rank, "nearest_row": nearest})
        if apart == 0 or own <= limit * apart:
            continue
        if to_rows[nearest] < own / 2:
            mistaken.append(f"stimulus {ids[row]} (row {row}) is in row {nearest}, which should be {ids[nearest]}")
        else:
            mistaken.append(f"row {row} is as far from its stimulus {ids[row]} as from others ({own / apart:.2g})")
    return placed, mistaken


def hidden(deviations: list[LayerDeviation], again: Tensor, precision: str) -> list[str]:
    """Name the layers in which the error of a run's precision hides differences between stimuli, or between layers."""
    apart = _rms(_distances(again, again)).fill_diagonal_(torch.inf).amin(dim=1) / _rms(again.norm(dim=-1))
    layers = list(zip(deviations, apart.tolist(), strict=True))
    between = {
        "stimuli": [layer.layer for layer, _ in layers if layer.of_spread > HIDDEN],
        "layers": [layer.layer for layer, nearest in layers if layer.relative_error > HIDDEN * nearest],
    }
    return [
        f"in {name_some(names, 3)} the error of {precision} is as large as the differences between {what}"
        for what, names in between.items()
        if names
    ]


def loss_errors(found: dict[str, Tensor], again: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest relative error of loss and bits per byte, (K,) each; where both are NaN, the error is 0."""
    errors = {}
    for name, values in found.items():
        both_nan = values.isnan() & again[name].isnan()
        error = torch.where(both_nan, 0.0, (values - again[name]).abs() / again[name].abs())
        errors[name] = float(error.nan_to_num(nan=torch.inf).max())
    return errors
