"""An open store: what a run streams into, and finalize reads.

A store is a zarr v3 group (``docs/store-format.md``): per pooling one float32 array (N, L, D) cut into
shards of rows, with inner chunks of one layer; ``status`` (N,), written before its shard; and
``stimulus_id`` (N,). A shard file is the commit mark of its rows: zarr writes it beside and renames
it, so it is there complete or not at all, as an object of a remote store is by itself.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from lit_extract.errors import InputError, one_line
from lit_extract.layout import (
    CONTENT,
    GROUP_KEY,
    IDS_KEY,
    INPUT_COLUMNS,
    ROTATED,
    STATUS,
    STIMULUS_ID,
    STORE_FORMAT,
    check_format,
    count_shards,
    rows_key,
    shard_bytes,
    shard_key,
)
from lit_extract.paths import (
    AnyPath,
    RemoteError,
    exists,
    file_sizes,
    open_to_read,
    read_files,
    remote_errors,
    remove_file,
    rename_file,
)
from lit_extract.provenance import differing
from lit_extract.shards import read_layers
from lit_extract.store_folder import ALWAYS_WRITE, StoreSpec, create_store, open_group, remove_store


class CorruptShardError(InputError):
    """A shard that fails its checksum; it has been set aside, so that the next run computes it again."""


class Store:
    """An open store.

    Args:
        path: Folder of the store, local or remote.

    Raises:
        InputError: There is no store that this version reads, or it can't be reached.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self._arrays: dict[str, Any] = {}
        try:
            with remote_errors(path):
                self._open()
        except InputError:
            raise
        except Exception as error:  # zarr raises almost anything on what is no group, or a damaged one
            raise InputError(
                f"{str(path)!r} is not a lit-extract store, or its metadata are damaged: {one_line(error)}; predict "
                "--overwrite starts anew"
            ) from None
        self.n_shards = count_shards(self.n_stimuli, self.shard_rows)

    def _open(self) -> None:
        self.group = open_group(self.path)
        attributes: dict[str, Any] = dict(self.group.attrs)
        try:
            check_format(attributes["format"], STORE_FORMAT, attributes.get("notes"))
        except ValueError as error:
            raise InputError(f"store {str(self.path)!r}: {error}") from None
        self.pools: list[str] = attributes["pools"]
        self.extras: list[str] = attributes["extras"]
        self.layers: list[str] = attributes["layers"]
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.notes: dict[str, Any] = attributes["notes"]
        self.is_kept: bool = attributes.get("kept", False)
        self.shard_rows: int = attributes["shard_rows"]
        shapes = {name: self._array(name).shape for name in (*self.pools, STATUS, *self.extras, STIMULUS_ID)}
        self.n_stimuli, _, self.n_dim = shapes[self.pools[0]]

    @classmethod
    def create(cls, path: AnyPath, spec: StoreSpec) -> "Store":
        """Create an empty store; see :func:`create_store`."""
        create_store(path, spec)
        return cls(path)

    def rows_of(self, shard: int) -> range:
        """Global rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.n_stimuli))

    def write_shard(
        self,
        shard: int,
        feats: Mapping[str, NDArray[np.float32]],
        status: NDArray[np.uint8],
        extras: Mapping[str, NDArray[Any]] | None = None,
    ) -> int:
        """Write the rows of a shard; with the last pooling's file it counts as done.

        Args:
            shard: Number of the shard.
            feats: Per pooling (rows, L, D).
            status: (rows,).
            extras: (rows,) each.

        Returns:
            Bytes written.
        """
        rows = self.rows_of(shard)
        # A file left from before (truncated, say) would be read to be merged with the new rows.
        self.check_current()
        with remote_errors(self.path):
            for name, values in {STATUS: status, **(extras or {})}.items():
                remove_file(self.path / rows_key(name, shard))
                self._array(name)[rows.start : rows.stop] = values
            for pool in self.pools:
                remove_file(self._shard_file(pool, shard))
                self._array(pool)[rows.start : rows.stop] = feats[pool]
        return len(self.pools) * self._shard_bytes()

    def replace_shard(
        self,
        shard: int,
        feats: Mapping[str, NDArray[np.float32]],
        status: NDArray[np.uint8],
        extras: Mapping[str, NDArray[Any]],
    ) -> int:
        """As :meth:`write_shard`, of a shard that is done: at each moment its other rows are there.

        Each file is replaced as a whole, the status last: a run that is killed before that leaves the rows that were
        bad as bad, whatever is in their features, and the next run computes them again.
        """
        rows = self.rows_of(shard)
        self.check_current()
        with remote_errors(self.path):
            for name, values in {**feats, **extras, STATUS: status}.items():
                self._array(name)[rows.start : rows.stop] = values
        return len(self.pools) * self._shard_bytes()

    def check_current(self) -> None:
        """See that a remote store is still the one that was opened.

        A remote lock is lost by a run that can't refresh it. This keeps a run that was frozen, and taken for dead, from
        writing into the store that another has made since.

        Raises:
            InputError: Someone has removed or replaced it.
        """
        if isinstance(self.path, Path):
            return
        content = read_files(self.path, [GROUP_KEY]).get(GROUP_KEY, b"{}")
        if json.loads(content).get("attributes", {}).get("id") != self.group.attrs["id"]:
            raise InputError(f"{str(self.path)!r} was removed or replaced while this run was under way")

    def done_shards(self) -> set[int]:
        """Shards whose files are all there, at their full size."""
        keys = {(pool, shard): shard_key(pool, shard) for pool in self.pools for shard in range(self.n_shards)}
        sizes = file_sizes(self.path, keys.values())
        return {
            shard
            for shard in range(self.n_shards)
            if all(sizes.get(keys[pool, shard]) == self._shard_bytes() for pool in self.pools)
        }

    def missing_rows(self) -> list[range]:
        """Rows of the shards that are not done."""
        done = self.done_shards()
        return [self.rows_of(shard) for shard in range(self.n_shards) if shard not in done]

    def status(self) -> NDArray[np.uint8]:
        """Status of every row (N,); MISSING where its shard is not done.

        Raises:
            InputError: Some of them are damaged on disk.
        """
        return self._read_rows(STATUS)

    def extra(self, name: str) -> NDArray[Any]:
        """A further value of every row (N,); 0 where its shard is not done.

        Raises:
            InputError: Some of them are damaged on disk.
        """
        return self._read_rows(name)

    def inputs(self) -> NDArray[np.int64]:
        """What was noted of each row's input when it was read (N, 4); 0 where it was not.

        Raises:
            InputError: Some of it is damaged on disk.
        """
        columns = [self.extra(name) if name in self.extras else np.zeros(self.n_stimuli) for name in INPUT_COLUMNS]
        return np.stack(columns, axis=1).astype(np.int64)

    def n_rotated(self) -> int:
        """Images with an EXIF rotation, of those that are done."""
        return int((self.inputs()[:, ROTATED] != 0).sum())

    @property
    def knows_content(self) -> bool:
        """Whether the content of inputs is noted: not of captions, nor by earlier versions."""
        return INPUT_COLUMNS[CONTENT] in self.extras

    def _read_rows(self, name: str) -> NDArray[Any]:
        """A value of every row whose shard is done; what others left behind is not looked at."""
        array = self._array(name)
        values = np.zeros(self.n_stimuli, dtype=array.dtype)
        for shard, content in self._rows_contents(name, sorted(self.done_shards())).items():
            if content is None:
                raise InputError(
                    f"{name} of rows {self.rows_of(shard).start} to {self.rows_of(shard)[-1]} of {str(self.path)!r} is "
                    "damaged on disk; run the same predict command again to compute these rows anew"
                )
            rows = self.rows_of(shard)
            values[rows.start : rows.stop] = content[: len(rows)]
        return values

    def _rows_contents(self, name: str, shards: Sequence[int]) -> dict[int, NDArray[Any] | None]:
        """A value of the rows of each shard, or None when its file is not whole: zarr takes a lost one for zeros."""
        dtype = self._array(name).dtype
        files = read_files(self.path, [rows_key(name, shard) for shard in shards])
        return {shard: self._checked(files.get(rows_key(name, shard), b""), dtype) for shard in shards}

    def _checked(self, content: bytes, dtype: Any) -> NDArray[Any] | None:
        values, checksum = content[:-4], content[-4:]
        if len(values) != self.shard_rows * dtype.itemsize:
            return None
        if google_crc32c.value(values) != int.from_bytes(checksum, "little"):
            return None
        return np.frombuffer(values, dtype=dtype)

    def drop_damaged(self) -> list[int]:
        """Set aside the shards of which status or extras are damaged; return their numbers.

        Raises:
            InputError: The store may not be written.
        """
        done = sorted(self.done_shards())
        contents = [self._rows_contents(name, done) for name in (STATUS, *self.extras)]
        damaged = [shard for shard in done if any(content[shard] is None for content in contents)]
        for shard in damaged:
            self._set_aside(self.pools[0], shard)
        return damaged

    def stimulus_ids(self) -> list[int] | list[str]:
        """Id of each row.

        Raises:
            InputError: They are damaged on disk.
        """
        try:
            if not exists(self.path / IDS_KEY):
                raise ValueError("they are lost")
            with remote_errors(self.path):
                ids: list[int] | list[str] = np.asarray(self._array(STIMULUS_ID)[:]).tolist()
        except RemoteError:
            raise
        except (ValueError, OSError, RuntimeError) as error:
            raise InputError(
                f"the stimulus ids of {str(self.path)!r} are damaged on disk ({one_line(error)}); run the same predict "
                "command again, which mends them"
            ) from None
        return ids

    def mend_stimulus_ids(self, stimulus_ids: Sequence[int] | Sequence[str]) -> None:
        """Write the ids again if they are not these, which the provenance vouches for."""
        try:
            if self.stimulus_ids() == list(stimulus_ids):
                return
        except RemoteError:
            raise
        except InputError:
            pass
        remove_file(self.path / IDS_KEY)
        with remote_errors(self.path):
            self._array(STIMULUS_ID)[:] = np.asarray(stimulus_ids)

    def read_shard(self, pool: str, shard: int, into: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The rows of a shard (rows, L, D).

        Args:
            pool: Which pooling.
            shard: Number of the shard.
            into: (R, L, D) to fill in; the first rows of it are returned.

        Raises:
            CorruptShardError: A checksum differs; the shard no longer counts as done.
        """
        rows = self.rows_of(shard)
        try:
            return self._read(pool, shard, range(len(self.layers)), into)
        except RemoteError:  # no network is no damage
            raise
        except (ValueError, OSError) as error:
            self._set_aside(pool, shard)
            raise CorruptShardError(
                f"rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} are damaged on disk ({one_line(error)}); "
                "they were set aside: run the same predict command again to compute them anew"
            ) from None

    def read_layer(self, pool: str, layer: int) -> NDArray[np.float32]:
        """One layer of all rows (N, D), NaN where rows are missing; the other layers are not read.

        Raises:
            InputError: A checksum differs.
        """
        feats = np.full((self.n_stimuli, self.n_dim), np.nan, dtype=np.float32)
        for shard in self.done_shards():
            rows = self.rows_of(shard)
            try:
                feats[rows.start : rows.stop] = self._read(pool, shard, [layer])[:, 0]
            except RemoteError:
                raise
            except (ValueError, OSError) as error:
                raise InputError(
                    f"{self.layers[layer]} of rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} is damaged on "
                    f"disk ({one_line(error)}); lit-extract finalize sets such rows aside, to be computed anew"
                ) from None
        return feats

    def expect(self, pool: str, shard: int) -> None:
        """Have the system fetch a shard's file, if it is a local one, before it is read."""
        if isinstance(self.path, Path) and hasattr(os, "posix_fadvise") and 0 <= shard < self.n_shards:
            with suppress(OSError), self._shard_file(pool, shard).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def _read(
        self, pool: str, shard: int, layers: Sequence[int], into: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Layers of a shard (rows, len(layers), D)."""
        n_rows = len(self.rows_of(shard))
        with remote_errors(self.path):
            try:
                with open_to_read(self._shard_file(pool, shard), whole=len(layers) == len(self.layers)) as file:
                    return read_layers(file, len(self.layers), self.shard_rows, self.n_dim, layers, n_rows, into)
            except FileNotFoundError:
                raise ValueError("its file is lost") from None

    def check_provenance(self, provenance: Mapping[str, Any], root: str | None = None) -> None:
        """Raise InputError naming each setting in which the store differs from ``provenance``."""
        if difference := differing(self.provenance, provenance, self.notes.get("root"), root):
            raise InputError(
                f"{str(self.path)!r} was begun with other settings: {difference}. Run with the same settings to go "
                "on, pass --overwrite to start anew, or choose another --output_dir"
            )

    def keep(self) -> None:
        """Note that the store was kept on purpose, so that no later run takes it for a leftover."""
        with remote_errors(self.path):
            self.group.attrs["kept"] = True

    def note(self, name: str, value: Any) -> None:
        """Add plain numbers, strings, lists and dicts to the notes."""
        self.notes = {**self.notes, name: value}
        with remote_errors(self.path):
            self.group.attrs["notes"] = self.notes

    def remove(self) -> None:
        """Delete the store."""
        remove_store(self.path)

    def _array(self, name: str) -> Any:
        if name not in self._arrays:  # zarr reads its metadata each time
            array: Any = self.group[name]
            self._arrays[name] = array.with_config(ALWAYS_WRITE)  # zarr does not keep it with the array
        return self._arrays[name]

    def _set_aside(self, pool: str, shard: int) -> None:
        """Have a damaged shard no longer count as done."""
        file = self._shard_file(pool, shard)
        try:
            if exists(file):
                rename_file(file, file.name + ".corrupt")
        except OSError as error:
            rows = self.rows_of(shard)
            raise InputError(
                f"rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} are damaged on disk, and can't be set "
                f"aside: {error}"
            ) from None

    def _shard_file(self, pool: str, shard: int) -> AnyPath:
        return self.path / shard_key(pool, shard)

    def _shard_bytes(self) -> int:
        return shard_bytes(len(self.layers), self.n_dim, self.shard_rows)
