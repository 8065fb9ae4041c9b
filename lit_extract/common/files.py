"""Write a file so that it appears only when it is complete."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path that is given to the body; when it ends well, that file takes the place of ``path``.

    The file is next to ``path`` meanwhile, and removed when the body fails. A killed process leaves it, under a name
    that ends in ``.partial`` and that nothing reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
