"""Configs and options, checked before jsonargparse sees them: they come from strangers as often as from their user.

A config says what is run, so it is a script: the classes that it names are imported, and made if they are of a kind
that has a place there. All else in it is plain values.
"""

import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lit_extract.commands.arguments import CLASS_OPTIONS, CONFIG_OPTIONS, values_of
from lit_extract.common.errors import InputError, one_line, wrong_setting
from lit_extract.common.untrusted import MAX_PATH_BYTES, check_yaml, plain_values, read_yaml, shorten

# Options whose value jsonargparse also takes for the name of a file to read.
_FILE_OPTIONS = (*CLASS_OPTIONS, "--trainer", "--trainer.callbacks", "--model.init_args", "--data.init_args")

_CLASS_NAME = re.compile(r"[A-Za-z_][0-9A-Za-z_]*(\.[A-Za-z_][0-9A-Za-z_]*)*")
_CLASS_KEYS = {"class_path": str, "init_args": dict, "dict_kwargs": dict}

T = TypeVar("T")


def read_config(value: str) -> dict[str, Any]:
    """Return the settings of a config.

    Args:
        value: The file, or YAML itself.

    Raises:
        InputError: It can't be read, has more than plain values, or holds no settings; or it leaves to another file
            what the model, the data, the trainer or its callbacks are.
    """
    what = f"config: {shorten(repr(value), MAX_PATH_BYTES)}"
    content = _parse(value, what) if _is_text(value) else read_yaml(Path(value), what)
    if not isinstance(content, dict):
        raise InputError(f"{what} holds no settings, but {shorten(content)}")
    trainer = content.get("trainer", {})
    if not isinstance(trainer, dict) or not isinstance(trainer.get("callbacks") or [], list):
        raise InputError(
            f"{what}: trainer must have settings, and its callbacks must be a list, not {shorten(trainer)}"
        )
    classes = [(key, content[key]) for key in ("model", "data") if key in content]
    classes += [("trainer.callbacks", callback) for callback in trainer.get("callbacks") or []]
    folder = Path() if _is_text(value) else Path(value).parent
    for setting, named in classes:
        _check_class(named, f"{what}: {setting}", folder)
    return content


def _check_class(named: Any, what: str, folder: Path) -> None:
    settings = named if isinstance(named, dict) else {"class_path": named}
    name = settings.get("class_path")
    is_class = all(key in _CLASS_KEYS and isinstance(value, _CLASS_KEYS[key]) for key, value in settings.items())
    if is_class and name is not None:  # without a name its settings are added to those of another config
        is_class = bool(_CLASS_NAME.fullmatch(name)) and not any((place / name).exists() for place in (Path(), folder))
    if not is_class:
        raise InputError(
            f"{what}: must be the name of a class, or its class_path with init_args, not {shorten(named)}; settings in "
            "another file are given with a --config of their own"
        )


def check_files(args: Sequence[str]) -> None:
    """See that the configs of a command line can be read, and hold settings.

    Raises:
        InputError: One can't.
    """
    for value in values_of(args, CONFIG_OPTIONS):
        read_config(value)
    for value in values_of(args, _FILE_OPTIONS):
        if os.path.exists(value):  # noqa: PTH110 (Path's raises if it is too long)
            read_yaml(Path(value), f"config: {shorten(repr(value), MAX_PATH_BYTES)}")


def _is_text(value: str) -> bool:
    """Return whether a value is YAML itself: jsonargparse takes it so when there is no file of that name."""
    is_yaml = "\n" in value or ": " in value or value.lstrip().startswith(("{", "["))
    return is_yaml and not os.path.exists(value)  # noqa: PTH110 (Path's raises if it is too long)


def _parse(text: str, what: str) -> Any:
    try:
        check_yaml(text)
        return plain_values(yaml.safe_load(text))
    except Exception as error:  # PyYAML raises almost anything on text that only looks like a date or a number
        raise InputError(f"{what} can't be read: {shorten(one_line(error), 400)}") from None


def prepare_parsers() -> None:
    """Make jsonargparse check all YAML, also of options, read local files only, and import nothing that runs commands.

    Not once and for all: Lightning lets it fetch configs from addresses as soon as its command line is imported.
    """
    from jsonargparse import set_parsing_settings

    _check_all_yaml()
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False,  # no object is made of what may be anything
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=[],  # besides those that jsonargparse denies by itself, os and subprocess among them
    )


@cache
def _check_all_yaml() -> None:
    from jsonargparse import get_loader, set_loader

    its_own = get_loader("yaml")

    def load(text: str) -> Any:
        try:
            check_yaml(text)
            return its_own(text)
        except yaml.YAMLError:
            raise
        except Exception as error:  # as above
            raise yaml.YAMLError(one_line(error)) from None

    set_loader("yaml", load, (yaml.YAMLError,))


def parsed(parse: Callable[[], T]) -> T:
    """Return what a parser of jsonargparse makes of a command line.

    Raises:
        InputError: The command line is wrong.
    """
    try:
        return parse()
    except Exception as error:  # jsonargparse raises almost anything on values of other types than it expects
        raise wrong_setting(error) or InputError(one_line(error)) from None


def refuse_null(settings: Mapping[str, Any], function: Callable[..., Any], prefix: str) -> None:
    """Raise InputError for settings that are null and must not be: jsonargparse takes null for any setting.

    Args:
        settings: Of the function, by name.
        function: Whose arguments they are; a class stands for its constructor.
        prefix: Of their names, for the error.
    """
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, Any)
        if name in settings and settings[name] is None and parameter.default is not None and not _may_be_none(hint):
            raise InputError(f"{prefix}{name}: null is not allowed; leave the setting out for its default")


def _may_be_none(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(map(_may_be_none, typing.get_args(hint)))
    return hint in (None, type(None), Any, inspect.Parameter.empty)
