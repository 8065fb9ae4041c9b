"""Write tables as CSV."""

from pathlib import Path

import pandas as pd

from lit_extract.common.errors import InputError
from lit_extract.common.files import replacing


def write_table(table: pd.DataFrame, path: Path, overwrite: bool) -> None:
    """Write a table as a CSV, which appears only when it is complete."""
    if path.suffix != ".csv":
        raise InputError(f"output: {str(path)!r} must end in .csv")
    if path.exists() and not overwrite:
        raise InputError(f"output: {str(path)!r} exists already; pass --overwrite to replace it, or --output FILE")
    try:
        with replacing(path) as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
    except OSError as error:
        raise InputError(f"output: can't write {str(path)!r}: {error.strerror}; pass --output FILE") from None
