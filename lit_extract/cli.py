"""The command line. Nothing heavy is imported before the command that needs it."""

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence

from lit_extract import __version__
from lit_extract.errors import InputError, wrong_setting

EXIT_OK, EXIT_INPUT_ERROR = 0, 2


def predict() -> None:
    """Extract features of a dataset with a model; resumes by itself."""


def finalize(store: str, keep_store: bool = False) -> int:
    """Turn a complete store into its features files.

    Args:
        store: Folder of the store (….zarr).
        keep_store: Leave the store in place.
    """
    from lit_extract.finalize import finalize as run

    for file in run(store, keep_store):
        print(file)
    return EXIT_OK


def show(path: str, pool: str | None = None, picture: str | None = None) -> int:
    """Say what a features file or an unfinished store holds, and draw it.

    Args:
        path: A .pt, or the .zarr folder of an unfinished run.
        pool: Which pooling of a store that has several.
        picture: PNG to draw: size of the activations by layer, and how alike the stimuli are.
    """
    from lit_extract.show import show as run

    run(path, pool, picture)
    return EXIT_OK


COMMANDS: tuple[Callable[..., int | None], ...] = (predict, finalize, show)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:1] == ["predict"]:
            from lit_extract.predict import main as run_predict

            return run_predict(args[1:])
        return _run(args)
    except (InputError, ArgumentError) as error:
        print(f"lit-extract: error: {wrong_setting(error)}", file=sys.stderr)
        return EXIT_INPUT_ERROR


def _run(args: list[str]) -> int:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="lit-extract",
        description="Activations of every transformer block of vision and language models, for brain datasets.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    commands = {command.__name__: command for command in COMMANDS}
    for name, command in commands.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        subparser = ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
        subparser.add_function_arguments(command, as_positional=True)
        subcommands.add_subcommand(name, subparser, help=summary)
    config = parser.parse_args(args)
    return commands[config.command](**config[config.command]) or EXIT_OK
