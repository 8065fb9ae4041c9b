"""Imports with the garbage collector at rest."""

import gc
import weakref

import pytest

from lit_extract.common.imports import heavy_imports


class Node:
    """In a cycle with itself: only the collector finds it."""

    def __init__(self):
        self.itself = self


def test_nothing_is_collected_meanwhile_and_again_after_it():
    frozen = gc.get_freeze_count()
    kept = [Node() for _ in range(10)]
    with heavy_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    seen = weakref.ref(Node())
    gc.collect()
    assert seen() is None, "what comes later is collected"
    assert len(kept) == 10


def test_an_import_that_fails_leaves_the_collector_running():
    with pytest.raises(ModuleNotFoundError), heavy_imports():
        import no_such_package  # noqa: F401
    assert gc.isenabled()
