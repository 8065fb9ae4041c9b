"""THINGS (Hebart et al., 2019, doi:10.1371/journal.pone.0223792): 26,107 images of 1,854 objects.

Trials are those of THINGS-fMRI (Hebart et al., 2023, doi:10.7554/eLife.82580).
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.untrusted import read_regular, shorten
from lit_extract.datasets.dataset import Dataset, images_below
from lit_extract.datasets.listing import check_utf8, entries_of, files_below, finding, packed_in
from lit_extract.datasets.reader import as_integers, check_columns, read_table
from lit_extract.datasets.table import FINDINGS

N_IMAGES, N_CATEGORIES = 26_107, 1854
CATEGORIES = "Metadata/Concept-specific/unique_id.csv"  # one name per line, without a header
MAX_CATEGORIES_BYTES = 2**20

_IMAGES = ("stimuli/THINGS/Images", "Images", "object_images")
_PART = re.compile("object_images(_[A-Z]-[A-Z])?")  # names of the archives
_THUMBNAILS = ("thumbs", "thumbnails", "@eadir")
_THUMBNAIL = re.compile(r"(^|[ _.-])thumb(nail)?s?([ _.-]|$)", re.IGNORECASE)


class _Things(Dataset):
    def read_published(self, folder: Path) -> pd.DataFrame:
        """Return the images sorted by file name, which defines their ids."""
        tops = _image_folders(folder)
        archives = packed_in(folder, {folder, *(top.parent for top in tops), *tops})
        images, ignored = _sort_out(folder, tops)
        if not images:
            hint = f"; still packed: {name_some(archives)}" if archives else ""
            raise self.nothing_found(folder, hint)
        check_utf8(images)
        _refuse_twice(images)
        images.sort(key=lambda path: (PurePosixPath(path).name, path))
        category = [PurePosixPath(path).parent.name for path in images]
        places, findings = _category_ids(folder, tops, category)
        if (len(images), len(set(category))) != (N_IMAGES, N_CATEGORIES):
            findings.insert(
                0,
                f"{len(images):,} images in {len(set(category)):,} categories, of {N_IMAGES:,} in {N_CATEGORIES:,}: "
                "things_id counts the existing images, so it differs from the full set",
            )
        findings += [finding(f"ignored {what}", sorted(paths)) for what, paths in sorted(ignored.items())]
        if archives:
            findings.append(finding("archives that are not unpacked", archives))
        index = pd.DataFrame(
            {
                "things_id": range(len(images)),
                "image_name": [PurePosixPath(path).stem for path in images],
                "category": category,
                "category_id": [places[name] for name in category],
                "image_category_index": pd.Series(category).groupby(category).cumcount() + 1,
                "image_path": images,
            }
        )
        # these count in the ids, but are no rows
        has_content = [_has_content(folder / path) for path in images]
        if lost := [path for path, is_there in zip(images, has_content, strict=True) if not is_there]:
            findings.append(finding("images that are empty, or broken links", lost))
        index = index[has_content].reset_index(drop=True)
        if index.empty:
            raise self.nothing_found(folder, f"; {findings[-1]}")
        table = self.with_stimuli(index, images_below(folder, index["image_path"]))
        table.attrs[FINDINGS] = findings
        return table

    def read_trials(self, folder: Path, subject: int, stimuli: pd.DataFrame) -> pd.DataFrame:
        """Return the trials of a StimulusMetadata file, anywhere below the folder."""
        name = f"sub-{subject:02d}_StimulusMetadata.csv"
        found = sorted(path for path in files_below(folder) if PurePosixPath(path).name == name)
        if len(found) != 1:
            several = f"there are several: {name_some(found)}" if found else "it is in THINGS-fMRI's betas_csv"
            raise InputError(f"things: one {name} is needed below {str(folder)!r}; {several}")
        what = f"things: {found[0]!r}"
        trials = read_table(folder / found[0], "things: trials")
        check_columns(trials, ("session", "run", "stimulus"), what)
        if trials.empty:
            raise InputError(f"{what} has no trials")
        least = {"session": 1, "run": 1, "subject_id": 1, "trial_id": 0}
        read = {name: as_integers(trials[name], what, least[name]) for name in least if name in trials}
        known = pd.DataFrame(read)
        if others := {*read.get("subject_id", [])} - {subject}:
            raise InputError(f"{what} has subject_id {name_some(sorted(map(str, others)))}")
        if "trial_id" in known and (known.groupby(["session", "run"])["trial_id"].diff() <= 0).any():
            raise InputError(f"{what} is not in the order of the betas: trial_id must rise within a run")
        ids = dict(zip(stimuli["image_name"], stimuli["stimulus_id"], strict=True))
        names = [PurePosixPath(str(stimulus)).stem for stimulus in trials["stimulus"]]
        if unknown := list(dict.fromkeys(shorten(name) for name in names if name not in ids)):
            raise InputError(f"{what} has stimuli that are not among the images: {name_some(unknown)}")
        return known[["session", "run"]].assign(stimulus_id=[ids[name] for name in names])


DATASET = _Things(
    name="things",
    title="THINGS",
    data_module="THINGSDataModule",
    root_variable="THINGS_DATASET",
    index=("preprocessed/images.csv",),
    layout="*.jpg in a folder for each category, below stimuli/THINGS/Images, Images, object_images or the root",
    columns=("things_id", "image_name", "category", "category_id", "image_category_index", "image_path"),
    image_column="image_path",
    id_column="things_id",
    id_meaning="things_id: counts from 0 over all images sorted by file name, unless preprocessed/images.csv has "
    "others",
    subjects=(1, 2, 3),
)


def _image_folders(folder: Path) -> list[Path]:
    """Return the existing folders of categories, else the root."""
    known = [folder / name for name in _IMAGES]
    parts = [path for path in entries_of(folder) if _PART.fullmatch(path.name) and path not in known]
    return [path for path in [*known, *parts] if path.is_dir()] or [folder]


def _sort_out(folder: Path, tops: Sequence[Path]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the images, and the other files by their kind, relative to the folder."""
    images: list[str] = []
    ignored: dict[str, list[str]] = defaultdict(list)
    for top in tops:
        for below in files_below(top):
            path = PurePosixPath(below)
            if (len(path.parts) == 1 and path.suffix == ".zip") or (top == folder and _is_beside(path)):
                continue
            kind = _kind(path)
            (ignored[kind] if kind else images).append((top.relative_to(folder) / path).as_posix())
    return images, ignored


def _is_beside(path: PurePosixPath) -> bool:
    """Return whether a file below the root is outside the folders of categories."""
    return path.parts[0] in ("Metadata", "preprocessed") or (len(path.parts) == 1 and path.suffix != ".jpg")


def _kind(path: PurePosixPath) -> str | None:
    """Return the kind of a file below the images; None for an image of a category."""
    folders, category = path.parts[:-1], path.parent.name
    if path.name.startswith(".") or "__MACOSX" in folders:
        return "hidden files, or files of macOS"
    # all images of the category thumb begin with it
    if any(part.lower() in _THUMBNAILS for part in folders) or _THUMBNAIL.search(path.stem.removeprefix(category)):
        return "thumbnails"
    if path.suffix != ".jpg":
        return "files that are not .jpg"
    return None if folders and not _PART.fullmatch(category) else "images outside the folder of a category"


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:  # a link to a file that was not fetched
        return False


def _refuse_twice(images: Sequence[str]) -> None:
    """Refuse images that occur twice, which would change the ids of all later images."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(images):
        places[PurePosixPath(path).name].append(str(PurePosixPath(path).parent))
    if twice := [f"{name} (in {' and '.join(there)})" for name, there in places.items() if len(there) > 1]:
        raise InputError(
            f"things: {len(twice)} images occur twice (was an archive unpacked twice?): {name_some(twice)}; "
            "delete one of each"
        )


def _category_ids(folder: Path, tops: Sequence[Path], category: Sequence[str]) -> tuple[Mapping[str, int], list[str]]:
    """Return the number of each category, counted from 0, and findings about the categories."""
    places = dict.fromkeys([folder, *(top.parent for top in tops)])
    path = next((place / CATEGORIES for place in places if (place / CATEGORIES).is_file()), None)
    there = sorted(set(category))
    if path is None:
        return {name: rank for rank, name in enumerate(there)}, [
            f"no {CATEGORIES}: category_id is the rank of the category among the {len(there):,} existing ones"
        ]
    what = f"things: {str(path)!r}"
    try:
        text = read_regular(path, MAX_CATEGORIES_BYTES).decode("utf-8-sig")
        listed = [row[0].strip() for row in csv.reader(text.splitlines(), strict=True) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{what} can't be read: {one_line(error)}") from None
    if listed and listed[0].lower().replace("_", "") == "uniqueid":
        listed = listed[1:]
    ids = {name: row for row, name in enumerate(listed)}
    if len(ids) != len(listed):
        twice = [name for name, count in Counter(listed).items() if count > 1]
        raise InputError(f"{what} has a category twice: {name_some([shorten(name) for name in twice])}")
    if unknown := [name for name in there if name not in ids]:
        raise InputError(f"{what} lacks the categories of {len(unknown)} folders: {name_some(unknown)}")
    missing = [name for name in listed if name not in set(there)]
    return ids, [finding(f"categories of {len(listed):,} without an image", missing)] if missing else []
