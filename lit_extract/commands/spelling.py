"""Names of options, of classes and of keys in configs, checked before torch and Lightning are imported.

Only what can't be right is refused. Everything else, such as the settings of a user's own class, is left to
jsonargparse, which parses the whole command line again.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from lit_extract.commands.arguments import CONFIG_OPTIONS, no_such_option
from lit_extract.commands.config import (
    CLASS_NAME,
    class_in,
    class_options,
    given_class,
    place_of,
    read_config,
    values_of,
)
from lit_extract.commands.options import NOT_FROM_EXTRACT
from lit_extract.commands.origins import given_value
from lit_extract.commands.signatures import Setting, class_signature, public_classes, signature
from lit_extract.common.errors import InputError, nearest

PARTS = ("model", "data")

_OPTION = re.compile(r"--[A-Za-z_][\w.+-]*|-[A-Za-z]")
_OF_PARSER = ("-c", "-h", "--config", "--help", "--print_config")
_OF_CLASS = ("", "class_path", "init_args", "dict_kwargs", "help")
_PACKAGE = "lit_extract."


@cache
def known_classes(part: str) -> list[str]:
    """Return the names of this package's classes for a part, model or data."""
    return public_classes(("Extractor", "Captioner") if part == "model" else ("DataModule",))


def settings_of_job() -> dict[str, Setting]:
    """Return the settings of ``extract``, except model, data and trainer."""
    settings = signature("lit_extract.jobs.extraction", "extract").settings
    return {name: setting for name, setting in settings.items() if name not in NOT_FROM_EXTRACT}


def settings_of_trainer() -> Mapping[str, Setting]:
    """Return the settings of the trainer."""
    return signature("lit_extract.jobs.trainer", "predict_trainer").settings


def check_spelling(args: Sequence[str], options: Mapping[str, Any], parsed: Iterable[str] = ()) -> list[str]:
    """Refuse unknown names on a command line or in its configs, and options without a value.

    Args:
        args: The command line, without the name of the command.
        options: The command's own options, with their dashes.
        parsed: Names of options that were taken out of the command line before, which may be suggested.

    Returns:
        The command line, with ``true`` after settings that are false by default and have no value.

    Raises:
        InputError: There is no such name; the message has the nearest one. Or an option lacks its value.
    """
    configs = {config: read_config(config) for config in values_of(args, CONFIG_OPTIONS)}
    top = [*settings_of_job(), *(option.removeprefix("--") for option in options)]
    classes: dict[str, list[str]] = {}
    for part in PARTS:
        in_configs = {config: name for config, content in configs.items() if (name := class_in(content.get(part)))}
        for config, name in in_configs.items():
            is_short = isinstance(configs[config][part], str)
            _check_class(part, name, place_of(config, (part,) if is_short else (part, "class_path")))
        on_line = [name for name in values_of(args, class_options(part)) if _is_class_name(name)]
        for name in on_line:
            _check_class(part, name, f"--{part}")
        classes[part] = [*in_configs.values(), *on_line]
    settings = {part: _settings_of(part, names) for part, names in classes.items()}
    for config, content in configs.items():
        _check_keys(config, (), content, [*top, *PARTS, "trainer", "config"], "")
        _check_keys(config, ("trainer",), content.get("trainer"), settings_of_trainer(), " of the trainer")
        for part in PARTS:
            own = content[part].get("init_args") if isinstance(content.get(part), dict) else None
            _check_keys(config, (part, "init_args"), own, settings[part], f" of {_in_short(classes[part])}")
    _check_options(args, top, settings, classes, parsed)
    asks_for_help = any(arg.partition("=")[0].endswith(".help") for arg in args)
    missing = [part for part in PARTS if not classes[part] and not any(arg.startswith(f"--{part}") for arg in args)]
    if missing and not asks_for_help:
        such_as = " ".join(f"--{part} {_SUCH_AS[part]}" for part in missing)
        raise InputError(f"{' and '.join(missing)}: required, but not given: --config nsd/vision, or {such_as}")
    return _with_values(args, settings)


_SUCH_AS = {"model": "VisionExtractor", "data": "NSDDataModule"}


def what_will_run(args: Sequence[str]) -> str | None:
    """Return the model and the data of a command line in a few words; None if it only asks for help or settings."""
    if any(arg.startswith("--print_config") or arg.partition("=")[0].endswith(".help") for arg in args):
        return None
    name = given_value(args, ("model", "init_args", "name"))
    model, data = ((given_class(args, part) or "").rpartition(".")[2] for part in PARTS)
    return f"{model} {name or ''} on {data}: loading PyTorch …"


def _with_values(args: Sequence[str], settings: Mapping[str, Mapping[str, Setting] | None]) -> list[str]:
    known = {f"--{name}": setting for name, setting in settings_of_job().items()}
    known |= {f"--trainer.{name}": setting for name, setting in settings_of_trainer().items()}
    known |= {f"--{part}.{name}": each for part in PARTS for name, each in (settings[part] or {}).items()}
    completed: list[str] = []
    for arg, after in pairwise([*args, "--end"]):
        completed.append(arg)
        setting = known.get(arg.replace(".init_args.", ".").removesuffix("+"))
        if setting is None or not _OPTION.fullmatch(after.partition("=")[0]):
            continue
        if setting.default != "False":
            raise InputError(f"{arg}: needs a value")
        completed.append("true")
    return completed


def _in_short(classes: Sequence[str]) -> str:
    return " or ".join(dict.fromkeys(name.rpartition(".")[2] for name in classes))


def _is_class_name(value: str) -> bool:
    return CLASS_NAME.fullmatch(value) is not None and not os.path.exists(value)  # noqa: PTH110 (as in config.py)


def _check_class(part: str, name: str, what: str) -> None:
    own = name.removeprefix(_PACKAGE)
    known = known_classes(part)
    if "." not in own and own not in known and own not in _ABSTRACT:
        hint = nearest(own, known) or f"; one of {', '.join(known)}, or a class of your own with its module"
        raise InputError(f"{what}: there is no class {name!r}{hint}")


# Left to jsonargparse, which refuses them for a better reason.
_ABSTRACT = ("Predictor", "Extractor", "HuggingFaceExtractor", "StimulusDataModule", "ImageDataModule")


def _settings_of(part: str, names: Sequence[str]) -> dict[str, Setting] | None:
    """Return the settings of the given classes; None if no class is given, or a class is not of this package."""
    settings: dict[str, Setting] = {}
    for full in names:
        module, _, name = full.rpartition(".")
        if name not in known_classes(part) or not f"{module}.".startswith((_PACKAGE, ".")):
            return None
        settings |= class_signature(name).settings
    return settings or None


def _check_keys(
    config: str, path: Sequence[str], content: Any, known: Mapping[str, Any] | Sequence[str] | None, of: str
) -> None:
    if known is None or not isinstance(content, dict):
        return
    for key in content:
        if "." not in key and key.removesuffix("+") not in known:
            place = place_of(config, (*path, key))
            raise InputError(f"{place}: {'.'.join([*path, key])}: no such setting{of}{nearest(key, known)}")


def _check_options(
    args: Sequence[str],
    top: Sequence[str],
    settings: Mapping[str, Mapping[str, Setting] | None],
    classes: Mapping[str, Sequence[str]],
    parsed: Iterable[str],
) -> None:
    of_trainer = settings_of_trainer()
    known = [*(f"--{name}" for name in top), *_OF_PARSER, *(f"--trainer.{name}" for name in of_trainer)]
    known += [f"--{part}.{name}" for part, of_class in settings.items() for name in of_class or ()]
    for arg in args:
        option = arg.partition("=")[0]
        if not _OPTION.fullmatch(option):
            continue
        head, _, rest = option.removeprefix("--").partition(".")
        first = rest.removeprefix("init_args.").partition(".")[0].removesuffix("+")
        if head in PARTS:
            of_class = settings[head]
            if first not in _OF_CLASS and of_class is not None and first not in of_class:
                hint = nearest(option.replace(".init_args.", "."), known)
                raise InputError(f"{option}: no such setting of {_in_short(classes[head])}{hint}")
        elif head == "trainer":
            if first and first not in of_trainer:
                raise InputError(f"{option}: no such setting of the trainer{nearest(option, known)}")
        elif option.removesuffix("+") not in known:
            raise no_such_option(option, [*known, *(f"--{name}" for name in parsed)])
