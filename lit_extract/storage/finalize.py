"""From a complete store to features files: one streaming pass, memory of two shards.

N stimuli, L layers, D hidden size.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from lit_extract.common.errors import InputError, name_some
from lit_extract.storage.archive import TensorRecord, check_archive, read_content, write_filled
from lit_extract.storage.disk import bytes_there, check_room, features_bytes
from lit_extract.storage.features import read_metadata
from lit_extract.storage.features_content import Numbers, content_of, longest_caption, save_skeleton, tensors_of
from lit_extract.storage.listing import refuse_plain_folder
from lit_extract.storage.places import LARGE, AnyPath, RemoteError, place_of, to_path
from lit_extract.storage.provenance import differing, features_provenance
from lit_extract.storage.repair import Rows
from lit_extract.storage.store import Store
from lit_extract.storage.store_folder import is_store


def finalize(store: str | AnyPath, keep_store: bool = False) -> list[AnyPath]:
    """Turn a complete store into its features files, one a pooling.

    Args:
        store: Folder of the store (``….zarr``), local or remote.
        keep_store: Leave the store in place.

    Returns:
        The features files.

    Raises:
        InputError: Not a store, rows are missing, another run is writing it, or the disk has no room for the files.
    """
    path = to_path(store, "store")
    local = place_of(path).local
    if local is not None and not local.is_dir():
        raise InputError(f"store: {str(path)!r} is not a folder")
    refuse_plain_folder(path, "store")
    if not is_store(path):
        raise InputError(f"store: there is none at {str(path)!r}")
    with place_of(path).write_lock():
        return finalize_locked(Store(path), keep_store)


def finalize_locked(store: Store, keep_store: bool) -> list[AnyPath]:
    """:func:`finalize` for a caller that holds the store's lock."""
    store.drop_damaged()
    there = Rows(store)
    if missing := there.missing():
        rows = [f"{rows.start} to {rows.stop - 1}" for rows in missing]
        raise InputError(
            f"{str(store.path)!r} is not complete: {sum(map(len, missing))} of {store.n_stimuli} rows are missing: "
            f"rows {name_some(rows)}; run the same predict command again to go on"
        )
    files = {pool: store.path.parent / name for pool, name in store.notes["files"].items()}
    left = [
        pool
        for pool, file in files.items()
        if not is_finished(file, features_provenance(store.provenance, pool))
        or there.repaired(pool)
        or not _is_verified(store, file)
    ]
    size = features_bytes(store.n_stimuli, len(store.layers), store.n_dim) + store.n_stimuli * longest_caption(store)
    check_room(
        store.path.parent,
        store=0,
        files=len(left) * size,
        replaced=bytes_there(map(_part, files.values())),  # of a finalize that was killed; they are written over
        advice=f"make room, then run lit-extract finalize {store.path}",
    )
    if store.missing_rows():
        _check_earlier([files[pool] for pool in left])
    for pool in left:
        _write_features(there, pool, files[pool])
    for pool, file in files.items():
        _check_same(store, pool, file)
    if keep_store and not store.missing_rows():  # what a repair fills of one is no store to keep
        store.keep()
    else:
        store.remove()
    for path in (store.path, *files.values()):
        place_of(path).drop_uploads()
    return list(files.values())


def _check_earlier(files: Iterable[AnyPath]) -> None:
    """See that features files whose rows go into new ones are whole: a new checksum would vouch for damage."""
    for file in files:
        try:
            _verify(file)
        except RemoteError:
            raise
        except OSError as error:
            raise InputError(
                f"{str(file)!r} is damaged ({error}), so that its bad rows can't be repaired; restore it, or pass "
                "--overwrite to predict to compute all rows from scratch"
            ) from None


def is_finished(file: AnyPath, provenance: dict[str, Any], root: str | None = None) -> bool:
    """Whether ``file`` is there, with exactly this provenance.

    Raises:
        InputError: It is there with another, and the differing settings are named; or it is something else.
    """
    if not place_of(file).exists():
        return False
    try:
        found = read_metadata(file)
    except InputError as error:
        raise InputError(
            f"{error}. Move it elsewhere, pass --overwrite to predict to replace it, or choose another --output_dir"
        ) from None
    if difference := differing(found["provenance"], provenance, found.get("notes", {}).get("root"), root):
        raise InputError(
            f"{str(file)!r} was made with other settings: {difference}. Pass --overwrite to predict to replace it, or "
            "choose another --output_dir"
        )
    return True


def _is_verified(store: Store, file: AnyPath) -> bool:
    """Whether a features file that is there was read back when it was made; if that is not known, it is done now.

    A remote one can't be renamed, and appears before it is read back. The store goes after that.
    """
    if place_of(file).appears_verified or store.is_kept:
        return True
    try:
        _verify(file)
    except RemoteError:
        raise
    except OSError:
        return False
    return True


def _check_same(store: Store, pool: str, file: AnyPath) -> None:
    """See that a features file has the stimuli and layers of its store, which goes after that.

    Raises:
        InputError: It has not, or can't be read.
    """
    try:
        with place_of(file).open_to_read() as opened:
            found = read_content(opened)
    except RemoteError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{str(file)!r} can't be read back: {error}; {str(store.path)!r} is kept") from None
    expected = {"stimulus_ids": store.stimulus_ids(), "layers": store.layers, "num_params": store.notes["num_params"]}
    others = [name for name, value in expected.items() if repr(found.get(name)) != repr(value)]
    feats, metadata = found.get("feats"), found.get("metadata")
    if not isinstance(feats, TensorRecord) or feats.shape != store.layout.shape:
        others.append("feats")
    provenance = metadata.get("provenance") if isinstance(metadata, dict) else None
    if not isinstance(provenance, dict) or differing(provenance, features_provenance(store.provenance, pool)):
        others.append("provenance")
    if others:
        raise InputError(
            f"{str(file)!r} has other {', '.join(others)} than {str(store.path)!r}, which is kept; move the file "
            "elsewhere, then run lit-extract finalize again"
        )


def _write_features(there: Rows, pool: str, file: AnyPath) -> None:
    store = there.store
    shape = store.n_stimuli, len(store.layers), store.n_dim
    shards = _ahead(there, pool)
    tensors = {"feats": Numbers(shape, torch.float32, shards), **tensors_of(there, pool)}
    content = content_of(there, pool)
    try:
        with tempfile.TemporaryDirectory() as folder:
            skeleton = Path(folder, "skeleton.pt")  # takes no room: all numbers are holes
            save_skeleton(content, tensors, skeleton)
            chunks = [numbers.chunks for numbers in tensors.values()]
            expected = {name: numbers.shape for name, numbers in tensors.items()} | content

            def write(out: BinaryIO) -> None:
                write_filled(skeleton, chunks, out)
                store.check_current()

            place_of(file).write_verified(write, lambda path: _verify(path, expected))
    except OSError as error:
        raise InputError(
            f"can't write {str(file)!r}: {error}; nothing is lost: fix that, then run lit-extract finalize {store.path}"
        ) from error


def _ahead(there: Rows, pool: str) -> Iterator[NDArray[np.float32]]:
    """The shards one after the other, the next of which is read while one is used; each is gone when the next comes."""
    store = there.store
    shape = len(store.rows_of(0)), len(store.layers), store.n_dim
    both = [np.empty(shape, dtype=np.float32) for _ in range(min(2, store.n_shards))]

    def read(shard: int) -> NDArray[np.float32]:
        return there.shard(pool, shard, both[shard % 2])

    with ThreadPoolExecutor(1, "lit-extract reader") as thread:
        coming = thread.submit(read, 0)
        for shard in range(store.n_shards):
            numbers = coming.result()
            if shard + 1 < store.n_shards:
                coming = thread.submit(read, shard + 1)
            yield numbers


def _part(file: AnyPath) -> AnyPath:
    """What a local features file is called while it is made."""
    return file.with_name(f".{file.name}.part")


def _verify(file: AnyPath, expected: Mapping[str, Any] | None = None) -> None:
    """Read all of it back and compare it with its checksums, and with what was to be written.

    Args:
        file: The features file.
        expected: Its content, with a shape in the place of each tensor.

    Raises:
        OSError: It is damaged, or can't be read.
    """
    try:
        with place_of(file).open_to_read(LARGE) as opened:
            check_archive(opened)
            found = read_content(opened) if expected is not None else {}
    except RemoteError:
        raise
    except ValueError as error:
        raise OSError(f"what was read back differs from what was written: {error}") from None
    found = {name: value.shape if isinstance(value, TensorRecord) else value for name, value in found.items()}
    if expected is not None and repr(found) != repr(expected):
        raise OSError("what was read back differs from what was written: its stimulus ids, shape or metadata")
