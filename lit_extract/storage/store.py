"""An open store, which a run streams into and finalize reads.

A store is a zarr v3 group (``docs/store-format.md``). It has one array (N, L, D) per pooling, or one per layer if
layers differ in shape, cut into shards of rows with inner chunks of one layer; ``status`` (N,), written before its
shard; and ``stimulus_id`` (N,). A shard file is the commit mark of its rows: it exists complete or not at all. Its seal
ties it to its place in this store.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError, one_line
from lit_extract.storage.layout import (
    FLOAT32,
    GROUP_KEY,
    IDS_KEY,
    INPUT_COLUMNS,
    KEPT_AS,
    NANS,
    PLAIN_STORE_FORMAT,
    STATUS,
    STATUS_NUMBERS,
    Shape,
    extra_shape,
    feats_arrays,
    store_format,
)
from lit_extract.storage.places import AnyPath, RemoteError, place_of
from lit_extract.storage.provenance import differing, to_keep_both
from lit_extract.storage.store_files import StoreFiles
from lit_extract.storage.store_ids import encode_ids, ids_dtype, ids_sha256, read_ids
from lit_extract.storage.store_metadata import (
    MAX_METADATA_BYTES,
    feats_metadata,
    group_content,
    id_in,
    read_layout,
    rows_metadata,
)


@dataclass(frozen=True)
class StoreSpec:
    """The content of a store, fixed when it is created."""

    pools: Sequence[str]
    layers: Sequence[str]
    layer_shapes: Sequence[Shape]  # of a row in each layer, such as (D,)
    shard_rows: int
    stimulus_ids: Sequence[int] | Sequence[str]
    provenance: Mapping[str, Any]  # settings that change the numbers; must be equal when the run resumes
    notes: Mapping[str, Any]  # other facts: versions, device, meaning of the ids, parameters
    extras: Mapping[str, str] = field(default_factory=dict)  # further arrays (N, …): name and dtype
    dtype: str = FLOAT32  # of the features


def is_store(path: AnyPath) -> bool:
    """Return whether a store exists; one that is being made or removed does not count. Its content is not checked."""
    return place_of(path).is_whole(GROUP_KEY)


def remove_store(path: AnyPath) -> None:
    """Delete a store, or its remains; at no moment can a part of it be taken for a store."""
    try:
        place_of(path).remove_folder(GROUP_KEY)
    except RemoteError:
        raise
    except OSError as error:
        raise InputError(f"can't delete the store {str(path)!r}: {error}") from None


class Store:
    """An open store, local or remote.

    Raises:
        InputError: There is no store that this version reads, or it can't be reached.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path, self._place = path, place_of(path)
        try:
            self.layout = read_layout(path)
        except RemoteError:
            raise
        except (ValueError, OSError) as error:
            raise InputError(
                f"{str(path)!r} is not a lit-extract store, or its metadata are damaged: {one_line(error)}; restore "
                "them, or start from scratch with predict --overwrite"
            ) from None
        layout = self.layout
        self._files = StoreFiles(path, layout)
        self.pools, self.extras, self.layers = layout.pools, list(layout.extras), layout.layers
        self.provenance, self.notes, self.is_kept = layout.provenance, layout.notes, layout.is_kept
        self.shard_rows, self.n_shards = layout.shard_rows, layout.n_shards
        self.n_stimuli, self.layer_shapes, self.dtype = layout.n_stimuli, layout.layer_shapes, layout.dtype
        self.feats_arrays = layout.feats_arrays

    @classmethod
    def create(cls, path: AnyPath, spec: StoreSpec) -> "Store":
        """Create an empty store; raise OSError if one exists."""
        version = store_format(spec.layer_shapes, spec.dtype, spec.extras)
        n, shapes = len(spec.stimulus_ids), [tuple(shape) for shape in spec.layer_shapes]
        feats = [array for pool in spec.pools for array in feats_arrays(pool, shapes)]
        arrays = feats_metadata(feats, n, spec.shard_rows, spec.dtype)
        arrays |= rows_metadata(version, spec.extras, n, spec.shard_rows, ids_dtype(spec.stimulus_ids), shapes)
        attributes = {
            "format": version,
            "status": STATUS_NUMBERS,
            "id": uuid.uuid4().hex,
            "pools": list(spec.pools),
            "extras": list(spec.extras),
            "layers": list(spec.layers),
            **({"layer_shapes": [[*x] for x in shapes], "dtype": spec.dtype} if version > PLAIN_STORE_FORMAT else {}),
            "shard_rows": spec.shard_rows,
            "provenance": dict(spec.provenance),
            "notes": dict(spec.notes),
            "stimulus_ids_sha256": ids_sha256(spec.stimulus_ids),
        }
        files = {f"{name}/{GROUP_KEY}": json.dumps(metadata, indent=2).encode() for name, metadata in arrays.items()}
        files[IDS_KEY] = encode_ids(spec.stimulus_ids, version)
        place_of(path).create_folder(files, GROUP_KEY, group_content(attributes, arrays))
        return cls(path)

    def rows_of(self, shard: int) -> range:
        """Return the global rows of a shard."""
        return self.layout.rows_of(shard)

    def write_shard(
        self,
        shard: int,
        feats: Mapping[str, NDArray[Any]],
        status: NDArray[np.uint8],
        extras: Mapping[str, NDArray[Any]] | None = None,
        replaces: bool = False,
    ) -> int:
        """Write the rows of a shard; return the bytes of its features. Its last features file marks it as done.

        A shard that is already done is replaced file by file, the status last. If the run is killed before that, bad
        rows are still marked as bad, whatever their features are, and the next run computes them again.

        ``feats`` and ``extras`` have (rows, …) for each array; status is (rows,). ``replaces``: the shard is already
        done.
        """
        self.check_current()
        extras = extras or {}
        arrays = {**feats, **extras, STATUS: status} if replaces else {STATUS: status, **extras, **feats}
        for name, values in arrays.items():
            self._files.write(name, shard, values)
        return sum(self._files.form(name, shard).file_bytes for name in feats)

    def check_current(self) -> None:
        """Check that the store is still the one that was opened.

        A run that can't renew its remote lock loses it. So a run that was frozen, and taken for dead, does not write
        into the store that another run has made since.
        """
        content = self._place.read_files([GROUP_KEY], MAX_METADATA_BYTES).get(GROUP_KEY)
        if content is None or id_in(content) != self.layout.id:
            raise InputError(f"{str(self.path)!r} was removed or replaced during this run")

    def done_shards(self) -> set[int]:
        """Return the shards whose files all exist, at their full size."""
        keys = (array.key(shard) for array in self.feats_arrays.values() for shard in range(self.n_shards))
        with self._files.reading():
            return self.layout.done_shards(self._place.file_sizes(keys))

    def missing_rows(self) -> list[range]:
        """Return the rows of the shards that are not done."""
        done = self.done_shards()
        return [self.rows_of(shard) for shard in range(self.n_shards) if shard not in done]

    def status(self) -> NDArray[np.uint8]:
        """Return the status of every row (N,); MISSING where its shard is not done."""
        return self.extra(STATUS)

    def extra(self, name: str) -> NDArray[Any]:
        """Return a further value of every row (N, …); 0 in shards that are not done, which are not read.

        Raises:
            InputError: Some of them are damaged on disk.
        """
        shape = self.n_stimuli, *extra_shape(name, self.layer_shapes)
        values = np.zeros(shape, dtype=self._files.form(name, 0).dtype)
        for shard, content in self._files.contents(name, sorted(self.done_shards())).items():
            rows = self.rows_of(shard)
            if content is None:
                raise InputError(
                    f"{name} of rows {rows.start} to {rows[-1]} of {str(self.path)!r} is damaged on disk; run the same "
                    "predict command again to compute these rows again"
                )
            values[rows.start : rows.stop] = content
        return values

    def inputs(self) -> NDArray[np.int64]:
        """Return the notes on each row's input from when it was read (N, 4); 0 if it was not."""
        columns = [self.extra(name) if name in self.extras else np.zeros(self.n_stimuli) for name in INPUT_COLUMNS]
        return np.stack(columns, axis=1).astype(np.int64)

    def drop_damaged(self) -> list[int]:
        """Set aside the shards with damaged status or extras; return their numbers."""
        done = sorted(self.done_shards())
        contents = [self._files.contents(name, done) for name in (STATUS, *self.extras)]
        damaged = [shard for shard in done if any(content[shard] is None for content in contents)]
        for shard in damaged:
            self._files.set_aside(next(iter(self.feats_arrays)), shard)
        return damaged

    def stimulus_ids(self) -> list[int] | list[str]:
        """Return the id of each row, as it was when the store was made."""
        try:
            return read_ids(self.path, self.layout)
        except RemoteError:
            raise
        except (ValueError, OSError) as error:
            raise InputError(
                f"the stimulus ids of {str(self.path)!r} are damaged on disk ({one_line(error)}); run the same predict "
                "command again, which repairs them"
            ) from None

    def repair_stimulus_ids(self, stimulus_ids: Sequence[int] | Sequence[str]) -> None:
        """Write the stimulus ids again if they are damaged; the provenance proves that they are the same.

        Raises:
            InputError: The store was made with other ids, or they can't be written.
        """
        known = self.layout.ids_sha256
        if len(stimulus_ids) != self.n_stimuli or known not in (None, ids_sha256(stimulus_ids)):
            raise InputError(
                f"{str(self.path)!r} was made with other stimulus ids, though with the same settings; restore its "
                "metadata, or pass --overwrite to start from scratch"
            )
        try:
            if self.stimulus_ids() == list(stimulus_ids):
                return
        except RemoteError:
            raise
        except InputError:
            pass
        try:
            self._place.write_file(IDS_KEY, [encode_ids(stimulus_ids, self.layout.version)])
        except RemoteError:
            raise
        except OSError as error:
            raise InputError(
                f"the stimulus ids of {str(self.path)!r} are damaged, and can't be written again: {error}"
            ) from None

    def read_shard(self, array: str, shard: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the rows of a shard of an array of features (rows, …); if ``into`` (R, …) is given, its first rows.

        Raises:
            InputError: A checksum differs; the shard was set aside, so the next run computes it again.
        """
        rows, form = self.rows_of(shard), self._files.form(array, shard)
        row_shape = self.feats_arrays[array].row_shape
        by_layer = None if into is None else into.reshape(len(into), form.n_layers, form.n_dim)
        try:
            found = self._files.layers(array, shard, range(form.n_layers), by_layer)
            return found.reshape(len(rows), *row_shape)
        except InputError:  # no network, no permission, another store's file: not damage that is computed again
            raise
        except (ValueError, OSError) as error:
            self._files.set_aside(array, shard)
            raise InputError(
                f"rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} are damaged on disk ({one_line(error)}); "
                "they were set aside: run the same predict command again to compute them again"
            ) from None

    def read_layer(self, pool: str, layer: int, wanted: Sequence[int] | None = None) -> NDArray[Any]:
        """Return one layer of all rows (N, …), or of the wanted rows; NaN where rows are missing.

        Other layers and shards without a wanted row are not read.
        """
        array = next(array for array in feats_arrays(pool, self.layer_shapes) if layer in array.layers)
        chosen = np.arange(self.n_stimuli) if wanted is None else np.array(wanted, dtype=np.int64)
        shape, place = (len(chosen), *array.layer_shape), array.layers.index(layer)
        try:
            feats = np.full(shape, NANS[self.dtype], dtype=KEPT_AS[self.dtype])
        except (MemoryError, ValueError):
            numbers = " × ".join(map(str, shape))
            raise InputError(f"a layer of {str(self.path)!r}, {numbers} numbers, does not fit into memory") from None
        for shard in self.done_shards() & set((chosen // self.shard_rows).tolist()):
            rows = self.rows_of(shard)
            places = np.flatnonzero(chosen // self.shard_rows == shard)
            try:
                found = self._files.layers(array.name, shard, [place])
                feats[places] = found.reshape(len(rows), *array.layer_shape)[chosen[places] - rows.start]
            except InputError:
                raise
            except (ValueError, OSError) as error:
                raise InputError(
                    f"{self.layers[layer]} of rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} is damaged on "
                    f"disk ({one_line(error)}); lit-extract finalize sets these rows aside, to be computed again"
                ) from None
        return feats

    def check_provenance(self, provenance: Mapping[str, Any], root: str | None = None) -> None:
        """Check that the store has this provenance; an error names each setting that differs."""
        if difference := differing(self.provenance, provenance, self.notes.get("root"), root):
            raise InputError(
                f"{str(self.path)!r} was started with other settings: {difference}. Run with the same settings to "
                f"resume; to keep both, {to_keep_both(self.provenance, provenance)}; --overwrite starts from scratch"
            )

    def take_captions(self, provenance: Mapping[str, Any], changed: Sequence[int]) -> None:
        """Take over edited captions: first remove the shards with a changed row, then record the new provenance."""
        for shard in {row // self.shard_rows for row in changed} & self.done_shards():
            for array in self.feats_arrays.values():
                place_of(self.path / array.key(shard)).remove_file()
        self.provenance = dict(provenance)
        self._change(provenance=self.provenance)

    def keep(self) -> None:
        """Record that the store was kept on purpose, so later runs do not take it for a leftover."""
        self._change(kept=True)

    def note(self, name: str, value: Any) -> None:
        """Add a plain value (number, string, list or dict) to the notes."""
        self.notes = {**self.notes, name: value}
        self._change(notes=self.notes)

    def _change(self, **attributes: Any) -> None:
        self.check_current()
        self.layout.attributes.update(attributes)
        self._place.write_file(GROUP_KEY, [group_content(self.layout.attributes, self.layout.arrays)])
