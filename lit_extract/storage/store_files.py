"""Write, read and check the files of a store's rows: shards of features, status and extras.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.storage.layout import (
    KEPT_AS,
    MAX_TOKENS,
    N_EXCLUDED,
    N_SINKS,
    N_TOKENS,
    NANS,
    NOT_FINITE,
    OK,
    STATUS,
    TOKEN_IDS,
    Layout,
    extra_shape,
    rows_key,
)
from lit_extract.storage.places import DAMAGE, AnyPath, place_of
from lit_extract.storage.shards import (
    Address,
    ForeignShardError,
    Form,
    read_layers,
    read_values,
    write_layers,
    write_values,
)

# Lowest and highest possible value in rows that are done.
_ALLOWED = {
    STATUS: (OK, NOT_FINITE),
    **dict.fromkeys((N_TOKENS, N_EXCLUDED, N_SINKS), (0, MAX_TOKENS)),
    TOKEN_IDS: (0, 2**31 - 1),
}


@dataclass(frozen=True)
class StoreFiles:
    """The files of a store's rows."""

    path: AnyPath
    layout: Layout

    def key(self, name: str, shard: int) -> str:
        """Return the path of a file of an array, relative to the store's folder."""
        array = self.layout.feats_arrays.get(name)
        axes = len(extra_shape(name, self.layout.layer_shapes))
        return array.key(shard) if array else rows_key(name, shard) + "/0" * axes

    def form(self, name: str, shard: int) -> Form:
        """Return the form of a file of an array."""
        address = Address(self.layout.id, name, shard) if self.layout.id and self.layout.is_sealed else None
        if array := self.layout.feats_arrays.get(name):
            kept_as, numbers = KEPT_AS[self.layout.dtype], math.prod(array.layer_shape)
            return Form(len(array.layers), self.layout.shard_rows, numbers, kept_as, address)
        dtype = np.dtype(self.layout.extras.get(name, "uint8")).newbyteorder("<").str
        return Form(1, self.layout.shard_rows, math.prod(extra_shape(name, self.layout.layer_shapes)), dtype, address)

    def write(self, name: str, shard: int, values: NDArray[Any]) -> None:
        """Write the file of a shard of an array, (rows, …), replacing an earlier one."""
        form = self.form(name, shard)
        if name in self.layout.feats_arrays:
            by_layer = values.reshape(len(values), form.n_layers, form.n_dim)
            pieces = write_layers(form, by_layer, fill=NANS[self.layout.dtype])
        else:
            pieces = write_values(form, values)
        place_of(self.path).write_file(self.key(name, shard), pieces)

    def contents(self, name: str, shards: Sequence[int]) -> dict[int, NDArray[Any] | None]:
        """Return a value of the rows of each shard; None if its file is lost or damaged.

        Raises:
            InputError: A file may not be read, or belongs to another store; such rows are not computed again.
        """
        keys = {shard: self.key(name, shard) for shard in shards}
        limit = self.form(name, 0).file_bytes
        with self.reading():
            files = place_of(self.path).read_files(list(keys.values()), limit, without_damaged=True)
        return {shard: self._rows(name, shard, files.get(key, b"")) for shard, key in keys.items()}

    def _rows(self, name: str, shard: int, content: bytes) -> NDArray[Any] | None:
        """Return a value of a shard's rows from the content of its file; None if that is damaged."""
        try:
            values = read_values(content, self.form(name, shard), len(self.layout.rows_of(shard)))
            values = values.reshape(-1, *extra_shape(name, self.layout.layer_shapes))
        except ForeignShardError:
            raise self._foreign(name, shard) from None
        except ValueError:
            return None
        low, high = _ALLOWED.get(name, (None, None))
        return values if low is None or ((values >= low) & (values <= high)).all() else None

    def layers(self, name: str, shard: int, places: Sequence[int], into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return some layers of an array in a shard (rows, len(places), numbers), in ``into`` if given.

        Raises:
            InputError: The file may not be read, or belongs to another store.
            ValueError: The file is damaged, lost, or belongs to another address.
            OSError: The disk can't read the file, or something else is in its place.
        """
        at_a_time = None if len(places) == len(self.layout.feats_arrays[name].layers) else 0
        n_rows = len(self.layout.rows_of(shard))
        try:
            with self.reading(), place_of(self.path / self.key(name, shard)).open_to_read(at_a_time) as file:
                return read_layers(file, self.form(name, shard), places, n_rows, into)
        except FileNotFoundError:
            raise ValueError("its file is lost") from None
        except ForeignShardError:
            raise self._foreign(name, shard) from None

    def set_aside(self, name: str, shard: int) -> None:
        """Rename the file of a damaged shard, so that the shard no longer counts as done."""
        try:
            place_of(self.path).set_aside(self.key(name, shard))
        except OSError as error:
            rows = self.layout.rows_of(shard)
            raise InputError(
                f"rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} are damaged on disk, and can't be set "
                f"aside: {error}"
            ) from None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise InputError for errors that are not damage of the file: no permission, too many open files and so on."""
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            if error.errno in DAMAGE:
                raise
            raise InputError(f"{str(self.path)!r} can't be read: {error}") from None

    def _foreign(self, name: str, shard: int) -> InputError:
        file = str(self.path / self.key(name, shard))
        return InputError(
            f"{file!r} belongs to another store than the zarr.json in {str(self.path)!r}; put the right file back, "
            "or delete this one to have its rows computed again"
        )
