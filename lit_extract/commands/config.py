"""Check configs and options before jsonargparse parses them: a config may come from a stranger.

A config decides what is run, as a script does: the classes that it names are imported, and instantiated if they are of
a kind that is allowed there. Everything else in it is plain values.
"""

import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from lit_extract.commands.arguments import CLASS_OPTIONS, CONFIG_OPTIONS
from lit_extract.common.errors import InputError, nearest, one_line
from lit_extract.common.shipped import shipped_config, shipped_configs
from lit_extract.common.untrusted import MAX_CONFIG_BYTES, MAX_PATH_BYTES, parse_yaml, read_regular, read_yaml, shorten

# Options whose value may also be the name of a file, which jsonargparse then reads.
_FILE_OPTIONS = (*CLASS_OPTIONS, "--trainer", "--trainer.callbacks", "--model.init_args", "--data.init_args")

CLASS_NAME = re.compile(r"[A-Za-z_][0-9A-Za-z_]*(\.[A-Za-z_][0-9A-Za-z_]*)*")
_CLASS_KEYS = {"class_path": str, "init_args": dict, "dict_kwargs": dict}


def find_config(value: str) -> str:
    """Return the path of a config: the user's own file, else the shipped config of this name.

    ``nsd/vision`` and ``configs/nsd/vision.yaml`` name the same config. Any other value is returned unchanged.
    """
    if os.path.isdir(value) or not os.path.exists(value):  # noqa: PTH110, PTH112 (Path's raise if it is too long)
        return str(shipped_config(value) or value)
    return value


def with_found_configs(args: Sequence[str]) -> list[str]:
    """Return a command line with the names of shipped configs replaced by their paths."""
    found = list(args)
    for place, part in enumerate(args):
        option, has_value, value = part.partition("=")
        if part in CONFIG_OPTIONS and place + 1 < len(args):
            found[place + 1] = find_config(args[place + 1])
        elif option in CONFIG_OPTIONS and has_value:
            found[place] = f"{option}={find_config(value)}"
        elif part[:2] in CONFIG_OPTIONS and not part.startswith("--"):
            found[place] = part[:2] + find_config(part[2:])
    return found


def read_config(value: str) -> dict[str, Any]:
    """Return the settings of a config, which is a file or YAML text.

    The model, the data, the trainer and its callbacks must be in the config itself, not in another file that it names.
    """
    what, path = name_config(value), find_config(value)
    if not (_is_text(value) or os.path.exists(path)):  # noqa: PTH110 (Path's raises if it is too long)
        known = [*shipped_configs(), *(f"configs/{name}.yaml" for name in shipped_configs())]
        hint = nearest(value, known) or "; lit-extract configs lists those that ship with the package"
        raise InputError(f"{what} can't be read: No such file or directory{hint}")
    content = parse_yaml(config_text(value), what)
    if content is None:
        raise InputError(f"{what} is empty; it must hold settings")
    if not isinstance(content, dict):
        raise InputError(f"{what} must hold settings, not {shorten(content)}")
    trainer = content.get("trainer", {})
    if not isinstance(trainer, dict) or not isinstance(trainer.get("callbacks") or [], list):
        raise InputError(
            f"{what}: trainer must have settings, and its callbacks must be a list, not {shorten(trainer)}"
        )
    classes = [(key, content[key]) for key in ("model", "data") if key in content]
    classes += [("trainer.callbacks", callback) for callback in trainer.get("callbacks") or []]
    folder = Path() if _is_text(value) else Path(value).parent
    for setting, named in classes:
        for key in named if isinstance(named, dict) else ():
            if key not in _CLASS_KEYS and (hint := nearest(str(key), _CLASS_KEYS)):
                raise InputError(f"{place_of(value, (setting, str(key)))}: {setting}.{key}: no such key{hint}")
        _check_class(named, f"{what}: {setting}", folder)
    return content


def config_text(value: str) -> bytes | str:
    """Return the YAML of a config."""
    if _is_text(value):
        return value
    try:
        return read_regular(Path(find_config(value)), MAX_CONFIG_BYTES)
    except OSError as error:
        raise InputError(f"{name_config(value)} can't be read: {error.strerror or one_line(error)}") from None


def name_config(value: str) -> str:
    """Return the name of a config for error messages."""
    return f"config: {shorten(repr(value), MAX_PATH_BYTES)}"


def place_of(config: str, path: Sequence[str]) -> str:
    """Return the place of a key, such as (model, init_args, pool), for error messages: the config and the line."""
    node: Any = yaml.compose(config_text(config), Loader=yaml.SafeLoader)
    line = ""
    for key in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next((pair for pair in pairs if pair[0].value == key), None)
        if found is None:
            break
        line, node = f", line {found[0].start_mark.line + 1}", found[1]
    return name_config(config) + line


def class_in(named: Any) -> str | None:
    """Return the class that a config names for the model or the data: by its name alone, or by its class_path."""
    name = named.get("class_path") if isinstance(named, dict) else named
    return name if isinstance(name, str) else None


def given_class(args: Sequence[str], part: str) -> str | None:
    """Return the class of the model, or of the data, that a command line and its configs name; the last one counts."""
    in_configs = [class_in(read_config(config).get(part)) for config in values_of(args, CONFIG_OPTIONS)]
    return next((name for name in reversed([*in_configs, *values_of(args, class_options(part))]) if name), None)


def class_options(part: str) -> tuple[str, ...]:
    """Return the options that name the class of the model, or of the data."""
    return tuple(option for option in CLASS_OPTIONS if option.startswith(f"--{part}"))


def _check_class(named: Any, what: str, folder: Path) -> None:
    settings = named if isinstance(named, dict) else {"class_path": named}
    name = settings.get("class_path")
    is_class = all(key in _CLASS_KEYS and isinstance(value, _CLASS_KEYS[key]) for key, value in settings.items())
    if is_class and name is not None:  # without a name its settings are added to those of another config
        is_class = bool(CLASS_NAME.fullmatch(name)) and not any((place / name).exists() for place in (Path(), folder))
    if not is_class:
        raise InputError(
            f"{what}: must be the name of a class, or its class_path with init_args, not {shorten(named)}; pass a file "
            "with settings as another --config"
        )


def check_files(args: Sequence[str]) -> None:
    """Check that the configs of a command line can be read and hold settings."""
    for value in values_of(args, CONFIG_OPTIONS):
        read_config(value)
    for value in values_of(args, _FILE_OPTIONS):
        if os.path.exists(value):  # noqa: PTH110 (Path's raises if it is too long)
            read_yaml(Path(value), f"config: {shorten(repr(value), MAX_PATH_BYTES)}")


def _is_text(value: str) -> bool:
    """Return whether a value is YAML text; jsonargparse parses it as such if no file has that name."""
    is_yaml = "\n" in value or ": " in value or value.lstrip().startswith(("{", "["))
    return is_yaml and not os.path.exists(value)  # noqa: PTH110 (Path's raises if it is too long)


def values_of(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the values of some options, given as ``--option value``, ``--option=value`` or ``-ovalue``."""
    values = []
    for part, following in zip_longest(args, args[1:]):
        option, has_value, value = part.partition("=")
        if option in options and (has_value or following is not None):
            values.append(value if has_value else following)
        elif part[:2] in options and not part.startswith("--"):
            values.append(part[2:])
    return values
