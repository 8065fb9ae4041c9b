"""How alike models are, beside how alike they would be with their stimuli out of order.

n stimuli, L and L' layers of two models.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.report import similarity
from lit_extract.report.model import Geometry, ModelReport

CKA, MUTUAL, RSA = "cka", "mutual_neighbours", "rsa"
SHUFFLED_MEASURES = (CKA, MUTUAL)
MEASURES = (CKA, MUTUAL, RSA)


@dataclass(frozen=True)
class Shuffled:
    """A measure when the stimuli of one model are shuffled: mean and 95th percentile over the shuffles."""

    mean: float
    p95: float


@dataclass(frozen=True)
class Agreement:
    """One measure between two models.

    Args:
        layers: (L, L'), NaN where a layer is constant or not finite.
        best: Its largest value, and between which layers.
        best_shuffled: The largest value over all layers of shuffled stimuli: choosing the best layers favours chance
            as well.
        last: Between the last layers.
        last_shuffled: The same, shuffled.
        same_layer_shuffled: Of twins only, for each layer.
    """

    layers: NDArray[np.float64]
    best: float | None
    best_layers: tuple[int, int] | None
    best_shuffled: Shuffled | None
    last: float | None
    last_shuffled: Shuffled | None
    same_layer_shuffled: list[Shuffled | None] | None


@dataclass(frozen=True)
class Pair:
    """Two models, by their places in the report, and how alike they are by each measure."""

    first: int
    second: int
    are_twins: bool
    agreements: dict[str, Agreement]


def compare(
    models: Sequence[ModelReport], places: Sequence[int], permutations: int, seed: int, advance: Callable[[], object]
) -> list[Pair]:
    """All pairs of the models in ``places``, which have the same sample of stimuli.

    Args:
        models: All models of the report.
        places: Which of them to compare.
        permutations: Shuffles of the baseline.
        seed: Of the shuffles.
        advance: Called after each shuffle.
    """
    pairs = list(combinations(places, 2))
    twins = {pair for pair in pairs if _are_twins(models[pair[0]], models[pair[1]])}
    shuffled = _shuffled(models, pairs, twins, permutations, seed, advance)
    compared = []
    for pair in pairs:
        first, second = (models[place].geometry for place in pair)
        layers = {**_similarities(first, second.vectors, second.nearest), RSA: _rsa(first, second)}
        agreements = {name: _agreement(values, shuffled.get((pair, name))) for name, values in layers.items()}
        compared.append(Pair(*pair, pair in twins, agreements))
    return compared


def _are_twins(model: ModelReport, other: ModelReport) -> bool:
    """The same model, pooling, captions and layers; one trained and one not."""
    one, two = model.source, other.source
    same = one.twin == two.twin and one.features.layers == two.features.layers
    return same and one.is_untrained != two.is_untrained


def _similarities(first: Geometry, vectors: Any, nearest: Any) -> dict[str, NDArray[np.float64]]:
    return {
        CKA: similarity.cka(first.vectors, vectors),
        MUTUAL: similarity.mutual_neighbours(first.nearest, nearest),
    }


def _rsa(first: Geometry, second: Geometry) -> NDArray[np.float64]:
    """Spearman correlation between RDMs (L, L'), by rsatoolbox."""
    from rsatoolbox.rdm import compare as compare_rdms

    values = np.full((len(first.vectors), len(second.vectors)), np.nan)
    if first.rdm_layers and second.rdm_layers:
        found = compare_rdms(first.rdms, second.rdms, method="spearman")
        values[np.ix_(first.rdm_layers, second.rdm_layers)] = found
    return values


def _shuffled(
    models: Sequence[ModelReport],
    pairs: list[tuple[int, int]],
    twins: set[tuple[int, int]],
    permutations: int,
    seed: int,
    advance: Callable[[], object],
) -> dict[tuple[tuple[int, int], str], list[NDArray[np.float64]]]:
    """By pair and measure, for each shuffle: the best value, that of the last layers, then of twins each layer's."""
    found: dict[tuple[tuple[int, int], str], list[NDArray[np.float64]]] = defaultdict(list)
    if not pairs:
        return found
    n = len(models[pairs[0][0]].sampled)
    for shuffle in similarity.shuffles(n, permutations, seed):
        for second in sorted({second for _, second in pairs}):
            geometry = models[second].geometry
            vectors, nearest = shuffle.vectors(geometry.vectors), shuffle.nearest(geometry.nearest)
            for pair in (pair for pair in pairs if pair[1] == second):
                for name, values in _similarities(models[pair[0]].geometry, vectors, nearest).items():
                    best = similarity.best(values)
                    same_layer = values.diagonal() if pair in twins else values[0, :0]
                    found[pair, name].append(np.array([best[0] if best else np.nan, values[-1, -1], *same_layer]))
        advance()
    return found


def _agreement(layers: NDArray[np.float64], shuffled: list[NDArray[np.float64]] | None) -> Agreement:
    best = similarity.best(layers)
    chance: list[Shuffled | None] = [_summary(values) for values in np.array(shuffled).T] if shuffled else [None, None]
    return Agreement(
        layers=layers,
        best=best[0] if best else None,
        best_layers=best[1] if best else None,
        best_shuffled=chance[0],
        last=None if np.isnan(layers[-1, -1]) else float(layers[-1, -1]),
        last_shuffled=chance[1],
        same_layer_shuffled=chance[2:] or None,
    )


def _summary(values: NDArray[np.float64]) -> Shuffled | None:
    return None if np.isnan(values).any() else Shuffled(float(values.mean()), float(np.percentile(values, 95)))
