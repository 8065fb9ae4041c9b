"""The figures. Each is drawn once: as PNG and PDF for papers, and as an SVG with the colours of the page.

n stimuli, L layers, M models.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lit_extract.report import similarity
from lit_extract.report.comparison import CKA, MUTUAL, SHUFFLED_MEASURES, BestLayer, Measure, Pair, Shuffled
from lit_extract.report.model import LayerReport, ModelReport, picked_layers
from lit_extract.report.statistics import Norms, Outliers

mpl.use("Agg")

# Okabe & Ito's colours, which colour-blind readers can distinguish. Each has a name in the page's style sheet; the dark
# theme has lighter ones.
INK, BLUE, ORANGE, GREY = "#1a1c20", "#0072b2", "#d55e00", "#7f8590"
_CSS = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)", GREY: "var(--grey)"}
ANNOTATED_AT_MOST = 9  # models, in a matrix with its numbers
LISTED_AT_MOST = 30  # pairs, in a list
IN_MATRIX, IN_LIST = 26, 34  # characters of a model's name; its number and the table identify it
PNG_DPI = 200
SHUFFLED = "shuffled, mean to 95th percentile"

STYLE: Any = {  # for matplotlib.rc_context, while figures are made and drawn
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
    "figure.constrained_layout.use": True,
    "image.interpolation": "nearest",
    "text.parse_math": False,
    "svg.hashsalt": "lit-extract",
    "pdf.fonttype": 42,  # text stays text, as journals require
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def draw(figure: Figure, png: Path) -> str:
    """Write PNG and PDF of a figure, on white; return its SVG for HTML, transparent, in the page's colours.

    The SVG has no XML header, and its ids are unique to the figure.
    """
    figure.savefig(png, dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    figure.savefig(png.with_suffix(".pdf"), facecolor="white", metadata={"CreationDate": None})
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{png.stem}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{png.stem}-", svg)
    svg = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="--width: \1pt" aria-hidden="true"', svg, count=1)
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    return svg.strip()


def layers(model: ModelReport, best: BestLayer | None = None) -> Figure:
    """Plot norm, effective rank and outlier dimensions by layer, with a dashed line at the best layer."""
    figure, (size, rank, outliers) = plt.subplots(1, 3, figsize=(7.4, 2.5))
    _plot_norms(size, model.layers)
    ranks = np.array([layer.effective_rank for layer in model.layers], dtype=float)  # None is NaN
    rank.plot(ranks, "o-", c=BLUE)
    rank.set(title="effective rank", ylabel=f"dimensions ({len(model.sampled) - 1} at most)")
    rank.set_ylim(0, 1.08 * np.nanmax([*ranks, 1]))
    _plot_outliers(outliers, model.layers)
    for axis in (size, rank, outliers):
        _name_layers(axis.xaxis, model, at_most=6)
        if best:
            axis.axvline(best.place, color=GREY, linestyle="--", linewidth=1, zorder=0)
    return figure


def _plot_norms(axis: Axes, layers: Sequence[LayerReport]) -> None:
    norms = [layer.norms or Norms(np.nan, np.nan, np.nan) for layer in layers]
    p5, p95 = [norm.p5 for norm in norms], [norm.p95 for norm in norms]
    axis.fill_between(range(len(norms)), p5, p95, color=BLUE, alpha=0.25, linewidth=0)
    axis.plot([norm.median for norm in norms], "o-", c=BLUE)
    axis.set(title="size", ylabel="Euclidean norm (activation units)\nmedian, 5th to 95th percentile")
    finite = np.array([value for value in (*p5, *p95) if np.isfinite(value)])
    if finite.size and finite.max() > 30 * finite.min() > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_ylim(0, None)


def _plot_outliers(axis: Axes, layers: Sequence[LayerReport]) -> None:
    found = [layer.outliers or Outliers([], 0, np.nan) for layer in layers]
    share = [100 * outliers.largest_share for outliers in found]
    count = [np.nan if layer.outliers is None else len(layer.outliers.dimensions) for layer in layers]
    axis.plot(share, "o-", c=BLUE)
    axis.set(title="outlier dimensions", ylim=(0, 1.08 * np.nanmax([*share, 5])))
    axis.set_ylabel("largest one's share of\nthe squared norm (%)", color=BLUE)
    counts = axis.twinx()
    counts.plot(count, "s:", c=ORANGE)
    counts.set_ylim(0, 1.08 * np.nanmax([*count, 3]))
    counts.set_ylabel("number of them", color=ORANGE)
    counts.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    counts.spines["right"].set_visible(True)


def rdm(model: ModelReport) -> Figure:
    """Show the RDMs at an early, a middle and the last layer."""
    picked = model.geometry.layers_with_rdm(picked_layers(len(model.layers)))
    figure, axes = plt.subplots(1, len(picked), figsize=(2.45 * len(picked), 1.9), squeeze=False)
    for axis, layer in zip(axes[0], picked, strict=True):
        matrix = np.zeros((model.n_drawn, model.n_drawn))
        matrix[np.triu_indices(model.n_drawn, 1)] = model.geometry.rdms[layer]
        _show(axis, matrix + matrix.T, "1 − Pearson's r", cmap="viridis", vmin=0)
        axis.set(title=model.layers[layer].name, xlabel="stimulus", ylabel="stimulus")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def cka(model: ModelReport) -> Figure:
    """Show CKA between the layers (L, L) of a model."""
    figure, axis = plt.subplots(figsize=(3.3, 2.7))
    values = CKA.between(model.geometry, model.geometry)
    _show(axis, values, CKA.unit, cmap="cividis", vmin=0, vmax=1, origin="lower")
    _name_layers(axis.xaxis, model, at_most=8)
    _name_layers(axis.yaxis, model, at_most=8)
    return figure


def matrices(models: Sequence[ModelReport], pairs: Sequence[Pair], measure: Measure) -> Figure:
    """Show model × model (M, M) at the best and the last layers, measured and, for some measures, shuffled."""
    places = [place for place, model in enumerate(models) if any(model in (pair.first, pair.second) for pair in pairs)]
    row_of = {models[place]: row for row, place in enumerate(places)}
    m, panels = len(places), _panels(row_of, pairs, measure)
    rows = len(panels) // 2
    numbers = [str(place + 1) for place in places]
    names = [f"{_short(models[place].source.label, IN_MATRIX)}  {place + 1}" for place in places]
    side = np.clip(0.55 * m, 1.8, 3.6)
    width = 2 * side + 0.08 * max(map(len, names)) + 1.2
    figure, axes = plt.subplots(rows, 2, figsize=(width, rows * (side + 0.6)), squeeze=False, sharey=True)
    top = max(0.01, np.nanmax([*panels.values(), np.zeros((m, m))])) if measure is MUTUAL else 1.0
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=True):
        image = axis.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=top)
        axis.set(title=title, xlabel="model")
        axis.set_xticks(range(m), numbers)
        axis.set_yticks(range(m), names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        for (row, column), value in np.ndenumerate(values if m <= ANNOTATED_AT_MOST else values[:0]):
            if np.isfinite(value):
                text, colour = f"{value:.2f}".replace("-0.00", "0.00"), "black" if value > 0.55 * top else "white"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    bar = figure.colorbar(image, ax=axes, label=measure.unit, shrink=min(1, 1.2 / rows), aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _panels(row_of: dict[ModelReport, int], pairs: Sequence[Pair], measure: Measure) -> dict[str, NDArray[np.float64]]:
    """Return title and values (M, M) of each panel, NaN on the diagonal; shuffled panels only if there are values."""
    panels: dict[str, NDArray[np.float64]] = {}
    for pair in pairs:
        agreement, place = pair.agreements[measure], (row_of[pair.first], row_of[pair.second])
        for which, value, shuffled in (
            ("best", agreement.best, agreement.best_shuffled),
            ("last", agreement.last, agreement.last_shuffled),
        ):
            for how, number in (("measured", value), ("shuffled", shuffled.p95 if shuffled else None)):
                matrix = panels.setdefault(f"{which} layers, {how}", np.full((len(row_of), len(row_of)), np.nan))
                matrix[place] = matrix[place[::-1]] = np.nan if number is None else number
    return {title: matrix for title, matrix in panels.items() if measure in SHUFFLED_MEASURES or "measured" in title}


def vision_language(pairs: Sequence[Pair]) -> Figure:
    """Plot the first pairs of a vision and a language model at their best layers, next to shuffled stimuli."""
    pairs = pairs[:LISTED_AT_MOST]
    names = ["\n".join(_short(model.source.label, IN_LIST) for model in (pair.first, pair.second)) for pair in pairs]
    places = np.arange(len(pairs))[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 0.95 + 0.42 * len(pairs)), sharey=True)
    wide: Any = {"color": GREY, "linewidth": 5, "solid_capstyle": "butt"}
    dot: Any = {"color": BLUE, "marker": "o", "markersize": 6, "linestyle": ""}
    for axis, measure in zip(axes, (CKA, MUTUAL), strict=True):
        for place, pair in zip(places, pairs, strict=True):
            agreement = pair.agreements[measure]
            if chance := agreement.best_shuffled:
                axis.plot([chance.mean, chance.p95], [place, place], **wide)
            if agreement.best is not None:
                axis.plot(agreement.best, place, **dot)
        axis.set(xlabel=measure.unit.replace("neighbours ", "neighbours\n"), ylim=(-0.6, len(pairs) - 0.4))
        axis.margins(x=0.08)
        low, high = min(0, axis.get_xlim()[0]), axis.get_xlim()[1]
        axis.set_xlim(low, high + 0.04 * (high - low))  # no dot is cut by the edge
        axis.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    axes[0].set_yticks(places, names)
    axes[0].set_ylabel("vision model\nlanguage model")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr,call-arg]
    handles = [Line2D([], [], **dot), Line2D([], [], **wide)]
    figure.legend(handles, ["measured", SHUFFLED], loc="outside upper right", ncols=2)
    return figure


def layer_pair(pair: Pair) -> Figure:
    """Show the layers of one model against those of another, with a ring at the best pair."""
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.1))
    for axis, measure in zip(axes, (CKA, MUTUAL), strict=True):
        agreement = pair.agreements[measure]
        top = max(0.01, 1 if agreement.best is None else agreement.best)
        _show(axis, agreement.layers, measure.unit, cmap="cividis", vmin=0, vmax=top, origin="lower", aspect="auto")
        if best := similarity.best(agreement.layers):
            for size, colour in ((9, "white"), (7, "black")):  # one of them is visible on any background
                axis.plot(*reversed(best[1]), marker="o", markersize=size, mfc="none", mec=colour, mew=1.2)
        axis.set_title(measure.title)
        _name_layers(axis.xaxis, pair.second, at_most=8, before=f"{_short(pair.second.source.label)},\n")
        _name_layers(axis.yaxis, pair.first, at_most=8, before=f"{_short(pair.first.source.label)},\n")
    axes[1].set_ylabel("")
    return figure


def twins(pairs: Sequence[Pair]) -> Figure:
    """Plot each layer of a trained model against the same layer of its untrained twin."""
    figure, axes = plt.subplots(len(pairs), 2, figsize=(7.4, 0.4 + 1.9 * len(pairs)), squeeze=False)
    for row, pair in zip(axes, pairs, strict=True):
        trained = pair.second if pair.first.source.is_untrained else pair.first
        for axis, measure in zip(row, (CKA, MUTUAL), strict=True):
            agreement = pair.agreements[measure]
            chance = [c or Shuffled(np.nan, np.nan) for c in agreement.same_layer_shuffled or []]
            mean, p95 = [c.mean for c in chance], [c.p95 for c in chance]
            axis.fill_between(range(len(chance)), mean, p95, color=GREY, alpha=0.5, linewidth=0, label=SHUFFLED)
            axis.plot(agreement.layers.diagonal(), "o-", c=BLUE, label="measured")
            axis.set_ylabel(measure.unit.replace("nearest ", "nearest\n"))
            axis.set_ylim(min(0, axis.get_ylim()[0]), 1)
            _name_layers(axis.xaxis, trained, at_most=10)
        row[0].set_title(_short(trained.source.label), loc="left")
    axes[0, 0].legend(fontsize=7)
    return figure


def _show(axis: Axes, values: NDArray[np.float64], label: str, **style: Any) -> None:
    """Show a matrix, with a colour bar of the same height."""
    image = axis.imshow(np.ma.masked_invalid(values), **style)
    axis.spines[:].set_visible(False)
    bar = axis.get_figure().colorbar(image, cax=axis.inset_axes((1.04, 0, 0.05, 1)), label=label)  # type: ignore[union-attr]
    bar.outline.set_visible(False)


def _name_layers(axis: Axis, model: ModelReport, at_most: int, before: str = "") -> None:
    """Mark some layers on an axis, and label it; blocks are marked by their number."""
    names = [layer.name for layer in model.layers]
    places = range(0, len(names), -(-len(names) // at_most))
    ticks = [names[place].removeprefix("blocks.") for place in places]
    axis.set_ticks(places, ticks)
    if isinstance(axis, XAxis) and max(map(len, ticks)) > len("norm"):
        plt.setp(axis.get_ticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    axis.set_label_text(before + ("block (from 0)" if all(name.startswith("blocks.") for name in names) else "layer"))


def _short(label: str, limit: int = 42) -> str:
    return label if len(label) <= limit else f"{label[: limit // 2]}…{label[-limit // 2 + 1 :]}"
