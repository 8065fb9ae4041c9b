"""``lit-extract finalize``: turn a complete store into features files."""

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.imports import heavy_imports
from lit_extract.common.signals import stoppable


def finalize(store: str, keep_store: bool = False) -> int:
    """Turn a complete store into features files.

    Args:
        store: Folder of the store (….zarr).
        keep_store: Keep the store afterwards.
    """
    with stoppable(exit_at_second=True):
        with heavy_imports():
            from lit_extract.storage.finalize import finalize as make_files

        for file in make_files(store, keep_store):
            print(file)
    return exit_codes.DONE


main = command(finalize)
