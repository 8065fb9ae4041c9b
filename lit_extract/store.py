"""The zarr store that a run streams into; the only file that imports zarr.

A store is a zarr v3 group (``docs/store-format.md``): per pooling one float32 array (N, L, D) cut into
shards of rows, with inner chunks of one layer; ``status`` (N,), written before its shard; and
``stimulus_id`` (N,). A shard file is the commit mark of its rows: zarr writes it beside and renames
it, so it is there complete or not at all.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from lit_extract.data.plan import count_shards
from lit_extract.errors import InputError, name_some, one_line
from lit_extract.layout import BESIDE_SUFFIX, FORMAT, shard_bytes, shard_key
from lit_extract.provenance import differing

# status of a row
MISSING, OK, BAD_INPUT, NOT_FINITE = range(4)

STATUS, STIMULUS_ID = "status", "stimulus_id"
N_BYTES = "n_bytes"  # the extra that says how large each row's input was when it was read


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
_ALWAYS_WRITE: ArrayConfigParams = {"write_empty_chunks": True}


class CorruptShardError(InputError):
    """A shard that fails its checksum; it has been set aside, so that the next run computes it again."""


class Store:
    """An open store.

    Args:
        path: Folder of the store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.group = zarr.open_group(path, mode="r+" if os.access(path, os.W_OK) else "r", zarr_format=3)
            attributes: dict[str, Any] = dict(self.group.attrs)
            if (found := attributes["format"]) != FORMAT:
                raise InputError(f"store {str(path)!r} has format {found}; this version reads {FORMAT}")
            self.pools: list[str] = attributes["pools"]
            self.extras: list[str] = attributes["extras"]
            self.layers: list[str] = attributes["layers"]
            self.provenance: dict[str, Any] = attributes["provenance"]
            self.notes: dict[str, Any] = attributes["notes"]
            self.is_kept: bool = attributes.get("kept", False)
            self.shard_rows: int = attributes["shard_rows"]
            shapes = {name: self._array(name).shape for name in (*self.pools, STATUS, *self.extras, STIMULUS_ID)}
            self.n_stimuli, _, self.n_dim = shapes[self.pools[0]]
        except InputError:
            raise
        except Exception as error:  # zarr raises almost anything on what is no group, or a damaged one
            raise InputError(
                f"{str(path)!r} is not a lit-extract store, or its metadata are damaged: {one_line(error)}; predict "
                "--overwrite starts anew"
            ) from None
        self.n_shards = count_shards(self.n_stimuli, self.shard_rows)

    @classmethod
    def create(cls, path: Path, spec: StoreSpec) -> "Store":
        """Create an empty store: built beside, then renamed."""
        beside = _aside(path)
        shutil.rmtree(beside, ignore_errors=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        n, layers, rows = len(spec.stimulus_ids), len(spec.layers), spec.shard_rows
        group = zarr.create_group(
            beside,
            zarr_format=3,
            attributes={
                "format": FORMAT,
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
                config=_ALWAYS_WRITE,
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
                config=_ALWAYS_WRITE,
            )
        ids = spec.stimulus_ids
        group.create_array(
            STIMULUS_ID,
            shape=(n,),
            dtype="int64" if all(isinstance(i, int) for i in ids) else "str",  # numpy's own text is not in the standard
            chunks=(n,),
            compressors=(ZstdCodec(), Crc32cCodec()),
            config=_ALWAYS_WRITE,
        )[:] = np.asarray(ids)
        beside.rename(path)
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
        for name, values in {STATUS: status, **(extras or {})}.items():
            self._rows_file(name, shard).unlink(missing_ok=True)
            self._array(name)[rows.start : rows.stop] = values
        for pool in self.pools:
            self._shard_file(pool, shard).unlink(missing_ok=True)
            self._array(pool)[rows.start : rows.stop] = feats[pool]
        return sum(self._shard_file(pool, shard).stat().st_size for pool in self.pools)

    def done_shards(self) -> set[int]:
        """Shards whose files are all there, at their full size."""
        return {shard for shard in range(self.n_shards) if self._is_done(shard)}

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

    def _read_rows(self, name: str) -> NDArray[Any]:
        """A value of every row whose shard is done; what others left behind is not looked at."""
        array = self._array(name)
        values = np.zeros(self.n_stimuli, dtype=array.dtype)
        for shard in sorted(self.done_shards()):
            content = self._rows_content(name, shard)
            if content is None:
                raise InputError(
                    f"{name} of rows {self.rows_of(shard).start} to {self.rows_of(shard)[-1]} of {str(self.path)!r} is "
                    "damaged on disk; run the same predict command again to compute these rows anew"
                )
            rows = self.rows_of(shard)
            values[rows.start : rows.stop] = content[: len(rows)]
        return values

    def _rows_content(self, name: str, shard: int) -> NDArray[Any] | None:
        """A value of the rows of a shard, or None when its file is not whole: zarr takes a lost one for zeros."""
        try:
            content = self._rows_file(name, shard).read_bytes()
        except FileNotFoundError:
            return None
        dtype = self._array(name).dtype
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
        names = (STATUS, *self.extras)
        damaged = [
            shard
            for shard in sorted(self.done_shards())
            if any(self._rows_content(name, shard) is None for name in names)
        ]
        for shard in damaged:
            self._set_aside(self.pools[0], shard)
        return damaged

    def stimulus_ids(self) -> list[int] | list[str]:
        """Id of each row.

        Raises:
            InputError: They are damaged on disk.
        """
        try:
            if not (self.path / STIMULUS_ID / "c" / "0").exists():
                raise ValueError("they are lost")
            ids: list[int] | list[str] = np.asarray(self._array(STIMULUS_ID)[:]).tolist()
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
        except InputError:
            pass
        (self.path / STIMULUS_ID / "c" / "0").unlink(missing_ok=True)
        self._array(STIMULUS_ID)[:] = np.asarray(stimulus_ids)

    def read_shard(self, pool: str, shard: int) -> NDArray[np.float32]:
        """The rows of a shard (rows, L, D).

        Raises:
            CorruptShardError: A checksum differs; the shard no longer counts as done.
        """
        rows = self.rows_of(shard)
        try:
            return np.asarray(self._array(pool)[rows.start : rows.stop])
        except (ValueError, OSError, IndexError) as error:
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
        array = self._array(pool)
        feats = np.full((self.n_stimuli, self.n_dim), np.nan, dtype=np.float32)
        for rows in map(self.rows_of, self.done_shards()):
            try:
                feats[rows.start : rows.stop] = array[rows.start : rows.stop, layer]
            except (ValueError, OSError, IndexError) as error:
                raise InputError(
                    f"{self.layers[layer]} of rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} is damaged on "
                    f"disk ({one_line(error)}); lit-extract finalize sets such rows aside, to be computed anew"
                ) from None
        return feats

    def check_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Raise InputError naming each setting in which the store differs from ``provenance``."""
        if difference := differing(self.provenance, provenance):
            raise InputError(
                f"{str(self.path)!r} was begun with other settings: {difference}. Run with the same settings to go "
                "on, pass --overwrite to start anew, or choose another --output_dir"
            )

    def check_inputs(self, n_bytes: NDArray[np.int64]) -> None:
        """See that the inputs of the rows that are done are those of today.

        A shard with bad inputs that have been mended since is set aside, to be computed anew.

        Args:
            n_bytes: (N,) size of each row's input now.

        Raises:
            InputError: An input was good and has another size now.
        """
        status = self.status()
        differ = (status != MISSING) & (self.extra(N_BYTES) != n_bytes)
        if (changed := np.flatnonzero(differ & (status != BAD_INPUT))).size:
            ids = self.stimulus_ids()
            raise InputError(
                f"stimuli have changed since {str(self.path)!r} was begun, whose features are of their files as they "
                f"were: {name_some([str(ids[row]) for row in changed])}. Restore the files, or pass "
                "--overwrite to start anew"
            )
        for shard in {int(row) // self.shard_rows for row in np.flatnonzero(differ)}:
            for pool in self.pools:
                self._shard_file(pool, shard).unlink(missing_ok=True)

    def keep(self) -> None:
        """Note that the store was kept on purpose, so that no later run takes it for a leftover."""
        self.group.attrs["kept"] = True

    def remove(self) -> None:
        """Delete the store."""
        remove_store(self.path)

    def _array(self, name: str) -> Any:
        array: Any = self.group[name]
        return array.with_config(_ALWAYS_WRITE)  # zarr does not keep it with the array

    def _set_aside(self, pool: str, shard: int) -> None:
        """Have a damaged shard no longer count as done."""
        file = self._shard_file(pool, shard)
        try:
            file.replace(file.with_name(file.name + ".corrupt"))
        except OSError as error:
            rows = self.rows_of(shard)
            raise InputError(
                f"rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} are damaged on disk, and can't be set "
                f"aside: {error}"
            ) from None

    def _rows_file(self, name: str, shard: int) -> Path:
        """Where status or an extra of a shard's rows lies."""
        return self.path / name / "c" / str(shard)

    def _shard_file(self, pool: str, shard: int) -> Path:
        return self.path / shard_key(pool, shard)

    def _is_done(self, shard: int) -> bool:
        expected = shard_bytes(len(self.layers), self.n_dim, self.shard_rows)
        try:
            return all(self._shard_file(pool, shard).stat().st_size == expected for pool in self.pools)
        except FileNotFoundError:
            return False


def _aside(path: Path) -> Path:
    """What a store is called while it is made or removed."""
    return path.with_name(path.name + BESIDE_SUFFIX)


def remains(path: Path) -> bool:
    """Whether there is a store, or some of one that was being made or removed."""
    return path.exists() or _aside(path).exists()


def remove_store(path: Path) -> None:
    """Delete a store, or what is left of it: renamed first, so that no half of it is ever taken for a store."""
    shutil.rmtree(_aside(path), ignore_errors=True)
    if path.exists():
        path.rename(_aside(path))
        shutil.rmtree(_aside(path))
