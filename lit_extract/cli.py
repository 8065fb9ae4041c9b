"""The command line: finds the command, runs it, and turns bad input into one line. Nothing heavy is imported for that.

A command is a module of ``lit_extract/commands/`` with a function ``main(args) -> exit code``, and a line below.
"""

import logging
import os
import signal
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module

from lit_extract import __version__
from lit_extract.common import exit_codes
from lit_extract.common.console import logging_shown
from lit_extract.common.errors import InputError, wrong_setting
from lit_extract.common.imports import heavy_imports
from lit_extract.common.signals import stoppable

COMMANDS = {
    "predict": "Extract features of a dataset with a model, or caption its images; resumes by itself.",
    "plan": "Print what predict will need of disk, device and host, for one model or all of models.yml.",
    "sweep": "Run predict for every model of models.yml, one process each; resumes by itself.",
    "submit": "Queue predict for every model of models.yml on a SLURM cluster, a job each; done models are skipped.",
    "configs": "List the configs that ship with the package, or print one as a starting point.",
    "status": "List the features files and stores below a folder, and which models of models.yml are missing.",
    "finalize": "Turn a complete store into its features files.",
    "show": "Print what a features file or an unfinished store holds, and draw it.",
    "verify": "Check features files: checksums, completeness, NaN; with --parity, recompute stimuli independently.",
    "report": "Make a page to look at features before trusting them: layers, similarities, nearest neighbours.",
    "index": "Write which images a dataset has as it was downloaded, under which ids, and what is missing.",
    "trials": "Write which stimulus a subject saw in each trial, in the order of the dataset's beta files.",
    "check": "Flag captions that a person should look at; accept reviewed ones.",
    "review": "Look at captions next to their images on a page in the browser, and edit them.",
    "doctor": "Print versions, GPU, disk, hub and datasets, and how to get what is missing; for bug reports too.",
    "coco-captions": "Build nsd-captions-coco.csv from COCO's caption annotations and NSD's stimulus table.",
}
_SWEEPS = {"sweep": "sweep.run", "submit": "sweep.submit"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code."""
    try:
        with logging_shown():
            try:
                return _main(list(sys.argv[1:] if argv is None else argv))
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt:  # of a command that has nothing to keep; predict and sweep have caught it
        print("lit-extract: stopped", file=sys.stderr)
        return exit_codes.STOPPED + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has seen enough: lit-extract plan … | head
        # Python flushes stdout once more when it exits, and must not fail again:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.STOPPED + signal.SIGPIPE


def _main(args: list[str]) -> int:
    try:
        command = _command(args[:1])
        package = _SWEEPS.get(command) or f"commands.{command.replace('-', '_')}"
        with _watched() if command == "predict" else nullcontext():
            with _answered_ahead(command, args[1:]) if command in ("predict", "plan") else nullcontext():
                with heavy_imports():
                    module = import_module(f"lit_extract.{package}")
                code: int = module.main(args[1:])
            return code
    except (InputError, ArgumentError) as error:
        print(f"lit-extract: error: {wrong_setting(error)}", file=sys.stderr)
        return exit_codes.WRONG_INPUT


@contextmanager
def _watched() -> Iterator[None]:
    """Obey signals and record failures, also during the seconds that the imports of predict take."""
    from lit_extract.jobs.run_state import failures_recorded

    with stoppable(exit_at_second=True), failures_recorded():
        yield


@contextmanager
def _answered_ahead(command: str, args: Sequence[str]) -> Iterator[None]:
    """Print help, refuse names that there are not, and say what will run, before the ten seconds of heavy imports."""
    from lit_extract.commands.help import help_asked_for
    from lit_extract.commands.options import PLAN_OPTIONS, PREDICT_OPTIONS
    from lit_extract.commands.origins import origins_named
    from lit_extract.commands.spelling import check_spelling, what_will_run

    options = PLAN_OPTIONS if command == "plan" else PREDICT_OPTIONS
    if text := help_asked_for(command, args, options):
        print(text)
        raise SystemExit(exit_codes.DONE)
    check_spelling(args, options)
    text = what_will_run(args)
    if "--quiet" in args:
        logging.getLogger("lit_extract").setLevel(logging.WARNING)
    if text and command == "predict":
        logging.getLogger("lit_extract").info(text)
    elif text and sys.stderr.isatty():  # what plan prints on stdout is for programs too
        print(text, file=sys.stderr)
    with origins_named(args):
        yield


def _command(args: list[str]) -> str:
    """Return the command that is given; print help or the version if that is asked for."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="lit-extract",
        description="Activations of every transformer block of vision and language models, for brain datasets.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, summary in COMMANDS.items():
        subcommands.add_subcommand(name, ArgumentParser(), help=summary)
    command: str = parser.parse_args(args).command
    return command
