"""The output folder: names and settings of a job's files, and the stimuli of all features in it.

All features of one folder have the same stimuli in the same order, because they are compared row by row.
"""

import re
import tempfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import shorten
from lit_extract.data.base import StimulusDataModule
from lit_extract.data.captions import CaptionDataModule
from lit_extract.data.images import ImageDataModule
from lit_extract.datasets.matching import Ids, first_difference
from lit_extract.modules.base import Extractor
from lit_extract.storage.features_file import read_metadata
from lit_extract.storage.folder import comparable, differing_images, in_hdf5, outputs_in
from lit_extract.storage.layout import CONTENT, MTIME, SIZE, safe_name
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.provenance import OF_CAPTIONS
from lit_extract.storage.store import Store, is_store

LONGEST_NAME = 255  # bytes, on most file systems
MOST_IMAGES_READ = 256  # before a run, to compare them: a second on a slow file system


def check_pair(model: object, data: object) -> None:
    """Check that a model is an extractor, and that the data module provides what it works on, images or captions."""
    if not isinstance(model, Extractor):
        raise InputError(f"model: {type(model).__name__} is not an extractor, such as VisionExtractor(name)")
    stimuli: type[StimulusDataModule] = CaptionDataModule if model.kind in OF_CAPTIONS else ImageDataModule
    if not isinstance(data, stimuli):
        such_as = "CaptionDataModule" if stimuli is CaptionDataModule else "NSDDataModule or ImageFolderDataModule"
        raise InputError(
            f"data: {type(model).__name__} works on {stimuli.unit}: use {such_as}, not {type(data).__name__}"
        )


def recorded_provenance(files: Iterable[AnyPath], store: AnyPath) -> dict[str, Any]:
    """Return the provenance of the first existing features file, else of the store; empty if none can be read."""
    for file in files:
        with suppress(InputError):  # the code that needs the file reports its errors
            if place_of(file).exists():
                return dict(read_metadata(file)["provenance"])
    with suppress(InputError):
        if is_store(store):
            return Store(store).provenance
    return {}


def output_paths(
    model: Extractor, data: StimulusDataModule, output_dir: AnyPath, tag: str | None = None
) -> tuple[dict[str, AnyPath], AnyPath]:
    """Return the features file of each pooling, and the store that they are made from.

    A tag in their names keeps variants apart, such as other layers or image sizes.
    """
    if tag is not None and not re.fullmatch(r"[A-Za-z0-9+-][A-Za-z0-9._+-]*", tag):
        raise InputError(f"tag: {shorten(repr(tag))} names files: use letters, digits and ._+-")
    untrained = "-untrained" if model.untrained else ""
    folder = output_dir / data.dataset_name / f"{data.subset}{untrained}"
    stem = f"{safe_name(model.model_name)}_pool-"
    tagged = "" if tag is None else f"_tag-{tag}"
    ending = f"{data.file_suffix}{model.file_suffix}{tagged}{untrained}"
    files: dict[str, AnyPath] = {pool: folder / f"{stem}{pool}{ending}.pt" for pool in model.pools}
    store = f"{stem}{'+'.join(model.pools)}{ending}.zarr"
    if (length := len(f".{store}.lock".encode())) > LONGEST_NAME:
        shown = model.model_name if len(model.model_name) <= 80 else f"{model.model_name[:79]}…"
        raise InputError(
            f"model.name: {shown!r} makes a file name of {length} bytes, with poolings, prompt and tag; the "
            f"maximum is {LONGEST_NAME}. Give a shorter name, and the weights with --model.checkpoint"
        )
    return files, folder / store


def make_folder(folder: AnyPath) -> None:
    """Make the folder of the outputs; raise InputError if nothing can be written to it."""
    if (local := place_of(folder).local) is None:
        return
    try:
        local.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=local):
            pass
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"output_dir: nothing can be written to {str(folder)!r}: {reason}") from None


def ids_in_folder(folder: AnyPath) -> Ids:
    """Return the stimuli of the features in a folder, in order; empty if there are no features."""
    return next((output.stimulus_ids for output in outputs_in(folder)), [])


def check_same_stimuli(folder: AnyPath, data: StimulusDataModule, own: Collection[AnyPath]) -> None:
    """Check that all features and stores in a folder have these stimuli in this order, and were made from these images.

    This run's ``own`` outputs are compared by their provenance and inputs instead.
    """
    ids = data.stimuli["stimulus_id"].tolist()
    compared = set()  # notes on images, which most files of a folder share
    for path, theirs, images in outputs_in(folder):
        if path in own:
            continue
        if theirs != ids and (difference := first_difference(ids, theirs)):
            raise InputError(
                f"{data.source}: {str(path)!r} has {difference}. All features of one folder must have the same stimuli "
                "in the same order: name this part with --data.subset NAME, choose another --output_dir, or remove the "
                "wrong files"
            )
        if images is None or not isinstance(data, ImageDataModule) or (noted := images.tobytes()) in compared:
            continue
        compared.add(noted)
        if others := _other_images(data, images, ids):
            raise InputError(
                f"{data.source}: {str(path)!r} was made from other images: {others}. All features of one folder must "
                "have the same images: restore them, name these with --data.subset NAME, or choose another "
                "--output_dir. If images were corrected, first remove the features of the old ones"
            )


def _other_images(data: ImageDataModule, recorded: NDArray[np.int64], ids: Ids) -> str:
    """Return how many images are not those of a record (N, 4), and which; "" if none differs.

    Sizes are compared, and the content of some images of the same size but another time. When the run is complete,
    :func:`check_same_images` compares the content of all, which is known by then.
    """
    states = data.input_states
    both = comparable(states, recorded)
    of_other_size = both & ~in_hdf5(states) & (states[:, SIZE] != recorded[:, SIZE])
    is_touched = both & (recorded[:, CONTENT] != 0) & (states != recorded[:, [SIZE, MTIME]]).any(axis=1)
    touched = np.flatnonzero(is_touched & ~of_other_size)
    step = max(1, -(-len(touched) // MOST_IMAGES_READ))
    changed = data.changed(recorded, np.isin(np.arange(len(states)), touched[::step]))
    others = sorted({*np.flatnonzero(of_other_size).tolist(), *changed})
    return f"{'at least ' if step > 1 else ''}{differing_images(others, ids)}" if others else ""
