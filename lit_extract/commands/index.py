"""``lit-extract index``: list the images of a downloaded dataset, with their ids."""

from pathlib import Path

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.errors import InputError, counted


def index(dataset: str, root: str | None = None, output: str | None = None, overwrite: bool = False) -> int:
    """Write a table of a downloaded dataset's images and their ids; print what is missing.

    The other commands do not need an index; if the dataset's folder has one, they read it instead of the folder. Exit
    code: 0 nothing is missing or unusual, 2 wrong input, 3 something to look at.

    Args:
        dataset: nsd, bold5000 or things.
        root: Folder of the dataset; default: its environment variable, such as NSD_DATASET.
        output: CSV to write; default: the index in the dataset's folder.
        overwrite: Replace an existing file.
    """
    from lit_extract.commands.tables import write_table
    from lit_extract.datasets import DATASETS, find_dataset, table

    known = find_dataset(dataset)
    if known.layout is None:
        choices = ", ".join(name for name, other in DATASETS.items() if other.layout)
        raise InputError(f"dataset: {dataset!r} has no layout of its own; an index can be made for {choices}")
    folder = known.find_root(root)
    name = next(name for name in known.index if name.endswith(".csv"))
    path = Path(output) if output else folder / name
    first = next((folder / other for other in known.index if (folder / other).exists()), path)
    if output is None and first != path:
        raise InputError(f"output: {str(first)!r} is read instead of {str(path)!r}; delete it, or pass --output FILE")
    found = known.read_published(folder)
    findings = found.attrs[table.FINDINGS]
    write_table(found.drop(columns=[*table.RESERVED], errors="ignore"), path, overwrite)
    images = counted(len(found), "image")
    print("\n".join([str(path), f"  {images}", *(f"  {finding}" for finding in findings)]))
    return exit_codes.LOOK if findings else exit_codes.DONE


main = command(index)
