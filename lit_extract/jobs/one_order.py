"""All features of one folder have the same stimuli in the same order, as they are compared row by row."""

from collections.abc import Collection, Iterator
from contextlib import suppress

from lit_extract.common.errors import InputError
from lit_extract.datasets.matching import Ids, first_difference
from lit_extract.storage.features import load_features
from lit_extract.storage.layout import FEATURES_SUFFIX, STORE_SUFFIX
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.store import Store


def ids_in_folder(folder: AnyPath) -> Ids:
    """Return the stimuli of the features in a folder, in their order; none if there are no features."""
    return next((ids for _, ids in _stimuli_of_each(folder)), [])


def check_one_order(folder: AnyPath, ids: Ids, own: Collection[AnyPath], setting: str) -> None:
    """See that the features in a folder are of these stimuli in this order.

    Args:
        folder: Where the features will be.
        ids: The stimuli of this run.
        own: Outputs of this run, about which its provenance tells more.
        setting: What chose the stimuli, for the error: a caption file, or the folder of a dataset.

    Raises:
        InputError: A features file or a store has others, or has them in another order.
    """
    for path, theirs in _stimuli_of_each(folder):
        if path not in own and (difference := first_difference(ids, theirs)):
            raise InputError(
                f"{setting}: {str(path)!r} has {difference}. All features of one folder have the same stimuli in the "
                "same order: give this part a name of its own with --data.subset NAME, choose another --output_dir, or "
                "remove what is wrong there"
            )


def _stimuli_of_each(folder: AnyPath) -> Iterator[tuple[AnyPath, Ids]]:
    """Stimuli of each features file and store; lit-extract status names those that can't be read."""
    outputs = [path for path in place_of(folder).children() if path.suffix in (FEATURES_SUFFIX, STORE_SUFFIX)]
    for path in sorted(outputs):
        with suppress(InputError):
            yield path, _stimuli(path)


def _stimuli(path: AnyPath) -> Ids:
    return Store(path).stimulus_ids() if path.suffix == STORE_SUFFIX else load_features(path).stimulus_ids
