"""The command line. Nothing heavy is imported before the command that needs it."""

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_extract import __version__
from lit_extract.common import exit_codes
from lit_extract.common.console import logging_shown
from lit_extract.common.errors import InputError, wrong_setting
from lit_extract.common.imports import heavy_imports


def predict() -> None:
    """Extract features of a dataset with a model, or caption its images; resumes by itself."""


def plan() -> None:
    """Say what predict will need of disk, device and host, for one model or all of models.yml; loads no weights."""


def finalize(store: str, keep_store: bool = False) -> int:
    """Turn a complete store into its features files.

    Args:
        store: Folder of the store (….zarr).
        keep_store: Leave the store in place.
    """
    from lit_extract.common.signals import stoppable

    with stoppable(exit_at_second=True):
        with heavy_imports():
            from lit_extract.storage.finalize import finalize as run

        for file in run(store, keep_store):
            print(file)
    return exit_codes.DONE


def show(path: str, pool: str | None = None, picture: str | None = None) -> int:
    """Say what a features file or an unfinished store holds, and draw it.

    Args:
        path: A .pt, or the .zarr folder of an unfinished run.
        pool: Which pooling of a store that has several.
        picture: PNG to draw: size of the activations by layer, and how alike the stimuli are.
    """
    with heavy_imports():
        from lit_extract.inspection.show import show as run

    run(path, pool, picture)
    return exit_codes.DONE


def sweep() -> None:
    """Run predict for every model of models.yml, one process each; resumes by itself."""


def status(folder: str = "features", models: str | None = None, json: bool = False) -> int:
    """List the features files and stores below a folder, and which models of models.yml are missing.

    Args:
        folder: Where to look, all below.
        models: The models.yml to compare with; default: ./models.yml, else the one shipped.
        json: One JSON object instead of a table.
    """
    from lit_extract.inspection.status import as_json, as_text
    from lit_extract.inspection.survey import survey

    found = survey(folder, models)
    print(as_json(found) if json else as_text(found))
    return exit_codes.DONE


def verify(
    files: list[str],
    parity: int | None = None,
    seed: int = 0,
    checkpoint: str | None = None,
    root: str | None = None,
    captions: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    model: str | None = None,
) -> int:
    """Check features files: checksums, completeness, NaN; with --parity, stimuli once more by an independent way.

    A line for each file. The certificate of --parity is written beside it, as <file>.parity.json.
    Exit code: 0 all are sound, 2 something is wrong with at least one.

    Args:
        files: Features files (.pt), and folders of them.
        parity: Compute so many stimuli again, one at a time, in float32.
        seed: Which stimuli.
        checkpoint: Local weights, when the features are of such.
        root: Folder of the dataset; default: the dataset's environment variable.
        captions: The caption file that the features are of.
        device: "cpu" or "cuda"; default: a GPU if there is one.
        trust_remote_code: Run code that comes with the model.
        model: The model that the features are of, when it is to be trusted though models.yml does not list it.
    """
    with heavy_imports():
        from lit_extract.inspection.verify import verify as run
        from lit_extract.parity.certificate import RebuildSettings

    n_wrong = run(files, parity, seed, RebuildSettings(device, checkpoint, root, captions, trust_remote_code, model))
    return exit_codes.WRONG_INPUT if n_wrong else exit_codes.DONE


def check(
    file: str,
    accept: bool = False,
    original: str | None = None,
    name: str | None = None,
    dataset: str | None = None,
    derivatives: str = "derivatives/captions",
    choices: list[str] | None = None,
    sentences: int | None = None,
    languages: list[str] | None = None,
    prompts: str | None = None,
    overwrite: bool = False,
) -> int:
    """Flag captions that a person should look at; put reviewed ones in their place.

    Writes all rows to <file>-review.csv, with a column flag. Edit its column caption, then give it with --accept.
    Exit code: 0 nothing is flagged, 2 something to mend, 3 some captions are flagged.

    Args:
        file: Captions, CSV or Parquet; with --accept, the edited file.
        accept: Put the edited captions in derivatives; rows that were lost or reordered are refused.
        original: The captions before they were edited; default: what a review file was made of.
        name: What accepted captions are called; default: from the model and the prompt, such as pixtral.
        dataset: What accepted captions are of; default: what the file says.
        derivatives: Folder of reviewed captions.
        choices: Labels of which each caption is one; default: those of its prompt.
        sentences: Sentences that a caption of no known prompt may have, 0 for any number; default: 1.
        languages: Languages that captions may be in by mistake; [] to leave languages alone.
        prompts: YAML with prompts besides those that ship here.
        overwrite: Replace a review file, or accepted captions, that are there.
    """
    from lit_extract.review import accept as accepting
    from lit_extract.review import check as checking

    path = Path(file)
    if accept:
        source = Path(original) if original else None
        accepted, edited = accepting.accept(path, Path(derivatives), source, name, dataset, overwrite)
        print(f"{accepted}\n  {edited} captions differ from the column original")
        return exit_codes.DONE
    rules = checking.make_rules(choices, sentences, languages)
    reviewed, flags = checking.check(path, rules, prompts, overwrite)
    print("\n".join([*checking.describe(flags), str(reviewed)]))
    return exit_codes.LOOK if any(flags) else exit_codes.DONE


def review(
    file: str,
    dataset: str | None = None,
    root: str | None = None,
    port: int = 0,
    no_browser: bool = False,
    follow_links: bool = False,
    choices: list[str] | None = None,
    sentences: int | None = None,
    languages: list[str] | None = None,
    prompts: str | None = None,
) -> int:
    """Look at captions beside their images on a page in the browser, and mend them; Ctrl-C ends it.

    Each decision is on disk at once. The result is <file>-review.csv, which check --accept takes.

    Args:
        file: Captions, CSV or Parquet, or their review file; the latter is made as by check if it is not there.
        dataset: What they are of: nsd, bold5000, things, folder or demo; default: what they say.
        root: Folder of the dataset; default: its environment variable.
        port: Of this machine's loopback interface; 0: a free one.
        no_browser: Only print the address.
        follow_links: Show images outside the dataset's folder that links in it lead to.
        choices: Labels of which each caption is one; default: those of its prompt.
        sentences: Sentences that a caption of no known prompt may have, 0 for any number; default: 1.
        languages: Languages that captions may be in by mistake; [] to leave languages alone.
        prompts: YAML with prompts besides those that ship here.
    """
    from lit_extract.review.check import make_rules
    from lit_extract.review.command import review as run

    rules = make_rules(choices, sentences, languages)
    run(Path(file), rules, dataset, root, prompts, port, not no_browser, follow_links)
    return exit_codes.DONE


def coco_captions(
    stim_info: str,
    annotations: list[str],
    output: str = "derivatives/captions/nsd-captions-coco.csv",
    overwrite: bool = False,
) -> int:
    """Build nsd-captions-coco.csv from COCO's caption annotations and NSD's stimulus table.

    Args:
        stim_info: NSD's nsd_stim_info_merged.csv.
        annotations: COCO's files, '[captions_train2017.json, captions_val2017.json]'.
        output: The CSV or Parquet to make.
        overwrite: Replace a file that is there.
    """
    from lit_extract.captioning.coco import coco_captions as run

    table = run(Path(stim_info), [Path(file) for file in annotations], Path(output), overwrite)
    print(f"{output}\n  {len(table)} images")
    return exit_codes.DONE


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

    Reads a sample of the stimuli, one layer at a time. Exit code: 0 nothing is conspicuous, 2 something to mend, 3
    there is something to look into, which is printed and in the page.

    Args:
        folder: Features of a dataset and subset, such as features/nsd/all; those of <folder>-untrained come along.
        out: Folder of the page (index.html), its figures and report.json; an older report there is replaced.
        rows: Stimuli to sample.
        seed: Of the sample and the shuffles.
        permutations: Shuffles of the baseline of similarities.
        root: Folder of the dataset, for pictures; default: the dataset's environment variable.
        captions: CSV or Parquet with the captions.
    """
    with heavy_imports():
        from lit_extract.report.make import report as run

    warnings = run(folder, out, rows, seed, permutations, root, captions)
    print("\n".join([*(f"beware: {warning}" for warning in warnings), str(Path(out) / "index.html")]))
    return exit_codes.LOOK if warnings else exit_codes.DONE


COMMANDS: tuple[Callable[..., int | None], ...] = (
    *(predict, plan, sweep, status, finalize, show, verify, report, check, review, coco_captions),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code."""
    with logging_shown():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(args: list[str]) -> int:
    try:
        if args[:1] == ["predict"]:
            return _predict(args[1:])
        if args[:1] == ["sweep"]:
            from lit_extract.sweep.run import main as run_sweep

            return run_sweep(args[1:])
        if args[:1] == ["plan"]:
            with heavy_imports():
                from lit_extract.commands.plan import main as run_plan

            return run_plan(args[1:])
        return _run(args)
    except (InputError, ArgumentError) as error:
        print(f"lit-extract: error: {wrong_setting(error)}", file=sys.stderr)
        return exit_codes.WRONG_INPUT


def _predict(args: list[str]) -> int:
    from lit_extract.common.signals import stoppable

    with stoppable(exit_at_second=True):
        from lit_extract.jobs.run_state import failures_recorded

        with failures_recorded():
            with heavy_imports():
                from lit_extract.commands.predict import main as run_predict

            return run_predict(args)


def _run(args: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from lit_extract.commands.config import parsed, prepare_parsers

    prepare_parsers()
    parser = ArgumentParser(
        prog="lit-extract",
        description="Activations of every transformer block of vision and language models, for brain datasets.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    commands = {command.__name__.replace("_", "-"): command for command in COMMANDS}
    for name, command in commands.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        subparser = ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
        # jsonargparse would make an option of a folder that need not be given, and want a list for several files
        if command is status:
            subparser.add_argument("folder", nargs="?", default="features", help="Where to look, all below.")
        if command is verify:
            subparser.add_argument("files", nargs="+", type=str, help="Features files (.pt), and folders of them.")
        skip: set[int | str] = {"folder"} if command is status else {"files"} if command is verify else set()
        subparser.add_function_arguments(command, as_positional=True, skip=skip)
        _allow_bare_flags(subparser)
        subcommands.add_subcommand(name, subparser, help=summary)
    config = parsed(lambda: parser.parse_args(args))
    return commands[config.command](**config[config.command]) or exit_codes.DONE


def _allow_bare_flags(parser: Any) -> None:
    """``--accept`` for ``--accept true``."""
    for action in parser._actions:
        if action.option_strings and action.default is False:
            action.nargs, action.const = "?", True
