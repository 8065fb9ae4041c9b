"""Turn configs and models.yml into one command per model: pure functions, except that these files are read."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_extract.commands.config import read_config, values_of
from lit_extract.common.errors import InputError
from lit_extract.jobs.run_state import SWEEP, RunProgress
from lit_extract.modules.registry import KINDS, matching_models

KIND_OF_CLASS = {extractor: kind for kind, extractor in KINDS.items()}

WAITING, RUNNING = "waiting", "running"  # followed by the state of the outcome

_CLASS, _SETTINGS = "class_path", "init_args"
# Settings of one model: for other models they would load the wrong weights, silently if these happen to fit.
_OF_ONE_MODEL = ("checkpoint", "revision")


@dataclass
class ModelRun:
    """The run of one model in a sweep."""

    number: int  # counted from 1
    model: str
    command: list[str]
    state: str = WAITING  # or RUNNING, or the state of its Outcome
    progress: RunProgress | None = None
    seconds: float = 0.0  # duration so far
    reason: str = ""  # why it failed, or what to look at
    log: Path | None = None


def plan_runs(
    configs: Sequence[str],
    options: Sequence[str],
    models: str | None = None,
    match: str | None = None,
    untrained: bool = False,
) -> list[ModelRun]:
    """Return the models of the configs' kind, in the order of models.yml, with the command for each."""
    merged = read_configs(configs)
    model = _model_settings(merged)
    check_options(options)
    kind = kind_of(last_given(options, "--model.class_path") or last_given(options, "--model") or model[_CLASS])
    settings = model[_SETTINGS]
    if wrong := [name for name in _OF_ONE_MODEL if settings.get(name) is not None]:
        raise InputError(_one_model_only(f"model.{wrong[0]}: {settings[wrong[0]]!r}"))
    entries = matching_models(kind, models or settings.get("models"), match)
    given = [part for config in configs for part in ("--config", config)] + list(options)
    given += ["--model.models", models] if models else []
    given += ["--model.untrained", "true"] if untrained else []
    # recorded with the features, so that status expects the other models too; not if only some models are chosen
    mark = ["env", f"{SWEEP}=1"] if match is None else []
    predict = [*mark, sys.executable, "-m", "lit_extract", "predict", *given, "--model.name"]
    names = [entry.name for entry in entries]
    return [ModelRun(number, name, [*predict, name]) for number, name in enumerate(names, start=1)]


def read_configs(configs: Sequence[str]) -> dict[str, Any]:
    """Return the merged settings of several YAML files; later files win."""
    merged: dict[str, Any] = {}
    for config in configs:
        merged = _over(merged, read_config(config))
    return merged


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = [name for name in above if isinstance(below.get(name), dict) and isinstance(above[name], dict)]
    return {**below, **above, **{name: _over(below[name], above[name]) for name in both}}


def _model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``class_path`` and ``init_args`` of the model; a config may have only the name of the class."""
    model = config.get("model")
    known = {_CLASS: model} if isinstance(model, str) else dict(model) if isinstance(model, dict) else {}
    settings = known.get(_SETTINGS)
    return {_CLASS: known.get(_CLASS), _SETTINGS: settings if isinstance(settings, dict) else {}}


def kind_of(class_path: str | None) -> str:
    """Return the kind of model whose features a class extracts."""
    if class_path is None:
        raise InputError("config: no config has a model; add one, such as --config nsd/vision")
    name = class_path.rpartition(".")[2]
    if name in KIND_OF_CLASS:
        return KIND_OF_CLASS[name]
    allowed = " and ".join(KIND_OF_CLASS)
    if name == "Captioner":
        raise InputError(f"model: {name} makes captions with one model; use predict. A sweep is for {allowed}")
    raise InputError(f"model: a sweep is for {allowed}, not for {class_path!r}")


def check_options(options: Sequence[str]) -> None:
    """Check that the options can be used for every model."""
    if options and not options[0].startswith("-"):
        raise InputError(f"unrecognized argument: {options[0]!r}; settings of predict begin with --")
    for option in (part.partition("=")[0] for part in options if part.startswith("-")):
        name = option.removeprefix("--").replace(f".{_SETTINGS}.", ".")
        if name == "model.name":
            raise InputError("model.name: a sweep runs all models of models.yml; choose some with --match PATTERN")
        if name == "model.models":
            raise InputError("model.models: for a sweep, pass the models file as --models FILE")
        if name.removeprefix("model.") in _OF_ONE_MODEL:
            raise InputError(_one_model_only(name))
        if name in ("help", "print_config") or name.endswith(".help"):
            raise InputError(f"{option}: only predict has this option: lit-extract predict … {option}")


def _one_model_only(setting: str) -> str:
    return f"{setting}: for one model, but a sweep runs many; put it into models.yml, or use predict"


def last_given(options: Sequence[str], option: str) -> str | None:
    """Return the last value given as ``--option value`` or ``--option=value``."""
    return next(reversed(values_of(options, (option,))), None)
