"""``lit-extract report``: a page about features."""

from pathlib import Path

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.imports import heavy_imports


def report(
    folder: str,
    out: str = "report",
    rows: int = 1000,
    seed: int = 0,
    permutations: int = 100,
    root: str | None = None,
    captions: str | None = None,
) -> int:
    """Make a page to look at features before trusting them: layers, similarities, nearest neighbours.

    Reads a sample of the stimuli, one layer at a time. Exit code: 0 nothing is conspicuous, 2 something to fix, 3
    there is something to look into, which is printed and in the page.

    Args:
        folder: Features of a dataset and subset, such as features/nsd/all; those of <folder>-untrained are included.
        out: Folder of the page (index.html), its figures and report.json; an older report there is replaced.
        rows: Stimuli to sample.
        seed: Of the sample and the shuffles.
        permutations: Shuffles of the baseline of similarities.
        root: Folder of the dataset, for pictures; default: the dataset's environment variable.
        captions: CSV or Parquet with the captions.
    """
    with heavy_imports():
        from lit_extract.report.make import report as make

    warnings = make(folder, out, rows, seed, permutations, root, captions)
    print("\n".join([*(f"warning: {warning}" for warning in warnings), str(Path(out) / "index.html")]))
    return exit_codes.LOOK if warnings else exit_codes.DONE


main = command(report)
