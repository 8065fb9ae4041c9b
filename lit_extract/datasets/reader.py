"""The reader of all tables, CSV or Parquet; a damaged table is refused as a whole.

pandas' own reader guesses: it takes the first column for an index if a line has a field too many, skips empty lines,
and reads "NA" as missing and "001" as 1. Each guess can silently shift rows or change a stimulus.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.common.errors import InputError, counted, line_of, name_some, one_line
from lit_extract.common.untrusted import read_regular, shorten
from lit_extract.datasets.parquet import MAX_CELLS, Columns, read_parquet

# Captions of 1,000 bytes for each image of NSD take 73 MB. A hostile table takes about 400 MB of memory.
MAX_TABLE_BYTES = 100 * 2**20
MAX_LINE = 2**20  # characters; csv itself takes 131,072 in a field

# Columns of text, even if all of it looks like numbers: a file may be called 001.
TEXT_COLUMNS = frozenset({"name", "path", "image_name", "image_path", "category", "caption", "captions", "original"})

_COUNT = re.compile(r"([0-9]{1,15})(?:\.0*)?")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with the mark of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4")


def read_table(path: Path, setting: str) -> pd.DataFrame:
    """Return the table of a file: CSV (UTF-8, with or without a byte order mark), or Parquet by its suffix.

    All columns of a CSV are text; Parquet columns keep their types. Missing text is "". The index that pandas writes as
    an unnamed first column is left out.
    """
    what = f"{setting}: {str(path)!r}"
    if path.suffix.lower() in _COMPRESSED:
        raise InputError(f"{what} is compressed; unpack it first")
    try:
        content = read_regular(path, MAX_TABLE_BYTES)
    except FileNotFoundError:
        raise InputError(f"{setting}: no file {str(path)!r}") from None
    except OSError as error:
        raise InputError(f"{what} can't be read: {error.strerror or one_line(error)}") from None
    columns = read_parquet(content, what) if path.suffix == ".parquet" else _read_csv(content, what)
    _check_header([name for name, _ in columns], what)
    return pd.DataFrame(dict(columns))


def with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Convert columns of numbers, and of True and False, from text, for queries.

    A column is converted if all of its values are numbers; 007 is not one, and keeps its zeros.
    """
    typed = {
        name: values if name in TEXT_COLUMNS or not _is_text(values) else _numbers(values)
        for name, values in table.items()
    }
    return pd.DataFrame(typed, index=table.index)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with all values as text; missing ones are ""."""
    return pd.DataFrame(
        {name: values if _is_text(values) else values.map(_text) for name, values in table.items()},
        index=table.index,
        dtype=object,
    )


def check_columns(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise InputError unless the table has all these columns."""
    if missing := [column for column in columns if column not in table.columns]:
        raise InputError(f"{what} has no column {name_some(missing)}; it has {name_columns(table.columns)}")


def as_integers(values: "pd.Series[Any]", what: str, least: int = 0) -> list[int]:
    """Return a column of a file as integers of ``least`` or more; 3.0 counts as an integer."""
    read = [_COUNT.fullmatch(_text(value)) for value in values]
    integers = [-1 if match is None else int(match[1]) for match in read]
    if wrong := [row for row, integer in enumerate(integers) if integer < least]:
        named = name_some([f"{line_of(row)} ({shorten(repr(values.iloc[row]))})" for row in wrong])
        raise InputError(f"{what}: {values.name} must be an integer of {least} or more, and is not in {named}")
    return integers


def name_columns(columns: Iterable[str]) -> str:
    """Return the names of columns for an error."""
    return name_some([shorten(str(column)) for column in columns], 20)


def _read_csv(content: bytes, what: str) -> Columns:
    records: list[list[str]] = []
    lines: list[int] = []  # on which each record begins
    cells, first = 0, 1
    reader = csv.reader(_lines(content, what), strict=True)
    try:
        for record in reader:
            cells += len(record)
            if cells > MAX_CELLS:
                raise InputError(f"{what} has more than {MAX_CELLS:,} fields, the maximum")
            records.append(record)
            lines.append(first)
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{what}: line {first} can't be read: {one_line(error)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{what} {_other_encoding(content)}: save it as CSV UTF-8") from None
    while records and not records[-1]:  # empty lines at the end
        records.pop()
    if not records:
        raise InputError(f"{what} is empty")
    header = [name.strip() for name in records[0]]
    if len(header) == 1 and (separator := re.search("[;\t]", header[0])):
        raise InputError(f"{what} has its fields separated by {separator[0]!r}; save it with commas")
    for line, record in zip(lines[1:], records[1:], strict=False):
        if len(record) != len(header):
            raise InputError(_wrong_length(what, line, record, len(header)))
    if not content.endswith((b"\n", b"\r")):
        raise InputError(
            f"{what} has no line end after its last line, {shorten(','.join(records[-1]))}, so it may be "
            "incomplete; if it is complete, add one"
        )
    columns = [list(values) for values in zip(*records[1:], strict=True)] or [[] for _ in header]
    if header[0] == "" and columns[0] == [str(row) for row in range(len(columns[0]))]:
        header, columns = header[1:], columns[1:]
    return [(name, pd.Series(values, dtype=object)) for name, values in zip(header, columns, strict=True)]


def _lines(content: bytes, what: str) -> Iterator[str]:
    """Yield the lines of a CSV, with the line ends that csv expects."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise InputError(f"{what} is {encoding}, not UTF-8: save it as CSV UTF-8")
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{what} has more than {MAX_LINE:,} characters in line {number}, the maximum")
        if "\0" in line:
            raise InputError(f"{what} has a NUL character in line {number}: it is damaged, or not text")
        yield line


def _wrong_length(what: str, line: int, record: list[str], expected: int) -> str:
    if not record:
        return f"{what}: line {line} is empty; delete it"
    shown = one_line(ValueError(",".join(record)), limit=80)
    hint = "; text with a comma in it needs double quotes around it" if len(record) > expected else ""
    fields = counted(len(record), "field")
    return f"{what}: line {line} has {fields}, the header has {expected}: {shown!r}{hint}"


def _other_encoding(content: bytes) -> str:
    """Return the probable encoding of a file that is not UTF-8."""
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if b"\0" in content[:100] else "Windows-1252 or Latin-1"
        return f"is not UTF-8 but probably {encoding} (byte 0x{content[error.start]:02X} in line {line})"
    raise AssertionError("it is UTF-8")


def _check_header(header: Sequence[str], what: str) -> None:
    if empty := [str(place + 1) for place, name in enumerate(header) if not name]:
        raise InputError(f"{what} has no name for column {name_some(empty)}; its header is {name_columns(header)}")
    counts = pd.Series(header, dtype=object).value_counts()
    if twice := [name for name in dict.fromkeys(header) if counts[name] > 1]:
        raise InputError(f"{what} has several columns called {name_columns(twice)}; rename or delete one")


def _is_text(values: "pd.Series[Any]") -> bool:
    return values.dtype == object and all(isinstance(value, str) for value in values)


def _numbers(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return a column of text as numbers, or True and False, if all of its values are."""
    there = [value for value in values if value]
    if there and all(_INTEGER.fullmatch(value) for value in there):
        if len(there) == len(values):
            return values.astype("int64")
        return pd.Series([int(value) if value else None for value in values], index=values.index, dtype="Int64")
    if there and all(_NUMBER.fullmatch(value) for value in there):
        return pd.Series([float(value) if value else float("nan") for value in values], index=values.index)
    if there and len(there) == len(values) and set(there) <= {"True", "False"}:
        return values == "True"
    return values


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA or value != value else str(value)
