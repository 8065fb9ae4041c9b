"""``lit-extract plan``: estimate what predict will need, for one model or all of models.yml, as a table or JSON."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pydoc import locate

import torch
from jsonargparse import Namespace
from tqdm import tqdm

from lit_extract.commands.options import PLAN_OPTIONS
from lit_extract.commands.predict import PredictCLI
from lit_extract.common import exit_codes
from lit_extract.common.console import as_size, as_table
from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.host import host_memory
from lit_extract.data.base import StimulusDataModule
from lit_extract.data.captions import CaptionDataModule
from lit_extract.jobs.trainer import default_precision
from lit_extract.modules.base import Extractor
from lit_extract.modules.registry import matching_models
from lit_extract.planning.needs import (
    TOKENS_A_CAPTION,
    Machine,
    Needs,
    disk_needed,
    estimate_needs,
    fits_disk,
    pixels_bytes,
)
from lit_extract.planning.streaming import Rates, measure_rates
from lit_extract.storage.disk import free_bytes
from lit_extract.storage.layout import shapes_in_words
from lit_extract.storage.places import place_of, to_path

PLAN_FORMAT = 3  # of --json, docs/store-format.md
_WIDTH = 120
_COUNTS = {"B": 10**9, "M": 10**6, "k": 10**3}


class PlanCLI(PredictCLI):
    """The settings of predict and plan; the model and the data are not instantiated yet."""

    prog = "lit-extract plan"
    options = PLAN_OPTIONS

    def instantiate_classes(self) -> None:
        """Make nothing: each model is made when it is planned."""


def main(args: list[str]) -> int:
    """Run ``lit-extract plan`` with the given arguments; return the exit code."""
    config = PlanCLI.read(args).config
    names, machine, plans = plan_models(config)
    if len(names) == 1 and plans[0].problem:
        raise InputError(plans[0].problem)
    rates = _rates(plans, machine)
    if config.json:
        print(as_json(plans, machine, rates))
    else:
        print(as_text(plans, machine, _data(config), config.output_dir, rates))
    fits = fits_disk(plans, machine) and all(plan.fits not in ("no", "host") for plan in plans)
    return exit_codes.DONE if fits else exit_codes.LOOK


def plan_models(config: Namespace) -> tuple[list[str], Machine, list[Needs]]:
    """Return the names of the models that a command line asks about, the machine, and what each model needs."""
    extractor = locate(config.model.class_path)
    if not (isinstance(extractor, type) and issubclass(extractor, Extractor)):
        raise InputError(f"plan is for features; {config.model.class_path} makes captions")
    machine = _machine(config)
    rows = config.rows or _count_rows(_data(config))
    names = _model_names(config, extractor.kind)
    plans = [
        _plan_or_problem(config, extractor, name, rows, machine, len(names) > 1)
        for name in tqdm(names, unit=" models", leave=False, disable=None if len(names) > 1 else True)
    ]
    return names, machine, plans


def _plan_or_problem(
    config: Namespace, extractor: type[Extractor], name: str, rows: int, machine: Machine, is_one_of_many: bool
) -> Needs:
    untrained = {"untrained": True} if config.untrained else {}
    models = {"models": config.models} if config.models else {}
    try:
        model = extractor(**{**config.model.init_args.as_dict(), "name": name, **untrained, **models})
        folder = to_path(config.output_dir, "output_dir")
        keep = config.finalize, config.keep_store
        return estimate_needs(model, _data(config), rows, machine, folder, *keep, config.overwrite, config.tag)
    except InputError as error:
        return Needs(name, problem=str(error))
    except Exception as error:  # in this model only; the others can still be planned
        if not is_one_of_many:
            raise
        return Needs(name, problem=f"{type(error).__name__}: {one_line(error)}")


def _data(config: Namespace) -> StimulusDataModule:
    settings = config.data.init_args.as_dict()
    if config.rows and "captions" in settings:
        settings["captions"] = None  # they are not read
    data: StimulusDataModule = locate(config.data.class_path)(**settings)  # type: ignore[operator]
    return data


def _count_rows(data: StimulusDataModule) -> int:
    try:
        return len(data.read_table())
    except InputError as error:
        raise InputError(f"{error}; to plan without the dataset, pass the number of stimuli: --rows N") from None


def _model_names(config: Namespace, kind: str) -> list[str]:
    settings = config.model.init_args
    if config.models is None and config.match is None:
        return [settings.name]
    if own := [f"model.{key}" for key in ("checkpoint", "revision") if settings.get(key) is not None]:
        raise InputError(f"{' and '.join(own)}: for one model only, but --models and --match plan several")
    return [entry.name for entry in matching_models(kind, config.models or settings.models, config.match)]


def _machine(config: Namespace) -> Machine:
    on_cpu = config.trainer.accelerator == "cpu"
    if on_cpu and config.card_memory:
        raise InputError(f"card_memory: {config.card_memory} GB, but trainer.accelerator is 'cpu'; give one of the two")
    has_gpu = torch.cuda.is_available()
    known = on_cpu or has_gpu  # an A40 multiplies in bf16
    precision = config.trainer.precision or (default_precision(config.trainer.accelerator) if known else "bf16-true")
    folder = to_path(config.output_dir, "output_dir")
    local = place_of(folder).local
    free = None if local is None else free_bytes(local)
    host = round(config.host_memory * 10**9) if config.host_memory else None
    if on_cpu:
        return Machine(None, host or host_memory(), precision, free)
    if has_gpu and not config.card_memory:
        card = torch.cuda.get_device_properties(0)
        return Machine(card.name, card.total_memory, precision, free, host or host_memory())
    memory = round((config.card_memory or 48) * 10**9)
    return Machine("GPU" if config.card_memory else "A40", memory, precision, free, host)


def _rates(plans: Sequence[Needs], machine: Machine) -> Rates | None:
    """Measure the rates that limit streamed models, if there are any."""
    streamed = [plan for plan in plans if plan.streamed is not None]
    if not streamed:
        return None
    dtype = torch.bfloat16 if machine.precision == "bf16-true" else torch.float32
    return measure_rates([plan.checkpoint for plan in streamed if plan.checkpoint], machine.card is not None, dtype)


def as_json(plans: Sequence[Needs], machine: Machine, rates: Rates | None) -> str:
    """Return one JSON object, see docs/store-format.md; sizes are in bytes."""
    one_by_one, at_once = disk_needed(plans)
    content = {
        "format": PLAN_FORMAT,
        "machine": asdict(machine),
        "rates": None if rates is None else asdict(rates),
        "models": [asdict(plan) for plan in plans],
        "total": {
            "features": sum(plan.features for plan in plans),
            "disk_left_one_by_one": one_by_one,
            "disk_left_at_once": at_once,
            "pixels": pixels_bytes(plans),
            "fits_disk": fits_disk(plans, machine),
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def as_text(
    plans: Sequence[Needs], machine: Machine, data: StimulusDataModule, output_dir: str, rates: Rates | None
) -> str:
    """Return the facts that all models share, a table with one line per model, and the totals."""
    planned = [plan for plan in plans if plan.problem is None]
    lines = []
    if planned:
        pools = ", ".join(dict.fromkeys(pool for plan in planned for pool in plan.pools))
        what = f"{planned[0].rows:,} {data.unit} of {data.dataset_name}, pooling {pools}, {machine.precision}"
        cells = [_cells(plan, machine) for plan in planned]
        lines = [f"{what}, {machine.card or 'CPU'} of {as_size(machine.memory)}", ""]
        lines += [*as_table(cells, right=list(cells[0])[1:]), "", *_explanations(planned, data, machine), ""]
        lines += _streamed(planned, data, rates) if rates is not None else []
        lines += _totals(planned, machine, output_dir)
    problems = [textwrap.shorten(f"{plan.model}: {plan.problem}", _WIDTH - 2) for plan in plans if plan.problem]
    if problems:
        lines += [f"not planned: {len(problems)} (--json has the reasons in full)", *(f"  {line}" for line in problems)]
    return "\n".join(lines)


def _cells(plan: Needs, machine: Machine) -> dict[str, str]:
    rows, tokens = plan.batch
    unit, size = next((unit, size) for unit, size in _COUNTS.items() if plan.parameters >= size or unit == "k")
    return {
        "model": plan.model,
        "L×D": f"{plan.layers}×{shapes_in_words(plan.layer_shapes)}",
        "params": f"{plan.parameters / size:.1f} {unit}",
        "batch": f"{rows}×{tokens}" if tokens else str(rows),
        ".pt": as_size(plan.features) if plan.features else "-",
        "disk": as_size(plan.disk_peak),
        "device": "-" if plan.device is None else as_size(plan.device),
        "host": as_size(plan.host),
        "fits": plan.fits,
        "room": "yes" if fits_disk([plan], machine) else "no",
    }


def _explanations(planned: Sequence[Needs], data: StimulusDataModule, machine: Machine) -> list[str]:
    lines = ["disk: peak, with .pt files and the store that they are made from; device, host: peak memory"]
    for seen in dict.fromkeys(plan.seen for plan in planned if plan.seen):
        lines += [f"seen by {name_some([plan.model for plan in planned if plan.seen == seen], 2)}:", f"  {seen}"]
    if any(plan.fits == "split" for plan in planned):
        lines.append("split: the batch does not fit, but a smaller one does; the run splits it automatically")
    if machine.host_memory is not None and any(plan.fits == "host" for plan in planned):
        lines.append(f"host: not enough host memory; {as_size(machine.host_memory)} may be used here")
    if isinstance(data, CaptionDataModule) and data.captions is None:
        lines.append(f"captions were not read; the longest is assumed to have {TOKENS_A_CAPTION} tokens")
    return lines


def _streamed(planned: Sequence[Needs], data: StimulusDataModule, rates: Rates) -> list[str]:
    """Return the time that streamed models need, and what limits it."""
    lines = ["streamed: the weights do not fit; blocks are read from disk one by one, each for many rows at once:"]
    for plan in planned:
        if plan.streamed is None:
            continue
        bound, seconds = rates.bound(plan.streamed)
        hours = seconds * math.ceil(plan.rows / plan.streamed.rows) / 3600
        lines.append(
            f"  {plan.model}: {as_size(plan.streamed.bytes_read)} for every {plan.streamed.rows:,} {data.unit}, "
            f"bounded by {bound}: {hours:.1f} hours"
        )
    measured = "measured here" if rates.is_measured else "measured here for the disk, an A40's for arithmetic"
    rate = f"{as_size(rates.disk)}/s from the disk, {rates.operations / 1e12:.1f} TFLOP/s"
    return [*lines, f"  rates are {measured}: {rate}", ""]


def _totals(planned: Sequence[Needs], machine: Machine, output_dir: str) -> list[str]:
    one_by_one, at_once = disk_needed(planned)
    size = sum(plan.features for plan in planned)
    features = f"{as_size(size)} of .pt files" if size else "no .pt files: the features stay in stores"
    left = f"disk space still needed: {as_size(one_by_one)}"
    if len(planned) > 1:
        features, left = f"{len(planned)} models: {features}", f"{left} one after another, {as_size(at_once)} at once"
    if machine.free_disk is None:
        free = f"{output_dir} is not on a disk of this machine"
    else:
        verdict = "enough" if fits_disk(planned, machine) else "NOT ENOUGH"
        free = f"{as_size(machine.free_disk)} are free at {output_dir}: {verdict}"
    lines = [features, left, free]
    if pixels := pixels_bytes(planned):
        lines.append(f"decoded images are also cached if there is space: {as_size(pixels)} (not with --data.cache off)")
    return lines
