"""Import hundreds of thousands of objects without repeated garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Pause the garbage collector for the imports of a command: they take a fifth less time, and its end a second less.

    Objects that exist afterwards are never collected: they are needed to the end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
