"""Repair rows whose input could not be read earlier but can be read now, or whose caption was edited.

Only these rows are computed again.

The store of a repair needs only the shards with repaired rows: all others are taken from the earlier features files
with the same provenance. If these files are deleted, the store is filled like any other.

N stimuli.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.features_form import TENSORS
from lit_extract.storage.layout import (
    BAD_INPUT,
    CONTENT,
    INPUT_COLUMNS,
    INPUTS,
    N_TOKENS,
    NANS,
    NOT_FINITE,
    OK,
    FeatsArray,
)
from lit_extract.storage.places import AnyPath, RemoteError, place_of
from lit_extract.storage.provenance import CAPTIONS, differing, features_provenance
from lit_extract.storage.store import Store
from lit_extract.storage.tensors import to_numbers


def status_of(features: Features) -> NDArray[np.uint8]:
    """Return the status of each row of a features file (N,)."""
    status = np.full(len(features.stimulus_ids), OK, dtype=np.uint8)
    status[features.metadata["not_finite_rows"]] = NOT_FINITE
    status[features.metadata["bad_input_rows"]] = BAD_INPUT
    return status


def inputs_of(features: Features) -> NDArray[np.int64] | None:
    """Return a features file's notes on each row's input (N, 4); None for files of earlier versions."""
    return features.extras[INPUTS].numpy() if INPUTS in features.extras else None


def difference(features: Features, provenance: Mapping[str, Any], root: str | None = None) -> str:
    """Return the settings in which a features file differs from a provenance, in words; "" if none differs.

    Edited captions do not count as a setting if the file notes the caption of each row.
    """
    old = features.provenance
    if {*old, *provenance} >= {CAPTIONS} and inputs_of(features) is not None:
        old = {**old, CAPTIONS: provenance.get(CAPTIONS)}
    return differing(old, provenance, features.metadata["notes"].get("root"), root)


class Rows:
    """All rows of a job: from its store, or from its features files where the store has none."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.done = store.done_shards()
        self.files = _earlier_files(store)

    def missing(self) -> list[range]:
        """Return the rows that neither store nor files have, by shard."""
        return [] if self.files else self.store.missing_rows()

    def shard(self, pool: str, array: FeatsArray, shard: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the rows of a shard (rows, …) of an array of a pooling; see :meth:`Store.read_shard`.

        They are NaN where the input was bad.
        """
        rows = self.store.rows_of(shard)
        if shard not in self.done:
            file = self.files[pool]
            feats = file.feats
            part = feats[file.layers[array.layers[0]]] if isinstance(feats, dict) else feats
            return to_numbers(part[rows.start : rows.stop])
        found = self.store.read_shard(array.name, shard, into)
        is_bad = self._store_status[rows.start : rows.stop] == BAD_INPUT
        found[is_bad] = NANS[self.store.dtype]  # a killed repair may have left other numbers
        return found

    def status(self, pool: str) -> NDArray[np.uint8]:
        """Return the status of each row (N,)."""
        return self._merge(self._store_status, status_of(self.files[pool]) if pool in self.files else None)

    def inputs(self, pool: str) -> NDArray[np.int64] | None:
        """Return the notes on each row's input (N, 4); None if an earlier version made none."""
        earlier = inputs_of(self.files[pool]) if pool in self.files else None
        if INPUT_COLUMNS[CONTENT] not in self.store.extras or (self.files and earlier is None):
            return None
        return self._merge(self.store.inputs(), earlier)

    def extra(self, name: str, pool: str) -> NDArray[Any]:
        """Return a further value of each row (N, …), for captions."""
        earlier = self.files[pool].extras if pool in self.files else {}
        if name == N_TOKENS and "mask" in earlier:
            return self._merge(self.store.extra(name), earlier["mask"].sum(dim=1).numpy())
        known = earlier.get(name if name in TENSORS else f"row_{name}")
        return self._merge(self.store.extra(name), None if known is None else known.numpy())

    def edited(self, pool: str) -> list[int]:
        """Return the rows whose captions differ from those in the features file."""
        earlier, now = inputs_of(self.files[pool]) if pool in self.files else None, self.inputs(pool)
        if earlier is None or now is None or CAPTIONS not in self.store.provenance:
            return []
        rows: list[int] = np.flatnonzero(earlier[:, CONTENT] != now[:, CONTENT]).tolist()
        return rows

    def repaired(self, pool: str) -> list[int]:
        """Return the rows that are bad in the features file and no longer bad here."""
        earlier = self.files[pool].metadata["bad_input_rows"] if pool in self.files else []
        status = self.status(pool)
        return [row for row in earlier if status[row] != BAD_INPUT]

    @cached_property
    def _store_status(self) -> NDArray[np.uint8]:
        return self.store.status()

    def _merge(self, of_store: NDArray[Any], earlier: NDArray[Any] | None) -> NDArray[Any]:
        """Return values of each row: from the store where its shard is done, else the earlier ones."""
        if earlier is None:
            return of_store
        is_done = np.isin(np.arange(self.store.n_stimuli) // self.store.shard_rows, list(self.done))
        return np.where(is_done.reshape(-1, *[1] * (of_store.ndim - 1)), of_store, earlier)


def _earlier_files(store: Store) -> Mapping[str, Features]:
    """Return the features file of each pooling; none unless all exist with the store's provenance, rows and layers."""
    files: dict[str, Features] = {}
    for pool, name in store.notes["files"].items():
        file: AnyPath = store.path.parent / name
        try:
            if not place_of(file).exists():
                return {}
            files[pool] = load_features(file)
        except RemoteError:
            raise
        except InputError:  # finalize, which replaces it, names what is wrong with it
            return {}
        if difference(files[pool], features_provenance(store.provenance, pool)):
            return {}
        form = store.layer_shapes, store.dtype, store.layers
        if (files[pool].layer_shapes, files[pool].dtype, files[pool].layers) != form:
            return {}
    ids = store.stimulus_ids()
    return files if all(file.stimulus_ids == ids for file in files.values()) else {}
