"""All that a page shows, and ``report.json``, which has its numbers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lit_extract import __version__
from lit_extract.report import similarity
from lit_extract.report.comparison import MEASURES, Agreement, Pair
from lit_extract.report.model import ModelReport
from lit_extract.report.stimuli import Stimuli

NUMBERS = "report.json"
_DIGITS = 7


@dataclass(frozen=True)
class Measured:
    """All that a page shows.

    Args:
        models: Each by itself.
        pairs: Each two that are compared.
        stimuli: Their pictures and captions.
        settings: What the numbers depend on.
        notes: What to know when reading the page.
        warnings: What a person should look into.
    """

    models: list[ModelReport]
    pairs: list[Pair]
    stimuli: Stimuli
    settings: dict[str, Any]
    notes: list[str]
    warnings: list[str]


def numbers(measured: Measured) -> dict[str, Any]:
    """All numbers of the report, as JSON has them: NaN is null."""
    return {
        "format": 1,
        "lit_extract": __version__,
        **measured.settings,
        "notes": measured.notes,
        "warnings": measured.warnings,
        "models": [_model_numbers(model) for model in measured.models],
        "pairs": [_pair_numbers(measured.models, pair) for pair in measured.pairs],
    }


def _model_numbers(model: ModelReport) -> dict[str, Any]:
    features = model.source.features
    vectors = model.geometry.vectors
    return {
        "label": model.source.label,
        "file": features.path.name,
        "kind": model.source.kind,
        "untrained": model.source.is_untrained,
        **{key: features.provenance.get(key) for key in ("model", "weights", "pool", "prompt_name")},
        "num_params": features.num_params,
        "n_stimuli": len(features.stimulus_ids),
        "n_done": features.n_done,
        "n_dim": model.n_dim,
        "n_sampled": len(model.sampled),
        "rows": asdict(model.rows),
        "layers": [asdict(layer) for layer in model.layers],
        "cka": _rounded(similarity.cka(vectors, vectors)),
        "neighbours": [
            {"layer": layer, "stimulus": stimulus, "nearest": nearest}
            for layer, of_layer in model.neighbours.items()
            for stimulus, nearest in of_layer.items()
        ],
    }


def _pair_numbers(models: Sequence[ModelReport], pair: Pair) -> dict[str, Any]:
    first, second = models[pair.first], models[pair.second]

    def measure(agreement: Agreement) -> dict[str, Any]:
        best = agreement.best_layers
        names = best and [first.layers[best[0]].name, second.layers[best[1]].name]
        return {**asdict(agreement), "layers": _rounded(agreement.layers), "best_layers": names}

    return {
        "models": [first.source.label, second.source.label],
        "trained_and_untrained": pair.are_twins,
        **{name: measure(pair.agreements[name]) for name in MEASURES},
    }


def _rounded(values: Any) -> list[list[float | None]]:
    return [[None if np.isnan(v) else round(float(v), _DIGITS) for v in row] for row in values]
