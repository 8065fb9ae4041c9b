"""The features and stores of one output folder: all have the same stimuli in the same order, and the same images.

N stimuli.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.datasets.decode import MAX_IMAGE_BYTES
from lit_extract.datasets.matching import Ids
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.layout import CONTENT, FEATURES_SUFFIX, NOT_FINITE, OK, SIZE, STORE_SUFFIX
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.provenance import CAPTIONS
from lit_extract.storage.repair import Rows, inputs_of, status_of
from lit_extract.storage.store import Store

_SUFFIXES = (FEATURES_SUFFIX, STORE_SUFFIX)


class Output(NamedTuple):
    """A features file or a store."""

    path: AnyPath
    stimulus_ids: Ids
    images: NDArray[np.int64] | None  # notes on each row's image (N, 4), 0: none; None for captions


def outputs_in(folder: AnyPath) -> Iterator[Output]:
    """Yield each readable features file and store; lit-extract status names the others."""
    return _opened(sorted(path for path in place_of(folder).children() if path.suffix in _SUFFIXES))


def _opened(paths: Iterable[AnyPath]) -> Iterator[Output]:
    for path in paths:
        with suppress(InputError):
            if path.suffix == STORE_SUFFIX:
                store = Store(path)
                yield Output(path, store.stimulus_ids(), _images_of(store))
            else:
                features = load_features(path)
                yield Output(path, features.stimulus_ids, _images_of(features))


def _images_of(output: Features | Store) -> NDArray[np.int64] | None:
    if CAPTIONS in output.provenance:
        return None
    with suppress(InputError):  # damaged shards of a store, which its own run computes again
        if isinstance(output, Store):
            return _of_good_rows(output.inputs(), output.status())
        if (inputs := inputs_of(output)) is not None:
            return _of_good_rows(inputs, status_of(output))
    return None


def _of_good_rows(inputs: NDArray[np.int64], status: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.where(np.isin(status, (OK, NOT_FINITE))[:, None], inputs, 0)


def in_hdf5(inputs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which images are rows of an HDF5 file (N,): its size is noted for them, and a hash of their pixels."""
    return inputs[:, SIZE] > MAX_IMAGE_BYTES


def comparable(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the rows (N,) with notes on both images, which are both files or both rows of an HDF5 file."""
    both: NDArray[np.bool_] = (ours[:, SIZE] != 0) & (theirs[:, SIZE] != 0) & (in_hdf5(ours) == in_hdf5(theirs))
    return both


def differing_images(rows: Sequence[int], ids: Ids) -> str:
    """Return how many images differ, and which."""
    named = ", ".join(shorten(str(ids[row])) for row in rows[:5])
    return f"{len(rows)} of {len(ids)} differ: {named}{', …' if len(rows) > 5 else ''}"


def _rows_of_other_content(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> list[int]:
    both = comparable(ours, theirs) & (ours[:, CONTENT] != 0) & (theirs[:, CONTENT] != 0)
    rows: list[int] = np.flatnonzero(both & (ours[:, CONTENT] != theirs[:, CONTENT])).tolist()
    return rows


def mixed_images(files: Iterable[AnyPath]) -> str:
    """Return which of the features files of a folder was made from other images than those before it; "" if none."""
    ids: Ids | None = None
    for path, stimulus_ids, images in _opened(files):
        if images is None or (ids is not None and ids != stimulus_ids):
            continue
        if ids is None:
            ids, known = stimulus_ids, images
        elif rows := _rows_of_other_content(known, images):
            return f"{path.name} was made from other images than the files before it: {differing_images(rows, ids)}"
        known = np.where(known[:, [CONTENT]] == 0, images, known)
    return ""


def check_same_images(there: Rows) -> None:
    """Check that a complete store was made from the same images as all others in its folder, by their content.

    Raises:
        InputError: Another was made from other images.
    """
    store = there.store
    inputs = None if CAPTIONS in store.provenance else there.inputs(store.pools[0])
    if inputs is None:
        return
    ids, ours = store.stimulus_ids(), _of_good_rows(inputs, there.status(store.pools[0]))
    own = {store.path, *(store.path.parent / name for name in store.notes["files"].values())}
    for path, their_ids, theirs in outputs_in(store.path.parent):
        if path in own or theirs is None or their_ids != ids:
            continue
        if rows := _rows_of_other_content(ours, theirs):
            raise InputError(
                f"{str(store.path)!r} is complete, but {str(path)!r} was made from other images: "
                f"{differing_images(rows, ids)}. To keep both, move the store to another folder; if the images were "
                "corrected, remove the old one; then run lit-extract finalize with the store"
            )
