"""The origin of a setting: errors name its config and line, and the nearest name that exists."""

import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lit_extract.commands.arguments import CONFIG_OPTIONS
from lit_extract.commands.config import given_class, place_of, read_config, values_of
from lit_extract.common.errors import InputError, nearest, wrong_setting
from lit_extract.modules.registry import KINDS, read_models

_SETTING = re.compile(r"(?:(?P<part>model|data|trainer)[.])?(?P<name>[a-z_]+)\b(?=[:.,])")


@contextmanager
def origins_named(args: Sequence[str]) -> Iterator[None]:
    """Prefix an error about a setting from a config with that config and the line."""
    try:
        yield
    except (InputError, ArgumentError) as error:
        wrong = wrong_setting(error)
        assert wrong is not None
        raise InputError(_with_origin(str(wrong), args)) from error


def _with_origin(message: str, args: Sequence[str]) -> str:
    found = _SETTING.match(message)
    if found is None or "config: " in message:
        return message
    part, name = found["part"], found["name"]
    path = (name,) if part is None else (part, name) if part == "trainer" else (part, "init_args", name)
    values = values_of(args, _options_of(path))
    if found[0] == "model.name" and "did you mean" not in message:
        message += _nearest_model(args)
    is_section = part is None and any(arg.startswith(f"--{name}.") for arg in args)
    if is_section:
        return message
    for config in reversed(values_of(args, CONFIG_OPTIONS)):
        value = _value_at(read_config(config), path)
        # a wrong value in a config is refused also when an option replaces it
        is_refused = any(f": {shown} must be" in message for shown in (repr(str(value)), str(value)))
        if value is not None and (not values or is_refused):
            return f"{place_of(config, path)}: {message}"
    return message


def given_value(args: Sequence[str], path: Sequence[str]) -> str | None:
    """Return the value of a setting from the command line, else from the last config that has it."""
    if values := values_of(args, _options_of(path)):
        return values[-1]
    in_configs = [_value_at(read_config(config), path) for config in reversed(values_of(args, CONFIG_OPTIONS))]
    return next((str(value) for value in in_configs if value is not None), None)


def _options_of(path: Sequence[str]) -> tuple[str, ...]:
    return f"--{'.'.join(path)}", f"--{'.'.join(key for key in path if key != 'init_args')}"


def _value_at(content: Any, path: Sequence[str]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _nearest_model(args: Sequence[str]) -> str:
    """Return a suggestion for a name that models.yml does not have."""
    kinds = {extractor: kind for kind, extractor in KINDS.items()}
    kind = kinds.get((given_class(args, "model") or "").rpartition(".")[2])
    name = given_value(args, ("model", "init_args", "name"))
    with suppress(InputError):  # a models file of the working directory may be anything
        known = [entry.name for entry in read_models()[kind]] if kind else []
        return nearest(name, known) if name and name not in known else ""
    return ""
