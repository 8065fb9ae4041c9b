"""What one model's features are like: all rows of its last layer, and a sample of rows of each layer.

N stimuli, n of a sample, D hidden size, L layers, k neighbours, P = n(n - 1) / 2 pairs of stimuli.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.report import similarity, statistics
from lit_extract.report.sources import FEWEST_STIMULI, Source
from lit_extract.report.statistics import Norms, Outliers
from lit_extract.report.stimuli import Stimuli
from lit_extract.storage.features import Features

ROWS_AT_ONCE = 1024
DRAWN_AT_MOST = 200  # stimuli of an RDM: more can't be seen, and RSA between many layers takes long
NEIGHBOURS_SHOWN = 5
GROUPS_CHECKED = 200  # of identical rows, whose stimuli are looked at


@dataclass(frozen=True)
class RowsReport:
    """What is wrong with rows, out of all N.

    Args:
        missing: Not computed yet.
        bad_input: The input could not be read.
        not_finite: The model gave NaN or infinity in some layer.
        unlisted: Not finite in the last layer, though the file does not say so.
        identical: In groups of rows whose last layer is the same bit by bit.
        identical_though_different: Those of them whose stimuli are known to differ.
        identical_unknown: Those of them whose stimuli could not be looked at.
        examples: Ids of the first few groups, those of differing stimuli first.
    """

    missing: int
    bad_input: int
    not_finite: int
    unlisted: int
    identical: int
    identical_though_different: int
    identical_unknown: int
    examples: list[list[Hashable]]


@dataclass(frozen=True)
class LayerReport:
    """Measures of one layer of the sample.

    Args:
        name: Its name in the model.
        not_finite: Sampled rows that are not finite; with any, measures that need all rows are left out.
        constant: All sampled rows are the same.
        norms: Of the finite rows.
        effective_rank: Of the centred sample.
        outliers: Large dimensions, of the finite rows.
        follows_length: The norms follow 1 / length, as one massive token was averaged in; of captions only.
    """

    name: str
    not_finite: int
    constant: bool
    norms: Norms | None
    effective_rank: float | None
    outliers: Outliers | None
    follows_length: bool = False


@dataclass(frozen=True)
class Geometry:
    """What comparing the layers of a model needs.

    Args:
        vectors: (L, P) float32; inner products are CKA; NaN for a layer that is constant or not finite.
        nearest: (L, n, k) neighbours, -1 for such a layer.
        rdms: rsatoolbox's, of at most 200 of the stimuli, of the layers that have one.
        rdm_layers: Which these are.
        drawn: Places in the sample of the stimuli of the RDMs.
    """

    vectors: NDArray[np.float32]
    nearest: NDArray[np.int32]
    rdms: Any
    rdm_layers: list[int]
    drawn: list[int]


@dataclass(frozen=True)
class ModelReport:
    """One model.

    Args:
        source: Its features.
        rows: What is wrong with rows.
        sampled: Ids of the sample, in the order of rows.
        n_dim: D.
        layers: A report of each layer.
        neighbours: By layer (an early, a middle, the last) and stimulus, the ids of the nearest, the nearest first.
        geometry: For comparisons.
    """

    source: Source
    rows: RowsReport
    sampled: list[Hashable]
    n_dim: int
    layers: list[LayerReport]
    neighbours: dict[str, dict[Hashable, list[Hashable]]]
    geometry: Geometry


def picked_layers(depth: int) -> list[int]:
    """An early, a middle and the last layer."""
    return sorted({0, depth // 2, depth - 1})


def look_at_all_rows(features: Features) -> statistics.Rows:
    """The last layer of all rows, some at a time."""
    layer = features.layer(-1)
    chunks = (layer[first : first + ROWS_AT_ONCE].numpy() for first in range(0, len(layer), ROWS_AT_ONCE))
    return statistics.look_at_rows(chunks)


def usable_rows(features: Features, finite: NDArray[np.bool_]) -> list[int]:
    """Rows to sample from: those without NaN.

    When a layer is not finite for any stimulus no row is without NaN; then rows count whose last layer is finite, or
    all, so that the other layers can be looked at.
    """
    sound = finite.copy()
    sound[features.metadata["bad_input_rows"] + features.metadata["not_finite_rows"]] = False
    for rows in (sound, finite):
        if rows.sum() >= FEWEST_STIMULI:
            return [int(row) for row in np.flatnonzero(rows)]
    return list(range(len(finite)))


def report_rows(source: Source, rows: statistics.Rows, stimuli: Stimuli) -> RowsReport:
    """Count what is wrong; look at the stimuli of identical rows."""
    features, ids = source.features, source.features.stimulus_ids
    listed = features.metadata["bad_input_rows"] + features.metadata["not_finite_rows"]
    missing = len(ids) - features.n_done
    found = [
        ("unknown" if place >= GROUPS_CHECKED else stimuli.alike([ids[row] for row in group], source.kind), group)
        for place, group in enumerate(rows.identical)
    ]
    found.sort(key=lambda item: item[0])  # different, same, unknown
    unlisted = int((~rows.finite).sum()) - missing - sum(not rows.finite[row] for row in listed)
    return RowsReport(
        missing=missing,
        bad_input=len(features.metadata["bad_input_rows"]),
        not_finite=len(features.metadata["not_finite_rows"]),
        unlisted=unlisted,
        identical=sum(len(group) for _, group in found),
        identical_though_different=sum(len(group) for verdict, group in found if verdict == "different"),
        identical_unknown=sum(len(group) for verdict, group in found if verdict == "unknown"),
        examples=[[ids[row] for row in group[:5]] for _, group in found[:5]],
    )


def report_model(
    source: Source,
    rows: RowsReport,
    sampled: list[Hashable],
    queries: Sequence[Hashable],
    advance: Callable[[], object],
) -> ModelReport:
    """Read the sampled rows of each layer, one layer at a time.

    Args:
        source: The features.
        rows: What is wrong with rows.
        sampled: Ids of the sample.
        queries: Those of them whose neighbours are shown.
        advance: Called after each layer.
    """
    features = source.features
    row_of = {stimulus: row for row, stimulus in enumerate(features.stimulus_ids)}
    chosen = [row_of[stimulus] for stimulus in sampled]
    lengths = _averaged_lengths(features, chosen)
    n, depth = len(sampled), len(features.layers)
    drawn = np.unique(np.linspace(0, n - 1, min(n, DRAWN_AT_MOST)).astype(int)).tolist()
    k = similarity.neighbours_at_most(n)
    vectors = np.full((depth, n * (n - 1) // 2), np.nan, dtype=np.float32)
    nearest = np.full((depth, n, k), -1, dtype=np.int32)
    layers, rdms, neighbours = [], {}, {}
    for place, name in enumerate(features.layers):
        feats = features.layer(place)[chosen].numpy()
        finite = np.isfinite(feats).all(axis=1)
        gram = similarity.centred_gram(feats) if finite.all() else None
        layers.append(_report_layer(name, feats, finite, gram, lengths))
        if gram is not None and not layers[-1].constant:
            vectors[place], nearest[place] = similarity.cka_vector(gram), similarity.nearest(feats, k)
            rdms[place] = _rdm(features, place, [chosen[row] for row in drawn])
            if place in picked_layers(depth):
                neighbours[name] = dict(_neighbours(feats, sampled, queries))
        advance()
    geometry = Geometry(vectors, nearest, _stack(list(rdms.values())), list(rdms), drawn)
    return ModelReport(source, rows, sampled, feats.shape[1], layers, neighbours, geometry)


def _averaged_lengths(features: Features, rows: list[int]) -> NDArray[np.int64] | None:
    """Tokens (n,) of which a row is the mean; None of other poolings, and of the store of an unfinished run."""
    mask = features.extras.get("mask")
    if mask is None or features.provenance["pool"] != "avg":
        return None
    lengths: NDArray[np.int64] = mask[rows].sum(dim=1).numpy().astype(np.int64)
    return lengths - bool(features.provenance.get("exclude_bos"))


def _report_layer(
    name: str,
    feats: NDArray[np.float32],
    finite: NDArray[np.bool_],
    gram: NDArray[np.float64] | None,
    lengths: NDArray[np.int64] | None,
) -> LayerReport:
    sound = feats[finite]
    rank = statistics.effective_rank(gram) if gram is not None else np.nan
    return LayerReport(
        name,
        not_finite=int((~finite).sum()),
        constant=bool(len(sound)) and bool((sound == sound[0]).all()),
        norms=statistics.norms(sound) if len(sound) else None,
        effective_rank=None if np.isnan(rank) else rank,
        outliers=statistics.outliers(sound) if len(sound) else None,
        follows_length=lengths is not None and statistics.follows_length(sound, lengths[finite]),
    )


def _rdm(features: Features, layer: int, rows: list[int]) -> Any:
    """Rsatoolbox's RDM of 1 - Pearson's r, computed in double precision."""
    from rsatoolbox.rdm import calc_rdm

    dataset = features.to_rsatoolbox(layer, rows)
    dataset.measurements = dataset.measurements.astype(np.float64)
    return calc_rdm(dataset, method="correlation")


def _stack(rdms: list[Any]) -> Any:
    from rsatoolbox.rdm import concat

    return concat(rdms) if rdms else None


def _neighbours(
    feats: NDArray[np.float32], sampled: list[Hashable], queries: Sequence[Hashable]
) -> Iterator[tuple[Hashable, list[Hashable]]]:
    nearest = similarity.nearest(feats, min(NEIGHBOURS_SHOWN, len(sampled) - 1))
    for stimulus in queries:
        yield stimulus, [sampled[place] for place in nearest[sampled.index(stimulus)]]
