"""Show log messages on a terminal; format sizes and tables for people.

The library itself only logs, under the name ``lit_extract``. The command line shows these messages: ``INFO`` on stdout,
``WARNING`` on stderr, once and not once per rank.
"""

import io
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from lit_extract.common.ranks import is_rank_zero

EVERY_RANK = {"every_rank": True}  # ``extra`` of a logging call whose message every rank shows, about its own rows


@contextmanager
def logging_shown() -> Iterator[None]:
    """Show log messages of the library while the body runs."""
    logger, handler = logging.getLogger("lit_extract"), _Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def is_quiet() -> bool:
    """Return whether only warnings, errors and results are shown."""
    return logging.getLogger("lit_extract").level > logging.INFO


@contextmanager
def quiet() -> Iterator[None]:
    """Show only warnings, errors and results while the body runs."""
    logger = logging.getLogger("lit_extract")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _bars_aside() -> Iterator[None]:
    """Clear progress bars while the body prints, and draw them again below."""
    if tqdm := sys.modules.get("tqdm"):  # else there are no bars
        with tqdm.tqdm.external_write_mode():
            yield
    else:
        yield


class _Handler(logging.Handler):
    """Prints to the current stdout and stderr, and flushes at once, also into a file."""

    def emit(self, record: logging.LogRecord) -> None:
        if not is_rank_zero() and not getattr(record, "every_rank", False):
            return
        with _bars_aside():
            if record.levelno >= logging.WARNING:
                print(f"lit-extract: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr, flush=True)
            else:
                print(record.getMessage(), flush=True)


def as_size(n_bytes: float) -> str:
    """Return bytes as text such as 12.3 GB, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.95:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def as_table(rows: Sequence[Mapping[str, str]], right: Collection[str] = ()) -> list[str]:
    """Return the lines of a table, as wide as its cells, so that no name is cut; empty columns are left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[name]) for name in names))
    file = io.StringIO()
    Console(file=file, width=10**6, color_system=None).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()] if names else []
