"""A store's folder: made, opened and removed such that no half of one is ever taken for a store.

A local one is built beside and renamed, and renamed before it is deleted. A remote one is a store while the group's own
``zarr.json`` is there, which is written last and deleted first.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from lit_extract.layout import (
    BAD_INPUT,
    BESIDE_SUFFIX,
    GROUP_KEY,
    MISSING,
    NOT_FINITE,
    OK,
    STATUS,
    STIMULUS_ID,
    STORE_FORMAT,
)
from lit_extract.paths import AnyPath, exists, remote_errors, remove_below, remove_file, sizes_below


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


# A chunk that equals the fill value would be left out, and a shard without chunks not written: it must
# be, since its file, at its full size, says that the rows are done.
ALWAYS_WRITE: ArrayConfigParams = {"write_empty_chunks": True}


def create_store(path: AnyPath, spec: StoreSpec) -> None:
    """Make an empty store.

    Raises:
        OSError: There is one, or it can't be written.
    """
    if isinstance(path, Path):
        beside = _aside(path)
        shutil.rmtree(beside, ignore_errors=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        _build(beside, spec)
        beside.rename(path)
        return
    if is_store(path):
        raise FileExistsError(f"there is a store at {str(path)!r}")
    remove_store(path)  # what is left of one; a shard of it would count as done
    with tempfile.TemporaryDirectory() as folder:
        _build(Path(folder), spec)
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file == Path(folder, GROUP_KEY)):
            with remote_errors(path):
                path.fs.pipe_file((path / file.relative_to(folder).as_posix()).path, file.read_bytes())


def _build(folder: Path, spec: StoreSpec) -> None:
    """Make the files of an empty store."""
    n, layers, rows = len(spec.stimulus_ids), len(spec.layers), spec.shard_rows
    group = zarr.create_group(
        folder,
        zarr_format=3,
        attributes={
            "format": STORE_FORMAT,
            "id": uuid.uuid4().hex,
            "pools": list(spec.pools),
            "extras": list(spec.extras),
            "layers": list(spec.layers),
            "shard_rows": rows,
            "status": {"missing": MISSING, "ok": OK, "bad_input": BAD_INPUT, "not_finite": NOT_FINITE},
            "provenance": dict(spec.provenance),
            "notes": dict(spec.notes),
        },
    )
    for pool in spec.pools:
        group.create_array(
            pool,
            shape=(n, layers, spec.n_dim),
            dtype="float32",
            shards=(rows, layers, spec.n_dim),
            chunks=(rows, 1, spec.n_dim),
            compressors=(Crc32cCodec(),),  # activations don't compress; flipped bits are found
            fill_value=float("nan"),
            dimension_names=("stimulus", "layer", "dim"),
            config=ALWAYS_WRITE,
        )
    for name, dtype in {STATUS: "uint8", **spec.extras}.items():
        group.create_array(
            name,
            shape=(n,),
            dtype=dtype,
            chunks=(rows,),
            compressors=(Crc32cCodec(),),
            fill_value=MISSING,
            dimension_names=("stimulus",),
            config=ALWAYS_WRITE,
        )
    ids = spec.stimulus_ids
    group.create_array(
        STIMULUS_ID,
        shape=(n,),
        dtype="int64" if all(isinstance(i, int) for i in ids) else "str",  # numpy's own text is not in the standard
        chunks=(n,),
        compressors=(ZstdCodec(), Crc32cCodec()),
        config=ALWAYS_WRITE,
    )[:] = np.asarray(ids)


def open_group(path: AnyPath) -> zarr.Group:
    """The zarr group of a store; read-only where it may not be written."""
    if isinstance(path, Path):
        return zarr.open_group(path, mode="r+" if os.access(path, os.W_OK) else "r", zarr_format=3)
    from zarr.storage import FsspecStore

    options = {**path.storage_options, "asynchronous": True}
    return zarr.open_group(FsspecStore.from_url(str(path), storage_options=options), mode="r+", zarr_format=3)


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
        shutil.rmtree(_aside(path), ignore_errors=True)
        if path.exists():
            path.rename(_aside(path))
            shutil.rmtree(_aside(path))
        return
    remove_file(path / GROUP_KEY)
    remove_below(path)
