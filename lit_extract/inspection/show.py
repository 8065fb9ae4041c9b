"""``lit-extract show``: what a features file holds, in words and in one picture.

N stimuli, D hidden size.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.places import local_path
from lit_extract.storage.rounding import NOTE, describe, warning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STIMULI_AT_MOST = 200
NUMBERS_AT_MOST = 2**23  # of a layer that are in memory at once, in double precision
_LONGEST = 4000  # characters of a value that is printed


def show(path: str, pool: str | None = None, picture: str | None = None) -> None:
    """Print what ``path`` holds; draw ``picture`` when asked for."""
    features = load_features(path, pool)
    provenance = features.provenance
    print(shorten(path, _LONGEST))
    print(f"  {len(features.stimulus_ids)} stimuli × {len(features.layers)} layers, pooling {provenance['pool']}")
    print(f"  {features.n_done} rows done; layers {shorten(', '.join(features.layers), _LONGEST)}")
    for key, value in {**provenance, **features.metadata["notes"]}.items():
        if key == NOTE:
            continue  # by layer and pooling; in words below
        print(f"  {shorten(key)}: {shorten(str(value), _LONGEST)}")
    for key in ("bad_input_rows", "not_finite_rows"):
        if rows := features.metadata[key]:
            print(f"  {key}: {shorten(str(rows), _LONGEST)}")
    about = features.metadata, features.layers, provenance["pool"]
    print(f"  {describe(*about)}")
    if lost := warning(*about):
        print(f"  warning: {lost}")
    if picture is not None:
        draw(features, local_path(picture, "picture"))
        print(f"  drawn: {shorten(picture, _LONGEST)}")


def draw(features: Features, picture: Path) -> None:
    """Draw the norm of each layer, and the dissimilarity of stimuli at an early, a middle and the last layer.

    The dissimilarity is 1 - Pearson's r between the features of two stimuli, as in representational
    similarity analysis (Kriegeskorte et al., 2008, doi:10.3389/neuro.06.004.2008). At most 200 stimuli,
    evenly spaced, are drawn.

    Raises:
        InputError: matplotlib is not installed or can't write such a file, or none of these stimuli is done.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise InputError("picture: drawing needs matplotlib: pip install 'lit-extract[plot]'") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.backend_bases import FigureCanvasBase

    if picture.suffix[1:].lower() not in (known := FigureCanvasBase.get_supported_filetypes()):
        raise InputError(f"picture: {str(picture)!r} must end in one of .{', .'.join(sorted(known))}")
    n = len(features.stimulus_ids)
    drawable = min(n, STIMULI_AT_MOST, max(2, NUMBERS_AT_MOST // features.shape[2]))
    rows = np.unique(np.linspace(0, n - 1, drawable).astype(int))
    depth = len(features.layers)
    norms = [np.linalg.norm(features.layer(k)[rows].numpy().astype(np.float64), axis=1) for k in range(depth)]
    if not np.isfinite(norms).any():
        raise InputError("picture: there is nothing to draw, as none of the stimuli has finite features yet")
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():  # names are no formulas
        warnings.simplefilter("ignore")  # of numbers that are not finite, and signs that no font has
        figure = _figure(features, rows, norms)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=130)
    plt.close(figure)


def _figure(features: Features, rows: NDArray[np.int64], norms: list[NDArray[np.float64]]) -> "Figure":
    """A panel of norms by layer, and panels of dissimilarity."""
    import matplotlib.pyplot as plt

    depth = len(features.layers)
    drawn = sorted({0, depth // 2, depth - 1})
    figure, axes = plt.subplots(1, 1 + len(drawn), figsize=(3.6 * (1 + len(drawn)), 3.6), layout="constrained")
    axes = np.atleast_1d(axes)
    low, middle, high = np.nanpercentile(np.array(norms), [5, 50, 95], axis=1)
    axes[0].fill_between(range(depth), low, high, alpha=0.3, linewidth=0, label="5th to 95th percentile")
    axes[0].plot(range(depth), middle, marker=".", label="median")
    axes[0].set(xlabel="layer", ylabel="Euclidean norm of the features", ylim=(0, None))
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False)
    for axis, layer in zip(axes[1:], drawn, strict=True):
        image = axis.imshow(dissimilarity(features.layer(layer)[rows].numpy()), cmap="viridis", vmin=0)
        axis.set(title=shorten(features.layers[layer], 40), xlabel="stimulus", ylabel="stimulus")
        figure.colorbar(image, ax=axis, label="1 − Pearson's r", shrink=0.8)
    figure.suptitle(_title(features))
    return figure


def dissimilarity(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - Pearson's r between the rows of (N, D), as (N, N)."""
    correlation: NDArray[np.float64] = np.corrcoef(features.astype(np.float64))
    return np.atleast_2d(1 - correlation)


def _title(features: Features) -> str:
    provenance: dict[str, Any] = features.provenance
    weights = ", random weights" if provenance.get("weights") == "untrained" else ""
    n = len(features.stimulus_ids)
    dataset = provenance.get("dataset", "unknown stimuli")
    return f"{shorten(provenance['model'])}{weights} on {shorten(dataset)} ({n} stimuli), pooling {provenance['pool']}"
