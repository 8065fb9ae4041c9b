"""Trials: which stimulus was on the screen when, in the order of a dataset's beta files."""

from pathlib import Path

import numpy as np
import pandas as pd

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.datasets import DATASETS, find_dataset, table


def load_trials(dataset: str, subject: int, root: str | Path | None = None) -> pd.DataFrame:
    """Return the trials of one subject, in the order of the dataset's beta files.

    Of ``nsd`` they come from ``nsd_stim_info_merged.csv``, else ``nsd_expdesign.mat``; of ``things`` (THINGS-fMRI) from
    ``sub-0X_StimulusMetadata.csv``; of ``bold5000`` from its presentation lists.

    Args:
        dataset: ``nsd``, ``bold5000`` or ``things``.
        subject: Its number, from 1.
        root: The dataset's folder; default: the dataset's environment variable, such as ``NSD_DATASET``.

    Returns:
        One row a trial: ``subject``; ``session`` and ``run``, which count from 1; ``trial``, which counts from 0
        through all sessions of the subject; ``repetition``, how often the subject had seen the stimulus before;
        ``stimulus_id`` as in features; and ``row``, the row of :func:`load_dataset`, missing (``<NA>``) where that has
        no such stimulus.

    Raises:
        InputError: A dataset without trials, an unknown subject, missing or damaged files.
    """
    known = find_dataset(dataset)
    if not known.subjects:
        with_trials = ", ".join(name for name, other in DATASETS.items() if other.subjects)
        raise InputError(f"dataset: {dataset!r} has no trials; {with_trials} have")
    if not isinstance(subject, int | np.integer) or isinstance(subject, bool) or subject not in known.subjects:
        raise InputError(
            f"subject: {shorten(subject)} is not one of {', '.join(map(str, known.subjects))}, as {dataset} has"
        )
    folder = known.find_root(root)
    stimuli = known.load(folder)
    trials = known.read_trials(folder, int(subject), stimuli)
    places = pd.Series(pd.Index(stimuli["stimulus_id"]).get_indexer(trials["stimulus_id"]), dtype="Int64")
    trials.insert(0, "subject", int(subject))
    trials.insert(3, "trial", range(len(trials)))
    trials.insert(4, "repetition", trials.groupby("stimulus_id").cumcount())
    trials["row"] = places.mask(places < 0)
    trials.attrs = {table.DATASET: dataset, table.ID_MEANING: known.id_meaning, table.ROOT: str(folder)}
    return trials
