"""Soundness of a features file by itself: undamaged, complete and finite. Nothing in it is executed.

N stimuli, L layers, D hidden size, T tokens.
"""

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_extract.common.errors import counted, one_line
from lit_extract.common.imports import heavy_imports
from lit_extract.common.untrusted import open_regular, shorten
from lit_extract.storage.archive import TensorRecord, name_of_open, read_content, read_through
from lit_extract.storage.features_form import FEATS_DTYPES, MEANS, feats_records, form_of, inconsistencies, rows_text
from lit_extract.storage.layout import KEPT_AS, shapes_in_words
from lit_extract.storage.numbers import is_finite, is_nan
from lit_extract.storage.rounding import warning


@dataclass
class Soundness:
    """The problems of a features file, in words; if there are none, facts about it."""

    problems: list[str]
    facts: list[str] = field(default_factory=list)


def soundness_of(path: Path) -> Soundness:
    """Read all of a features file, piece by piece, and compare it with what torch reads."""
    try:
        with open_regular(path) as file:
            content = read_content(file)
            if problems := inconsistencies(content, of_today=True):
                return Soundness(problems)
            rows = _Rows(feats_records(content))
            try:
                read_through(file, rows.note)
            except ValueError as error:  # the content was read before, so a checksum is wrong
                return Soundness([str(error)])
            problems = _not_finite(content, rows) + _not_of_torch(name_of_open(file, path), content)
    except (ValueError, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        return Soundness([f"not a features file of lit-extract: {reason}"])
    form = form_of(content)
    n_layers, shapes = len(form.layer_shapes), shapes_in_words(form.layer_shapes)
    stimuli, layers = counted(form.n_stimuli, "stimulus", "stimuli"), counted(n_layers, "layer")
    facts = [f"{stimuli} × {layers} × {shapes} dimensions"]
    if not_finite := int((~rows.finite).sum()):
        facts.append(f"{counted(not_finite, 'row')} not finite, as listed in it")
    metadata = content["metadata"]
    if remark := warning(metadata, content["layers"], metadata["provenance"]["pool"]):
        facts.append(f"warning: {remark}")
    return Soundness(problems, facts)


class _Rows:
    """Rows of tensors that have only finite numbers, or only NaN (N,), noted while their file is read."""

    def __init__(self, feats: list[TensorRecord]) -> None:
        self.feats = feats
        self.finite, self.all_nan = np.ones((2, feats[0].shape[0]), dtype=np.bool_)

    def note(self, at: int, piece: bytes) -> None:
        """Note the part of the rows in a piece of the file from byte ``at`` on; it may begin and end within a row."""
        for feats in self.feats:
            begin, end = max(0, feats.offset - at), max(0, feats.offset + feats.nbytes - at)
            if part := memoryview(piece)[begin:end]:
                self._note(feats, np.frombuffer(part, KEPT_AS[FEATS_DTYPES[feats.dtype]]), at + begin - feats.offset)

    def _note(self, feats: TensorRecord, numbers: NDArray[Any], at: int) -> None:
        """Note numbers of a tensor, from its byte ``at`` on."""
        row_length, first = math.prod(feats.shape[1:]), at // numbers.itemsize
        rows = slice(first // row_length, -(-(first + len(numbers)) // row_length))
        starts = np.maximum(np.arange(rows.start, rows.stop) * row_length - first, 0)
        self.finite[rows] &= np.logical_and.reduceat(is_finite(numbers), starts)
        self.all_nan[rows] &= np.logical_and.reduceat(is_nan(numbers), starts)


def _not_finite(content: dict[str, Any], rows: _Rows) -> list[str]:
    """List rows with NaN or infinity that the file does not list, and rows that it lists as NaN but are not.

    A row in ``not_finite_rows`` may be finite here: each pooling of a run lists the rows of all poolings.
    """
    bad_input, not_finite = (content["metadata"][what] for what in ("bad_input_rows", "not_finite_rows"))
    problems = []
    if unlisted := set(np.flatnonzero(~rows.finite).tolist()) - {*bad_input, *not_finite}:
        problems.append(f"NaN or infinity in rows that are not listed: {rows_text(unlisted)}")
    if wrong := [row for row in bad_input if not rows.all_nan[row]]:
        problems.append(f"bad_input_rows that are not NaN: {rows_text(wrong)}")
    return problems


def _not_of_torch(path: str, content: dict[str, Any]) -> list[str]:
    """List differences in values or places between what torch reads and ``content``; then problems of the losses."""
    with heavy_imports():
        import torch
    try:
        loaded = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:
        return [f"torch can't read it: {one_line(error)}"]
    if type(loaded) is not dict or list(loaded) != list(content):
        return ["torch reads other contents from it"]
    ours, first = feats_records(content)[0], loaded["feats"]
    first = next(iter(first.values())) if type(first) is dict and first else first
    base = first.data_ptr() - ours.offset if isinstance(first, torch.Tensor) else -1
    problems = [] if base % mmap.PAGESIZE == 0 else ["torch reads other numbers from it"]

    def place_of(theirs: Any, ours: Any) -> Any:
        """Return the place where torch has a tensor, if that can be compared."""
        if type(theirs) is dict and type(ours) is dict and list(theirs) == list(ours):
            return {name: place_of(value, ours[name]) for name, value in theirs.items()}
        if not isinstance(ours, TensorRecord) or not isinstance(theirs, torch.Tensor) or not theirs.is_contiguous():
            return theirs
        place = theirs.data_ptr() - base if ours.nbytes else ours.offset
        dtype = "|V2" if theirs.dtype == torch.bfloat16 else theirs.numpy().dtype.str
        return TensorRecord(dtype, tuple(theirs.shape), place, theirs.nbytes)

    for name, value in content.items():
        theirs = place_of(loaded[name], value)
        if repr(value) != repr(theirs):  # unlike ==, repr distinguishes 1 from True, and NaN equals itself
            problems.append(f"torch reads another {shorten(name)} from it")
    return problems or _wrong_losses(loaded)


def _wrong_losses(loaded: dict[str, Any]) -> list[str]:
    """List losses that are NaN although the caption has several tokens, and means that are not those of the rows."""
    problems = []
    listed = {*loaded["metadata"]["bad_input_rows"], *loaded["metadata"]["not_finite_rows"]}
    for name in MEANS:
        if f"row_{name}" not in loaded:
            continue
        values = loaded[f"row_{name}"].numpy()
        has_loss = loaded["mask"].sum(dim=1).numpy() > 1
        wrong = np.flatnonzero(has_loss != np.isfinite(values)).tolist()
        if unlisted := set(wrong) - listed:
            problems.append(f"row_{name} is not finite, or should not be, in rows {rows_text(unlisted)}")
        with np.errstate(all="ignore"):  # infinities
            mean = float(np.nanmean(values, dtype=np.float64)) if not np.isnan(values).all() else np.nan
        if not np.isclose(loaded[name], mean, rtol=1e-4, equal_nan=True):
            problems.append(f"{name} is {loaded[name]}, but the mean of its rows is {mean}")
    return problems
