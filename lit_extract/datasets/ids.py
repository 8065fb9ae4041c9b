"""Stimulus ids: integers, or unchanged text; 3, "3" and 3.0 are the same id."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lit_extract.common.errors import InputError, line_of, name_some
from lit_extract.common.untrusted import MAX_PATH_BYTES, is_path_like, shorten

_LARGEST = 2**63  # ids are stored as 64-bit integers
_EXACT_FLOAT = 2**53  # above it floats skip integers

_INTEGER = re.compile(r"\s*(-?(?:0|[1-9][0-9]*))(?:\.0*)?\s*")
_NUMBER = re.compile(r"\s*-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?\s*")  # 007 is text


def parse_ids(values: Iterable[Any], column: str, what: str) -> list[int] | list[str]:
    """Return the ids of a column: integers if all ids are integers, else unchanged text."""
    values = list(values)
    _refuse(what, f"no {column}", [row for row, value in enumerate(values) if _is_missing(value)])
    integers = [_as_integer(value) for value in values]
    all_numbers = all(map(_is_number, values))
    wrong = [row for row, value in enumerate(values) if _is_wrong(value, integers[row], all_numbers)]
    _refuse(what, f"a {column} that is neither a 64-bit integer nor text", wrong, values)
    unfit = [row for row, value in enumerate(values) if isinstance(value, str) and not is_path_like(value)]
    _refuse(what, f"a {column} with control characters, or of more than {MAX_PATH_BYTES:,} bytes,", unfit, values)
    found = [integer for integer in integers if integer is not None]
    ids: list[int] | list[str] = found if len(found) == len(values) else [str(value) for value in values]
    is_twice = pd.Series([id_key(value) for value in ids], dtype=object).duplicated(keep=False)
    _refuse(what, f"a {column} that occurs twice", np.flatnonzero(is_twice).tolist(), ids)
    return ids


def id_key(value: Any) -> str:
    """Return the key for comparing ids, whatever their type."""
    integer = _as_integer(value)
    return str(value) if integer is None else str(integer)


def _is_wrong(value: Any, integer: int | None, all_numbers: bool) -> bool:
    """Return whether a value is no id; text is an id, but not 1.5 among numbers."""
    if integer is None:
        return all_numbers or not isinstance(value, str)
    return not -_LARGEST <= integer < _LARGEST


def _as_integer(value: Any) -> int | None:
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < _EXACT_FLOAT else None
    match = _INTEGER.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match and len(match[1]) < 25 else None


def _is_number(value: Any) -> bool:
    return not isinstance(value, str) or _NUMBER.fullmatch(value) is not None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _refuse(what: str, problem: str, rows: Sequence[int], values: Sequence[Any] | None = None) -> None:
    if rows:
        named = [line_of(row) if values is None else f"{line_of(row)} ({shorten(repr(values[row]))})" for row in rows]
        raise InputError(f"{what} has {problem} in {name_some(named)}")
