"""From measures to a page, its figures and ``report.json``."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from lit_extract.report import figures, similarity, statistics
from lit_extract.report.comparison import CKA, MEASURES, MUTUAL, Pair
from lit_extract.report.measured import NUMBERS, Measured, numbers
from lit_extract.report.model import ModelReport, picked_layers

PAGE, FIGURES = "index.html", "figures"


def write(out: Path, measured: Measured) -> None:
    """Write the figures, ``report.json``, and last the page."""
    models = measured.models
    drawn = _draw(out / FIGURES, models, measured.pairs)
    found = numbers(measured)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (out / NUMBERS).write_text(_compact(text) + "\n", encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lit_extract.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = _number
    page = environment.get_template("page.html.j2").render(
        report=found,
        models=models,
        figures=drawn,
        slugs=[_slug(place, model) for place, model in enumerate(models)],
        stimuli=measured.stimuli,
        notes=measured.notes,
        warnings=measured.warnings,
        has_pairs=bool(measured.pairs),
        outlier_factor=statistics.OUTLIER_FACTOR,
    )
    (out / PAGE).write_text(page, encoding="utf-8")


def _compact(text: str) -> str:
    """JSON with lists of plain values on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)


@dataclass(frozen=True)
class Drawn:
    """A figure in the page.

    Args:
        svg: Inline.
        png: Path beside the page.
        alt: What it shows, for those who don't see it.
    """

    svg: str
    png: str
    alt: str


def _draw(folder: Path, models: Sequence[ModelReport], pairs: Sequence[Pair]) -> dict[str, Any]:
    """All figures; None or absent where there is nothing to draw."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def draw(name: str, alt: str, figure_of: Callable[..., Any], *arguments: Any) -> Drawn:
        png = folder / f"{name}.png"
        return Drawn(figures.draw(figure_of, *arguments, png=png), f"{FIGURES}/{png.name}", alt)

    labels = [model.source.label for model in models]
    compared = sorted({place for pair in pairs for place in (pair.first, pair.second)})
    across = [pair for pair in pairs if models[pair.first].source.kind != models[pair.second].source.kind]
    twins = [pair for pair in pairs if pair.are_twins]
    drawn: dict[str, Any] = {"models": [], "matrices": {}, "vision_language": None, "layer_pair": None, "twins": None}
    for place, model in enumerate(models):
        slug, of_model = _slug(place, model), {}
        of_model["layers"] = draw(f"{slug}-layers", _alt_of_layers(model), figures.layers_figure, model)
        if set(model.geometry.rdm_layers) & set(picked_layers(len(model.layers))):
            alt = f"Representational dissimilarity matrices of {len(model.geometry.drawn)} stimuli."
            of_model["rdm"] = draw(f"{slug}-rdm", alt, figures.rdm_figure, model)
        if len(model.geometry.rdm_layers) > 1:
            values = similarity.cka(model.geometry.vectors, model.geometry.vectors)
            alt = f"CKA between layers, from {np.nanmin(values):.2f} to 1."
            of_model["cka"] = draw(f"{slug}-cka", alt, figures.cka_figure, model, values)
        drawn["models"].append(of_model)
    for measure in MEASURES if pairs else ():
        alt = f"{figures.NAMES[measure]} between models; the numbers are in {NUMBERS}."
        drawn["matrices"][measure] = draw(measure, alt, figures.matrix_figure, labels, pairs, measure, compared)
    if across:
        alt = "; ".join(_alt_of_pair(labels, pair) for pair in across[: figures.LISTED_AT_MOST])
        drawn["vision_language"] = draw("vision-language", alt, figures.vision_language_figure, labels, across)
        top = max(across, key=lambda pair: pair.agreements[MUTUAL].best or -1)
        drawn["layer_pair"] = draw(
            "layers-by-layers", _alt_of_pair(labels, top), figures.layer_pair_figure, models, top
        )
    if twins:
        alt = "Trained against untrained, layer by layer: " + "; ".join(_alt_of_pair(labels, pair) for pair in twins)
        drawn["twins"] = draw("trained-untrained", alt, figures.twins_figure, models, twins)
    return drawn


def _alt_of_layers(model: ModelReport) -> str:
    first, last = model.layers[0], model.layers[-1]
    if first.norms is None or last.norms is None:
        return f"Size, effective rank and outlier dimensions of the layers; the numbers are in {NUMBERS}."
    return (
        f"From {first.name} to {last.name} the median norm goes from {first.norms.median:.3g} to "
        f"{last.norms.median:.3g}, the effective rank from {_number(first.effective_rank)} to "
        f"{_number(last.effective_rank)}."
    )


def _alt_of_pair(labels: Sequence[str], pair: Pair) -> str:
    found, mutual = (pair.agreements[measure] for measure in (CKA, MUTUAL))
    chance = mutual.best_shuffled.p95 if mutual.best_shuffled else None
    return (
        f"{labels[pair.first]} and {labels[pair.second]}: at the best layers CKA {_number(found.best)}, mutual nearest "
        f"neighbours {_number(mutual.best)}, 95th percentile of shuffled stimuli {_number(chance)}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    form = ".3g" if abs(value) < 0.01 else ".2f" if abs(value) < 10 else ".0f"
    return f"{value:{form}}"


def _slug(place: int, model: ModelReport) -> str:
    return f"model-{place + 1}-{re.sub(r'[^A-Za-z0-9]+', '-', model.source.label).strip('-').lower()[:60]}"
