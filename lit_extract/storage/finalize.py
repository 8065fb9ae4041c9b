"""Turn a complete store into features files: one streaming pass, with two shards in memory.

N stimuli.
"""

import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from lit_extract.common.errors import InputError, name_some
from lit_extract.storage.archive import read_through, write_filled
from lit_extract.storage.disk import Size, bytes_there, check_room
from lit_extract.storage.features import load_features
from lit_extract.storage.features_content import (
    Numbers,
    Tensors,
    content_of,
    save_skeleton,
    tensors_of,
    tokens_bytes,
    with_tensors,
)
from lit_extract.storage.folder import check_same_images
from lit_extract.storage.layout import KEPT_AS, FeatsArray, feats_arrays
from lit_extract.storage.listing import refuse_plain_folder
from lit_extract.storage.places import LARGE, PART_SUFFIX, AnyPath, RemoteError, place_of, to_path
from lit_extract.storage.plain_pickle import load_plain
from lit_extract.storage.provenance import CAPTIONS, differing, features_provenance, to_keep_both
from lit_extract.storage.repair import Rows, difference
from lit_extract.storage.store import Store, is_store, remove_store

_FEW_IDS = 10_000  # these fit in any case


def finalize(store: str | AnyPath, keep_store: bool = False) -> list[AnyPath]:
    """Turn a complete store into its features files, one per pooling.

    Args:
        store: Folder of the store (``….zarr``), local or remote.
        keep_store: Keep the store afterwards.

    Returns:
        The features files.

    Raises:
        InputError: Not a store, rows are missing, another run is writing it, other features of its folder were made
            from other images, or there is too little disk space.
    """
    path = to_path(store, "store")
    local = place_of(path).local
    if not is_store(path) or (local is not None and not local.is_dir()):
        raise InputError(f"store: {str(path)!r} is not a folder with a store")
    refuse_plain_folder(path, "store")
    with place_of(path).write_lock():
        return finalize_locked(Store(path), keep_store)


def finalize_locked(store: Store, keep_store: bool) -> list[AnyPath]:
    """Do the same as :func:`finalize`, for a caller that holds the store's lock."""
    store.drop_damaged()
    there = Rows(store)
    if missing := there.missing():
        rows = [f"{rows.start} to {rows.stop - 1}" for rows in missing]
        raise InputError(
            f"{str(store.path)!r} is not complete: {sum(map(len, missing))} of {store.n_stimuli} rows are missing: "
            f"rows {name_some(rows)}; run the same predict command again to resume"
        )
    check_same_images(there)
    files = {pool: store.path.parent / name for pool, name in store.notes["files"].items()}
    left = [
        pool
        for pool, file in files.items()
        if not is_finished(file, features_provenance(store.provenance, pool))
        or there.repaired(pool)
        # A remote file can't be renamed: it appears before it is verified, and its run may have been killed meanwhile.
        or (not place_of(file).appears_verified and not store.is_kept and read_back(file))
    ]
    if left:
        check_ids_fit(store.stimulus_ids())
    size = Size(store.n_stimuli, store.layer_shapes, 1, store.dtype).file() + store.n_stimuli * tokens_bytes(there)
    check_room(
        store.path.parent,
        store=0,
        files=len(left) * size,
        # a killed finalize's leftovers are overwritten
        replaced=bytes_there(file.with_name(f".{file.name}{PART_SUFFIX}") for file in files.values()),
        advice=f"free some space, then run lit-extract finalize {store.path}",
    )
    if store.missing_rows():
        _check_earlier([files[pool] for pool in left])
    for pool in left:
        _write_features(there, pool, files[pool])
    for pool, file in files.items():
        _check_same(store, pool, file)
    if keep_store and not store.missing_rows():  # a repair fills only a part of a store, which is not worth keeping
        store.keep()
    else:
        remove_store(store.path)
    for path in (store.path, *files.values()):
        place_of(path).drop_uploads()
    return list(files.values())


def _check_earlier(files: Iterable[AnyPath]) -> None:
    """Check that features files whose rows go into new ones are sound: a new checksum would hide damage."""
    for file in files:
        if damage := read_back(file):
            raise InputError(
                f"{str(file)!r} is damaged ({damage}), so its bad rows can't be repaired; restore it, or pass "
                "--overwrite to predict to compute all rows from scratch"
            )


def check_ids_fit(stimulus_ids: Sequence[int] | Sequence[str]) -> None:
    """Refuse to start a run with more ids than can be read from a features file.

    Raises:
        InputError: There are too many.
    """
    if len(stimulus_ids) < _FEW_IDS:
        return
    try:
        load_plain(pickle.dumps(stimulus_ids, protocol=2), persistent=repr, names={}, leaf=type(None))
    except ValueError as error:
        raise InputError(
            f"data: a .pt of {len(stimulus_ids):,} stimuli can't be read ({error}); choose some with --data.query or "
            "--data.limit, or keep the store, which load_features reads: --finalize false"
        ) from None


def is_finished(file: AnyPath, provenance: dict[str, Any], root: str | None = None) -> bool:
    """Return whether ``file`` exists with exactly this provenance; an InputError names settings that differ.

    A file that notes the caption of each row is not finished if captions were edited: the edited rows are missing.
    """
    if not place_of(file).exists():
        return False
    try:
        found = load_features(file)
    except InputError as error:
        raise InputError(
            f"{error}. Move it elsewhere, pass --overwrite to predict to replace it, or choose another --output_dir"
        ) from None
    if others := difference(found, provenance, root):
        raise InputError(
            f"{str(file)!r} was made with other settings: {others}. To keep both, "
            f"{to_keep_both(found.provenance, provenance)}; --overwrite replaces the file"
        )
    return found.provenance.get(CAPTIONS) == provenance.get(CAPTIONS)


def _check_same(store: Store, pool: str, file: AnyPath) -> None:
    """Check that a features file has the stimuli and layers of its store, which is deleted next."""
    try:
        found = load_features(file)
    except RemoteError:
        raise
    except InputError as error:
        raise InputError(f"{error}; {str(store.path)!r} is kept") from None
    expected = {"stimulus_ids": store.stimulus_ids(), "layers": store.layers, "num_params": store.notes["num_params"]}
    expected |= {"layer_shapes": store.layer_shapes, "dtype": store.dtype}
    others = [name for name, value in expected.items() if getattr(found, name) != value]
    if differing(found.provenance, features_provenance(store.provenance, pool)):
        others.append("provenance")
    if others:
        raise InputError(
            f"{str(file)!r} differs in {', '.join(others)} from {str(store.path)!r}, which is kept; move the file "
            "elsewhere, then run lit-extract finalize again"
        )


def _write_features(there: Rows, pool: str, file: AnyPath) -> None:
    store = there.store
    content = {"feats": _feats(there, pool), **tensors_of(there, pool), **content_of(there, pool)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            skeleton = Path(folder, "skeleton.pt")  # needs no disk space: all numbers are holes
            chunks = [numbers.chunks for numbers in save_skeleton(content, skeleton)]

            def write(out: BinaryIO) -> None:
                write_filled(skeleton, chunks, out)
                store.check_current()

            def verify(path: AnyPath) -> None:
                if damage := read_back(path, content):
                    raise OSError(damage)

            place_of(file).write_verified(write, verify)
    except OSError as error:
        raise InputError(
            f"can't write {str(file)!r}: {error}; nothing is lost: fix that, then run lit-extract finalize {store.path}"
        ) from error


def _feats(there: Rows, pool: str) -> Tensors:
    """Return the features of a pooling to be written: one tensor with all layers, or one per layer."""
    store = there.store
    dtype = getattr(torch, store.dtype)
    numbers = {
        array: Numbers((store.n_stimuli, *array.row_shape), _shards(there, pool, array), dtype)
        for array in feats_arrays(pool, store.layer_shapes)
    }
    if all(array.is_stacked for array in numbers):
        return next(iter(numbers.values()))
    return {store.layers[array.layers[0]]: values for array, values in numbers.items()}


def _shards(there: Rows, pool: str, array: FeatsArray) -> Iterator[NDArray[Any]]:
    """Yield the shards of an array; each is overwritten later, while the next one is already being read."""
    store = there.store
    shape, kept_as = (len(store.rows_of(0)), *array.row_shape), KEPT_AS[store.dtype]
    both = [np.empty(shape, dtype=kept_as) for _ in range(min(2, store.n_shards))]

    def read(shard: int) -> NDArray[Any]:
        return there.shard(pool, array, shard, both[shard % 2])

    with ThreadPoolExecutor(1, "lit-extract reader") as thread:
        coming = thread.submit(read, 0)
        for shard in range(store.n_shards):
            numbers = coming.result()
            if shard + 1 < store.n_shards:
                coming = thread.submit(read, shard + 1)
            yield numbers


def read_back(file: AnyPath, expected: Mapping[str, Any] | None = None) -> str | None:
    """Read all of a features file; return how it differs from its checksums, and from ``expected``.

    ``expected`` is the content that was to be written; tensors must have the same shapes. RemoteErrors are raised.
    """
    try:
        with place_of(file).open_to_read(LARGE) as opened:
            found = read_through(opened)
    except RemoteError:
        raise
    except (ValueError, OSError) as error:
        return f"what was read back differs from what was written: {error}"
    both = [with_tensors(attrgetter("shape"), content) for content in (found, expected)]
    if expected is not None and repr(both[0]) != repr(both[1]):
        return "what was read back differs from what was written: its stimulus ids, shape or metadata"
    return None
