"""Write a file so that it appears only when it is complete."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the body a path to write to; if the body succeeds, that file replaces ``path``.

    Until then the file is next to ``path``; it is removed if the body fails. A killed process leaves it behind, under a
    name that ends in ``.partial``, which nothing reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
