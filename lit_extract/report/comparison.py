"""Compare models, and compare them again with shuffled stimuli, which shows similarity by chance.

n stimuli, L and L' layers of two models.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lit_extract.report import similarity
from lit_extract.report.model import Geometry, ModelReport, rounded


@dataclass(frozen=True)
class Measure:
    """A measure of similarity between two models; ``between`` gives the values for all pairs of layers (L, L')."""

    key: str
    title: str
    unit: str
    between: Callable[[Geometry, Geometry], NDArray[np.float64]]


CKA = Measure("cka", "linear CKA", "debiased linear CKA", lambda one, two: similarity.cka(one.vectors, two.vectors))
MUTUAL = Measure(
    "mutual_neighbours",
    "mutual nearest neighbours",
    "share of nearest neighbours in common",
    lambda one, two: similarity.mutual_neighbours(one.nearest, two.nearest),
)
RSA = Measure("rsa", "RSA", "Spearman's ρ between RDMs", lambda one, two: similarity.rsa(one.rdms, two.rdms))
SHUFFLED_MEASURES = (CKA, MUTUAL)
MEASURES = (*SHUFFLED_MEASURES, RSA)


@dataclass(frozen=True)
class Shuffled:
    """A measure with the stimuli of one model shuffled: mean and 95th percentile over the shuffles."""

    mean: float
    p95: float


@dataclass(frozen=True)
class Agreement:
    """One measure between two models; ``layers`` (L, L') is NaN where a layer is constant or not finite.

    ``best_shuffled`` is the largest value over all layers with shuffled stimuli, because choosing the best layers also
    favours chance. ``same_layer_shuffled`` has a value for each layer, for twins only.
    """

    layers: NDArray[np.float64]
    best: float | None
    best_layers: list[str] | None
    best_shuffled: Shuffled | None
    last: float | None
    last_shuffled: Shuffled | None
    same_layer_shuffled: list[Shuffled | None] | None


@dataclass(frozen=True)
class Pair:
    """Two models, whether they are a trained model and its untrained twin, and their similarity by each measure.

    ``best_when_shuffled`` is the largest share of mutual neighbours over all layers, for each shuffle.
    """

    first: ModelReport
    second: ModelReport
    are_twins: bool
    agreements: dict[Measure, Agreement]
    best_when_shuffled: list[float]

    def numbers(self) -> dict[str, Any]:
        """Return the entry of the pair in report.json."""
        agreements = {measure.key: asdict(agreement) for measure, agreement in self.agreements.items()}
        return {
            "models": [self.first.source.label, self.second.source.label],
            "trained_and_untrained": self.are_twins,
            **{key: {**agreement, "layers": rounded(agreement["layers"])} for key, agreement in agreements.items()},
        }


@dataclass(frozen=True)
class BestLayer:
    """The layer of a model with the most nearest neighbours in common with a layer of another model.

    ``by_chance`` is the 95th percentile of that share with shuffled stimuli, for the best layers and the best other
    model of each shuffle, because choosing among models also favours chance.
    """

    place: int
    name: str
    other: ModelReport
    other_layer: str
    value: float
    by_chance: float


def best_layer(model: ModelReport, pairs: Sequence[Pair]) -> BestLayer | None:
    """Find the layer that agrees most with a model of another name; None if none exceeds shuffled stimuli."""
    found, shuffled = [], []
    for pair in pairs:
        agreement = pair.agreements[MUTUAL]
        value, layers = agreement.best, agreement.best_layers
        one, two = (each.source.features.provenance["model"] for each in (pair.first, pair.second))
        if model not in (pair.first, pair.second) or one == two or value is None or not layers:
            continue
        found.append((value, layers, pair.second) if pair.first is model else (value, layers[::-1], pair.first))
        shuffled.append(pair.best_when_shuffled)
    if not found:
        return None
    value, (own, others), other = max(found, key=lambda each: each[0])
    by_chance = float(np.percentile(np.max(shuffled, axis=0), 95))  # NaN if a shuffle has no best layer
    place = [layer.name for layer in model.layers].index(own)
    return BestLayer(place, own, other, others, value, by_chance) if value > by_chance else None


def compare(models: Sequence[ModelReport], permutations: int, seed: int) -> list[Pair]:
    """Compare all pairs of models, which have the same sample of stimuli."""
    shuffled = _shuffled(models, permutations, seed) if len(models) > 1 else {}
    pairs = []
    for first, second in combinations(models, 2):
        agreements = {
            measure: _agreement(measure, first, second, shuffled.get((first, second, measure))) for measure in MEASURES
        }
        best = [values[0] for values in shuffled[first, second, MUTUAL]]
        pairs.append(Pair(first, second, first.source.is_twin_of(second.source), agreements, best))
    return pairs


_Chance = dict[tuple[ModelReport, ModelReport, Measure], list[list[float]]]


def _shuffled(models: Sequence[ModelReport], permutations: int, seed: int) -> _Chance:
    """Return for each shuffle of the second model: the best value, that of the last layers; for twins, each layer's."""
    found: _Chance = defaultdict(list)
    generator = np.random.default_rng(seed)
    for _ in tqdm(range(permutations), desc="shuffling", disable=None):
        order = generator.permutation(len(models[0].sampled))
        for place, second in enumerate(models[1:], 1):
            geometry = second.geometry.shuffled(order)
            for first, measure in product(models[:place], SHUFFLED_MEASURES):
                values = measure.between(first.geometry, geometry)
                best = similarity.best(values)
                same_layer = values.diagonal() if first.source.is_twin_of(second.source) else values[0, :0]
                found[first, second, measure].append([best[0] if best else np.nan, values[-1, -1], *same_layer])
    return found


def _agreement(
    measure: Measure, first: ModelReport, second: ModelReport, shuffled: list[list[float]] | None
) -> Agreement:
    layers = measure.between(first.geometry, second.geometry)
    best = similarity.best(layers)
    chance = [_summary(values) for values in np.array(shuffled or [[np.nan, np.nan]]).T]
    return Agreement(
        layers=layers,
        best=best[0] if best else None,
        best_layers=[first.layers[best[1][0]].name, second.layers[best[1][1]].name] if best else None,
        best_shuffled=chance[0],
        last=None if np.isnan(layers[-1, -1]) else float(layers[-1, -1]),
        last_shuffled=chance[1],
        same_layer_shuffled=chance[2:] or None,
    )


def _summary(values: NDArray[np.float64]) -> Shuffled | None:
    return None if np.isnan(values).any() else Shuffled(float(values.mean()), float(np.percentile(values, 95)))
