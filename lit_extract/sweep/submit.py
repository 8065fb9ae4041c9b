"""``lit-extract submit``: queue a sweep on a SLURM cluster, one job per model, with the resources that it needs.

A job is the ordinary predict command, which stops after its batch at SLURM's warning and queues itself again.
"""

import argparse
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_extract.commands.options import PREDICT_OPTIONS, SUBMIT_OPTIONS
from lit_extract.commands.spelling import check_spelling
from lit_extract.common import exit_codes
from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError, counted, one_line
from lit_extract.common.imports import heavy_imports
from lit_extract.modules.registry import own_name
from lit_extract.storage.layout import safe_name
from lit_extract.sweep.request import Request
from lit_extract.sweep.run import log_parent, make_log_folder, outcome_if_done, output_dir_of, sweep_parser
from lit_extract.sweep.runs import ModelRun, last_given, plan_runs, read_configs

if TYPE_CHECKING:
    from lit_extract.planning.needs import Needs

_DESCRIPTION = """Queue predict for every model in models.yml that is of the config's kind, one SLURM job per model,
with the memory and time that plan estimates. Models that are done, or whose job is waiting or running, are not queued;
a job that runs out of time is queued again and resumes. Options that are not listed below are passed on to predict, as
with sweep: lit-extract submit --config nsd/vision --config trainer/a40 --data.root /data/nsd --partition gpu. Exit
code: 0 all done or queued; 2 wrong input, or sbatch refuses a job; 3 some models can't be planned or do not fit the
GPU, and were not queued."""

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")  # SLURM's format
_GPUS = re.compile(r"([\w.-]+:)?\d{1,3}")


def main(args: Sequence[str]) -> int:
    """Run ``lit-extract submit`` with the given arguments; return the exit code."""
    parser = sweep_parser("lit-extract submit", _DESCRIPTION, "Print the scripts for sbatch, but queue nothing.")
    for option, settings in SUBMIT_OPTIONS.items():
        parser.add_argument(option, **settings)
    own, options = parser.parse_known_args(args)
    check_spelling([*_configs(own), *options], PREDICT_OPTIONS, vars(own))
    _check(own)
    output_dir = output_dir_of(own.config, options)
    runs = plan_runs(own.config, options, own.models, own.match, own.untrained)
    left = _without_done(runs, output_dir)
    if not left:
        return exit_codes.DONE
    if own.cluster == "local":
        return _run_here(own, options, output_dir)
    if not own.dry_run:
        left = _without_queued(left)
    if not left:
        return exit_codes.DONE
    requests, problems = _requests(own, options, [run.model for run in left])
    _submit([run for run in left if run.model in requests], requests, own, output_dir)
    for model, problem in problems.items():
        print(f"{model}: not queued: {problem}")
    return exit_codes.LOOK if problems else exit_codes.DONE


def _configs(own: argparse.Namespace) -> list[str]:
    return [part for config in own.config for part in ("--config", config)]


def _check(own: argparse.Namespace) -> None:
    """Check values that SLURM would refuse or misread."""
    if own.time and not _TIME.fullmatch(own.time):
        raise InputError(f"time: {own.time!r} must be in SLURM's format: minutes, hours:minutes:seconds, or days-hours")
    if own.gpus and not _GPUS.fullmatch(own.gpus):
        raise InputError(f"gpus: {own.gpus!r} must be a number, or a type and a number such as a40:2")
    for name in ("memory", "cpus"):
        if (value := getattr(own, name)) is not None and value < 1:
            raise InputError(f"{name}: {value} must be 1 or more")
    for name in ("partition", "account"):
        if not re.fullmatch(r"[\w.,@-]+", getattr(own, name) or "default"):
            raise InputError(f"{name}: {getattr(own, name)!r} must be a name")
    for option in own.sbatch:
        if not re.fullmatch(r"[a-z][a-z-]*(=[^\n]+)?", option):
            raise InputError(f"sbatch: {option!r} must be the name and value of an option of sbatch, such as qos=long")
        if option.partition("=")[0] == "comment":
            raise InputError(f"sbatch: {option!r} can't be given: lit-extract uses the comment to find queued jobs")


def _without_done(runs: Sequence[ModelRun], output_dir: str) -> list[ModelRun]:
    """Return the models that are not done; print those that are."""
    left = []
    for run in runs:
        if (outcome := outcome_if_done(run, output_dir)) is None:
            left.append(run)
        else:
            print(f"{run.model}: {outcome.state}", flush=True)
    return left


def _without_queued(runs: Sequence[ModelRun]) -> list[ModelRun]:
    """Return the models for which no job of this user waits or runs; print the others."""
    lines = _slurm("squeue", "--me", "--noheader", "--format=%i %k").splitlines()
    jobs = {mark: job for job, _, mark in (line.strip().partition(" ") for line in lines)}
    for run in runs:
        if (job := jobs.get(_mark(run))) is not None:
            print(f"{run.model}: already queued as job {job}", flush=True)
    return [run for run in runs if _mark(run) not in jobs]


def _requests(
    own: argparse.Namespace, options: Sequence[str], models: Sequence[str]
) -> tuple[dict[str, Request], dict[str, str]]:
    """Return the request for the job of each model, and why some models get none."""
    trainer = read_configs(own.config).get("trainer") or {}
    accelerator = last_given(options, "--trainer.accelerator") or trainer.get("accelerator")
    gpus = own.gpus or ("0" if accelerator == "cpu" else "1")
    given = Request(own.memory, own.time, gpus, own.cpus)
    if given.memory and given.time:
        return dict.fromkeys(models, given), {}
    with heavy_imports():
        from lit_extract.commands.plan import PlanCLI, plan_models
        from lit_extract.planning.duration import estimate_seconds
    args = [*_configs(own), *options, "--model.name", models[0], "--match", own.match or "*"]
    args += ["--models", own.models] if own.models else []
    args += ["--untrained"] if own.untrained else []
    for name, value in {"rows": own.rows, "card_memory": own.card_memory, "host_memory": own.memory}.items():
        args += [f"--{name}", str(value)] if value else []
    names, _, plans = plan_models(PlanCLI.read(args).config)
    requests, problems = {}, {}
    for name, needs in zip(names, plans, strict=True):
        if name in models and (problem := _why_not(needs)):
            problems[name] = problem
        elif name in models:
            requests[name] = given.filled(needs.host, estimate_seconds(needs, own.cpus))
    return requests, problems


def _why_not(needs: "Needs") -> str | None:
    """Return why a model is not queued; None if it can run. A job requests host memory, but no GPU memory."""
    if needs.problem or needs.device is None or needs.fits != "no":
        return needs.problem
    return f"it needs {as_size(needs.device)} of GPU memory; if the GPU is larger than planned, pass --card_memory GB"


def _submit(
    runs: Sequence[ModelRun], requests: Mapping[str, Request], own: argparse.Namespace, output_dir: str
) -> None:
    """Queue a job for each model, or print its script."""
    if own.dry_run:
        logs = log_parent(own.log_dir, output_dir)
        print("\n".join(_script(own, run, requests[run.model], logs) for run in runs), end="")
        return
    logs = make_log_folder("submit", own.log_dir, output_dir)
    for run in runs:
        request = requests[run.model]
        job = _slurm("sbatch", "--parsable", script=_script(own, run, request, logs), what=f" {run.model}")
        # the cluster's name may follow
        print(f"{run.model}: job {job.partition(';')[0].strip()}, {request.memory} GB, {request.time}", flush=True)
    queued = counted(len(runs), "job is queued; its", "jobs are queued; their")
    print(f"{queued} output goes to {logs}; see squeue --me and lit-extract status")


def _mark(run: ModelRun) -> str:
    """Return the mark by which a job is recognized: a hash of its command and its folder."""
    return "lit-extract-" + hashlib.sha256(f"{Path.cwd()}\n{shlex.join(run.command)}".encode()).hexdigest()[:32]


def _slurm(tool: str, *arguments: str, script: str = "", what: str = "") -> str:
    """Run one of SLURM's tools; return what it prints."""
    if (path := shutil.which(tool)) is None:
        raise InputError("cluster: there is no SLURM here; run this on a login node, or with --cluster local")
    done = subprocess.run([path, *arguments], input=script, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{tool} refuses{what}: {one_line(done.stderr)}")
    return done.stdout


def _script(own: argparse.Namespace, run: ModelRun, request: Request, logs: Path) -> str:
    """Return the script for sbatch."""
    name = safe_name(own_name(run.model))
    options = {
        "job-name": name,
        "comment": _mark(run),
        "output": f"{logs.absolute()}/{name}".replace("%", "%%") + "-%j.log",
        "open-mode": "append",  # for a job that is queued again
        "partition": own.partition,
        "account": own.account,
        "time": request.time,
        "mem": f"{request.memory}G",
        "gres": f"gpu:{request.gpus}" if request.n_gpus else None,
        "nodes": "1",
        "ntasks-per-node": str(max(1, request.n_gpus)),
        "cpus-per-task": str(request.cpus),
        "signal": "USR1@90",  # to the command under srun, which finishes its batch and queues the job again
        "requeue": "",
    } | {name: value for name, _, value in (option.partition("=") for option in own.sbatch)}
    lines = [
        f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")
        for name, value in options.items()
        if value is not None
    ]
    cores = f"export SRUN_CPUS_PER_TASK={request.cpus}"  # srun does not take it from sbatch
    return "\n".join(["#!/bin/bash", *lines, "", cores, f"exec srun {shlex.join(run.command)}", ""])


def _run_here(own: argparse.Namespace, options: Sequence[str], output_dir: str) -> int:
    """Start a sweep in the background: without a queue, models run one after the other."""
    given = {"--models": own.models, "--match": own.match, "--log_dir": own.log_dir}
    named = [part for option, value in given.items() if value for part in (option, value)]
    untrained = ["--untrained"] if own.untrained else []
    sweep = [sys.executable, "-m", "lit_extract", "sweep", *_configs(own), *options, *named, *untrained]
    if own.dry_run:
        print(shlex.join(sweep))
        return exit_codes.DONE
    log = make_log_folder("submit", own.log_dir, output_dir) / "sweep.log"
    with log.open("xb") as file:
        process = subprocess.Popen(
            sweep, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    print(f"process {process.pid} runs the sweep; its output goes to {log}; lit-extract status shows it")
    return exit_codes.DONE
