"""How far features are from the reference, and what of it is a fault: pure functions of tensors.

K stimuli that are compared, N stimuli, L layers, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_extract.common.errors import name_some

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Limits:
    """What a run may differ from the reference; docs/store-format.md says what was measured.

    Args:
        cosine: Cosine similarity of each stimulus and layer, at least.
        relative_error: Norm of the difference by norm, at most.
        of_spread: In the layer that tells stimuli apart best, error by median distance to other stimuli, at most.
        times_rounding: Error by that of the reference when it is rounded as the run was, at most; None: not asked.
        loss: Relative error of loss and bpb, at most.
    """

    cosine: float
    relative_error: float
    of_spread: float
    times_rounding: float | None
    loss: float


# Kernels for other batch sizes and devices differ by 1e-6; cuDNN's convolutions in TF32, which 32-true allows, by 3e-4.
FLOAT32 = Limits(cosine=0.999999, relative_error=1e-3, of_spread=0.25, times_rounding=None, loss=1e-3)
BF16 = Limits(cosine=0.99, relative_error=0.15, of_spread=0.25, times_rounding=3.0, loss=0.02)


@dataclass(frozen=True)
class LayerParity:
    """One layer of K stimuli, the worst of them; ``times_rounding`` of all.

    Args:
        layer: Its name.
        max_abs_error: Largest difference of a number.
        relative_error: Norm of the difference by norm.
        cosine: Cosine similarity.
        of_spread: Error by median distance between stimuli; None when there is one stimulus.
        times_rounding: Error by that of the reference when it is rounded as the run was.
    """

    layer: str
    max_abs_error: float
    relative_error: float
    cosine: float
    of_spread: float | None
    times_rounding: float | None


def compare(
    layers: list[str], found: Tensor, again: Tensor, rounded: Tensor | None, spread: Tensor
) -> list[LayerParity]:
    """Each layer's figures.

    Args:
        layers: Their names.
        found: What the file has, (K, L, D) float64.
        again: What the reference gives, (K, L, D) float64.
        rounded: What it gives in the precision of the run, (K, L, D) float64.
        spread: Distance between stimuli, (K, L).
    """
    error = (found - again).norm(dim=-1)  # (K, L)
    norm = again.norm(dim=-1)
    relative, of_spread = _ratio(error, norm), _ratio(error, spread)
    cosine = torch.where(error == 0, 1.0, torch.cosine_similarity(found, again, dim=-1))
    times: list[float | None] = [None] * len(layers)
    if rounded is not None:  # a layer that is not rounded still has the error of float32
        own = torch.maximum((rounded - again).norm(dim=-1), FLOAT32_ERROR * norm)
        times = _ratio(_rms(error), _rms(own)).tolist()
    return [
        LayerParity(
            name,
            float((found - again)[:, k].abs().max()),
            float(relative[:, k].max()),
            float(cosine[:, k].min()),
            float(of_spread[:, k].max()) if spread[:, k].all() else None,
            times[k],
        )
        for k, name in enumerate(layers)
    ]


FLOAT32_ERROR = 1e-5  # relative; of float32 itself, at most


def _ratio(of: Tensor, to: Tensor) -> Tensor:
    """0 where both are 0, infinite where only the second is."""
    return torch.where(of == 0, 0.0, of / to)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=0).sqrt()


def beyond(figures: list[LayerParity], limits: Limits, precision: str) -> list[str]:
    """The layers that differ by more than the precision of the run explains, as one sentence."""
    offenders = [
        f"{figure.layer} (cosine similarity {figure.cosine:.6f}, error {figure.relative_error:.2g} of the norm"
        + (f", {figure.times_rounding:.2g} times what rounding costs)" if figure.times_rounding is not None else ")")
        for figure in figures
        if figure.cosine < limits.cosine
        or figure.relative_error > limits.relative_error
        or (figure.times_rounding or 0) > (limits.times_rounding or 0)
    ]
    if not offenders:
        return []
    return [f"layers that differ by more than {precision} explains: {name_some(offenders, 3)}"]


def misplaced(layers: list[str], found: Tensor, again: Tensor) -> list[str]:
    """Layers of the file, (K, L, D), that are another layer of the reference."""
    distance = _layer_distances(found, again)
    nearest = distance.argmin(dim=1)
    return [
        f"{layers[k]} of the file is {layers[other]}"
        for k, other in enumerate(nearest.tolist())
        if distance[k, other] < distance[k, k] / 2
    ]


def _layer_distances(of: Tensor, to: Tensor) -> Tensor:
    """Between the layers of two (K, L, D): (L, L), over all stimuli."""
    exact = "donot_use_mm_for_euclid_dist"
    return _rms(torch.stack([torch.cdist(a, b, compute_mode=exact) for a, b in zip(of, to, strict=True)]))


def median_distances(again: Tensor, rows: list[int], feats: Tensor, others: list[int]) -> Tensor:
    """How far each of K stimuli is from other rows of the file, (K, L); 0 where there are none."""
    spread = torch.zeros(again.shape[:2], dtype=torch.float64)
    for place, row in enumerate(rows):
        if apart := [other for other in others if other != row]:
            spread[place] = (feats[apart].double() - again[place]).norm(dim=-1).median(dim=0).values
    return spread


def most_telling(found: Tensor, again: Tensor, spread: Tensor) -> int:
    """The layer where the error is smallest beside the distance between stimuli."""
    error = (found - again).norm(dim=-1)
    of_spread = torch.where(spread > 0, error / spread, torch.inf).median(dim=0).values
    return int(of_spread.argmin())


def row_distances(feats: Tensor, layer: int, again: Tensor, bad: set[int]) -> Tensor:
    """From each of K stimuli, (K, D), to one layer of every row of the file, (K, N); infinite to bad rows."""
    parts = []
    for first in range(0, len(feats), ROWS_AT_ONCE):
        rows = feats[first : first + ROWS_AT_ONCE, layer].double()
        parts.append(torch.stack([(rows - stimulus).norm(dim=-1) for stimulus in again]))
    distances = torch.cat(parts, dim=1)
    distances[:, sorted(bad)] = torch.inf
    return distances


def place_rows(
    rows: list[int], ids: list[Any], distances: Tensor, spread: Tensor, limit: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Whether each stimulus is in its own row, and what is wrong with those that are not.

    Args:
        rows: K rows that were computed again.
        ids: Stimulus of each row of the file.
        distances: From each of the K to every row, (K, N).
        spread: From each of the K to other stimuli, the median, (K,); 0 when there are none.
        limit: What part of the spread the distance to a stimulus' own row may be.
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


def hidden(figures: list[LayerParity], again: Tensor, precision: str) -> list[str]:
    """What the error of a run's precision leaves little of: stimuli within a layer, layers of one model."""
    remarks = []
    if names := [figure.layer for figure in figures if (figure.of_spread or 0) > HIDDEN]:
        remarks.append(f"in {name_some(names, 3)} the error of {precision} is as large as what differs between stimuli")
    apart = _layer_distances(again, again).fill_diagonal_(torch.inf).amin(dim=1) / _rms(again.norm(dim=-1))
    if names := [f.layer for f, nearest in zip(figures, apart, strict=True) if f.relative_error > HIDDEN * nearest]:
        remarks.append(f"in {name_some(names, 3)} the error of {precision} is as large as what differs between layers")
    return remarks


HIDDEN = 0.5


def loss_errors(found: dict[str, Tensor], again: dict[str, Tensor]) -> dict[str, float]:
    """Largest relative error of loss and bits per byte, (K,) each; where both are NaN there is none."""
    errors = {}
    for name, values in found.items():
        both_nan = values.isnan() & again[name].isnan()
        error = torch.where(both_nan, 0.0, (values - again[name]).abs() / again[name].abs())
        errors[name] = float(error.nan_to_num(nan=torch.inf).max())
    return errors
