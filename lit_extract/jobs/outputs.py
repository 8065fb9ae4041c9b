"""What the outputs of a job are called, and with which settings they were begun."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from lit_extract.common.errors import InputError
from lit_extract.data.base import StimulusDataModule
from lit_extract.modules.base import Extractor
from lit_extract.storage.features import read_metadata
from lit_extract.storage.layout import safe_name
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.store import Store
from lit_extract.storage.store_folder import is_store

LONGEST_NAME = 255  # bytes, on all usual file systems


def recorded_provenance(files: Iterable[AnyPath], store: AnyPath | None = None) -> dict[str, Any]:
    """Provenance of the first features file that is there, else of the store; empty when none can be read."""
    for file in files:
        with suppress(InputError):  # whoever needs the file says what is wrong with it
            if place_of(file).exists():
                return dict(read_metadata(file)["provenance"])
    with suppress(InputError):
        if store is not None and is_store(store):
            return Store(store).provenance
    return {}


def output_paths(model: Extractor, data: StimulusDataModule, output_dir: AnyPath) -> tuple[dict[str, AnyPath], AnyPath]:
    """The features file of each pooling, and the store that they are made of.

    Raises:
        InputError: Their names are longer than file systems take.
    """
    untrained = "-untrained" if model.untrained else ""
    folder = output_dir / data.dataset_name / f"{data.subset}{untrained}"
    stem = f"{safe_name(model.model_name)}_pool-"
    ending = f"{data.file_suffix}{untrained}"
    files: dict[str, AnyPath] = {pool: folder / f"{stem}{pool}{ending}.pt" for pool in model.pools}
    store = f"{stem}{'+'.join(model.pools)}{ending}.zarr"
    if (length := len(f".{store}.lock".encode())) > LONGEST_NAME:
        shown = model.model_name if len(model.model_name) <= 80 else f"{model.model_name[:79]}…"
        raise InputError(
            f"model.name: {shown!r} makes a file name of {length} bytes, with poolings and prompt; {LONGEST_NAME} at "
            "most are possible. Give a shorter name, and the place of the weights in --model.checkpoint"
        )
    return files, folder / store
