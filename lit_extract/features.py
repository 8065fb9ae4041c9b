"""Reading features: a finished ``.pt``, or the store of a run that is still going.

N stimuli, L layers, D hidden size.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_extract.errors import InputError
from lit_extract.layout import FEATURES_KEYS


@dataclass(frozen=True)
class Features:
    """Features of one model and one pooling on one dataset.

    Args:
        path: Where they were read from.
        layers: Name of each layer, in the order of the tensor's second axis.
        stimulus_ids: Id of each row.
        num_params: Parameters of the whole model, head included.
        metadata: ``provenance`` (what determines the numbers), ``notes``, ``bad_input_rows`` (inputs that
            could not be read: NaN) and ``not_finite_rows`` (the model gave NaN or infinity).
        n_done: Rows that are computed; fewer than N in the store of an unfinished run, where the others
            are NaN.
        extras: What else a finished file holds: of language models the attention ``mask`` (N, T) and, when
            asked for, ``loss`` (nats a token) and ``bpb`` (bits a byte), means over stimuli, with
            ``row_loss`` and ``row_bpb`` (N,).
    """

    path: Path
    layers: list[str]
    stimulus_ids: list[int] | list[str]
    num_params: int
    metadata: dict[str, Any] = field(repr=False)
    n_done: int
    _read: Callable[[int | None], Tensor] = field(repr=False)
    extras: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def feats(self) -> Tensor:
        """All layers (N, L, D), float32; memory-mapped when read from a ``.pt``."""
        return self._read(None)

    @property
    def provenance(self) -> dict[str, Any]:
        """What determines the numbers."""
        provenance: dict[str, Any] = self.metadata["provenance"]
        return provenance

    def layer(self, layer: str | int) -> Tensor:
        """One layer (N, D) by name or index, without reading the others.

        Raises:
            InputError: No such layer.
        """
        known = layer in self.layers if isinstance(layer, str) else -len(self.layers) <= layer < len(self.layers)
        if not known:
            raise InputError(f"layer: {layer!r} is not one of the {len(self.layers)} layers {', '.join(self.layers)}")
        return self._read(self.layers.index(layer) if isinstance(layer, str) else layer % len(self.layers))


def load_features(path: str | Path, pool: str | None = None) -> Features:
    """Open a features file, or the store of a run that is not finalized.

    Args:
        path: A ``.pt``, or a ``.zarr`` folder.
        pool: Which pooling of a store that has several.

    Raises:
        InputError: Not a features file or store, or no such pooling.
    """
    path = Path(path)
    return _from_store(path, pool) if path.is_dir() else _from_file(path, pool)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a ``.pt``; the numbers are not read.

    Raises:
        InputError: Not a features file.
    """
    metadata: dict[str, Any] = _open(path)["metadata"]
    return metadata


def _open(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
        if set(content) >= FEATURES_KEYS and "provenance" in content["metadata"]:
            return content
        reason = f"it holds {sorted(map(str, content))}"
    except FileNotFoundError:
        raise InputError(f"features: no file {str(path)!r}") from None
    except (RuntimeError, pickle.UnpicklingError, OSError, TypeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
    raise InputError(f"{str(path)!r} is not a features file of lit-extract: {reason}")


def _from_file(path: Path, pool: str | None) -> Features:
    content = _open(path)
    feats: Tensor = content["feats"]
    stored = content["metadata"]["provenance"]["pool"]
    if pool not in (None, stored):
        raise InputError(f"pool: {str(path)!r} has {stored!r}, not {pool!r}")
    return Features(
        path,
        content["layers"],
        content["stimulus_ids"],
        content["num_params"],
        content["metadata"],
        len(feats),
        lambda layer: feats if layer is None else feats[:, layer],
        {name: value for name, value in content.items() if name not in FEATURES_KEYS},
    )


def _from_store(path: Path, pool: str | None) -> Features:
    from lit_extract.store import BAD_INPUT, MISSING, NOT_FINITE, Store

    store = Store(path)
    if pool is None and len(store.pools) == 1:
        pool = store.pools[0]
    if pool not in store.pools:
        raise InputError(f"pool: {pool!r} must be one of {', '.join(store.pools)}, which {str(path)!r} holds")
    chosen: str = pool
    status = store.status()

    def read(layer: int | None) -> Tensor:
        layers = range(len(store.layers)) if layer is None else [layer]
        feats = torch.stack([torch.from_numpy(store.read_layer(chosen, k)) for k in layers], dim=1)
        feats[torch.from_numpy(status == MISSING)] = torch.nan
        return feats if layer is None else feats[:, 0]

    metadata = {
        "provenance": {**store.provenance, "pool": chosen},
        "notes": store.notes,
        "bad_input_rows": (status == BAD_INPUT).nonzero()[0].tolist(),
        "not_finite_rows": (status == NOT_FINITE).nonzero()[0].tolist(),
    }
    n_done = int((status != MISSING).sum())
    return Features(path, store.layers, store.stimulus_ids(), store.notes["num_params"], metadata, n_done, read)
