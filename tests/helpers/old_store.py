"""Stores as earlier versions made them, with zarr itself: format 1, without seals and checksums of metadata."""

import shutil

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from lit_extract.storage.store import Store, StoreSpec


def create(path, spec, **attributes):
    """An empty store of format 1."""
    n, layers, rows = len(spec.stimulus_ids), len(spec.layers), spec.shard_rows
    (dim,) = spec.layer_shapes[0]
    fixed = {"format": 1, "id": "0123456789abcdef" * 2, "status": {}, "shard_rows": rows}
    lists = {name: list(getattr(spec, name)) for name in ("pools", "extras", "layers")}
    dicts = {name: dict(getattr(spec, name)) for name in ("provenance", "notes")}
    group = zarr.create_group(path, zarr_format=3, attributes={**fixed, **lists, **dicts, **attributes})
    always = {"config": {"write_empty_chunks": True}}
    for pool in spec.pools:
        group.create_array(
            pool,
            shape=(n, layers, dim),
            dtype="float32",
            shards=(rows, layers, dim),
            chunks=(rows, 1, dim),
            compressors=(Crc32cCodec(),),
            fill_value=float("nan"),
            dimension_names=("stimulus", "layer", "dim"),
            **always,
        )
    for name, dtype in {"status": "uint8", **spec.extras}.items():
        chunks = {"chunks": (rows,), "compressors": (Crc32cCodec(),), "fill_value": 0}
        group.create_array(name, shape=(n,), dtype=dtype, dimension_names=("stimulus",), **chunks, **always)
    ids = spec.stimulus_ids
    group.create_array(
        "stimulus_id",
        shape=(n,),
        dtype="int64" if all(isinstance(i, int) for i in ids) else "str",
        chunks=(n,),
        compressors=(ZstdCodec(), Crc32cCodec()),
        **always,
    )[:] = np.asarray(ids)
    return Store(path)


def write(store, shard, feats, status, extras=None):
    """A shard, as zarr writes it."""
    group, rows = zarr.open_group(store.path, mode="r+"), store.rows_of(shard)
    for name, values in {"status": status, **(extras or {}), **feats}.items():
        group[name].with_config({"write_empty_chunks": True})[rows.start : rows.stop] = values


def convert(path):
    """Make a store one of format 1, of the same numbers."""
    store = Store(path)
    about = store.shard_rows, store.stimulus_ids(), store.provenance, store.notes, store.layout.extras
    values = {shard: {pool: store.read_shard(pool, shard) for pool in store.pools} for shard in store.done_shards()}
    rows = {name: store.extra(name) for name in store.extras} | {"status": store.status()}
    shutil.rmtree(path)
    old = create(path, StoreSpec(store.pools, store.layers, store.layer_shapes, *about))
    for shard, feats in values.items():
        part = slice(old.rows_of(shard).start, old.rows_of(shard).stop)
        extras = {name: of_all[part] for name, of_all in rows.items() if name != "status"}
        write(old, shard, feats, rows["status"][part], extras)
    return Store(path)
