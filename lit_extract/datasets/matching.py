"""Matching of captions to stimuli: all features of a folder have the same rows in the same order."""

from collections.abc import Sequence

from lit_extract.common.errors import InputError, counted, name_some
from lit_extract.datasets.ids import id_key

Ids = Sequence[int] | Sequence[str]


def places_of(stimuli: Ids, ids: Ids, what: str, dataset: str, is_part: bool) -> list[int]:
    """Return the place of each stimulus's caption, in the order of the stimuli; ids are unique in both lists.

    Stimuli without a caption are refused, or left out if the captions belong to a part (``is_part``).
    """
    places = {id_key(stimulus): place for place, stimulus in enumerate(ids)}
    known = [id_key(stimulus) for stimulus in stimuli]
    unknown = places.keys() - set(known)
    missing = [] if is_part else [key for key in known if key not in places]
    if unknown or missing:
        first_unknown = [str(ids[place]) for place in sorted(places[key] for key in unknown)]
        raise InputError(f"{what} {_problem(first_unknown, missing, len(known), dataset)}")
    return [places[key] for key in known if key in places]


def _problem(unknown: list[str], missing: list[str], n_known: int, dataset: str) -> str:
    counts_from_one = str(n_known) in unknown and missing[:1] in (["0"], [])
    problems = []
    if unknown:
        count = counted(len(unknown), "caption of a stimulus that is", "captions of stimuli that are")
        problems.append(f"has {count} not in {dataset}: {name_some(unknown)}")
    if missing:
        stimuli = counted(n_known, "stimulus", "stimuli")
        problems.append(f"has no caption for {len(missing):,} of {stimuli} of {dataset}: {name_some(missing)}")
    if counts_from_one:
        hint = f"the ids of {dataset} are counted from 0, and these probably from 1: subtract 1"
    elif missing and not unknown:
        hint = "add them, or name this part of the dataset with --data.subset NAME"
    else:
        hint = f"check that these are captions of {dataset}"
    return f"{' and '.join(problems)}; {hint}"


def first_difference(ours: Ids, theirs: Ids) -> str | None:
    """Describe how two lists of stimuli differ; return None if they are the same in the same order."""
    mine, other = [id_key(stimulus) for stimulus in ours], [id_key(stimulus) for stimulus in theirs]
    if mine == other:
        return None
    if set(mine) == set(other):
        row = next(row for row, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
        return f"the same stimuli in another order: row {row} is {other[row]} there and {mine[row]} here"
    both = len(set(mine) & set(other))
    stimuli, shared = counted(len(other), "stimulus", "stimuli"), counted(both, "is in both", "are in both")
    return f"{stimuli}, and this run has {len(mine):,}; {shared}"
