"""The figures. Each is drawn once: as a PNG for a paper, and as an SVG whose colours follow the page's.

n stimuli, L layers, M models.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lit_extract.report.comparison import CKA, MUTUAL, RSA, Pair, Shuffled
from lit_extract.report.model import LayerReport, ModelReport, picked_layers
from lit_extract.report.statistics import Norms

mpl.use("Agg")

# Okabe & Ito's colours, which colour-blind readers can tell apart. Each has a name in the page's style sheet, where
# the dark theme has lighter ones.
INK, BLUE, ORANGE, GREY = "#1a1c20", "#0072b2", "#d55e00", "#7f8590"
_CSS = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)", GREY: "var(--grey)"}
SIMILARITY_COLOURS, DISSIMILARITY_COLOURS = "cividis", "viridis"
ANNOTATED_AT_MOST = 9  # models, in a matrix with its numbers
LISTED_AT_MOST = 30  # pairs, in a list
PNG_DPI = 200
SHUFFLED = "shuffled, mean to 95th percentile"

NAMES = {CKA: "linear CKA", MUTUAL: "mutual nearest neighbours", RSA: "RSA"}
UNITS = {
    CKA: "debiased linear CKA",
    MUTUAL: "share of nearest neighbours in common",
    RSA: "Spearman's ρ between RDMs",
}

_STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "regular",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "image.interpolation": "nearest",
    "text.parse_math": False,
    "svg.hashsalt": "lit-extract",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def draw(figure_of: Callable[..., Figure], *arguments: Any, png: Path) -> str:
    """Draw a figure: write its PNG, on white, and return its SVG, transparent, in the page's colours."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a sign of a name that no font has is drawn as a box
        figure = figure_of(*arguments)
        figure.savefig(png, dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return _inline(buffer.getvalue(), png.stem)


def _inline(svg: str, name: str) -> str:
    """An SVG to stand inside HTML: without XML's head, its ids its own, its colours the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="--width: \1pt" aria-hidden="true"', svg, count=1)
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    return svg.strip()


def layers_figure(model: ModelReport) -> Figure:
    """Norm, effective rank and outlier dimensions by layer."""
    figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.3), layout="constrained")
    names = [layer.name for layer in model.layers]
    _draw_norms(axes[0], model.layers)
    rank = [np.nan if layer.effective_rank is None else layer.effective_rank for layer in model.layers]
    axes[1].plot(rank, color=BLUE, marker="o")
    axes[1].set(title="effective rank", ylabel=f"dimensions ({len(model.sampled) - 1} at most)", ylim=(0, None))
    _draw_outliers(axes[2], model.layers)
    for axis in axes:
        _layer_ticks(axis.xaxis, names, at_most=6)
        axis.set_xlabel(_layer_label(names))
    return figure


def _draw_norms(axis: Axes, layers: Sequence[LayerReport]) -> None:
    missing = Norms(np.nan, np.nan, np.nan)
    norms = [layer.norms or missing for layer in layers]
    low, high = [norm.p5 for norm in norms], [norm.p95 for norm in norms]
    axis.fill_between(range(len(layers)), low, high, color=BLUE, alpha=0.25, linewidth=0)
    axis.plot([norm.median for norm in norms], color=BLUE, marker="o")
    axis.set(title="size", ylabel="Euclidean norm (activation units)\nmedian, 5th to 95th percentile")
    finite = np.array([value for value in [*low, *high] if np.isfinite(value)])
    if finite.size and finite.max() > 30 * finite.min() > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_ylim(0, None)


def _draw_outliers(axis: Axes, layers: Sequence[LayerReport]) -> None:
    share = [np.nan if layer.outliers is None else 100 * layer.outliers.largest_share for layer in layers]
    count = [np.nan if layer.outliers is None else len(layer.outliers.dimensions) for layer in layers]
    axis.plot(share, color=BLUE, marker="o")
    axis.set(title="outlier dimensions", ylim=(0, 1.08 * np.nanmax([*share, 5])))
    axis.set_ylabel("largest one's share of\nthe squared norm (%)", color=BLUE)
    counts = axis.twinx()
    counts.plot(count, color=ORANGE, marker="s", linestyle=":")
    counts.set_ylim(0, 1.08 * np.nanmax([*count, 3]))
    counts.set_ylabel("number of them", color=ORANGE)
    counts.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    counts.spines["right"].set_visible(True)


def rdm_figure(model: ModelReport) -> Figure:
    """RDMs at an early, a middle and the last layer."""
    geometry = model.geometry
    picked = [layer for layer in picked_layers(len(model.layers)) if layer in geometry.rdm_layers]
    figure, axes = plt.subplots(1, len(picked), figsize=(2.45 * len(picked), 1.9), layout="constrained")
    matrices = geometry.rdms.get_matrices()
    for axis, layer in zip(np.atleast_1d(axes), picked, strict=True):
        matrix = matrices[geometry.rdm_layers.index(layer)]
        image = axis.imshow(matrix, cmap=DISSIMILARITY_COLOURS, vmin=0)
        axis.set(title=model.layers[layer].name, xlabel="stimulus", ylabel="stimulus")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(4, integer=True))
        _bar(figure, image, axis, "1 − Pearson's r")
    return figure


def cka_figure(model: ModelReport, values: NDArray[np.float64]) -> Figure:
    """CKA between the layers (L, L) of a model."""
    figure, axis = plt.subplots(figsize=(3.3, 2.7), layout="constrained")
    image = axis.imshow(_masked(values), cmap=SIMILARITY_COLOURS, vmin=0, vmax=1, origin="lower")
    names = [layer.name for layer in model.layers]
    for ticks in (axis.xaxis, axis.yaxis):
        _layer_ticks(ticks, names, at_most=8)
    axis.set(xlabel=_layer_label(names), ylabel=_layer_label(names))
    _bar(figure, image, axis, UNITS[CKA])
    return figure


def matrix_figure(labels: Sequence[str], pairs: Sequence[Pair], measure: str, compared: Sequence[int]) -> Figure:
    """Model × model (M, M) at the best and at the last layers; measured, and shuffled where there is that."""
    panels = _panels(pairs, measure, compared)
    m, rows = len(compared), len(panels) // 2
    numbers = [str(place + 1) for place in compared]
    names = [f"{_short(labels[place])}  {place + 1}" for place in compared]
    side = np.clip(0.55 * m, 1.8, 3.6)
    width = 2 * side + 0.07 * max(map(len, names)) + 1.2
    figure, axes = plt.subplots(
        rows, 2, figsize=(width, rows * (side + 0.6)), layout="constrained", squeeze=False, sharey=True
    )
    top = 1.0 if measure != MUTUAL else max(0.01, np.nanmax([np.nanmax(values, initial=0) for _, values in panels]))
    for axis, (title, values) in zip(axes.flat, panels, strict=True):
        image = axis.imshow(_masked(values), cmap=SIMILARITY_COLOURS, vmin=0, vmax=top)
        axis.set(title=title, xlabel="model")
        axis.set_xticks(range(m), numbers)
        axis.set_yticks(range(m), names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        if m <= ANNOTATED_AT_MOST:
            _annotate(axis, values, top)
    for axis in axes[:, 0]:
        axis.set_ylabel("model")
    bar = figure.colorbar(image, ax=axes, label=UNITS[measure], shrink=min(1, 1.2 / rows), aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _panels(pairs: Sequence[Pair], measure: str, compared: Sequence[int]) -> list[tuple[str, NDArray[np.float64]]]:
    """Title and values (M, M) of each panel, NaN on the diagonal."""
    m, place_of = len(compared), {place: number for number, place in enumerate(compared)}
    values: dict[str, NDArray[np.float64]] = {}
    for pair in pairs:
        agreement = pair.agreements[measure]
        found = {
            "best layers, measured": agreement.best,
            "best layers, shuffled": agreement.best_shuffled.p95 if agreement.best_shuffled else None,
            "last layers, measured": agreement.last,
            "last layers, shuffled": agreement.last_shuffled.p95 if agreement.last_shuffled else None,
        }
        one, two = place_of[pair.first], place_of[pair.second]
        for title, value in found.items():
            matrix = values.setdefault(title, np.full((m, m), np.nan))
            matrix[one, two] = matrix[two, one] = np.nan if value is None else value
    return [(title, matrix) for title, matrix in values.items() if measure != RSA or "measured" in title]


def vision_language_figure(labels: Sequence[str], pairs: Sequence[Pair]) -> Figure:
    """Each pair of a vision and a language model at its best layers, beside shuffled stimuli."""
    pairs = sorted(pairs, key=lambda pair: pair.agreements[MUTUAL].best or 0, reverse=True)[:LISTED_AT_MOST]
    names = [f"{_short(labels[pair.first])}\n{_short(labels[pair.second])}" for pair in pairs]
    places = np.arange(len(pairs))[::-1]
    figure, axes = plt.subplots(
        1, 2, figsize=(7.4, 0.95 + 0.42 * len(pairs)), sharey=True, layout="constrained", squeeze=False
    )
    for axis, measure in zip(axes[0], (CKA, MUTUAL), strict=True):
        found = [pair.agreements[measure] for pair in pairs]
        for place, agreement in zip(places, found, strict=True):
            if chance := agreement.best_shuffled:
                axis.plot([chance.mean, chance.p95], [place, place], color=GREY, linewidth=5, solid_capstyle="butt")
            if agreement.best is not None:
                axis.plot(agreement.best, place, color=BLUE, marker="o", markersize=6)
        axis.set(xlabel=UNITS[measure].replace("neighbours ", "neighbours\n"), ylim=(-0.6, len(pairs) - 0.4))
        axis.margins(x=0.08)
        axis.set_xlim(min(0, axis.get_xlim()[0]), None)
        axis.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    axes[0, 0].set_yticks(places, names)
    axes[0, 0].set_ylabel("vision model\nlanguage model")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr,call-arg]
    handles = [
        Line2D([], [], color=BLUE, marker="o", markersize=6, linestyle=""),
        Line2D([], [], color=GREY, linewidth=5, solid_capstyle="butt"),
    ]
    figure.legend(handles, ["measured", SHUFFLED], loc="outside upper right", ncols=2)
    return figure


def layer_pair_figure(models: Sequence[ModelReport], pair: Pair) -> Figure:
    """The layers of one model against those of another."""
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.1), layout="constrained")
    (first, first_names), (second, second_names) = (
        (_short(models[place].source.label), [layer.name for layer in models[place].layers])
        for place in (pair.first, pair.second)
    )
    for axis, measure in zip(axes, (CKA, MUTUAL), strict=True):
        agreement = pair.agreements[measure]
        values = _masked(agreement.layers)
        top = max(0.01, float(np.nanmax(agreement.layers)) if agreement.best is not None else 1)
        image = axis.imshow(values, cmap=SIMILARITY_COLOURS, vmin=0, vmax=top, origin="lower", aspect="auto")
        if agreement.best_layers:
            row, column = agreement.best_layers
            for size, colour in ((9, "white"), (7, "black")):  # one of them is seen on any ground
                axis.plot(column, row, marker="o", markersize=size, mfc="none", mec=colour, mew=1.2)
        _layer_ticks(axis.xaxis, second_names, at_most=8)
        _layer_ticks(axis.yaxis, first_names, at_most=8)
        axis.set_xlabel(f"{second}, {_layer_label(second_names)}")
        axis.set_title(NAMES[measure])
        _bar(figure, image, axis, UNITS[measure])
    axes[0].set_ylabel(f"{first},\n{_layer_label(first_names)}")
    return figure


def twins_figure(models: Sequence[ModelReport], pairs: Sequence[Pair]) -> Figure:
    """Each layer of a trained model against the same layer of its untrained twin."""
    figure, axes = plt.subplots(
        len(pairs), 2, figsize=(7.4, 0.4 + 1.9 * len(pairs)), layout="constrained", squeeze=False
    )
    for row, pair in zip(axes, pairs, strict=True):
        names = [layer.name for layer in models[pair.first].layers]
        for axis, measure in zip(row, (CKA, MUTUAL), strict=True):
            agreement = pair.agreements[measure]
            chance = [c or Shuffled(np.nan, np.nan) for c in agreement.same_layer_shuffled or [None] * len(names)]
            low, high = [c.mean for c in chance], [c.p95 for c in chance]
            axis.fill_between(range(len(names)), low, high, color=GREY, alpha=0.5, linewidth=0, label=SHUFFLED)
            axis.plot(agreement.layers.diagonal(), color=BLUE, marker="o", label="measured")
            axis.set_xlabel(_layer_label(names))
            axis.set_ylabel(UNITS[measure].replace("nearest ", "nearest\n"))
            axis.set_ylim(min(0, axis.get_ylim()[0]), 1)
            _layer_ticks(axis.xaxis, names, at_most=10)
        row[0].set_title(_short(_trained(models, pair)), loc="left")
    axes[0, 0].legend(fontsize=7)
    return figure


def _trained(models: Sequence[ModelReport], pair: Pair) -> str:
    return next(m.source.label for m in (models[pair.first], models[pair.second]) if not m.source.is_untrained)


def _masked(values: NDArray[np.float64]) -> Any:
    return np.ma.masked_invalid(values)


def _short(label: str, limit: int = 42) -> str:
    return label if len(label) <= limit else f"{label[: limit // 2]}…{label[-limit // 2 + 1 :]}"


def _layer_label(names: Sequence[str]) -> str:
    return "block (from 0)" if all(map(_block, names)) else "layer"


def _block(name: str) -> str | None:
    return name.removeprefix("blocks.") if name.startswith("blocks.") else None


def _layer_ticks(axis: Any, names: Sequence[str], at_most: int) -> None:
    step = -(-len(names) // at_most)
    places = list(range(0, len(names), step))
    axis.set_ticks(places, [_block(names[place]) or names[place] for place in places])


def _bar(figure: Figure, image: Any, axis: Axes, label: str) -> None:
    """A colour bar as high as the picture."""
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, cax=axis.inset_axes((1.04, 0, 0.05, 1)), label=label)
    bar.outline.set_visible(False)


def _annotate(axis: Axes, values: NDArray[np.float64], top: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if value > 0.55 * top else "white"
            text = f"{value:.2f}".replace("-0.00", "0.00")
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
