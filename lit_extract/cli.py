"""The command line: find the command, run it, and report bad input in one line, without heavy imports.

A command is a module of ``lit_extract/commands/`` with a function ``main(args) -> exit code``, and a line below.
"""

import logging
import os
import shutil
import signal
import sys
import textwrap
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

from lit_extract import __version__
from lit_extract.common import exit_codes
from lit_extract.common.console import logging_shown
from lit_extract.common.errors import InputError, nearest, wrong_setting
from lit_extract.common.imports import heavy_imports
from lit_extract.common.signals import stoppable

DESCRIPTION = "Activations of every transformer block of vision and language models, for brain datasets."
COMMANDS = {
    "predict": "Extract features of a dataset with a model, or caption its images; resumes an interrupted run.",
    "plan": "Estimate the disk space and memory that predict will need, for one model or all in models.yml.",
    "sweep": "Run predict for every model in models.yml, one process each; resumes an interrupted sweep.",
    "submit": "Queue predict for every model in models.yml on a SLURM cluster, one job each; skips finished models.",
    "configs": "List the shipped configs, or print one as a starting point.",
    "status": "List the features files and stores in a folder, and the models of models.yml that are missing.",
    "finalize": "Turn a complete store into features files.",
    "show": "Print and plot the contents of a features file or an unfinished store.",
    "verify": "Check features files for damage and NaN; with --parity, recompute some stimuli independently.",
    "report": "Make a page to inspect features: layers, similarities, nearest neighbours.",
    "index": "Write a table of a downloaded dataset's images and their ids; print what is missing.",
    "trials": "Write a table of the stimulus in each trial of a subject, in the order of the dataset's beta files.",
    "check": "Flag captions that a person should review; accept reviewed ones.",
    "review": "Review and edit captions next to their images in the browser.",
    "doctor": "Print versions, GPU, disk, hub and datasets, and how to get what is missing; for bug reports.",
    "coco-captions": "Make nsd-captions-coco.csv from COCO's caption annotations and NSD's stimulus table.",
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
        args = [_expanded(arg) for arg in args]
        command = _command(args)
        if command is None:
            return exit_codes.DONE if args else exit_codes.WRONG_INPUT
        package = _SWEEPS.get(command) or f"commands.{command.replace('-', '_')}"
        with _watched() if command == "predict" else nullcontext():
            is_predict = command in ("predict", "plan")
            with _answered_ahead(command, args[1:]) if is_predict else nullcontext(args[1:]) as rest:
                with heavy_imports():
                    module = import_module(f"lit_extract.{package}")
                code: int = module.main(rest)
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
def _answered_ahead(command: str, args: Sequence[str]) -> Iterator[list[str]]:
    """Print help, refuse unknown names, and print what will run, before the ten seconds of heavy imports.

    Yields the command line, with ``true`` after flags that have no value.
    """
    from lit_extract.commands.help import help_asked_for
    from lit_extract.commands.options import PLAN_OPTIONS, PREDICT_OPTIONS
    from lit_extract.commands.origins import origins_named
    from lit_extract.commands.spelling import check_spelling, what_will_run

    options = PLAN_OPTIONS if command == "plan" else PREDICT_OPTIONS
    if text := help_asked_for(command, args, options):
        print(text)
        raise SystemExit(exit_codes.DONE)
    args = check_spelling(args, options)
    text = what_will_run(args)
    if "--quiet" in args:
        logging.getLogger("lit_extract").setLevel(logging.WARNING)
    if text and command == "predict":
        logging.getLogger("lit_extract").info(text)
    elif text and sys.stderr.isatty():  # what plan prints on stdout is for programs too
        print(text, file=sys.stderr)
    with origins_named(args):
        yield args


def _expanded(arg: str) -> str:
    """Return an argument with ``~/`` replaced by the home, as shells do, but also in ``--option=~/folder``."""
    option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    return f"{option}{equals}{Path(value).expanduser()}" if value.startswith("~/") else arg


def _command(args: Sequence[str]) -> str | None:
    """Return the command that is given; None after printing help or the version, also if nothing is given."""
    name = args[0] if args else "--help"
    if name in ("--help", "-h"):
        print("\n".join(_help()))
    elif name == "--version":
        print(f"lit-extract {__version__}")
    elif name in COMMANDS:
        return name
    else:
        hint = nearest(name, [*COMMANDS, "--help", "--version"]) or f"; one of {', '.join(COMMANDS)}"
        raise InputError(f"{name}: no such command{hint}")
    return None


def _help() -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    yield "usage: lit-extract COMMAND [OPTION …]\n"
    yield from textwrap.wrap(DESCRIPTION, width)
    yield "\ncommands:"
    for name, summary in COMMANDS.items():
        yield from textwrap.wrap(summary, width, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16)
    yield "\nlit-extract COMMAND --help    the options of a command"
    yield "lit-extract --version         the version"
    yield "\na first run, without a dataset, a GPU or a download:"
    yield "  lit-extract predict --config demo/vision --model.untrained true"
