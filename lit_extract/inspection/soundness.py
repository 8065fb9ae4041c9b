"""Whether a features file is what it should be, by itself: whole, complete and finite. Nothing in it is executed.

N stimuli, L layers, D hidden size, T tokens.
"""

import mmap
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import one_line
from lit_extract.common.imports import heavy_imports
from lit_extract.common.untrusted import open_regular, shorten
from lit_extract.storage.archive import TensorRecord, name_of_open, read_content
from lit_extract.storage.features_form import MEANS, inconsistencies, rows_text
from lit_extract.storage.rounding import lost_layers
from lit_extract.storage.zip_records import PIECE, read_exactly, read_records, record_pieces


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
    """Read a features file from end to end, a piece at a time, and compare it with what torch reads."""
    found = Soundness()
    try:
        with open_regular(path) as file:
            content = read_content(file)
            found.problems = inconsistencies(content, of_today=True)
            if not found.problems:
                _check_numbers(found, file, content)
            if not found.problems:
                found.problems = differences_from_torch(name_of_open(file, path), content)
    except (ValueError, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        found.problems.append(f"not a features file of lit-extract: {reason}")
    return found


@dataclass
class _Rows:
    """(N,) each: whether all numbers of a row are finite, whether all are NaN."""

    finite: NDArray[np.bool_]
    all_nan: NDArray[np.bool_]


def _check_numbers(found: Soundness, file: BinaryIO, content: dict[str, Any]) -> None:
    """Read all of a file whose content is consistent; note what is wrong, and what it says of its numbers."""
    n = content["feats"].shape[0]
    rows = _Rows(np.ones(n, dtype=np.bool_), np.ones(n, dtype=np.bool_))
    found.problems += _read_through(file, content, rows)
    if found.problems:
        return
    found.problems += _not_finite(content, rows) + _wrong_losses(file, content)
    metadata = content["metadata"]
    found.shape = content["feats"].shape
    found.precision = metadata["provenance"]["precision"]
    found.lost = lost_layers(metadata, content["layers"], metadata["provenance"]["pool"])
    found.not_finite = int((~rows.finite).sum())


def _read_through(file: BinaryIO, content: dict[str, Any], rows: _Rows) -> list[str]:
    """Compare the checksum of every record, and note on the way which rows of ``feats`` are finite."""
    feats = content["feats"]
    names = {tensor.offset: shorten(name) for name, tensor in content.items() if isinstance(tensor, TensorRecord)}
    damage = []
    for member, record in read_records(file).items():
        checksum = at = 0
        for piece in record_pieces(file, record):
            checksum = zlib.crc32(piece, checksum)
            if record.start == feats.offset and at < feats.n_bytes:
                _note_rows(np.frombuffer(piece[: feats.n_bytes - at], "<f4"), at // 4, feats, rows)
            at += len(piece)
        if checksum != record.checksum:
            damage.append(f"{names.get(record.start, member)} is damaged: its checksum differs")
    return damage


def _note_rows(numbers: NDArray[np.float32], first: int, feats: TensorRecord, rows: _Rows) -> None:
    """Note what of the rows is not finite, and what is no NaN, in numbers that begin and end anywhere in them."""
    row_length = feats.n_bytes // 4 // feats.shape[0]
    begin, end = first // row_length, -(-(first + len(numbers)) // row_length)
    starts = np.maximum(np.arange(begin, end) * row_length - first, 0)
    rows.finite[begin:end] &= np.logical_and.reduceat(np.isfinite(numbers), starts)
    rows.all_nan[begin:end] &= np.logical_and.reduceat(np.isnan(numbers), starts)


def _not_finite(content: dict[str, Any], rows: _Rows) -> list[str]:
    """Rows with NaN or infinity that the file does not tell of, and rows that it calls NaN which are not.

    A row of ``not_finite_rows`` may be finite here: all poolings of a run list the rows of any of them.
    """
    bad_input, not_finite = (content["metadata"][what] for what in ("bad_input_rows", "not_finite_rows"))
    problems = []
    if unlisted := set(np.flatnonzero(~rows.finite).tolist()) - {*bad_input, *not_finite}:
        problems.append(f"NaN or infinity in rows that are not listed: {rows_text(unlisted)}")
    if wrong := [row for row in bad_input if not rows.all_nan[row]]:
        problems.append(f"bad_input_rows that are not NaN: {rows_text(wrong)}")
    return problems


def _wrong_losses(file: BinaryIO, content: dict[str, Any]) -> list[str]:
    """Losses that are NaN, though the caption has more than one token, and means that are not those of the rows."""
    problems = []
    metadata = content["metadata"]
    listed = {*metadata["bad_input_rows"], *metadata["not_finite_rows"]}
    for name in MEANS:
        if f"row_{name}" not in content:
            continue
        values = _read(file, content[f"row_{name}"])
        has_loss = _lengths(file, content["mask"]) > 1
        wrong = np.flatnonzero(has_loss != np.isfinite(values)).tolist()
        if unlisted := set(wrong) - listed:
            problems.append(f"row_{name} is not finite, or should not be, in rows {rows_text(unlisted)}")
        with np.errstate(all="ignore"):  # infinities
            mean = float(np.nanmean(values, dtype=np.float64)) if not np.isnan(values).all() else np.nan
        if not np.isclose(content[name], mean, rtol=1e-4, equal_nan=True):
            problems.append(f"{name} is {content[name]}, but the mean of its rows is {mean}")
    return problems


def _lengths(file: BinaryIO, mask: TensorRecord) -> NDArray[np.int64]:
    """Tokens of each caption (N,)."""
    n, width = mask.shape
    lengths = np.zeros(n, dtype=np.int64)
    step = max(1, PIECE // max(1, width))
    for first in range(0, n, step):
        rows = min(step, n - first)
        piece = TensorRecord(mask.dtype, (rows, width), mask.offset + first * width, rows * width)
        lengths[first : first + rows] = _read(file, piece).sum(axis=1, dtype=np.int64)
    return lengths


def _read(file: BinaryIO, tensor: TensorRecord) -> NDArray[Any]:
    return np.frombuffer(read_exactly(file, tensor.offset, tensor.n_bytes), tensor.dtype).reshape(tensor.shape)


def differences_from_torch(path: str, content: dict[str, Any]) -> list[str]:
    """How what torch reads of a file differs from ``content``: in its values, or in where its numbers lie."""
    with heavy_imports():
        import torch
    try:
        loaded = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:
        return [f"torch can't read it: {one_line(error)}"]
    if type(loaded) is not dict or list(loaded) != list(content):
        return ["torch finds something else in it"]
    base: set[int] = set()  # where the file is in memory, as each tensor has it
    wrong = []
    for name, value in content.items():
        theirs = loaded[name]
        if not isinstance(value, TensorRecord):
            is_same = _are_same(value, theirs)
        else:
            is_same = isinstance(theirs, torch.Tensor) and theirs.is_contiguous()
            is_same = is_same and theirs.numpy().dtype == value.dtype and tuple(theirs.shape) == value.shape
            base |= {theirs.data_ptr() - value.offset} if is_same and value.n_bytes else set()
        wrong += [] if is_same else [f"torch finds another {shorten(name)} in it"]
    if len(base) > 1 or any(place % mmap.PAGESIZE for place in base):
        wrong.append("torch finds other numbers in it")
    return wrong


def _are_same(ours: Any, theirs: Any) -> bool:
    """Whether two plain values are the same, down to the types and the bits of their numbers."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(_are_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(_are_same, ours, theirs))
    return bool(ours == theirs or (ours != ours and theirs != theirs))
