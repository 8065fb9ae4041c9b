"""The caption file: CSV or Parquet by its suffix, whole or not at all.

CSV is UTF-8 with a byte order mark, without which spreadsheets misread other scripts; pandas and this package skip it.
Model text that a spreadsheet would take for a formula (starting with ``=``, ``+``, ``-`` or ``@``) gets a leading
blank; :func:`read_captions` and ``load_captions`` remove it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.files import replacing
from lit_extract.common.untrusted import absolute_path, open_regular
from lit_extract.datasets.captions import caption_texts, find_ids
from lit_extract.datasets.reader import as_text, check_columns, read_table
from lit_extract.storage.places import local_path

SUFFIXES = (".csv", ".parquet")
COLUMNS = ("caption", "model", "prompt", "status")
OK, CUT_OFF, FAILED = "ok", "cut off", "failed"

_FORMULA = ("=", "+", "-", "@")


def check_output(output: str | None) -> Path:
    """Return the path of an output file, CSV or Parquet."""
    if output is None:
        raise InputError("output: no file given for the captions; give --output FILE.csv or FILE.parquet")
    path = absolute_path(local_path(output, "output"), "output")
    if path.suffix not in SUFFIXES:
        raise InputError(f"output: {output!r} must end in {' or '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():
        raise InputError(f"output: {output!r} is not a file")
    return path


def write_captions(captions: pd.DataFrame, path: Path, before: Callable[[Path], Any] | None = None) -> None:
    """Write a table of captions, whole or not at all; call ``before`` with it before it replaces an earlier one."""
    with replacing(path) as partial:
        if path.suffix == ".parquet":
            captions.to_parquet(partial, index=False)
        else:
            texts = captions.columns.intersection([*COLUMNS, "captions", "original"])
            safe = captions.assign(**{column: list(map(_not_a_formula, captions[column])) for column in texts})
            safe.to_csv(partial, index=False, encoding="utf-8-sig", lineterminator="\n")
        if before is not None:
            before(partial)


def read_captions(path: Path, check_ids: bool = True) -> pd.DataFrame:
    """Return a table of captions with all values as text; empty ones are "". Ids that predict refuses are refused."""
    what = f"captions: {str(path)!r}"
    if path.suffix not in SUFFIXES:
        raise InputError(f"{what} must end in {' or '.join(SUFFIXES)}")
    table = read_table(path, "captions")
    check_columns(table, ["caption"], what)
    if check_ids:
        find_ids(table, what)
    return as_text(table.assign(caption=caption_texts(table, what)))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; "" if there is none."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read: {error.strerror or one_line(error)}") from None


def _not_a_formula(text: Any) -> Any:
    return f" {text}" if isinstance(text, str) and text.startswith(_FORMULA) else text
