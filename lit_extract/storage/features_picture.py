"""Features in one picture: norms by layer, and dissimilarities of stimuli.

N stimuli, D hidden size.
"""

import io
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_extract.storage.features import Features

STIMULI_AT_MOST = 200
NUMBERS_AT_MOST = 2**23  # of a layer, in memory at once, in double precision


def draw(features: "Features", picture: Path) -> None:
    """Write the picture of :func:`picture_of` to a file; its suffix determines the format."""
    figure = picture_of(features)
    if picture.suffix[1:].lower() not in (known := figure.canvas.get_supported_filetypes()):
        raise InputError(f"picture: {str(picture)!r} must end in one of .{', .'.join(sorted(known))}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, picture)


def picture_of(features: "Features") -> "Figure":
    """Return the norm of each layer, and the dissimilarity of stimuli at an early, a middle and the last layer.

    The dissimilarity is 1 - Pearson's r between the features of two stimuli, as in representational similarity analysis
    (Kriegeskorte et al., 2008, doi:10.3389/neuro.06.004.2008). At most 200 stimuli, evenly spaced, are drawn.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise InputError("picture: drawing needs matplotlib: pip install 'lit-extract[plot]'") from None

    n = len(features.stimulus_ids)
    drawable = min(n, STIMULI_AT_MOST, max(2, NUMBERS_AT_MOST // max(map(math.prod, features.layer_shapes))))
    rows = np.unique(np.linspace(0, n - 1, drawable).astype(int))
    norms = [np.linalg.norm(_vectors(features, k, rows), axis=1) for k in range(len(features.layers))]
    if not np.isfinite(norms).any():
        raise InputError("picture: nothing to draw: no stimulus has finite features yet")
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():  # names are no formulas
        warnings.simplefilter("ignore")  # about numbers that are not finite
        return _figure(features, rows, norms)


def _save(figure: "Figure", target: Path | io.BytesIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters that no font has
        figure.savefig(target, dpi=130)


def _figure(features: "Features", rows: NDArray[np.int64], norms: list[NDArray[np.float64]]) -> "Figure":
    """Return a panel of norms by layer, and panels of dissimilarity."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            """Return the picture for a notebook, also if matplotlib has no backend for notebooks."""
            _save(self, content := io.BytesIO())
            return content.getvalue()

    depth = len(features.layers)
    drawn = sorted({0, depth // 2, depth - 1})
    figure = NotebookFigure(figsize=(3.6 * (1 + len(drawn)), 3.6), layout="constrained")
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


def _vectors(features: "Features", layer: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one vector per row; several vectors of a stimulus are concatenated."""
    vectors: NDArray[np.float64] = features.layer(layer)[rows].flatten(1).double().numpy()
    return vectors


def dissimilarity(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 - Pearson's r between the rows of (N, D), as (N, N)."""
    correlation: NDArray[np.float64] = np.corrcoef(features.astype(np.float64))
    return np.atleast_2d(1 - correlation)
