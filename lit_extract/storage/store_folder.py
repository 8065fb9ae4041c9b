"""A store's folder: made and removed such that no half of one is ever taken for a store.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_extract.storage.layout import GROUP_KEY, IDS_KEY, STORE_FORMAT
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.store_ids import encode_ids, ids_dtype
from lit_extract.storage.store_metadata import array_metadata, as_json, group_content, ids_sha256, new_attributes


@dataclass(frozen=True)
class StoreSpec:
    """The content of a store, fixed when it is created.

    Args:
        pools: Names of the poolings, an array each.
        layers: Names of the layers, in the order of the arrays' second axis.
        n_dim: Hidden size.
        shard_rows: Rows a shard.
        stimulus_ids: Id of each row, all int or all str.
        provenance: What changes the numbers; must be equal when the store is opened again.
        notes: What else is worth knowing: versions, device, meaning of the ids, parameters.
        extras: Names of further values of a row, with their dtype; an array (N,) each.
    """

    pools: Sequence[str]
    layers: Sequence[str]
    n_dim: int
    shard_rows: int
    stimulus_ids: Sequence[int] | Sequence[str]
    provenance: Mapping[str, Any]
    notes: Mapping[str, Any]
    extras: Mapping[str, str] = field(default_factory=dict)


def create_store(path: AnyPath, spec: StoreSpec) -> None:
    """Make an empty store.

    Raises:
        OSError: There is one, or it can't be written.
    """
    shape = len(spec.stimulus_ids), len(spec.layers), spec.n_dim
    dtype = ids_dtype(spec.stimulus_ids)
    arrays = array_metadata(STORE_FORMAT, spec.pools, spec.extras, shape, spec.shard_rows, dtype)
    attributes = new_attributes(
        id=uuid.uuid4().hex,
        pools=list(spec.pools),
        extras=list(spec.extras),
        layers=list(spec.layers),
        shard_rows=spec.shard_rows,
        provenance=dict(spec.provenance),
        notes=dict(spec.notes),
        stimulus_ids_sha256=ids_sha256(spec.stimulus_ids),
    )
    files = {f"{name}/{GROUP_KEY}": as_json(metadata) for name, metadata in arrays.items()}
    files[IDS_KEY] = encode_ids(spec.stimulus_ids, STORE_FORMAT)
    place_of(path).create_folder(files, GROUP_KEY, group_content(attributes, arrays))


def is_store(path: AnyPath) -> bool:
    """Return whether there is a store, or what looks like one; not what is being made or removed."""
    return place_of(path).is_whole(GROUP_KEY)


def remove_store(path: AnyPath) -> None:
    """Delete a store, or what is left of it, so that no half of it is ever taken for a store."""
    place_of(path).remove_folder(GROUP_KEY)
