"""Natural Scenes Dataset (Allen et al., 2022, doi:10.1038/s41593-021-00962-x): 73,000 COCO crops."""

import io
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_extract.common.errors import InputError, counted, name_some, one_line
from lit_extract.common.untrusted import read_regular, shorten
from lit_extract.datasets.dataset import Dataset
from lit_extract.datasets.reader import as_integers, check_columns, read_table, with_numbers
from lit_extract.datasets.table import FINDINGS

HDF5 = "nsd_stimuli.hdf5"
HDF5_DATASET = "imgBrick"

N_IMAGES = 73_000
MAX_PIXELS = 50_000_000  # per image: more than cameras make, and 400 MB while an image is decoded

PLACES = ("", "nsddata_stimuli/stimuli/nsd", "nsddata/experiments/nsd")  # of all files, as in the bucket
STIM_INFO = "nsd_stim_info_merged.csv"
DESIGN = "nsd_expdesign.mat"
MAX_DESIGN_BYTES = 100 * 2**20

# Sessions that each subject finished. The table of stimuli lists 40 for every subject.
SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
TRIALS_A_RUN = (63, 62) * 6  # odd and even runs of a session
TRIALS_A_SESSION = sum(TRIALS_A_RUN)  # 750
N_TRIALS = 40 * TRIALS_A_SESSION

_MATLAB_NUMBERS = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))

# Columns of the table of stimuli about an image.
_FLAGS = ("flagged", "BOLD5000", "shared1000", *(f"subject{subject}" for subject in SESSIONS))
_KNOWN = ("cocoId", "cocoSplit", "cropBox", *_FLAGS)


class _NSD(Dataset):
    def describe(self, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
        """Add columns about the images from the table of stimuli, if it exists."""
        path = _find(folder, STIM_INFO)
        return table if path is None else _with_info(table, path)

    def read_published(self, folder: Path) -> pd.DataFrame:
        """Return the rows of the HDF5 file, whose images are read in place."""
        path = _find(folder, HDF5)
        if path is None:
            raise self.nothing_found(folder)
        rows = range(_count_images(path))
        names = [f"nsd_{row:05d}" for row in rows]
        table = pd.DataFrame({"nsd_id": rows, "name": names, "path": path.relative_to(folder).as_posix()})
        table = self._in_hdf5(self.with_stimuli(table, [str(path)] * len(rows)))
        few = len(rows) != N_IMAGES
        table.attrs[FINDINGS] = [f"{counted(len(rows), 'image')} of {N_IMAGES:,}"] if few else []
        return table

    def read_index(self, path: Path, folder: Path) -> pd.DataFrame:
        """Return the rows of ``nsd.csv``; images are files, or rows of the HDF5 file."""
        table = super().read_index(path, folder)
        if not table["path"].str.endswith(HDF5).any():
            return table
        if table["path"].nunique() > 1:
            raise InputError(f"nsd: {str(path)!r} names both {HDF5} and other files; use only one of them")
        n_images = _count_images(Path(table["image"].iloc[0]))
        if wrong := [str(row) for row in table["nsd_id"] if row not in range(n_images)]:
            raise InputError(
                f"nsd: {str(path)!r} has nsd_id that are not in {HDF5} ({n_images:,} images): {name_some(wrong)}"
            )
        return self._in_hdf5(table)

    def _in_hdf5(self, table: pd.DataFrame) -> pd.DataFrame:
        table.insert(2, "image_row", table["nsd_id"])
        return table

    def read_trials(self, folder: Path, subject: int, stimuli: pd.DataFrame) -> pd.DataFrame:
        """Return the trials of the sessions that the subject finished."""
        if path := _find(folder, STIM_INFO):
            shown = _trials_of_info(path, subject)
        elif path := _find(folder, DESIGN):
            shown = _trials_of_design(path, subject)
        else:
            raise InputError(f"nsd: trials need {STIM_INFO} or {DESIGN} below {str(folder)!r}, in {_places()}")
        shown = shown[: SESSIONS[subject] * TRIALS_A_SESSION]
        runs = np.repeat(np.arange(len(TRIALS_A_RUN)) + 1, TRIALS_A_RUN)
        trial = np.arange(len(shown))
        columns = {
            "session": trial // TRIALS_A_SESSION + 1,
            "run": runs[trial % TRIALS_A_SESSION],
            "stimulus_id": shown,
        }
        return pd.DataFrame(columns)


DATASET = _NSD(
    name="nsd",
    title="Natural Scenes Dataset",
    data_module="NSDDataModule",
    root_variable="NSD_DATASET",
    index=("nsd.csv",),
    layout=f"{HDF5} (also in {PLACES[1]})",
    columns=("nsd_id", "name", "path"),
    image_column="path",
    id_column="nsd_id",
    id_meaning="nsd_id, counted from 0: the row of imgBrick in nsd_stimuli.hdf5 (the 73k ids of NSD's design matrices "
    "count from 1)",
    ids=range(N_IMAGES),
    subjects=tuple(SESSIONS),
)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for place in PLACES if (path := folder / place / name).is_file()), None)


def _places() -> str:
    return ", ".join(place or "the root" for place in PLACES)


def _with_info(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add columns about the images from the table of stimuli; an index keeps its columns of the same name."""
    info, ids = _read_info(path)
    known = [name for name in _KNOWN if name in info and name not in table]
    places = pd.Index(ids).get_indexer(pd.Index(table["nsd_id"]))
    if (places < 0).any():
        missing = table["nsd_id"][places < 0].astype(str).tolist()
        raise InputError(f"nsd: {str(path)!r} has no row of nsdId {name_some(missing)}; copy the file again")
    chosen = info[known].iloc[places].reset_index(drop=True)
    for flag in set(_FLAGS) & set(known):
        chosen[flag] = _as_flags(chosen[flag], path)
    for name, values in with_numbers(chosen).items():
        table[name] = values
    return table


def _as_flags(values: "pd.Series[Any]", path: Path) -> "pd.Series[bool]":
    text = values.astype(str)
    if wrong := [shorten(value) for value in text.unique() if value not in ("True", "False", "1", "0")]:
        raise InputError(f"nsd: {str(path)!r}: {values.name} must be True or False, 1 or 0, not {name_some(wrong)}")
    return text.isin(["True", "1"])


def _read_info(path: Path) -> tuple[pd.DataFrame, list[int]]:
    """Return the table of stimuli and its column nsdId, checked."""
    info = read_table(path, "nsd: table of stimuli")
    what = f"nsd: {str(path)!r}"
    check_columns(info, ("nsdId",), what)
    ids = as_integers(info["nsdId"], what)
    counts = Counter(ids)
    if wrong := [str(nsd_id) for nsd_id, count in counts.items() if count > 1 or nsd_id >= N_IMAGES]:
        raise InputError(f"{what} has an nsdId twice, or above {N_IMAGES - 1}: {name_some(wrong)}")
    return info, ids


def _trials_of_info(path: Path, subject: int) -> NDArray[np.int64]:
    """Return the image of each trial, in order, from the repetition columns: trial numbers from 1, or 0 for none."""
    info, ids = _read_info(path)
    what = f"nsd: {str(path)!r}"
    columns = [f"subject{subject}_rep{repetition}" for repetition in range(3)]
    check_columns(info, columns, what)
    shown = np.full(N_TRIALS + 1, -1, dtype=np.int64)
    for name in columns:
        trials = np.array(as_integers(info[name], what))
        chosen = trials > 0
        if (trials > N_TRIALS).any():
            raise InputError(f"{what}: {name} has trials above {N_TRIALS:,}: {trials.max():,}")
        numbers, images = trials[chosen], np.array(ids)[chosen]
        twice = numbers[(shown[numbers] >= 0) | pd.Series(numbers).duplicated().to_numpy()]
        if len(twice):
            raise InputError(f"{what}: two images have trial {name_some([*map(str, twice)])} of subject {subject}")
        shown[numbers] = images
    return _without_gaps(shown[1:], what, subject)


def _without_gaps(shown: NDArray[np.int64], what: str, subject: int) -> NDArray[np.int64]:
    n_trials = SESSIONS[subject] * TRIALS_A_SESSION
    if len(gaps := np.flatnonzero(shown[:n_trials] < 0)):
        missing = name_some([str(trial + 1) for trial in gaps])
        raise InputError(f"{what} has no image for trial {missing} of subject {subject}, who had {n_trials:,}")
    return shown


def _whole(numbers: Any) -> NDArray[np.int64]:
    if (numbers % 1 != 0).any():  # NaN too
        raise ValueError("it has numbers that are not integers")
    return np.asarray(numbers).astype(np.int64)


def _check_shapes(order: tuple[int, ...], images: tuple[int, ...]) -> None:
    """Check the sizes of the design before reading numbers."""
    is_order = len(order) == 2 and math.prod(order) == max(order) <= N_TRIALS
    is_images = len(images) == 2 and images[0] == len(SESSIONS) and images[1] <= N_IMAGES
    if not (is_order and is_images):
        raise ValueError(f"masterordering is {order} and subjectim {images}; expected (1, 30000) and (8, 10000)")


def _trials_of_design(path: Path, subject: int) -> NDArray[np.int64]:
    """Return the image of each trial, in order, from the design of the experiment; its 73k ids count from 1."""
    try:
        from scipy.io import loadmat, whosmat
    except ImportError:
        raise InputError(f"nsd: reading {DESIGN} needs scipy: pip install scipy, or give {STIM_INFO}") from None
    what = f"nsd: {str(path)!r}"
    try:
        content = io.BytesIO(read_regular(path, MAX_DESIGN_BYTES))
        shapes = {name: shape for name, shape, kind in whosmat(content) if kind in _MATLAB_NUMBERS}
        _check_shapes(shapes.get("masterordering", ()), shapes.get("subjectim", ()))
        design = loadmat(content, variable_names=["masterordering", "subjectim"])
        order, ids = (_whole(design[name]) for name in ("masterordering", "subjectim"))
        shown: NDArray[np.int64] = ids[subject - 1, order.ravel() - 1] - 1
        if order.min() < 1 or not 0 <= shown.min() <= shown.max() < N_IMAGES:
            raise ValueError("it has image numbers that are out of range")
    except Exception as error:  # scipy raises almost anything on a damaged file
        raise InputError(f"{what} is not NSD's design: {type(error).__name__}: {one_line(error)}") from None
    shown = np.append(shown, np.full(N_TRIALS - len(shown), -1))
    return _without_gaps(shown, what, subject)


def _count_images(path: Path) -> int:
    try:
        images = open_images(str(path))
        with images.file:
            shape = images.shape
            if images.chunks is None:
                size, wanted = images.id.get_storage_size(), math.prod(shape)
            else:
                chunks = [-(-size // chunk) for size, chunk in zip(shape, images.chunks, strict=True)]
                size, wanted = images.id.get_num_chunks(), math.prod(chunks)
    except Exception as error:  # h5py raises almost anything on a damaged file
        raise InputError(f"nsd: {str(path)!r} has no readable dataset {HDF5_DATASET}: {one_line(error)}") from None
    if size != wanted:
        raise InputError(f"nsd: parts of {HDF5_DATASET} in {str(path)!r} were never written; copy the file again")
    return int(shape[0])


def open_images(path: str) -> Any:
    """Return the dataset of NSD's images in an HDF5 file; the caller closes ``.file``. Raise OSError on failure."""
    import h5py

    if not os.path.isfile(path):  # noqa: PTH113 (faster than Path)
        raise OSError("it is not a regular file")
    file = None
    try:
        file = h5py.File(path, "r", locking=False)
        link, images = file.get(HDF5_DATASET, getlink=True), file[HDF5_DATASET]
        is_own = isinstance(link, h5py.HardLink) and isinstance(images, h5py.Dataset)
        if not is_own or images.external or images.is_virtual:
            raise OSError("it is not a plain dataset of this file")
        _check_form(images.shape, images.dtype, images.chunks)
        packing = images.id.get_create_plist()
        filters = {packing.get_filter(place)[0] for place in range(packing.get_nfilters())}
        if not filters <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
            # HDF5's checksums (Fletcher-32) end the process at damaged chunks, and other filters are plugins.
            raise OSError("it uses an unsupported HDF5 filter; write it with gzip, or uncompressed")
    except Exception as error:  # h5py raises almost anything on a damaged file
        if file is not None:
            file.close()
        raise OSError(one_line(error)) from None
    return images


def _check_form(shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...] | None) -> None:
    if len(shape) != 4 or shape[3] != 3 or dtype != "uint8":
        raise OSError(f"it has shape {shape} of {dtype}; expected images × height × width × 3 of uint8")
    if not 1 <= shape[0] <= N_IMAGES or not 1 <= shape[1] * shape[2] <= MAX_PIXELS:
        raise OSError(f"it has shape {shape}; expected 1 to {N_IMAGES:,} images of at most {MAX_PIXELS:,} pixels")
    if chunks is not None and math.prod(chunks) > 3 * MAX_PIXELS:
        raise OSError(f"it has chunks of {math.prod(chunks):,} bytes, which are read as a whole; write smaller chunks")
