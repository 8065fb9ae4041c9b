"""``lit-extract report``: make a page about features."""

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
    """Make a page to inspect features: layers, similarities, nearest neighbours.

    A sample of the stimuli is read, one layer at a time. Exit code: 0 no warnings, 2 wrong input, 3 warnings,
    which are printed and are on the page.

    Args:
        folder: Folder with features, such as features/nsd/all; features in <folder>-untrained are included.
        out: Folder for the page (index.html), its figures and report.json; an older report there is replaced.
        rows: Number of stimuli to sample.
        seed: Seed of the sample and of the shuffles.
        permutations: Number of shuffles of the stimuli, for the similarity by chance.
        root: Folder of the dataset, to show its images; default: the dataset's environment variable.
        captions: Caption file, CSV or Parquet, to show the captions.
    """
    with heavy_imports():
        from lit_extract.report.make import report as make

    warnings = make(folder, out, rows, seed, permutations, root, captions)
    print("\n".join([*(f"warning: {warning}" for warning in warnings), str(Path(out) / "index.html")]))
    return exit_codes.LOOK if warnings else exit_codes.DONE


main = command(report)
