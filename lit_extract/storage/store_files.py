"""The files of a store's rows: shards of features, status and extras; written, read and checked.

N stimuli, L layers, D hidden size, R rows a shard.
"""

import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.storage.layout import (
    MAX_TOKENS,
    MISSING,
    N_TOKENS,
    NOT_FINITE,
    OK,
    STATUS,
    Layout,
    rows_key,
    shard_key,
)
from lit_extract.storage.paths import (
    AnyPath,
    exists,
    open_to_read,
    read_files,
    refuse_way_out,
    remote_errors,
    rename_file,
    write_file,
)
from lit_extract.storage.shards import ForeignShardError, Form, Place, read_layers, write_layers

# What rows that are done may have.
_ALLOWED = {STATUS: (OK, NOT_FINITE), N_TOKENS: (0, MAX_TOKENS)}

# Errors of a disk that can't read a file, or of something else in its place; all others say nothing of the file.
_DAMAGE = {errno.EIO, errno.EBADMSG, errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


@dataclass(frozen=True)
class StoreFiles:
    """The files of a store's rows.

    Args:
        path: Folder of the store, local or remote.
        layout: What its metadata say.
    """

    path: AnyPath
    layout: Layout

    def key(self, name: str, shard: int) -> str:
        """Where a file of an array lies, below the store's folder."""
        return shard_key(name, shard) if name in self.layout.pools else rows_key(name, shard)

    def form(self, name: str, shard: int) -> Form:
        """How a file of an array is laid out."""
        _, layers, dim = self.layout.shape
        place = Place(self.layout.id, name, shard) if self.layout.id and self.layout.is_sealed else None
        if name in self.layout.pools:
            return Form(layers, self.layout.shard_rows, dim, "<f4", place)
        dtype = np.dtype(self.layout.extras.get(name, "uint8")).newbyteorder("<").str
        return Form(1, self.layout.shard_rows, 1, dtype, place)

    def write(self, name: str, shard: int, values: NDArray[Any]) -> None:
        """Write the file of a shard of an array, in the place of what is there.

        Args:
            name: Of the array.
            shard: Number of the shard.
            values: (rows, L, D) of features, else (rows,).
        """
        form = self.form(name, shard)
        if name in self.layout.pools:
            pieces = write_layers(form, values, fill=np.nan)
        elif self.layout.is_sealed:
            pieces = write_layers(form, np.asarray(values).reshape(-1, 1, 1), fill=MISSING)
        else:
            pieces = _plain(form, values)
        write_file(self.path, self.key(name, shard), pieces)

    def contents(self, name: str, shards: Sequence[int]) -> dict[int, NDArray[Any] | None]:
        """A value of the rows of each shard, or None when its file is lost or damaged.

        Raises:
            InputError: A file may not be read, or is of another store: that is no damage which is computed again.
        """
        keys = {shard: self.key(name, shard) for shard in shards}
        if not isinstance(self.path, Path):
            files = read_files(self.path, list(keys.values()), self.form(name, 0).n_bytes)
            return {shard: self._rows(name, shard, files.get(key, b"")) for shard, key in keys.items()}
        found: dict[int, NDArray[Any] | None] = {}
        for shard, key in keys.items():
            content = b""
            with suppress(OSError), self.reading():
                content = read_files(self.path, [key], self.form(name, 0).n_bytes).get(key, b"")
            found[shard] = self._rows(name, shard, content)
        return found

    def _rows(self, name: str, shard: int, content: bytes) -> NDArray[Any] | None:
        """A value of a shard's rows, out of its file."""
        form, n_rows = self.form(name, shard), len(self.layout.rows_of(shard))
        try:
            if self.layout.is_sealed:
                values = read_layers(io.BytesIO(content), form, [0], n_rows)[:, 0, 0]
            else:
                values = _read_plain(content, form)[:n_rows]
        except ForeignShardError:
            raise self._foreign(name, shard) from None
        except ValueError:
            return None
        low, high = _ALLOWED.get(name, (None, None))
        return values if low is None or ((values >= low) & (values <= high)).all() else None

    def layers(
        self, pool: str, shard: int, layers: Sequence[int], into: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Layers of a shard (rows, len(layers), D).

        Raises:
            InputError: It may not be read, or is of another store.
            ValueError: It is damaged, lost, or belongs to another place.
            OSError: The disk can't read it, or there is something else in its place.
        """
        n_rows = len(self.layout.rows_of(shard))
        with self.reading(), remote_errors(self.path):
            try:
                with open_to_read(
                    self.path / self.key(pool, shard), whole=len(layers) == len(self.layout.layers)
                ) as file:
                    return read_layers(file, self.form(pool, shard), layers, n_rows, into)
            except FileNotFoundError:
                raise ValueError("its file is lost") from None
            except ForeignShardError:
                raise self._foreign(pool, shard) from None

    def expect(self, pool: str, shard: int) -> None:
        """Have the system fetch a shard's file, if it is a local one, before it is read."""
        if isinstance(self.path, Path) and hasattr(os, "posix_fadvise") and 0 <= shard < self.layout.n_shards:
            with suppress(OSError), open_to_read(self.path / self.key(pool, shard), whole=True) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def set_aside(self, pool: str, shard: int) -> None:
        """Have a damaged shard no longer count as done.

        Raises:
            InputError: It may not be renamed.
        """
        file = self.path / self.key(pool, shard)
        try:
            if exists(file):
                if isinstance(file, Path) and isinstance(self.path, Path):
                    refuse_way_out(self.path, file)
                rename_file(file, file.name + ".corrupt")
        except OSError as error:
            rows = self.layout.rows_of(shard)
            raise InputError(
                f"rows {rows.start} to {rows.stop - 1} of {str(self.path)!r} are damaged on disk, and can't be set "
                f"aside: {error}"
            ) from None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn an error that says nothing of the file itself into one that is no damage.

        Raises:
            InputError: No permission, too many open files, and so on.
        """
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            if error.errno in _DAMAGE:
                raise
            raise InputError(f"{str(self.path)!r} can't be read: {error}") from None

    def _foreign(self, name: str, shard: int) -> InputError:
        file = str(self.path / self.key(name, shard))
        return InputError(
            f"{file!r} is of another store than the zarr.json in {str(self.path)!r}; put back the one that belongs "
            "there, or delete the file to have its rows computed again"
        )


def _plain(form: Form, values: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of a file of a value of rows, of a store of format 1."""
    content = np.full(form.shard_rows, MISSING, dtype=form.dtype)
    content[: len(values)] = values
    yield content.view(np.uint8).data
    yield memoryview(int(google_crc32c.value(content.view(np.uint8))).to_bytes(4, "little"))


def _read_plain(content: bytes, form: Form) -> NDArray[Any]:
    """Values of all rows of a shard, of a store of format 1.

    Raises:
        ValueError: They are damaged.
    """
    values, checksum = content[:-4], content[-4:]
    if len(content) != form.chunk_bytes or google_crc32c.value(values) != int.from_bytes(checksum, "little"):
        raise ValueError("their checksum differs")
    return np.frombuffer(values, dtype=form.dtype)
