"""Whether a features file is what it should be, by itself: whole, complete and finite. Nothing in it is executed.

N stimuli, L layers, D hidden size, T tokens.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lit_extract.archive import TensorRecord, data_start, read_content
from lit_extract.errors import name_some, one_line
from lit_extract.layout import FEATURES_FORMAT, FEATURES_KEYS, check_format
from lit_extract.rounding import lost_layers

CHUNK_BYTES = 4 * 2**20  # what is held of a file while it is read through

_METADATA_KEYS = frozenset({"format", "provenance", "notes", "bad_input_rows", "not_finite_rows"})
_PROVENANCE_KEYS = frozenset(
    {"model", "options", "weights", "layers", "pool", "dataset", "subset", "n_stimuli", "precision"}
)
_MEANS = ("loss", "bpb")
_IS_FOLDER = 0x10  # attribute of an entry of a zip archive


@dataclass
class Soundness:
    """What was found.

    Args:
        problems: What is wrong; empty when the file is sound.
        shape: (N, L, D), if it is known.
        not_finite: How many rows are not finite, as the file itself says.
        lost: Layers in which rounding was as large as what differs between stimuli, as the file itself says.
        precision: Of the run.
    """

    problems: list[str] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    not_finite: int = 0
    lost: list[str] = field(default_factory=list)
    precision: str = ""


def check_soundness(path: Path) -> Soundness:
    """Read a features file from end to end, a chunk at a time."""
    found = Soundness()
    content: dict[str, Any] = {}
    try:
        content = read_content(path)
        found.problems += inconsistencies(content)
    except (ValueError, OSError) as error:
        found.problems.append(f"not a features file of lit-extract: {one_line(error)}")
    is_consistent = not found.problems
    tensors = {name: value for name, value in content.items() if isinstance(value, TensorRecord)}
    try:
        with path.open("rb") as file:
            damage, rows = _read_through(file, tensors, content["feats"] if is_consistent else None)
            found.problems += damage
            if is_consistent and not damage:
                found.shape = content["feats"].shape
                found.problems += _not_finite(content, rows)
                found.problems += _wrong_losses(file, content)
                metadata = content["metadata"]
                found.precision = str(metadata["provenance"]["precision"])
                found.lost = lost_layers(metadata, content["layers"], metadata["provenance"]["pool"])
                found.not_finite = int((~rows.finite).sum())
    except (zipfile.BadZipFile, OSError) as error:
        if is_consistent:  # else it has been said
            found.problems.append(one_line(error))
    return found


def inconsistencies(content: dict[str, Any]) -> list[str]:
    """What of a file's content is missing, or at odds with the rest; its numbers are not read."""
    if lacking := FEATURES_KEYS - set(content):
        return [f"it has no {', '.join(sorted(lacking))}"]
    feats, metadata = content["feats"], content["metadata"]
    if not isinstance(feats, TensorRecord) or len(feats.shape) != 3 or 0 in feats.shape or feats.dtype != "<f4":
        return ["feats are no float32 tensor of stimuli, layers and dimensions"]
    if not isinstance(metadata, dict):
        return ["metadata are no dict"]
    if lacking := _METADATA_KEYS - set(metadata):
        return [f"its metadata have no {', '.join(sorted(lacking))}"]
    try:
        check_format(metadata["format"], FEATURES_FORMAT, metadata["notes"])
    except ValueError as error:
        return [str(error)]
    provenance = metadata["provenance"]
    if not isinstance(provenance, dict):
        return ["provenance is no dict"]
    if lacking := _PROVENANCE_KEYS - set(provenance):
        return [f"its provenance has no {', '.join(sorted(lacking))}"]
    n, n_layers, _ = feats.shape
    problems = [*_wrong_names("layers", content["layers"], n_layers, (str,))]
    problems += _wrong_names("stimulus_ids", content["stimulus_ids"], n, (int, str))
    if provenance["layers"] != content["layers"]:
        problems.append("layers are not those of its provenance")
    if provenance["n_stimuli"] != n:
        problems.append(f"n_stimuli of its provenance is {provenance['n_stimuli']}, but it has {n} rows")
    if type(content["num_params"]) is not int or content["num_params"] < 1:
        problems.append(f"num_params is {content['num_params']!r}")
    problems += _wrong_row_lists(metadata["bad_input_rows"], metadata["not_finite_rows"], n)
    return problems + _wrong_extras(content, provenance, n)


def _wrong_names(what: str, names: Any, n: int, types: tuple[type, ...]) -> list[str]:
    if not isinstance(names, list) or not any(all(type(name) is kind for name in names) for kind in types):
        return [f"{what} are no list of {' or of '.join(kind.__name__ for kind in types)}"]
    if len(names) != n:
        return [f"{len(names)} {what} for {n}"]
    if len(set(names)) < n:
        twice = {name: None for name in names if names.count(name) > 1} if n < 10_000 else {}
        return [f"{what} occur twice: {name_some([str(name) for name in twice])}" if twice else f"{what} occur twice"]
    return []


def _wrong_row_lists(bad_input: Any, not_finite: Any, n: int) -> list[str]:
    problems = []
    for what, rows in (("bad_input_rows", bad_input), ("not_finite_rows", not_finite)):
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < n for row in rows):
            problems.append(f"{what} are no list of rows 0 to {n - 1}")
    if not problems and (both := set(bad_input) & set(not_finite)):
        problems.append(f"rows {_rows(both)} are in bad_input_rows and in not_finite_rows")
    return problems


def _wrong_extras(content: dict[str, Any], provenance: dict[str, Any], n: int) -> list[str]:
    """Of captions: the mask, and the losses when they were asked for."""
    if "tokens_sha256" not in provenance:
        return []
    wanted: dict[str, tuple[str, int]] = {"mask": ("|u1", 2)}
    if provenance.get("loss"):
        wanted |= {f"row_{name}": ("<f4", 1) for name in _MEANS}
    problems = []
    for name, (dtype, axes) in wanted.items():
        tensor = content.get(name)
        if not isinstance(tensor, TensorRecord) or (tensor.dtype, len(tensor.shape)) != (dtype, axes):
            problems.append(f"{name} is no {np.dtype(dtype).name} tensor of {axes} axes")
        elif tensor.shape[0] != n:
            problems.append(f"{name} has {tensor.shape[0]} rows for {n}")
    return problems + [
        f"{name} is no number" for name in _MEANS if f"row_{name}" in wanted and type(content.get(name)) is not float
    ]


@dataclass
class _Rows:
    """(N,) each: whether all numbers of a row are finite, whether all are NaN."""

    finite: NDArray[np.bool_]
    all_nan: NDArray[np.bool_]


def _read_through(
    file: BinaryIO, tensors: dict[str, TensorRecord], feats: TensorRecord | None
) -> tuple[list[str], _Rows]:
    """Compare the checksum of every record, and note on the way which rows of ``feats`` are finite."""
    n = feats.shape[0] if feats else 0
    rows = _Rows(np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_))
    names = {tensor.offset: name for name, tensor in tensors.items()}
    damage = []
    with _open(file) as archive:
        for record in archive.infolist():
            what = record.filename
            try:
                start = data_start(file, record)
                what = names.get(start, what)
                if (record.compress_type, record.compress_size) != (zipfile.ZIP_STORED, record.file_size):
                    raise zipfile.BadZipFile("it is compressed")
                if record.volume or record.external_attr & _IS_FOLDER:  # torch would not find it
                    raise zipfile.BadZipFile("its entry in the directory is wrong")
                with archive.open(record) as stream:
                    if feats is not None and start == feats.offset:
                        _note_rows(stream, feats.shape, rows)
                    while stream.read(CHUNK_BYTES):
                        pass
            except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
                reason = "its checksum differs" if "CRC" in str(error) else one_line(error)
                damage.append(f"{what} is damaged: {reason}")
    return damage, rows


def _open(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except Exception as error:  # a damaged directory raises almost anything
        raise zipfile.BadZipFile(one_line(error)) from None


def _note_rows(stream: Any, shape: tuple[int, ...], rows: _Rows) -> None:
    n, *inner = shape
    row_bytes = 4 * int(np.prod(inner))
    step = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, n, step):
        last = min(first + step, n)
        values = np.frombuffer(stream.read((last - first) * row_bytes), "<f4").reshape(last - first, -1)
        finite = np.isfinite(values).all(axis=1)
        rows.finite[first:last] = finite
        rows.all_nan[first:last][~finite] = np.isnan(values[~finite]).all(axis=1)


def _not_finite(content: dict[str, Any], rows: _Rows) -> list[str]:
    """Rows with NaN or infinity that the file does not tell of, and rows that it calls NaN which are not.

    A row of ``not_finite_rows`` may be finite here: all poolings of a run list the rows of any of them.
    """
    bad_input, not_finite = (content["metadata"][what] for what in ("bad_input_rows", "not_finite_rows"))
    problems = []
    if unlisted := set(np.flatnonzero(~rows.finite).tolist()) - {*bad_input, *not_finite}:
        problems.append(f"NaN or infinity in rows that are not listed: {_rows(unlisted)}")
    if wrong := [row for row in bad_input if not rows.all_nan[row]]:
        problems.append(f"bad_input_rows that are not NaN: {_rows(wrong)}")
    return problems


def _wrong_losses(file: BinaryIO, content: dict[str, Any]) -> list[str]:
    """Losses that are NaN, though the caption has more than one token, and means that are not those of the rows."""
    problems = []
    metadata = content["metadata"]
    listed = {*metadata["bad_input_rows"], *metadata["not_finite_rows"]}
    for name in _MEANS:
        if f"row_{name}" not in content:
            continue
        values = _read(file, content[f"row_{name}"])
        has_loss = _read(file, content["mask"]).sum(axis=1, dtype=np.int64) > 1
        wrong = np.flatnonzero(has_loss != np.isfinite(values)).tolist()
        if unlisted := set(wrong) - listed:
            problems.append(f"row_{name} is not finite, or should not be, in rows {_rows(unlisted)}")
        mean = float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
        if not np.isclose(content[name], mean, rtol=1e-4, equal_nan=True):
            problems.append(f"{name} is {content[name]}, but the mean of its rows is {mean}")
    return problems


def _read(file: BinaryIO, tensor: TensorRecord) -> NDArray[Any]:
    file.seek(tensor.offset)
    return np.frombuffer(file.read(tensor.n_bytes), tensor.dtype).reshape(tensor.shape)


def _rows(rows: Iterable[int]) -> str:
    return name_some([str(row) for row in sorted(rows)], 10)
