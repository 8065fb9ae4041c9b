"""BOLD5000 (Chang et al., 2019, doi:10.1038/s41597-019-0052-3): scenes, COCO and ImageNet."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePath

import pandas as pd

from lit_extract.common.errors import InputError, counted, name_some, one_line
from lit_extract.common.untrusted import is_path_like, read_regular, shorten
from lit_extract.datasets.dataset import Dataset, images_below
from lit_extract.datasets.listing import entries_of, finding, packed_in
from lit_extract.datasets.table import FINDINGS

N_IMAGES = 4916
SUBJECTS = (1, 2, 3, 4)  # CSI1 to CSI4
LISTS = "Stimuli_Presentation_Lists"
IMAGES = "Scene_Stimuli/Presented_Stimuli"
FOLDERS = {"coco": "COCO", "imagenet": "ImageNet", "scenes": "Scene"}  # by source
MAX_LIST_BYTES = 2**20


@dataclass(frozen=True)
class _Trial:
    subject: int
    session: int
    run: int
    name: str  # of the image in the list, without rep_


class _Bold5000(Dataset):
    def read_published(self, folder: Path) -> pd.DataFrame:
        """Return the presented images in the order of their first presentation, which defines their ids."""
        home = _home(folder)
        if home is None:
            archives = packed_in(folder, [folder])
            raise self.nothing_found(folder, f"; still packed: {name_some(archives)}" if archives else "")
        trials, findings = _read_lists(home)
        first = _first_presentations(trials)
        disk = _Disk(home / IMAGES)
        rows: list[tuple[int, str, str, str]] = []
        missing: dict[str, str] = {}
        by_file: dict[Path, int] = {}  # two spellings in a list may be one image
        for name, position in first.items():
            source = _source(name)
            path = disk.find(source, name)
            if path is None:
                missing.setdefault(_key(name), name)
            elif path not in by_file:
                by_file[path] = position
                rows.append((position, path.name, source, path.relative_to(folder).as_posix()))
        if not rows:
            raise InputError(f"bold5000: none of the {len(first):,} presented images is below {str(home / IMAGES)!r}")
        if len(rows) != N_IMAGES:
            findings.insert(0, f"{counted(len(rows), 'image')} of {N_IMAGES:,}")
        if missing:
            findings.append(finding("presented images that are missing", list(missing.values())))
        table = pd.DataFrame(rows, columns=list(self.columns))
        table = self.with_stimuli(table, images_below(folder, table["image_path"]))
        if archives := packed_in(folder, {folder, home, home / "Scene_Stimuli", home / IMAGES}):
            findings.append(finding("archives that are not unpacked", archives))
        table.attrs[FINDINGS] = findings + disk.findings(by_file)
        return table

    def read_trials(self, folder: Path, subject: int, stimuli: pd.DataFrame) -> pd.DataFrame:
        """Return the trials of the presentation lists; images missing from the table keep their ids."""
        home = _home(folder)
        if home is None:
            raise InputError(f"bold5000: no {LISTS} in {str(folder)!r}")
        trials, _ = _read_lists(home)
        by_name = dict(zip(stimuli["image_name"], stimuli["stimulus_id"], strict=True))
        by_key = {_key(name): stimulus for name, stimulus in by_name.items()}
        taken = set(by_name.values())
        ids: dict[str, int] = {}
        missing: dict[str, int] = {}
        for name, position in _first_presentations(trials).items():
            known = by_name.get(name, by_key.get(_key(name)))
            ids[name] = missing.setdefault(_key(name), position) if known is None else known
            if known is None and position in taken:
                raise InputError(
                    f"bold5000: {shorten(name)} was the image of presentation {position}, which is the bold_id of "
                    "another image in the index; the ids of the index do not match the lists"
                )
        own = [trial for trial in trials if trial.subject == subject]
        return pd.DataFrame(
            {
                "session": [trial.session for trial in own],
                "run": [trial.run for trial in own],
                "stimulus_id": [ids[trial.name] for trial in own],
            }
        )


DATASET = _Bold5000(
    name="bold5000",
    title="BOLD5000",
    data_module="BOLD5000DataModule",
    root_variable="BOLD_DATASET",
    index=("preprocessed/images.parquet", "preprocessed/images.csv"),
    layout=f"{LISTS} with {IMAGES}, also in BOLD5000_Stimuli",
    columns=("bold_id", "image_name", "stim_source", "image_path"),
    image_column="image_path",
    id_column="bold_id",
    id_meaning="bold_id: place of the image's first presentation, counted from 0 through the lists of CSI1 to CSI4, "
    "unless preprocessed/images has others",
    subjects=SUBJECTS,
)


def _home(folder: Path) -> Path | None:
    places = (folder, folder / "BOLD5000_Stimuli")
    return next((place for place in places if (place / LISTS).is_dir()), None)


def _read_lists(home: Path) -> tuple[list[_Trial], list[str]]:
    """Return all trials in the order of subject, session, run and line, and findings about the lists."""
    trials: list[_Trial] = []
    findings: list[str] = []
    without = [f"CSI{subject}" for subject in SUBJECTS if not (home / LISTS / f"CSI{subject}").is_dir()]
    if without:
        raise InputError(
            f"bold5000: no presentation lists of {name_some(without)} in {str(home / LISTS)!r}; bold_id counts through "
            "the lists of all subjects"
        )
    ignored: list[str] = []
    for subject in SUBJECTS:
        place = home / LISTS / f"CSI{subject}"
        sessions = _numbered(place, re.compile(rf"CSI0?{subject}_sess_?([0-9]{{1,4}})", re.IGNORECASE), ignored)
        findings += _gaps(sessions, f"CSI{subject}", "session")
        for session, lists in sessions.items():
            # such as CSI01_sess01_run01.txt; a date is no run
            runs = _numbered(lists, re.compile(r".*(?<![0-9])([0-9]{1,4})\.txt", re.IGNORECASE), ignored)
            findings += _gaps(runs, f"CSI{subject} session {session}", "run")
            for run, file in runs.items():
                trials += [_Trial(subject, session, run, name) for name in _read_list(file)]
    if ignored:
        findings.append(finding("ignored files that are no presentation lists", sorted(ignored)))
    return trials, findings


def _numbered(place: Path, pattern: re.Pattern[str], ignored: list[str]) -> dict[int, Path]:
    """Return the entries of a folder by the number in their names, sorted; add other names to ``ignored``."""
    found: dict[int, Path] = {}
    for path in entries_of(place):
        match = None if path.name.startswith(".") else pattern.fullmatch(path.name)
        if match is None:
            if path.suffix != ".mat":  # the same lists for MATLAB
                ignored.append(f"{place.name}/{path.name}")
        elif int(match[1]) in found:
            raise InputError(f"bold5000: {str(path)!r} and {found[int(match[1])].name!r} have the same number")
        else:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _gaps(found: dict[int, Path], of: str, what: str) -> list[str]:
    """Return a sentence if numbers are left out, which would change the ids of all later images."""
    left_out = [str(number) for number in range(1, max(found, default=1) + 1) if number not in found]
    if not left_out:
        return []
    return [f"{of} has no {what} {name_some(left_out)}; later bold_id differ from those of the full lists"]


def _read_list(file: Path) -> list[str]:
    what = f"bold5000: {str(file)!r}"
    try:
        text = read_regular(file, MAX_LIST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{what} can't be read: {one_line(error)}") from None
    names = [line.strip().removeprefix("rep_") for line in text.splitlines() if line.strip()]
    if wrong := [shorten(name) for name in names if not is_path_like(name) or "/" in name]:
        raise InputError(f"{what} has lines that are no image names: {name_some(wrong)}")
    if not names:
        raise InputError(f"{what} has no trials; it may be an incomplete copy")
    return names


def _first_presentations(trials: list[_Trial]) -> dict[str, int]:
    first: dict[str, int] = {}
    for position, trial in enumerate(trials):
        first.setdefault(trial.name, position)
    return first


def _source(name: str) -> str:
    if name.startswith("COCO") or name.upper().startswith("COCO_"):
        return "coco"
    return "imagenet" if re.match(r"n[0-9]+_[0-9]+", name, re.IGNORECASE) else "scenes"


def _key(name: str) -> str:
    """Return a name for comparisons, without suffix and case."""
    return PurePath(name).stem.casefold()


class _Disk:
    """The images on disk, by source; their names may differ from the lists in case and suffix."""

    def __init__(self, images: Path) -> None:
        self.by_name: dict[str, dict[str, Path]] = {source: {} for source in FOLDERS}
        self.by_key: dict[str, dict[str, list[Path]]] = {source: defaultdict(list) for source in FOLDERS}
        self.differing: list[str] = []
        there = entries_of(images) if images.is_dir() else []
        self.ignored = [path.name for path in there if path.name not in FOLDERS.values() and path.suffix != ".zip"]
        for source, name in FOLDERS.items():
            for path in entries_of(images / name) if (images / name).is_dir() else []:
                if path.name.startswith(".") or not path.is_file() or path.stat().st_size == 0:
                    self.ignored.append(f"{name}/{path.name}")
                else:
                    self.by_name[source][path.name] = path
                    self.by_key[source][_key(path.name)].append(path)

    def find(self, source: str, name: str) -> Path | None:
        """Return the file of an image; None if there is none."""
        if path := self.by_name[source].get(name):
            return path
        alike = self.by_key[source].get(_key(name), [])
        if len(alike) > 1:
            raise InputError(
                f"bold5000: {shorten(name)} in the lists may be any of {name_some([path.name for path in alike])}; "
                "delete the wrong ones"
            )
        if alike:
            self.differing.append(f"{name} is {alike[0].name}")
        return alike[0] if alike else None

    def findings(self, used: dict[Path, int]) -> list[str]:
        """Return findings about the images; images of the table are ``used``."""
        unused = [path.name for paths in self.by_name.values() for path in paths.values() if path not in used]
        texts = (
            (self.differing, "names with another case or suffix in the lists than on disk"),
            (self.ignored, "ignored entries among the images that are empty, hidden, or no files"),
            (unused, "ignored images that were never presented"),
        )
        return [finding(text, names) for names, text in texts if names]
