"""Which features a report is of, and which stimuli they share."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.listing import is_folder, is_there
from lit_extract.storage.provenance import kind_of

UNTRAINED = "-untrained"
FEWEST_STIMULI = 4  # U-centring divides by n - 3
MOST_DIMENSIONS = 2**15  # twice those of the largest model, so that a sample of its rows fits into memory
ENOUGH_STIMULI = 10  # with fewer in common, and less than half of all, models are not compared


@dataclass(frozen=True)
class Source:
    """Features of one model and one pooling.

    Args:
        features: Open, nothing read.
        label: What it is called in this report, as short as can be told apart.
    """

    features: Features
    label: str

    @property
    def kind(self) -> str:
        """``vision`` or ``language``."""
        return kind_of(self.features.provenance)

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random."""
        return bool(self.features.provenance["weights"] == "untrained")

    @property
    def twin(self) -> Hashable:
        """What a trained model and its untrained twin have in common."""
        provenance = self.features.provenance
        return provenance["model"], provenance["pool"], provenance.get("prompt_name")


def find_sources(folder: Path) -> tuple[list[Source], list[str]]:
    """The features of a folder and of its sibling ``<folder>-untrained``.

    Returns:
        Vision before language, trained before untrained; and what was left out, with the reason.

    Raises:
        InputError: No such folder, or no features in it.
    """
    folder = folder.absolute()
    untrained = folder.with_name(folder.name + UNTRAINED)
    folders = [candidate for candidate in (folder, untrained) if is_folder(candidate)]
    if not folders:
        raise InputError(f"folder: {str(folder)!r} is not a folder; give one with features, such as features/nsd/all")
    opened: list[Features] = []
    left_out: list[str] = []
    for path in [path for place in folders for path in _inside(place)]:
        try:
            opened += map(_checked, _open(path))
        except InputError as error:
            left_out.append(f"{shorten(path.name)}: {error}")
    if not opened:
        reasons = f"; left out: {'; '.join(left_out)}" if left_out else ""
        raise InputError(f"folder: {str(folder)!r} has no features, neither .pt nor .zarr{reasons}")
    labels = _labels(opened)
    sources = [Source(features, label) for features, label in zip(opened, labels, strict=True)]
    return sorted(sources, key=lambda source: (source.kind == "language", source.is_untrained)), left_out


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"folder: can't look into {str(folder)!r}: {error.strerror}") from None


def _checked(features: Features) -> Features:
    """Features that say what a report needs to know of them.

    Raises:
        InputError: They don't.
    """
    if missing := {"dataset", "weights"} - features.provenance.keys():
        raise InputError(f"its provenance has no {', '.join(sorted(missing))}")
    if features.shape[2] > MOST_DIMENSIONS:
        raise InputError(f"it has {features.shape[2]:,} dimensions; a report reads at most {MOST_DIMENSIONS:,}")
    return features


def _open(path: Path) -> list[Features]:
    """What a path holds: one pooling, several (an unfinished run), or none."""
    if path.name.startswith(".") or path.suffix not in (".pt", ".zarr"):
        return []
    if path.suffix == ".pt":
        return [load_features(path)]
    from lit_extract.storage.store import Store

    store = Store(path)
    files = store.notes["files"]
    finished = [pool for pool in store.pools if pool in files and is_there(path.with_name(files[pool]))]
    return [load_features(path, pool) for pool in store.pools if pool not in finished]


def _labels(opened: Sequence[Features]) -> list[str]:
    """Model, then pooling, prompt and file where models would be taken for each other without."""
    parts = [features.provenance for features in opened]
    labels = [shorten(part["model"]) for part in parts]
    for key, separator in (("pool", " "), ("prompt_name", " ")):
        twice = {part["model"] for part in parts if len({p.get(key) for p in parts if p["model"] == part["model"]}) > 1}
        labels = [
            f"{label}{separator}{shorten(part.get(key))}" if part["model"] in twice else label
            for label, part in zip(labels, parts, strict=True)
        ]
    labels = [
        f"{label} (untrained)" if part["weights"] == "untrained" else label
        for label, part in zip(labels, parts, strict=True)
    ]
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} [{shorten(features.path.name)}]"
        for label, features in zip(labels, opened, strict=True)
    ]


@dataclass(frozen=True)
class SharedStimuli:
    """The stimuli on which models are compared.

    Args:
        ids: What all compared models have, in the order of the first of them.
        compared: Whether each source is among them.
    """

    ids: list[Hashable]
    compared: list[bool]


def shared_stimuli(ids_of_sources: Sequence[Sequence[Hashable]]) -> SharedStimuli:
    """Ids that the sources have in common.

    Begins with the ids that most sources have (of equally many, the most ids) and takes in each further source
    that leaves enough of them, so that one file of other stimuli does not spoil the comparison of all the others.
    """
    sets = [frozenset(ids) for ids in ids_of_sources]
    (common, _) = max(Counter(sets).items(), key=lambda item: (item[1], len(item[0])))
    compared = []
    for ids in sets:
        fits = len(ids & common) >= max(FEWEST_STIMULI, min(ENOUGH_STIMULI, len(common) // 2))
        common = common & ids if fits else common
        compared.append(fits)
    order = ids_of_sources[compared.index(True)]
    return SharedStimuli([stimulus for stimulus in order if stimulus in common], compared)


def sample(items: Sequence[Hashable], size: int, seed: int) -> list[Hashable]:
    """At most ``size`` of them, in their order; the same for the same seed."""
    if len(items) <= size:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), size, replace=False)
    return [items[place] for place in sorted(chosen)]
