"""Convert features for other packages: rsatoolbox and xarray."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_extract.common.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import rsatoolbox
    import xarray

    from lit_extract.storage.features import Features


def to_rsatoolbox(
    features: "Features", layer: str | int, rows: Sequence[int] | None, trials: "pd.DataFrame | None"
) -> "rsatoolbox.data.Dataset":
    """Return one layer as an rsatoolbox dataset, see :meth:`Features.to_rsatoolbox`."""
    try:
        from rsatoolbox.data import Dataset
    except ImportError:
        raise InputError("to_rsatoolbox needs rsatoolbox: pip install 'lit-extract[report]'") from None
    if rows is not None and trials is not None:
        raise InputError("rows and trials: give one of the two")
    feats, ids = features.layer(layer), features.stimulus_ids
    if trials is not None:
        rows = features.rows_of_trials(trials)
    if rows is not None:
        feats, ids = feats[list(rows)], [ids[row] for row in rows]  # type: ignore[assignment]
    feats = feats.flatten(1)
    return Dataset(
        feats.float().numpy(),
        descriptors={**_names(features), "layer": _name_of(features, layer)},
        obs_descriptors={"stimulus_id": list(ids), **_columns_of(trials)},
        channel_descriptors={"dim": list(range(feats.shape[1]))},
    )


def to_xarray(features: "Features", layer: str | int | None, trials: "pd.DataFrame | None") -> "xarray.DataArray":
    """Return all layers, or one, with named axes, see :meth:`Features.to_xarray`."""
    try:
        import xarray
    except ImportError:
        raise InputError("to_xarray needs xarray: pip install 'lit-extract[report]'") from None
    feats = features.feats if layer is None else features.layer(layer)
    if isinstance(feats, dict):
        raise InputError(f"layer: give one, as the layers of {str(features.path)!r} differ in shape")
    if features.dtype == "bfloat16":
        feats = feats.float()  # numpy has no other type for it
    dimensions = [*(["layer"] if layer is None else []), *["token", "dim"][-len(features.layer_shapes[0]) :]]
    rows, ids = "stimulus", np.array(features.stimulus_ids)
    coordinates: dict[str, Any] = {"stimulus": ids}
    if trials is not None:
        places = features.rows_of_trials(trials)
        rows, feats = "trial", feats[places]
        described = {"stimulus_id": ids[places], **_columns_of(trials)}
        coordinates = {name: (rows, values) for name, values in described.items()}
    coordinates["layer"] = features.layers if layer is None else _name_of(features, layer)
    attributes = {**_names(features), "provenance": json.dumps(features.provenance)}
    return xarray.DataArray(feats.numpy(), coordinates, [rows, *dimensions], name="features", attrs=attributes)


def _name_of(features: "Features", layer: str | int) -> str:
    return layer if isinstance(layer, str) else features.layers[layer]


def _names(features: "Features") -> dict[str, Any]:
    return {key: features.provenance.get(key) for key in ("model", "pool", "dataset", "subset")}


def _columns_of(trials: "pd.DataFrame | None") -> dict[str, list[Any]]:
    """Return the columns that describe each trial, without its row in the dataset's table, which is another here."""
    if trials is None:
        return {}
    return {str(name): trials[name].tolist() for name in trials.columns if name not in ("stimulus_id", "row")}
