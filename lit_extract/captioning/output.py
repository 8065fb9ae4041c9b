"""The caption file: CSV or Parquet by its suffix, whole or not at all.

CSV is UTF-8 with a byte order mark: without one, spreadsheets take other scripts for Latin letters; pandas and
this package read over it. Text of the model that a spreadsheet would take for a formula (it begins with ``=``,
``+``, ``-`` or ``@``) has a blank in front; :func:`read_captions` and ``load_captions`` take it away again.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import absolute_path, open_regular
from lit_extract.datasets.captions import caption_texts
from lit_extract.datasets.reader import as_text, check_columns, read_table
from lit_extract.storage.places import local_path

SUFFIXES = (".csv", ".parquet")
COLUMNS = ("caption", "model", "prompt", "status")
OK, CUT_OFF, FAILED = "ok", "cut off", "failed"

_FORMULA = ("=", "+", "-", "@")


def check_output(output: str | None) -> Path:
    """The path of an output file.

    Raises:
        InputError: None is given, or it is neither CSV nor Parquet.
    """
    if output is None:
        raise InputError("output: where should the captions go? Give --output FILE.csv or FILE.parquet")
    path = absolute_path(local_path(output, "output"), "output")
    if path.suffix not in SUFFIXES:
        raise InputError(f"output: {output!r} must end in {' or '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():
        raise InputError(f"output: {output!r} is a folder, or something else than a file")
    return path


def write_captions(captions: pd.DataFrame, path: Path, before: Callable[[Path], Any] | None = None) -> None:
    """Write a table of captions, beside and renamed; ``before`` sees the file that will be."""
    if path.suffix == ".parquet":
        write_beside(path, lambda file: captions.to_parquet(file, index=False), before)
        return
    safe = captions.copy()
    for column in safe.columns.intersection([*COLUMNS, "captions", "original"]):
        safe[column] = [_not_a_formula(text) for text in safe[column]]
    write_beside(path, lambda file: safe.to_csv(file, index=False, encoding="utf-8-sig", lineterminator="\n"), before)


def read_captions(path: Path) -> pd.DataFrame:
    """A table of captions, all values as text, empty ones as "".

    Raises:
        InputError: It is missing, can't be read, or has no column caption.
    """
    what = f"captions: {str(path)!r}"
    if path.suffix not in SUFFIXES:
        raise InputError(f"{what} must end in {' or '.join(SUFFIXES)}")
    table = read_table(path, "captions")
    check_columns(table, ["caption"], what)
    return as_text(table.assign(caption=caption_texts(table, what)))


def write_beside(path: Path, write: Callable[[Path], Any], before: Callable[[Path], Any] | None = None) -> None:
    """Have a file written beside and renamed, so that it is there whole or not at all."""
    partial = beside(path)
    partial.unlink(missing_ok=True)  # a link there would lead elsewhere, a named pipe nowhere
    write(partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    if before is not None:
        before(partial)
    partial.replace(path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; "" if there is none.

    Raises:
        InputError: It can't be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read: {error.strerror or one_line(error)}") from None


def beside(path: Path) -> Path:
    """Name of a file or folder that is being made, or removed."""
    return path.with_name(f".{path.name}.partial")


def _not_a_formula(text: Any) -> Any:
    return f" {text}" if isinstance(text, str) and text.startswith(_FORMULA) else text
