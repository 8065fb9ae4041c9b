"""Datasets made small in the layouts in which their authors publish them, and what is in them by the published rules.

Ids and trials are worked out here in plain Python and numpy, from the lists that the folders are made of: nothing is
read from the folders, and nothing of lit_extract is used.
"""

import os
import re
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

TRIAL_COLUMNS = ["subject", "session", "run", "trial", "repetition", "stimulus_id"]


def write_image(path: Path) -> None:
    """Write a JPEG of noise, another one for each name of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = [*path.name.lower().encode()]
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")


def write_text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def sentences_with(findings: list[str], *parts: str | int) -> list[str]:
    """Return the findings that have all these parts in them; a number counts only as a whole one."""
    patterns = [
        rf"(?<![\w.,])(?:{part}|{part:,})(?!\w)" if isinstance(part, int) else re.escape(part) for part in parts
    ]
    return [text for text in findings if all(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)]


def repetitions(shown: list) -> list[int]:
    """Return how often each had been shown before."""
    seen: Counter = Counter()
    result = []
    for one in shown:
        result.append(seen[one])
        seen[one] += 1
    return result


class ShuffledFolders:
    """Listings of folders in another order than the system's: ``os.listdir``, ``os.scandir``, ``Path.iterdir``."""

    def __init__(self, monkeypatch, seed: int):
        self.generator = np.random.default_rng(seed)
        self.changed = 0
        listdir, scandir, iterdir = os.listdir, os.scandir, Path.iterdir
        monkeypatch.setattr(os, "listdir", lambda *path: self.shuffled(listdir(*path)))
        monkeypatch.setattr(os, "scandir", lambda *path: _Scan(scandir(*path), self.shuffled))
        monkeypatch.setattr(Path, "iterdir", lambda path: iter(self.shuffled(list(iterdir(path)))))

    def shuffled(self, entries: list) -> list:
        order = self.generator.permutation(len(entries)).tolist()
        self.changed += order != sorted(order)
        return [entries[k] for k in order]


class _Scan:
    """What ``os.scandir`` returns: an iterator, and a context manager."""

    def __init__(self, entries, shuffled):
        with entries:
            self.entries = iter(shuffled(list(entries)))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.entries = iter(())


# THINGS

# bat comes before bat1 as a folder, and after it as the name of a file: "_" sorts after "1", "/" before it
THINGS = {
    "zebra": ["zebra_01b", "zebra_02s"],
    "bat": ["bat_10n", "bat_02s", "bat_01b"],
    "bat1": ["bat1_03s", "bat1_01b"],
    "aardvark": ["aardvark_01b", "aardvark_02s", "aardvark_13s"],
    "ice_cream": ["ice_cream_01b"],
    "dog": ["dog_12s"],
}
THINGS_COLUMNS = ["things_id", "image_name", "category", "category_id", "image_category_index", "image_path"]
CONCEPTS = ["aardvark", "ice_cream", "abacus", "bat1", "bat", "dog", "yacht", "zebra", "zipper"]  # in no sorted order
THINGS_FULL = (26_107, 1_854)


def things_paths(base: str = "Images", by_part: dict[str, str] | None = None) -> list[str]:
    """Return the paths of all images, below one folder, or each category in a part of its own."""
    folders = by_part or dict.fromkeys(THINGS, base)
    return [f"{folders[name]}/{name}/{stem}.jpg".removeprefix("/") for name, stems in THINGS.items() for stem in stems]


def write_things(root: Path, paths: list[str], concepts: list[str] | None = None, metadata: str = "") -> Path:
    for path in paths:
        write_image(root / path)
    if concepts is not None:
        write_text(root / metadata / "Metadata" / "Concept-specific" / "unique_id.csv", concepts)
    return root


def things_rows(paths: list[str], concepts: list[str] | None = None) -> pd.DataFrame:
    """Return the images by the rules of the original scripts."""
    concepts = concepts or sorted({path.split("/")[-2] for path in paths})
    rows: list[dict] = []
    for path in sorted(paths, key=lambda path: path.split("/")[-1]):
        category, file = path.split("/")[-2:]
        before = sum(row["category"] == category for row in rows)
        values = [len(rows), file.removesuffix(".jpg"), category, concepts.index(category), before + 1, path]
        rows.append(dict(zip(THINGS_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows)


# subject → trials as (session, run, stimulus, trial_type), in the order of the beta files
THINGS_SHOWN = {
    1: [
        *((1, 1, stem, "train") for stem in ("dog_12s", "bat_02s", "zebra_01b")),
        *((1, 2, stem, "test") for stem in ("bat1_01b", "aardvark_13s", "bat1_03s")),
        *((2, 1, stem, "test") for stem in ("aardvark_13s", "bat1_01b", "ice_cream_01b")),
        *((2, 2, stem, "train") for stem in ("bat_10n", "bat1_01b")),
    ],
    2: [(1, 1, stem, "train") for stem in ("zebra_02s", "zebra_02s", "aardvark_01b")],
}


def things_metadata(subject: int) -> pd.DataFrame:
    """Return ``sub-0X_StimulusMetadata.csv`` as it is published."""
    rows = [
        (kind, session, run, subject, trial, f"{stem}.jpg", stem.rpartition("_")[0])
        for trial, (session, run, stem, kind) in enumerate(THINGS_SHOWN[subject])
    ]
    names = ["trial_type", "session", "run", "subject_id", "trial_id", "stimulus", "concept"]
    return pd.DataFrame(rows, columns=names)


def write_things_metadata(root: Path, folder: str = "betas_csv") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for subject in THINGS_SHOWN:
        things_metadata(subject).to_csv(root / folder / f"sub-{subject:02d}_StimulusMetadata.csv", index=False)


def things_trials(subject: int, images: pd.DataFrame) -> pd.DataFrame:
    """Return the trials of a subject; ``images`` are the rows of :func:`things_rows`."""
    ids = dict(zip(images["image_name"], images["things_id"], strict=True))
    shown = [ids[stem] for _, _, stem, _ in THINGS_SHOWN[subject]]
    rows = [
        (subject, session, run, trial, 0, shown[trial])
        for trial, (session, run, _, _) in enumerate(THINGS_SHOWN[subject])
    ]
    table = pd.DataFrame(rows, columns=TRIAL_COLUMNS)
    table["repetition"] = repetitions(shown)
    return table


# BOLD5000

# (subject, session, run) → lines. CSI4 has a session less, CSI2 and CSI4 saw images that CSI1 did not, and the first
# line of an image may have "rep_" already.
BOLD_LISTS = {
    (1, 1, 1): ["COCO_train2014_000000000009.jpg", "n01440764_10026.JPEG", "rep_airport1.jpg", "nightclub2.jpg"],
    (1, 1, 2): ["repair_shop1.jpg", "rep_airport1.jpg", "n02_scene.jpg"],
    (1, 2, 1): ["rep_COCO_val2014_000000000042.jpg", "COCO2014_kitchen.jpg", "rep_airport1.jpg"],
    (1, 2, 2): ["rep_COCO_val2014_000000000042.jpg", "n02084071_7.JPEG"],
    (2, 1, 1): ["n02084071_7.JPEG", "rep_airport1.jpg", "COCO_train2014_000000000009.jpg", "beach5.jpg"],
    (2, 2, 1): ["repair_shop1.jpg", "rep_airport1.jpg", "north_beach2.jpg"],
    (3, 1, 1): ["nightclub2.jpg", "n01440764_10026.JPEG"],
    (3, 2, 1): ["rep_COCO_val2014_000000000042.jpg", "n02_scene.jpg"],
    (4, 1, 1): ["rep_airport1.jpg", "zoo3.jpg", "rep_airport1.jpg", "beach5.jpg"],
}
BOLD_COLUMNS = ["bold_id", "image_name", "stim_source", "image_path"]
PRESENTED = "Scene_Stimuli/Presented_Stimuli"
_BOLD_FOLDERS = {"coco": "COCO", "imagenet": "ImageNet", "scenes": "Scene"}


def bold_source(name: str) -> str:
    if name.startswith("COCO"):
        return "coco"
    return "imagenet" if re.match(r"n\d+_\d+", name) else "scenes"


def bold_shown(subject: int | None = None) -> list[str]:
    """Return the names of all trials in their order, of one subject or of all."""
    lines = [line for key in sorted(BOLD_LISTS) if subject in (None, key[0]) for line in BOLD_LISTS[key]]
    return [line[4:] if line[:4] == "rep_" else line for line in lines]


def bold_path(name: str, on_disk: dict[str, str], base: str = "") -> str:
    return f"{base}{PRESENTED}/{_BOLD_FOLDERS[bold_source(name)]}/{on_disk.get(name, name)}"


def list_path(subject: int, session: int, run: int) -> str:
    folder = f"Stimuli_Presentation_Lists/CSI{subject}/CSI{subject}_sess{session:02d}"
    return f"{folder}/CSI{subject}_sess{session:02d}_run{run:02d}.txt"


def write_bold(root: Path, base: str = "", on_disk: dict[str, str] | None = None, missing: tuple = ()) -> Path:
    """Write lists and images; ``on_disk`` has the names of files that are other ones than those of the lists."""
    for key, lines in BOLD_LISTS.items():
        write_text(root / base / list_path(*key), lines)
    for name in set(bold_shown()) - set(missing):
        write_image(root / bold_path(name, on_disk or {}, base))
    return root


def bold_rows(base: str = "", on_disk: dict[str, str] | None = None, missing: tuple = ()) -> pd.DataFrame:
    """Return the images that exist, under the position of their first trial among all trials of all subjects."""
    on_disk = on_disk or {}
    rows = []
    for position, name in enumerate(bold_shown()):
        if name not in bold_shown()[:position] and name not in missing:
            rows.append((position, on_disk.get(name, name), bold_source(name), bold_path(name, on_disk, base)))
    return pd.DataFrame(rows, columns=BOLD_COLUMNS)


def bold_trials(subject: int) -> pd.DataFrame:
    """Return the trials of a subject, also those of images that are missing."""
    shown = [bold_shown().index(name) for name in bold_shown(subject)]
    runs = [key for key in sorted(BOLD_LISTS) if key[0] == subject for _ in BOLD_LISTS[key]]
    rows = [(*runs[trial], trial, 0, shown[trial]) for trial in range(len(shown))]
    table = pd.DataFrame(rows, columns=TRIAL_COLUMNS)
    table["repetition"] = repetitions(shown)
    return table


# NSD

NSD_IMAGES, NSD_TRIALS, SESSION_TRIALS = 73_000, 30_000, 750
NSD_SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
NSD_INFO = "nsd_stim_info_merged.csv"
NSD_BUCKET = "nsddata/experiments/nsd"


def nsd_design() -> tuple[np.ndarray, np.ndarray]:
    """Return ``masterordering`` (30000,) and ``subjectim`` (8, 10000), both counted from 1, drawn at random.

    As in the experiment each subject sees 1,000 images that all see and 9,000 that nobody else does, each three times.
    Images 1 to 4 are among those that all see.
    """
    generator = np.random.default_rng(4711)
    others = generator.permutation(np.arange(5, NSD_IMAGES + 1))
    shared, own = np.concatenate([[3, 1, 4, 2], others[:996]]), others[996:].reshape(8, 9000)
    subjectim = np.stack([np.concatenate([shared, own[subject]]) for subject in range(8)])
    return generator.permutation(np.repeat(np.arange(1, 10_001), 3)), subjectim


def nsd_info(masterordering: np.ndarray, subjectim: np.ndarray) -> pd.DataFrame:
    """Return ``nsd_stim_info_merged.csv`` as it is published: a row an image, trials counted from 1, 0 if not shown."""
    generator = np.random.default_rng(7)
    ids = np.arange(NSD_IMAGES)
    shared = np.zeros(NSD_IMAGES, bool)
    shared[subjectim[0, :1000] - 1] = True
    share = generator.integers(1, 100, NSD_IMAGES) / 640
    columns = {
        "": ids,
        "cocoId": generator.permutation(580_000)[:NSD_IMAGES],
        "cocoSplit": np.where(ids % 25, "train2017", "val2017"),
        "cropBox": [f"(0, 0, {one}, {one})" if k % 2 else f"({one}, {one}, 0, 0)" for k, one in enumerate(share)],
        "loss": share,
        "nsdId": ids,
        "flagged": ids % 311 == 2,
        "BOLD5000": ids % 7 == 1,
        "shared1000": shared,
    }
    trials = np.argsort(masterordering, kind="stable").reshape(10_000, 3) + 1  # of image k of each subject
    of_subjects = {}
    for subject in range(1, 9):
        shown = np.zeros((NSD_IMAGES, 3), int)
        shown[subjectim[subject - 1] - 1] = trials
        columns[f"subject{subject}"] = (shown[:, 0] > 0).astype(int)
        of_subjects |= {f"subject{subject}_rep{repetition}": shown[:, repetition] for repetition in range(3)}
    return pd.DataFrame({**columns, **of_subjects})


def nsd_trials(subject: int, masterordering: np.ndarray, subjectim: np.ndarray) -> pd.DataFrame:
    """Return the trials that were run: 12 runs a session, of 63 and 62 trials in turn."""
    n_sessions = NSD_SESSIONS[subject - 1]
    runs = [run for run in range(1, 13) for _ in range(63 if run % 2 == 1 else 62)]
    sessions = [session for session in range(1, n_sessions + 1) for _ in runs]
    shown = (subjectim[subject - 1][masterordering - 1] - 1).tolist()[: len(sessions)]
    columns = [[subject] * len(shown), sessions, runs * n_sessions, range(len(shown)), repetitions(shown), shown]
    return pd.DataFrame(dict(zip(TRIAL_COLUMNS, columns, strict=True)))


def write_nsd_mat(path: Path, masterordering: np.ndarray, subjectim: np.ndarray, /, **others) -> None:
    """Write ``nsd_expdesign.mat``; ``others`` replace its arrays, None leaves one out."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"masterordering": masterordering[None], "subjectim": subjectim, "sharedix": subjectim[:1, :1000]}
    content = {name: values.astype(float) for name, values in arrays.items()} | others
    savemat(path, {name: values for name, values in content.items() if values is not None}, do_compression=True)


def write_brick(path: Path, n: int = 5, side: int = 2) -> None:
    """Write ``nsd_stimuli.hdf5`` with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        file.create_dataset("imgBrick", data=pixels)


def check_table(table: pd.DataFrame, root: Path, expected: pd.DataFrame, columns: list[str]) -> list[str]:
    """See that a dataset's table has these rows, whose ids are in the first of the columns; return what was found."""
    assert table.columns.tolist()[:2] == ["stimulus_id", "image"]
    for column in columns:
        assert table[column].tolist() == expected[column].tolist(), column
    assert table["stimulus_id"].tolist() == expected[columns[0]].tolist()
    assert table["image"].tolist() == [str(root / path) for path in expected["image_path"]]
    assert table.index.tolist() == list(range(len(expected)))
    findings = table.attrs["findings"]
    assert isinstance(findings, list)
    assert all(isinstance(text, str) and text.strip() for text in findings)
    return findings
