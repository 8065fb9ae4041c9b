"""Open the store of a run as features, also while it is running."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import validate
from lit_extract.storage.features_form import METADATA
from lit_extract.storage.layout import BAD_INPUT, MISSING, N_TOKENS, NOT_FINITE, TOKEN_IDS
from lit_extract.storage.places import AnyPath
from lit_extract.storage.store import Store
from lit_extract.storage.tensors import to_tensor


def open_store(path: AnyPath, pool: str | None) -> dict[str, Any]:
    """Return the arguments of Features for one pooling of a store."""
    store = Store(path)
    if pool is None and len(store.pools) == 1:
        pool = store.pools[0]
    if pool not in store.pools:
        raise InputError(f"pool: {pool!r} must be one of {', '.join(store.pools)}, the poolings of {str(path)!r}")
    chosen: str = pool
    status = store.status()

    is_without = torch.from_numpy(np.isin(status, (MISSING, BAD_INPUT)))

    def read(layer: int | None, rows: list[int] | None = None) -> Any:
        if layer is not None:
            feats = to_tensor(store.read_layer(chosen, layer, rows))
            feats[is_without if rows is None else is_without[rows]] = torch.nan
            return feats
        by_layer = {name: read(k) for k, name in enumerate(store.layers)}
        return torch.stack([*by_layer.values()], dim=1) if len({*store.layer_shapes}) == 1 else by_layer

    metadata = {
        "provenance": {**store.provenance, "pool": chosen},
        "notes": store.notes,
        "bad_input_rows": (status == BAD_INPUT).nonzero()[0].tolist(),
        "not_finite_rows": (status == NOT_FINITE).nonzero()[0].tolist(),
    }
    validate(METADATA, metadata, f"features: {str(path)!r}")
    extras: dict[str, Tensor] = {}
    if TOKEN_IDS in store.extras:
        extras[TOKEN_IDS] = torch.from_numpy(store.extra(TOKEN_IDS))
        n_tokens = torch.from_numpy(store.extra(N_TOKENS))
        extras["mask"] = (torch.arange(extras[TOKEN_IDS].shape[1]) < n_tokens[:, None]).byte()
    return {
        "layers": store.layers,
        "stimulus_ids": store.stimulus_ids(),
        "num_params": store.notes["num_params"],
        "metadata": metadata,
        "layer_shapes": store.layer_shapes,
        "dtype": store.dtype,
        "n_done": int((status != MISSING).sum()),
        "_read": read,
        "extras": extras,
    }
