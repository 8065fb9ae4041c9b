"""A store's folder: made and removed such that no half of one is ever taken for a store.

A local one is built beside and renamed, and renamed before it is deleted. A remote one is a store while the group's own
``zarr.json`` is there, which is written last and deleted first.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_extract.storage.layout import BESIDE_SUFFIX, GROUP_KEY, IDS_KEY, STORE_FORMAT
from lit_extract.storage.paths import AnyPath, exists, remove_below, remove_file, sizes_below, write_file
from lit_extract.storage.store_ids import encode_ids, ids_dtype
from lit_extract.storage.store_metadata import array_metadata, as_json, group_content, ids_sha256, new_attributes


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds, fixed when it is created.

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
    if isinstance(path, Path):
        beside = _aside(path)
        _clear(beside)
        beside.parent.mkdir(parents=True, exist_ok=True)
        _build(beside, spec)
        beside.rename(path)
        return
    if is_store(path):
        raise FileExistsError(f"there is a store at {str(path)!r}")
    remove_store(path)  # what is left of one; a shard of it would count as done
    _build(path, spec)


def _build(folder: AnyPath, spec: StoreSpec) -> None:
    """Write the files of an empty store, the group's own last."""
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
    for name, metadata in arrays.items():
        write_file(folder, f"{name}/{GROUP_KEY}", [as_json(metadata)])
    write_file(folder, IDS_KEY, [encode_ids(spec.stimulus_ids, STORE_FORMAT)])
    write_file(folder, GROUP_KEY, [group_content(attributes, arrays)])


def _aside(path: Path) -> Path:
    """What a local store is called while it is made or removed."""
    return path.with_name(path.name + BESIDE_SUFFIX)


def is_store(path: AnyPath) -> bool:
    """Whether there is a store, or what looks like one; not what is being made or removed."""
    return path.exists() if isinstance(path, Path) else exists(path / GROUP_KEY)


def remains(path: AnyPath) -> bool:
    """Whether there is a store, or some of one that was being made or removed."""
    return path.exists() or _aside(path).exists() if isinstance(path, Path) else bool(sizes_below(path))


def remove_store(path: AnyPath) -> None:
    """Delete a store, or what is left of it, so that no half of it is ever taken for a store.

    A local one is renamed first; of a remote one goes first what makes it a store.
    """
    if isinstance(path, Path):
        _clear(_aside(path))
        if path.exists():
            path.rename(_aside(path))
            _clear(_aside(path))
        return
    remove_file(path / GROUP_KEY)
    remove_below(path)


def _clear(path: Path) -> None:
    """Delete what has the name of a store that is being made or removed; of a link only itself.

    Raises:
        OSError: It can't be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
