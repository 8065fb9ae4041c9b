"""Parquet files as columns of plain values; the footer is checked before anything is unpacked."""

import io
import re
from typing import Any, TypeAlias

import pandas as pd

from lit_extract.common.errors import InputError, line_of, name_some, one_line
from lit_extract.common.untrusted import shorten
from lit_extract.datasets.thrift import Struct, footer_of

MAX_CELLS = 3_000_000  # of a table, each about 100 bytes in memory; NSD has 73,000 stimuli
MAX_UNPACKED_BYTES = 200 * 2**20  # of the uncompressed table; then of its texts, which the file stores once each
MAX_PARTS = 10_000  # row groups, columns and the like; Parquet's own limit is a million

Columns: TypeAlias = "list[tuple[str, pd.Series[Any]]]"  # a name may occur twice

_UNNAMED_INDEX = re.compile(r"__index_level_[0-9]+__")


def read_parquet(content: bytes, what: str) -> Columns:
    """Return the columns of a Parquet file with their own types: numbers, text ("" if missing), times, lists of these.

    pandas' metadata, which can turn a column into an index or change types, is ignored. The unnamed index that pandas
    adds as a column is left out.
    """
    try:
        columns = _columns(content, what)
    except InputError:
        raise
    except Exception as error:  # pyarrow raises almost anything on a damaged file
        is_ours = isinstance(error, LookupError | TypeError)  # a part that is missing or has the wrong type
        reason = "its footer is damaged" if is_ours else shorten(one_line(error), 400)
        raise InputError(f"{what} can't be read: {reason}") from None
    if sum(_length(value) for _, values in columns for value in values) > MAX_UNPACKED_BYTES:
        raise InputError(f"{what} unpacks to more than {MAX_UNPACKED_BYTES:,} characters, the maximum")
    for name, values in columns:
        if rows := [line_of(row) for row, value in enumerate(values) if isinstance(value, str) and "\0" in value]:
            raise InputError(f"{what} has a NUL character in column {shorten(name)}, {name_some(rows)}")
    return columns


def _columns(content: bytes, what: str) -> Columns:
    from pyarrow import parquet

    n_rows = _check_size(footer_of(content), what)
    limits: Any = {"thrift_container_size_limit": MAX_PARTS, "page_checksum_verification": True}
    metadata = parquet.ParquetFile(io.BytesIO(content), **limits).metadata
    leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    # A text that occurs a million times is held in memory once.
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    file = parquet.ParquetFile(io.BytesIO(content), read_dictionary=texts, **limits)
    _check_index(file.schema_arrow.pandas_metadata, what)
    table = file.read(use_threads=False)
    if table.num_rows != n_rows:
        raise ValueError(f"it has {table.num_rows} rows instead of {n_rows}")
    named = [(str(name).strip(), table.column(place)) for place, name in enumerate(table.column_names)]
    return [(name, _values(column, name, what)) for name, column in named if not _UNNAMED_INDEX.fullmatch(name)]


def _check_size(footer: Struct, what: str) -> int:
    """Check the size that a footer gives, and return the number of rows.

    The numbers are the fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData in parquet.thrift.
    """
    n_rows, groups = footer[3], footer[4]
    chunks = [chunk for group in groups for chunk in group[1]]
    if any(1 in chunk or 8 in chunk for chunk in chunks):
        raise ValueError("parts of it are encrypted, or in another file")
    parts = [chunk[3] for chunk in chunks]
    cells, n_bytes = [part[5] for part in parts], [part[6] for part in parts]
    if min([n_rows, *cells, *n_bytes]) < 0 or sum(group[3] for group in groups) != n_rows:
        raise ValueError("its row counts contradict each other")
    if max(n_rows, sum(cells)) > MAX_CELLS:
        raise InputError(f"{what} has {n_rows:,} rows with {sum(cells):,} values; the maximum is {MAX_CELLS:,}")
    if sum(n_bytes) > MAX_UNPACKED_BYTES:
        raise InputError(f"{what} unpacks to {sum(n_bytes):,} bytes; the maximum is {MAX_UNPACKED_BYTES:,}")
    return int(n_rows)


def _check_index(pandas_metadata: Any, what: str) -> None:
    """Refuse a named range index, which pandas only keeps in its metadata; it may be the ids."""
    for index in (pandas_metadata or {}).get("index_columns", []):
        if isinstance(index, dict) and index.get("name") is not None:
            raise InputError(
                f"{what} has an index {shorten(str(index['name']))}, which is not a column of the file; save it with "
                "reset_index(), or drop the index"
            )


def _values(column: Any, name: str, what: str) -> "pd.Series[Any]":
    import pyarrow

    types, kind = pyarrow.types, column.type
    if types.is_integer(kind) and column.null_count:
        return pd.Series(column.to_pylist(), dtype="Int64")  # floats would lose digits
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return pd.Series(column.to_pandas())
    values = [value for chunk in column.chunks for value in _plain(chunk, name, what)]
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind):  # categories
        return pd.Series(values, dtype="Int64" if column.null_count else "int64")
    if types.is_string(kind) or types.is_large_string(kind):
        values = ["" if value is None else value for value in values]
    return pd.Series(values, dtype=object)


def _plain(chunk: Any, name: str, what: str) -> list[Any]:
    """Return the values of a part of a column; text that the file stores once is one object."""
    import pyarrow

    types, kind = pyarrow.types, chunk.type
    if types.is_dictionary(kind):
        known = chunk.dictionary.to_pylist()
        return [None if place is None else known[place] for place in chunk.indices.to_pylist()]
    if types.is_list(kind) or types.is_large_list(kind):
        flat = _plain(chunk.values, name, what)
        ends = chunk.offsets.to_pylist()
        is_there = chunk.is_valid().to_pylist()
        return [flat[a:b] if there else None for a, b, there in zip(ends, ends[1:], is_there, strict=False)]
    if types.is_nested(kind):
        raise InputError(
            f"{what} has values of the unsupported type {shorten(str(kind))} in column {shorten(name)}; leave it out"
        )
    plain: list[Any] = chunk.to_pylist()
    return plain


def _length(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str | bytes) else 0
