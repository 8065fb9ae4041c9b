"""The one reader of tables: indexes, captions, review files, COCO's stimulus table. CSV or Parquet, whole or refused.

pandas' own reader guesses: it takes the first column for an index when a line has a field too many, skips empty lines,
and reads "NA" as missing and "001" as 1. Each guess can shift rows or change a stimulus without a word.
"""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.errors import InputError, name_some, one_line

# Text, also where all of it looks like numbers: a file may be called 001.
TEXT_COLUMNS = frozenset({"name", "path", "image_name", "image_path", "category", "caption", "captions", "original"})

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_BYTE_ORDER_MARKS = {  # UTF-32 first, whose mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_UNNAMED_INDEX = re.compile(r"__index_level_[0-9]+__")


def read_table(path: Path, setting: str) -> pd.DataFrame:
    """Return a table as its file has it.

    Args:
        path: CSV (UTF-8, with or without a byte order mark), or Parquet by its suffix.
        setting: What to call it in errors, such as ``data.captions``.

    Returns:
        One row a record. All columns of a CSV are text, "" where nothing stands; those of a Parquet file have their own
        types, and missing text is "" as well. The index that pandas writes as an unnamed first column is left out.

    Raises:
        InputError: The file is missing, is in another encoding, or is damaged; a line has more or fewer fields than
            the header; a header is empty or occurs twice; or there are NUL characters.
    """
    what = f"{setting}: {str(path)!r}"
    if not path.is_file():
        raise InputError(f"{setting}: no file {str(path)!r}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} can't be read: {one_line(error)}") from None
    return _read_parquet(content, what) if path.suffix == ".parquet" else _read_csv(content, what)


def with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the columns of numbers, and of True and False, as such, for queries.

    A column is one of numbers when all its values are; 007 is none, and keeps its zeros.
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
        raise InputError(f"{what} has no column {name_some(missing)}; it has {', '.join(map(str, table.columns))}")


def _read_csv(content: bytes, what: str) -> pd.DataFrame:
    text = _decode(content, what)
    if (place := text.find("\0")) >= 0:
        raise InputError(f"{what} has a NUL character in line {_line_of(text, place)}: it is damaged, or no text")
    records: list[list[str]] = []
    lines: list[int] = []  # in which each record begins
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first = 1
    try:
        for record in reader:
            records.append(record)
            lines.append(first)
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{what}: line {first} can't be read: {one_line(error)}") from None
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
    columns = [list(values) for values in zip(*records[1:], strict=True)] or [[] for _ in header]
    if header[0] == "" and columns[0] == [str(row) for row in range(len(columns[0]))]:
        header, columns = header[1:], columns[1:]
    _check_header(header, what)
    return pd.DataFrame(dict(zip(header, columns, strict=True)), dtype=object)


def _wrong_length(what: str, line: int, record: list[str], expected: int) -> str:
    if not record:
        return f"{what}: line {line} is empty; delete it"
    shown = one_line(ValueError(",".join(record)), limit=80)
    hint = "; text with a comma in it needs double quotes around it" if len(record) > expected else ""
    return f"{what}: line {line} has {len(record)} fields, the header has {expected}: {shown!r}{hint}"


def _decode(content: bytes, what: str) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise InputError(f"{what} is {encoding}, not UTF-8: save it as CSV UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if b"\0" in content[:100] else "Windows-1252 or Latin-1"
        raise InputError(
            f"{what} is not UTF-8 but probably {encoding} (byte 0x{content[error.start]:02X} in line {line}): save it "
            "as CSV UTF-8"
        ) from None


def _line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _check_header(header: Sequence[str], what: str) -> None:
    if empty := [str(place + 1) for place, name in enumerate(header) if not name]:
        raise InputError(f"{what} has no name for column {name_some(empty)}; its header is {', '.join(header)}")
    if twice := [name for name in dict.fromkeys(header) if list(header).count(name) > 1]:
        raise InputError(f"{what} has several columns called {name_some(twice)}; rename or delete one")


def _read_parquet(content: bytes, what: str) -> pd.DataFrame:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        # pandas' own metadata can make an index of a column, or change types; the columns are what counts
        names = [str(name).strip() for name in table.column_names]
        columns = {
            place: _arrow_values(table.column(place))
            for place, name in enumerate(names)
            if not _UNNAMED_INDEX.fullmatch(name)
        }
    except Exception as error:  # pyarrow raises almost anything on a damaged file
        raise InputError(f"{what} can't be read: {one_line(error)}") from None
    _check_header([names[place] for place in columns], what)
    read = {names[place]: values for place, values in columns.items()}
    for name, values in read.items():
        if rows := [str(row) for row, value in enumerate(values) if isinstance(value, str) and "\0" in value]:
            raise InputError(f"{what} has a NUL character in column {name}, row {name_some(rows)}")
    return pd.DataFrame(read)


def _arrow_values(column: Any) -> "pd.Series[Any]":
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return pd.Series(["" if value is None else value for value in column.to_pylist()], dtype=object)
    if pyarrow.types.is_integer(kind) and column.null_count:
        return pd.Series(column.to_pylist(), dtype="Int64")  # floats would lose digits
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind):
        return pd.Series(column.to_pandas())
    return pd.Series(column.to_pylist(), dtype=object)


def _is_text(values: "pd.Series[Any]") -> bool:
    return values.dtype == object and all(isinstance(value, str) for value in values)


def _numbers(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column of text as numbers, or True and False, if all of it is."""
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
