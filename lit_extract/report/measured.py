"""All that a page shows, and ``report.json``, which has its numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lit_extract import __version__
from lit_extract.report.comparison import CKA, Pair
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

    def numbers(self) -> dict[str, Any]:
        """Return all numbers of the report, as JSON has them: NaN is null."""
        return {
            "format": 1,
            "lit_extract": __version__,
            **self.settings,
            "notes": self.notes,
            "warnings": self.warnings,
            "models": [_model_numbers(model) for model in self.models],
            "pairs": [_pair_numbers(pair) for pair in self.pairs],
        }


def _model_numbers(model: ModelReport) -> dict[str, Any]:
    features = model.source.features
    return {
        "label": model.source.label,
        "file": features.path.name,
        "kind": model.source.kind,
        "untrained": model.source.is_untrained,
        **{key: features.provenance.get(key) for key in ("model", "weights", "pool", "prompt_name")},
        "num_params": features.num_params,
        "n_stimuli": len(features.stimulus_ids),
        "n_done": features.n_done,
        "n_dim": features.shape[2],
        "n_sampled": len(model.sampled),
        "rows": asdict(model.rows),
        "layers": [asdict(layer) for layer in model.layers],
        "cka": _rounded(CKA.between(model.geometry, model.geometry)),
        "neighbours": [
            {"layer": layer, "stimulus": stimulus, "nearest": nearest}
            for layer, of_layer in model.neighbours.items()
            for stimulus, nearest in of_layer.items()
        ],
    }


def _pair_numbers(pair: Pair) -> dict[str, Any]:
    return {
        "models": [pair.first.source.label, pair.second.source.label],
        "trained_and_untrained": pair.are_twins,
        **{
            measure.key: {**asdict(agreement), "layers": _rounded(agreement.layers)}
            for measure, agreement in pair.agreements.items()
        },
    }


def _rounded(values: Any) -> list[list[float | None]]:
    return [[None if np.isnan(v) else round(float(v), _DIGITS) for v in row] for row in values]
