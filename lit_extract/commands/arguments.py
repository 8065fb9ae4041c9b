"""Command lines, as jsonargparse parses them: of functions, with plain YAML only, in any order."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from lit_extract.common.errors import InputError, nearest, one_line, wrong_setting
from lit_extract.common.untrusted import check_yaml

CONFIG_OPTIONS = ("--config", "-c")
CLASS_OPTIONS = ("--model", "--model.class_path", "--data", "--data.class_path")
FLAG: dict[str, Any] = {"type": bool, "default": False, "nargs": "?", "const": True}  # --json for --json true


def command(function: Callable[..., int], nargs: Mapping[str, str] | None = None) -> Callable[[Sequence[str]], int]:
    """Make a command of a function that returns the exit code.

    Its signature gives the arguments, its docstring their help.
    Arguments without a default are positional, all others options, but for the names in ``nargs``: positional ones
    that have a default ("?") or take several values ("+"), as in argparse.
    """
    parameters = inspect.signature(function).parameters.values()
    positional = [each.name for each in parameters if each.default is each.empty or each.name in (nargs or {})]
    options = ["--help", *(f"--{each.name}" for each in parameters if each.name not in positional)]

    def main(args: Sequence[str]) -> int:
        parser = _Parser(
            prog=f"lit-extract {function.__name__.replace('_', '-')}",
            description=(inspect.getdoc(function) or "").partition("\n\nArgs:")[0],
            exit_on_error=False,
            allow_abbrev=False,
        )
        parser.nargs = nargs or {}
        _check_options(args, options)
        parser.add_function_arguments(function, as_group=False, as_positional=True)
        return function(**parse(parser, args))

    return main


class _Parser(ArgumentParser):
    """Has bare flags, and ``nargs``, which jsonargparse gives no function's argument."""

    nargs: Mapping[str, str] = {}

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        name = args[0].removeprefix("--")
        if name in self.nargs:
            kept = {key: kwargs[key] for key in ("help", "default") if key in kwargs}
            return super().add_argument(name, type=str, nargs=self.nargs[name], **kept)
        action = super().add_argument(*args, **kwargs)
        if action.default is False:
            action.nargs, action.const = FLAG["nargs"], FLAG["const"]
        return action


def _check_options(args: Sequence[str], options: Sequence[str]) -> None:
    for arg in args:
        if arg == "--":  # positional arguments follow
            return
        name = arg.partition("=")[0]
        if name.startswith("--") and name.removesuffix("+") not in options:
            raise no_such_option(name, options)


def no_such_option(name: str, known: Iterable[str]) -> InputError:
    """Return the error about an unknown option, with the nearest known one."""
    return InputError(f"{name}: no such option{nearest(name, known) or '; --help lists them'}")


def in_order(args: Sequence[str]) -> list[str]:
    """Put configs first, then the classes of model and data, then all else; each group keeps its own order.

    jsonargparse reads from left to right: it refuses a setting of a class that it does not know yet, and a config
    replaces the options before it.
    """
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    rest = list(args)
    while rest:
        option, has_value, _ = rest[0].partition("=")
        group = 0 if option in CONFIG_OPTIONS else 1 if option in CLASS_OPTIONS else 2
        n_parts = 1 if group == 2 or has_value else 2
        groups[group].extend(rest[:n_parts])
        del rest[:n_parts]
    return [part for group in groups for part in group]


def parse(parser: ArgumentParser, args: Sequence[str]) -> Namespace:
    """Return the settings of a command line.

    All YAML is checked, also that of options; only local files are read, and nothing is imported that runs commands.
    """
    _check_all_yaml()
    # not once and for all: Lightning lets it fetch configs from addresses as soon as its command line is imported
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False,  # no object is made of what may be anything
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=[],  # in addition to os, subprocess and others that jsonargparse denies by itself
    )
    try:
        return parser.parse_args(list(args))
    except Exception as error:  # jsonargparse raises almost anything on values of other types than it expects
        raise wrong_setting(error) or InputError(one_line(error)) from None


@cache
def _check_all_yaml() -> None:
    its_own = get_loader("yaml")

    def load(text: str) -> Any:
        try:
            check_yaml(text)
            return its_own(text)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML raises almost anything on text that only looks like a date or a number
            raise yaml.YAMLError(one_line(error)) from None

    set_loader("yaml", load, (yaml.YAMLError,))


def refuse_null(settings: Mapping[str, Any], function: Callable[..., Any], prefix: str) -> None:
    """Raise InputError for settings of a function or class that must not be null: jsonargparse takes null for any."""
    for name, hint in get_type_hints(function.__init__ if isinstance(function, type) else function).items():  # type: ignore[misc]
        may_be_none = hint in (Any, type(None)) or type(None) in get_args(hint)
        if name in settings and settings[name] is None and not may_be_none:
            raise InputError(f"{prefix}{name}: null is not allowed; leave the setting out for its default")
