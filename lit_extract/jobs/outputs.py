"""The output folder: names and settings of a job's files, and the stimuli of all features in it.

All features of one folder have the same stimuli in the same order, because they are compared row by row.
"""

import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import shorten
from lit_extract.data.base import StimulusDataModule
from lit_extract.datasets.matching import Ids, first_difference
from lit_extract.modules.base import Extractor
from lit_extract.storage.features import load_features
from lit_extract.storage.features_file import read_metadata
from lit_extract.storage.layout import FEATURES_SUFFIX, STORE_SUFFIX, safe_name
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.store import Store, is_store

LONGEST_NAME = 255  # bytes, on most file systems


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
    return next((ids for _, ids in _stimuli_of_each(folder)), [])


def check_one_order(folder: AnyPath, ids: Ids, own: Collection[AnyPath], setting: str) -> None:
    """Check that all features and stores in a folder have these stimuli in this order.

    This run's ``own`` outputs are compared by their provenance instead. ``setting`` is what chose the stimuli.
    """
    for path, theirs in _stimuli_of_each(folder):
        if path not in own and (difference := first_difference(ids, theirs)):
            raise InputError(
                f"{setting}: {str(path)!r} has {difference}. All features of one folder must have the same stimuli in "
                "the same order: name this part with --data.subset NAME, choose another --output_dir, or remove the "
                "wrong files"
            )


def _stimuli_of_each(folder: AnyPath) -> Iterator[tuple[AnyPath, Ids]]:
    """Yield the stimuli of each readable features file and store; lit-extract status names the others."""
    outputs = [path for path in place_of(folder).children() if path.suffix in (FEATURES_SUFFIX, STORE_SUFFIX)]
    for path in sorted(outputs):
        with suppress(InputError):
            yield path, Store(path).stimulus_ids() if path.suffix == STORE_SUFFIX else load_features(path).stimulus_ids
