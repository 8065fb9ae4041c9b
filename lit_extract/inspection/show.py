"""One features file or store, in words and in one picture.

N stimuli, D hidden size.
"""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.storage import rounding
from lit_extract.storage.features import Features
from lit_extract.storage.layout import FLOAT32, N_SINKS, shapes_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STIMULI_AT_MOST = 200
NUMBERS_AT_MOST = 2**23  # of a layer that are in memory at once, in double precision
_LONGEST = 4000  # characters of a value that is printed


def describe(features: Features, path: str) -> list[str]:
    """Return the lines that ``lit-extract show`` prints of the features at ``path``."""
    pool, layers, metadata = features.provenance["pool"], features.layers, features.metadata
    shapes = shapes_in_words(features.layer_shapes)
    dtype = "" if features.dtype == FLOAT32 else f", {features.dtype}"
    lines = [
        f"{len(features.stimulus_ids)} stimuli × {len(layers)} layers × {shapes} dimensions{dtype}, pooling {pool}"
    ]
    lines.append(f"{features.n_done} rows done; layers {shorten(', '.join(layers), _LONGEST)}")
    known = {**features.provenance, **metadata["notes"]}
    known.pop(rounding.NOTE, None)  # by layer and pooling; in words below
    known |= {key: metadata[key] for key in ("bad_input_rows", "not_finite_rows") if metadata[key]}
    lines += [f"{shorten(key)}: {shorten(str(value), _LONGEST)}" for key, value in known.items()]
    if N_SINKS in features.extras:
        means = features.extras[N_SINKS].float().mean(dim=0).tolist()
        by_layer = ", ".join(f"{layer} {mean:.2f}" for layer, mean in zip(layers, means, strict=True))
        lines.append(f"attention sinks left out, mean of all captions: {shorten(by_layer, _LONGEST)}")
    lines.append(rounding.describe(metadata, layers, pool))
    if warning := rounding.warning(metadata, layers, pool):
        lines.append(f"warning: {warning}")
    return [shorten(path, _LONGEST), *(f"  {line}" for line in lines)]


def draw(features: Features, picture: Path) -> None:
    """Draw the norm of each layer, and the dissimilarity of stimuli at an early, a middle and the last layer.

    The dissimilarity is 1 - Pearson's r between the features of two stimuli, as in representational similarity analysis
    (Kriegeskorte et al., 2008, doi:10.3389/neuro.06.004.2008). At most 200 stimuli, evenly spaced, are drawn.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise InputError("picture: drawing needs matplotlib: pip install 'lit-extract[plot]'") from None

    if picture.suffix[1:].lower() not in (known := FigureCanvasBase.get_supported_filetypes()):
        raise InputError(f"picture: {str(picture)!r} must end in one of .{', .'.join(sorted(known))}")
    n = len(features.stimulus_ids)
    drawable = min(n, STIMULI_AT_MOST, max(2, NUMBERS_AT_MOST // max(map(math.prod, features.layer_shapes))))
    rows = np.unique(np.linspace(0, n - 1, drawable).astype(int))
    depth = len(features.layers)
    norms = [np.linalg.norm(_vectors(features, k, rows), axis=1) for k in range(depth)]
    if not np.isfinite(norms).any():
        raise InputError("picture: there is nothing to draw, as none of the stimuli has finite features yet")
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():  # names are no formulas
        warnings.simplefilter("ignore")  # of numbers that are not finite, and signs that no font has
        figure = _figure(features, rows, norms)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=130)


def _figure(features: Features, rows: NDArray[np.int64], norms: list[NDArray[np.float64]]) -> "Figure":
    """Return a panel of norms by layer, and panels of dissimilarity."""
    from matplotlib.figure import Figure

    depth = len(features.layers)
    drawn = sorted({0, depth // 2, depth - 1})
    figure = Figure(figsize=(3.6 * (1 + len(drawn)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(drawn))
    low, middle, high = np.nanpercentile(np.array(norms), [5, 50, 95], axis=1)
    axes[0].fill_between(range(depth), low, high, alpha=0.3, linewidth=0, label="5th to 95th percentile")
    axes[0].plot(range(depth), middle, marker=".", label="median")
    axes[0].set(xlabel="layer", ylabel="Euclidean norm of the features", ylim=(0, None))
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False)
    for axis, layer in zip(axes[1:], drawn, strict=True):
        image = axis.imshow(dissimilarity(_vectors(features, layer, rows)), cmap="viridis", vmin=0)
        axis.set(title=shorten(features.layers[layer], 40), xlabel="stimulus", ylabel="stimulus")
        figure.colorbar(image, ax=axis, label="1 − Pearson's r", shrink=0.8)
    provenance, n = features.provenance, len(features.stimulus_ids)
    weights = ", random weights" if provenance.get("weights") == "untrained" else ""
    model, dataset = shorten(provenance["model"]), shorten(provenance.get("dataset", "unknown stimuli"))
    figure.suptitle(f"{model}{weights} on {dataset} ({n} stimuli), pooling {provenance['pool']}")
    return figure


def _vectors(features: Features, layer: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a vector of each row: several of a stimulus one after the other."""
    vectors: NDArray[np.float64] = features.layer(layer)[rows].flatten(1).double().numpy()
    return vectors


def dissimilarity(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 - Pearson's r between the rows of (N, D), as (N, N)."""
    correlation: NDArray[np.float64] = np.corrcoef(features.astype(np.float64))
    return np.atleast_2d(1 - correlation)
