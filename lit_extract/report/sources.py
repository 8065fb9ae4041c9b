"""Find the features for a report, and the stimuli that they share."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.places import is_folder, is_there
from lit_extract.storage.provenance import OF_CAPTIONS, kind_of

FEWEST_STIMULI = 4  # U-centring divides by n - 3
MOST_DIMENSIONS = 2**15  # twice those of the largest model; a sample of rows fits into memory
ENOUGH_STIMULI = 10  # models that share fewer, and less than half of all, are not compared


@dataclass(frozen=True)
class Source:
    """Features of one model and one pooling, opened but not read; ``label`` is the shortest unambiguous name."""

    features: Features
    label: str

    @property
    def kind(self) -> str:
        """Return the kind of model, such as ``vision``."""
        return kind_of(self.features.provenance)

    @property
    def is_of_captions(self) -> bool:
        """Return whether its stimuli are captions, not images."""
        return self.kind in OF_CAPTIONS

    @property
    def is_untrained(self) -> bool:
        """Return whether the weights are random."""
        return bool(self.features.provenance["weights"] == "untrained")

    def is_twin_of(self, other: "Source") -> bool:
        """Return whether both have the same model, pooling, captions and layers, and only one is trained."""
        one, two = self.features, other.features
        alike = all(one.provenance.get(key) == two.provenance.get(key) for key in ("model", "pool", "prompt_name"))
        return alike and one.layers == two.layers and self.is_untrained != other.is_untrained


def find_sources(folder: Path) -> tuple[list[Source], list[str]]:
    """Open the features of a folder and of its sibling ``<folder>-untrained``.

    Returns:
        The sources, images before captions, trained before untrained; and files that were left out, with the reason.
    """
    folder = folder.absolute()
    folders = [place for place in (folder, folder.with_name(f"{folder.name}-untrained")) if is_folder(place)]
    if not folders:
        raise InputError(f"folder: {str(folder)!r} is not a folder; pass one with features, such as features/nsd/all")
    try:
        paths = [path for place in folders for path in sorted(place.iterdir())]
    except OSError as error:
        raise InputError(f"folder: can't read {error.filename!r}: {error.strerror}") from None
    opened: list[Features] = []
    left_out: list[str] = []
    for path in paths:
        try:
            opened += _open(path)
        except InputError as error:
            left_out.append(f"{shorten(path.name)}: {error}")
    if not opened:
        reasons = f"; left out: {'; '.join(left_out)}" if left_out else ""
        raise InputError(f"folder: {str(folder)!r} has no features, neither .pt nor .zarr{reasons}")
    sources = [Source(features, label) for features, label in zip(opened, _labels(opened), strict=True)]
    return sorted(sources, key=lambda source: (source.is_of_captions, source.is_untrained)), left_out


def _open(path: Path) -> list[Features]:
    """Open the features at a path: one pooling, several (an unfinished run), or none."""
    if path.name.startswith(".") or path.suffix not in (".pt", ".zarr"):
        return []
    if path.suffix == ".pt":
        opened = [load_features(path)]
    else:
        from lit_extract.storage.store import Store

        store = Store(path)
        finished = [pool for pool, file in store.notes["files"].items() if is_there(path.with_name(file))]
        opened = [load_features(path, pool) for pool in store.pools if pool not in finished]
    for features in opened:
        if missing := {"dataset", "weights"} - features.provenance.keys():
            raise InputError(f"its provenance has no {', '.join(sorted(missing))}")
        if (widest := max(map(math.prod, features.layer_shapes))) > MOST_DIMENSIONS:
            raise InputError(f"it has {widest:,} numbers a layer; a report reads at most {MOST_DIMENSIONS:,}")
    return opened


def _labels(opened: Sequence[Features]) -> list[str]:
    """Return labels: the model, with pooling, prompt, tag and file where needed to distinguish labels."""
    known = [{**features.provenance, "tag": features.metadata["notes"].get("tag")} for features in opened]
    labels = []
    for own in known:
        same = [other for other in known if other["model"] == own["model"]]
        telling = [key for key in ("pool", "prompt_name", "tag") if len({other.get(key) for other in same}) > 1]
        parts = [own["model"], *(own[key] for key in telling if own.get(key) is not None)]
        labels.append(" ".join(map(shorten, parts)) + (" (untrained)" if own["weights"] == "untrained" else ""))
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} [{shorten(features.path.name)}]"
        for label, features in zip(labels, opened, strict=True)
    ]


def shared_stimuli(ids_of_sources: Sequence[Sequence[Hashable]]) -> tuple[list[Hashable], list[bool]]:
    """Find the stimuli on which the sources can be compared.

    Start with the set of ids that most sources have (in a tie, the largest), and add each further source that leaves
    enough of them. So one file with other stimuli does not spoil the comparison of the others.

    Returns:
        The ids that all compared sources have, in the order of the first of these; and whether each source is compared.
    """
    sets = [frozenset(ids) for ids in ids_of_sources]
    common, _ = max(Counter(sets).items(), key=lambda item: (item[1], len(item[0])))
    compared = []
    for ids in sets:
        fits = len(ids & common) >= max(FEWEST_STIMULI, min(ENOUGH_STIMULI, len(common) // 2))
        common = common & ids if fits else common
        compared.append(fits)
    order = ids_of_sources[compared.index(True)]
    return [stimulus for stimulus in order if stimulus in common], compared


def sample(items: Sequence[Hashable], size: int, seed: int) -> list[Hashable]:
    """Return at most ``size`` items, in their order; the same seed gives the same items."""
    if len(items) <= size:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), size, replace=False)
    return [items[place] for place in sorted(chosen)]
