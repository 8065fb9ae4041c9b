"""Write a page, its figures and ``report.json`` from measures."""

import json
import re
import shutil
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl

from lit_extract.report import comparison, plots, statistics
from lit_extract.report.comparison import MUTUAL, Pair
from lit_extract.report.model import ModelReport, picked_layers
from lit_extract.report.stimuli import Stimuli
from lit_extract.storage.seen import part_seen

FIGURES = "figures"


def write(
    out: Path, numbers: dict[str, Any], models: Sequence[ModelReport], pairs: Sequence[Pair], stimuli: Stimuli
) -> None:
    """Write ``report.json``, the figures, and finally the page."""
    shutil.rmtree(out / FIGURES, ignore_errors=True)
    (out / FIGURES).mkdir(parents=True)
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)  # short lists on one line
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lit_extract.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = _number
    sources = [(pair, pair.first.source, pair.second.source) for pair in pairs]
    across = [
        pair
        for pair, first, second in sources
        if first.kind != second.kind and not (first.is_of_captions and second.is_of_captions)
    ]
    across.sort(key=lambda pair: pair.agreements[MUTUAL].best or -1, reverse=True)
    labels = [model.source.label for model in models]
    with mpl.rc_context(plots.STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a character that no font has is drawn as a box
        page = environment.get_template("page.html.j2").render(
            CKA=comparison.CKA,
            MUTUAL=comparison.MUTUAL,
            RSA=comparison.RSA,
            report=numbers,
            models=models,
            pairs=pairs,
            best_layers=[comparison.best_layer(model, pairs) for model in models],
            across=across,
            twins=[pair for pair in pairs if pair.are_twins],
            slugs=[f"model-{place}-{_slug(label)}" for place, label in enumerate(labels, 1)],
            plots=plots,
            draw=lambda name, figure: plots.draw(figure, out / FIGURES / f"{name}.png"),
            folder=FIGURES,
            picked_layers=picked_layers,
            thumbnail=cache(stimuli.thumbnail),
            caption_of=stimuli.caption,
            outlier_factor=statistics.OUTLIER_FACTOR,
            part_seen=part_seen,
        )
    (out / "index.html").write_text(page, encoding="utf-8")


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    form = ".3g" if abs(value) < 0.01 else ".2f" if abs(value) < 10 else ".0f"
    return f"{value:{form}}"


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()[:60]
