"""Measure the features of one model: all rows of the last layer, and a sample of rows of each layer.

N stimuli, n of a sample, D hidden size, L layers, k neighbours, P = n(n - 1) / 2 pairs of stimuli.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.report import similarity, statistics
from lit_extract.report.sources import FEWEST_STIMULI, Source
from lit_extract.report.statistics import Norms, Outliers
from lit_extract.report.stimuli import Stimuli
from lit_extract.storage.features import Features
from lit_extract.storage.layout import N_EXCLUDED, shapes_in_words

ROWS_AT_ONCE = 1024
DRAWN_AT_MOST = 200  # stimuli of an RDM: more can't be seen, and RSA between many layers is slow
NEIGHBOURS_SHOWN = 5
GROUPS_CHECKED = 200  # groups of identical rows whose stimuli are compared


@dataclass(frozen=True)
class RowsReport:
    """Numbers of rows with problems, out of all N.

    ``not_finite`` rows are NaN or infinite in some layer; ``unlisted`` rows are so in the last layer, but not listed in
    the file. ``identical`` rows belong to groups whose last layer is the same bit by bit; ``examples`` has ids of the
    first few groups, groups with differing stimuli first.
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
    """Measures of one layer of the sample, from its finite rows; None if there are none.

    If a row is not finite, measures that need all rows are None. ``follows_length`` is for captions only.
    """

    name: str
    not_finite: int
    constant: bool
    norms: Norms | None
    effective_rank: float | None
    outliers: Outliers | None
    follows_length: bool


@dataclass(frozen=True)
class Geometry:
    """The layers of a model in the form that comparisons need."""

    vectors: NDArray[np.floating]  # (L, P) float32; inner products are CKA; NaN for a layer constant or not finite
    nearest: NDArray[np.integer]  # (L, n, k) neighbours, -1 for such a layer
    rdms: NDArray[np.floating]  # dissimilarities (L, P) of at most 200 of the stimuli, NaN for such a layer

    def shuffled(self, order: NDArray[np.integer]) -> "Geometry":
        """Return vectors and neighbours for another order of the stimuli (n,); RDMs stay."""
        vectors = similarity.shuffled_vectors(self.vectors, order)
        return replace(self, vectors=vectors, nearest=similarity.shuffled_nearest(self.nearest, order))

    def layers_with_rdm(self, layers: Sequence[int]) -> list[int]:
        """Return the layers that have an RDM."""
        return [layer for layer in layers if np.isfinite(self.rdms[layer]).all()]


@dataclass(frozen=True, eq=False)
class ModelReport:
    """One model.

    ``sampled`` is in the order of rows. ``neighbours`` has, for an early, a middle and the last layer and for each
    stimulus, the ids of the nearest stimuli, the nearest first.
    """

    source: Source
    rows: RowsReport
    sampled: list[Hashable]
    layers: list[LayerReport]
    neighbours: dict[str, dict[Hashable, list[Hashable]]]
    geometry: Geometry

    @property
    def n_drawn(self) -> int:
        """Return the number of stimuli in the RDMs."""
        return min(len(self.sampled), DRAWN_AT_MOST)

    @property
    def widths(self) -> str:
        """Return the dimensions of the layers as text: 768, or from the first layer to the last, 64…2048."""
        return shapes_in_words(self.source.features.layer_shapes)

    def numbers(self) -> dict[str, Any]:
        """Return the entry of the model in report.json."""
        features = self.source.features
        return {
            "label": self.source.label,
            "file": features.path.name,
            "kind": self.source.kind,
            "untrained": self.source.is_untrained,
            **{key: features.provenance.get(key) for key in ("model", "weights", "pool", "prompt_name")},
            "num_params": features.num_params,
            "n_stimuli": len(features.stimulus_ids),
            "n_done": features.n_done,
            "layer_shapes": features.layer_shapes,
            "n_sampled": len(self.sampled),
            "rows": asdict(self.rows),
            "layers": [asdict(layer) for layer in self.layers],
            "cka": rounded(similarity.cka(self.geometry.vectors, self.geometry.vectors)),
            "neighbours": [
                {"layer": layer, "stimulus": stimulus, "nearest": nearest}
                for layer, of_layer in self.neighbours.items()
                for stimulus, nearest in of_layer.items()
            ],
        }


def rounded(values: NDArray[np.float64]) -> list[list[float | None]]:
    """Return a matrix for JSON: NaN becomes null."""
    return [[None if np.isnan(value) else round(float(value), 7) for value in row] for row in values]


def picked_layers(depth: int) -> list[int]:
    """Return an early, a middle and the last layer."""
    return sorted({0, depth // 2, depth - 1})


def examine_rows(source: Source, stimuli: Stimuli) -> tuple[RowsReport, list[Hashable]]:
    """Count rows with problems, from the last layer of all rows, and compare the stimuli of identical rows.

    Returns:
        The report, and the ids of the rows to sample from: rows without NaN. If some layer is not finite for any
        stimulus, there are none; then rows whose last layer is finite are used, or all rows, so that the other layers
        can be examined.
    """
    features, ids = source.features, source.features.stimulus_ids
    layer = features.layer(-1)
    chunks = (
        layer[first : first + ROWS_AT_ONCE].flatten(1).float().numpy() for first in range(0, len(layer), ROWS_AT_ONCE)
    )
    finite, identical = statistics.look_at_rows(chunks)
    bad_input, not_finite = features.metadata["bad_input_rows"], features.metadata["not_finite_rows"]
    listed, missing = bad_input + not_finite, len(ids) - features.n_done
    found = [
        ("unknown" if place >= GROUPS_CHECKED else stimuli.alike([ids[row] for row in group], source.kind), group)
        for place, group in enumerate(identical)
    ]
    found.sort(key=lambda item: item[0])  # different, same, unknown
    report = RowsReport(
        missing=missing,
        bad_input=len(bad_input),
        not_finite=len(not_finite),
        unlisted=int((~finite).sum()) - missing - int((~finite[listed]).sum()),
        identical=sum(len(group) for _, group in found),
        identical_though_different=sum(len(group) for verdict, group in found if verdict == "different"),
        identical_unknown=sum(len(group) for verdict, group in found if verdict == "unknown"),
        examples=[[ids[row] for row in group[:5]] for _, group in found[:5]],
    )
    sound = finite.copy()
    sound[listed] = False
    enough = [usable for usable in (sound, finite) if usable.sum() >= FEWEST_STIMULI]
    usable = enough[0] if enough else np.ones(len(ids), bool)
    return report, [ids[row] for row in np.flatnonzero(usable)]


def report_model(source: Source, rows: RowsReport, sampled: list[Hashable], queries: Sequence[Hashable]) -> ModelReport:
    """Read the sampled rows of each layer, one layer at a time; find neighbours for the ``queries`` among them."""
    features = source.features
    row_of = {stimulus: row for row, stimulus in enumerate(features.stimulus_ids)}
    chosen = [row_of[stimulus] for stimulus in sampled]
    lengths = _averaged_lengths(features, chosen)
    n, depth = len(sampled), len(features.layers)
    drawn = np.unique(np.linspace(0, n - 1, min(n, DRAWN_AT_MOST)).astype(int))
    k, shown = similarity.neighbours_at_most(n), min(NEIGHBOURS_SHOWN, n - 1)
    geometry = Geometry(
        vectors=np.full((depth, n * (n - 1) // 2), np.nan, dtype=np.float32),
        nearest=np.full((depth, n, k), -1, dtype=np.int32),
        rdms=np.full((depth, len(drawn) * (len(drawn) - 1) // 2), np.nan),
    )
    layers, neighbours = [], {}
    for place, name in enumerate(features.layers):
        feats = features.layer(place)[chosen].flatten(1).float().numpy()
        finite = np.isfinite(feats).all(axis=1)
        gram = similarity.centred_gram(feats) if finite.all() else None
        layers.append(
            _report_layer(name, feats[finite], len(feats), gram, None if lengths is None else lengths[finite])
        )
        if gram is not None and not layers[-1].constant:
            nearest = similarity.nearest(feats, max(k, shown))
            geometry.vectors[place], geometry.nearest[place] = similarity.cka_vector(gram), nearest[:, :k]
            geometry.rdms[place] = similarity.rdm(feats[drawn])
            if place in picked_layers(depth):
                of_query = {stimulus: nearest[sampled.index(stimulus), :shown] for stimulus in queries}
                neighbours[name] = {stimulus: [sampled[row] for row in near] for stimulus, near in of_query.items()}
    return ModelReport(source, rows, sampled, layers, neighbours, geometry)


def _averaged_lengths(features: Features, rows: list[int]) -> NDArray[np.int64] | None:
    """Return how many tokens (n,) each row averages; None for other poolings, and for stores of unfinished runs."""
    mask = features.extras.get("mask")
    if mask is None or features.provenance["pool"] != "avg":
        return None
    lengths: NDArray[np.int64] = mask[rows].sum(dim=1).numpy().astype(np.int64)
    if N_EXCLUDED in features.extras:
        lengths = lengths - features.extras[N_EXCLUDED][rows].numpy()
    return lengths - bool(features.provenance.get("exclude_bos"))


def _report_layer(
    name: str,
    feats: NDArray[np.float32],
    n: int,
    gram: NDArray[np.float64] | None,
    lengths: NDArray[np.int64] | None,
) -> LayerReport:
    """Measure the finite rows out of n rows."""
    return LayerReport(
        name,
        not_finite=n - len(feats),
        constant=bool(len(feats)) and bool((feats == feats[0]).all()),
        norms=statistics.norms(feats) if len(feats) else None,
        effective_rank=None if gram is None else statistics.effective_rank(gram),
        outliers=statistics.outliers(feats) if len(feats) else None,
        follows_length=lengths is not None and statistics.follows_length(feats, lengths),
    )
