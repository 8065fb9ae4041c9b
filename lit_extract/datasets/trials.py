"""Trials: the stimulus on the screen in each trial, in the order of a dataset's beta files."""

from pathlib import Path

import numpy as np
import pandas as pd

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.datasets import DATASETS, find_dataset, table


def load_trials(dataset: str, subject: int, root: str | Path | None = None) -> pd.DataFrame:
    """Return the trials of one subject, in the order of the dataset's beta files.

    They are read from ``nsd_stim_info_merged.csv``, else ``nsd_expdesign.mat``, for ``nsd``; from
    ``sub-0X_StimulusMetadata.csv`` for ``things`` (THINGS-fMRI); and from the presentation lists for ``bold5000``.

    Args:
        dataset: ``nsd``, ``bold5000`` or ``things``.
        subject: Number of the subject, from 1.
        root: The dataset's folder; default: the dataset's environment variable, such as ``NSD_DATASET``.

    Returns:
        One row per trial: ``subject``; ``session`` and ``run``, counted from 1; ``trial``, counted from 0 through all
        sessions of the subject; ``repetition``, the number of earlier presentations to the subject; ``stimulus_id``, as
        in features; and ``row``, the row in :func:`load_dataset`, ``<NA>`` if the stimulus is missing there.

    Raises:
        InputError: The dataset has no trials, the subject is unknown, or files are missing or damaged.
    """
    known = find_dataset(dataset)
    if not known.subjects:
        with_trials = ", ".join(name for name, other in DATASETS.items() if other.subjects)
        raise InputError(f"dataset: {dataset!r} has no trials; datasets with trials: {with_trials}")
    if not isinstance(subject, int | np.integer) or isinstance(subject, bool) or subject not in known.subjects:
        raise InputError(
            f"subject: {dataset} has no subject {shorten(subject)}, only {', '.join(map(str, known.subjects))}"
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
