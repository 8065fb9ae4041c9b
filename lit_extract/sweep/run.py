"""The sweep itself: one process after the other, and a summary."""

import argparse
import glob
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from lit_extract.commands.arguments import CONFIG_OPTIONS
from lit_extract.commands.options import PREDICT_OPTIONS
from lit_extract.commands.spelling import check_spelling
from lit_extract.common import exit_codes
from lit_extract.common.errors import InputError, counted, name_some
from lit_extract.common.imports import heavy_imports
from lit_extract.common.progress import clock
from lit_extract.common.untrusted import check_not_empty
from lit_extract.jobs.run_state import Outcome, read_state
from lit_extract.modules.registry import own_name
from lit_extract.storage.layout import FEATURES_SUFFIX, safe_name
from lit_extract.sweep.display import Display
from lit_extract.sweep.processes import PassedOn, outcome_of, signal_name, start_process
from lit_extract.sweep.runs import RUNNING, WAITING, ModelRun, last_given, plan_runs, read_configs

SECONDS_BETWEEN_LOOKS = 0.25

_DESCRIPTION = """Run predict for every model in models.yml that is of the config's kind (vision, language, …), one
process each. Finished models are skipped, unfinished ones resumed, and a failed model does not stop the others, unless
the first two are refused for one reason that is not about the model. Options that are not listed below are passed on to
predict, for every model: lit-extract sweep --config nsd/vision --config trainer/a40 --data.root /data/nsd --model.pool
'[cls, avg]'. Exit code: 0 all done; 1 some failed (the summary has the reasons); 2 wrong input, nothing was run; 3 all
done, but some rows are not finite; 130 or 143 stopped by a signal: run the same command again to resume."""

_DRY_RUN = "Print the commands, one per line, without running them: for GNU parallel or a SLURM array."


def main(args: Sequence[str]) -> int:
    """Run ``lit-extract sweep`` with the given arguments; return the exit code."""
    own, options = sweep_parser("lit-extract sweep", _DESCRIPTION, _DRY_RUN).parse_known_args(args)
    configs = [part for config in own.config for part in ("--config", config)]
    check_spelling([*configs, *options], PREDICT_OPTIONS, vars(own))
    runs = plan_runs(own.config, options, own.models, own.match, own.untrained)
    if own.dry_run:
        print("\n".join(shlex.join(run.command) for run in runs))
        return exit_codes.DONE
    output_dir = output_dir_of(own.config, options)
    logs = make_log_folder("sweep", own.log_dir, output_dir)
    print(f"{counted(len(runs), 'model; its', 'models; their')} output goes to {logs}", flush=True)
    with Display(runs) as display:
        received = run_models(runs, output_dir, logs, display)
    print("\n".join(summary(runs, ["lit-extract", "sweep", *args] if received else [])), flush=True)
    return exit_codes.STOPPED + received if received else exit_code(runs)


def run_models(runs: Sequence[ModelRun], output_dir: str, logs: Path, display: Display) -> int:
    """Run one model after the other, until a signal ends it; return its number, or 0.

    If the first two are refused for one reason, the reason is common to all, and the others are not started.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="lit-extract-sweep-") as folder, PassedOn() as signals:
        for run in runs:
            started = time.monotonic()
            is_progress = any(earlier.state in ("done", "bad rows") for earlier in runs)
            outcome = outcome_if_done(run, output_dir)
            if outcome is None and not signals.received:
                outcome = _run_model(run, logs, Path(folder) / "state.json", is_progress, display, signals)
            if outcome is not None:
                run.state, run.reason, run.seconds = outcome.state, outcome.reason, time.monotonic() - started
                display.end(run)
                outcomes.append(outcome)
            if signals.received or has_common_reason(outcomes):
                break
        return signals.received


def has_common_reason(outcomes: Sequence[Outcome]) -> bool:
    """Return whether these are two refusals for one reason that is not about the model: no GPU, no dataset, …."""
    if len(outcomes) != 2 or outcomes[0] != outcomes[1]:
        return False
    return outcomes[0].exit_code == exit_codes.WRONG_INPUT and not re.search(r"\bmodel\.\w+: ", outcomes[0].reason)


def outcome_if_done(run: ModelRun, output_dir: str) -> Outcome | None:
    """Return the outcome of a model that is done, else None; predict is asked, in this process.

    One import serves all models, and a sweep that finds no features does without it. Whatever is wrong is left to the
    model's own process, which prints it to its log.
    """
    files = f"{glob.escape(safe_name(own_name(run.model)))}_pool-*{FEATURES_SUFFIX}"
    if "://" not in output_dir and not any(Path(output_dir).rglob(files)):
        return None
    with heavy_imports():
        from lit_extract.commands.predict import answer_if_done
    with suppress(Exception):
        return answer_if_done(run.command[run.command.index("predict") + 1 :])
    return None


def _run_model(
    run: ModelRun, logs: Path, state_file: Path, is_progress: bool, display: Display, signals: PassedOn
) -> Outcome:
    """Run one model to its end."""
    run.state, started, is_noted = RUNNING, time.monotonic(), False
    display.start(run)
    state_file.unlink(missing_ok=True)
    try:
        child = start_process(run, logs, state_file, is_progress)
    except OSError as error:  # a full disk, say; perhaps others fare better
        return Outcome("failed", f"can't run it: {error}", exit_codes.FAILED)
    code: int | None = None
    with signals.to(child):
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(SECONDS_BETWEEN_LOOKS)
            state = read_state(state_file)
            run.progress, run.seconds = state.progress or run.progress, time.monotonic() - started
            display.update(run)
            if signals.received and not is_noted and code is None:
                is_noted = True
                display.note(f"{signal_name(signals.received)}: waiting until {run.model} has stopped")
    return outcome_of(code, state, run.log, bool(signals.received))


def summary(runs: Sequence[ModelRun], again: Sequence[str] = ()) -> list[str]:
    """Return lines: how many are in which state, the reasons, and how to resume a stopped sweep: ``again``."""
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {_SHOWN_AS.get(state, state)}" for state in _STATES if counts[state])
    lines = [f"{counted(len(runs), 'model')}: {states}, in {clock(sum(run.seconds for run in runs))}"]
    for state, reason in dict.fromkeys((run.state, run.reason) for run in runs if run.reason):
        models = [run.model for run in runs if (run.state, run.reason) == (state, reason)]
        lines.append(f"  {name_some(models)}: {state}: {reason}")
    if counts[WAITING] and not again:
        lines.append("  the other models were not started, because this reason is not about the model")
    if again:
        lines.append(f"to resume: {shlex.join(again)}")
        if last_given(again, "--overwrite") is not None or "--overwrite" in again:
            lines.append("  without --overwrite, which would start the finished models from scratch")
    return lines


_STATES = ("done", "already done", "bad rows", "failed", "stopped", "waiting")
_SHOWN_AS = {"bad rows": "done with bad rows", "waiting": "not started"}


def exit_code(runs: Sequence[ModelRun]) -> int:
    """Return the exit code of a sweep that was not stopped itself."""
    states = {run.state for run in runs}
    if states & {"failed", "stopped"}:
        return exit_codes.FAILED
    return exit_codes.LOOK if "bad rows" in states else exit_codes.DONE


def output_dir_of(configs: Sequence[str], options: Sequence[str]) -> str:
    """Return where the features of a sweep go."""
    given = last_given(options, "--output_dir")
    found = read_configs(configs).get("output_dir") if given is None else given
    return "features" if found is None else check_not_empty(str(found), "output_dir")


def log_parent(log_dir: str | None, output_dir: str) -> Path:
    """Return where logs go: next to the features, unless these go where no log can be appended."""
    return Path(log_dir or ("logs" if "://" in output_dir else f"{output_dir}/logs"))


def make_log_folder(command: str, log_dir: str | None, output_dir: str) -> Path:
    """Make a folder for each sweep, so that none writes over another's logs."""
    folder = log_parent(log_dir, output_dir) / f"{command}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"can't write logs to {str(folder)!r}: {error.strerror}; choose another --log_dir") from None
    return folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def sweep_parser(prog: str, description: str, dry_run: str) -> argparse.ArgumentParser:
    """Return a parser of the options that choose the models; ``dry_run`` is the help of that option."""
    parser = _Parser(prog, description=description, allow_abbrev=False)
    add = parser.add_argument
    what = "Config of predict; may be given several times."
    add(*CONFIG_OPTIONS, dest="config", action="append", default=[], metavar="FILE", help=what)
    add("--models", metavar="FILE", help="The list of models; default: ./models.yml, else the shipped one.")
    add("--match", metavar="PATTERN", help="Only models whose name has this text, or matches '*clip*', say.")
    flags = {
        "--untrained": "Use random weights.",
        "--dry_run": dry_run,
    }
    for flag, meaning in flags.items():
        add(flag, nargs="?", type=_true_or_false, const=True, default=False, metavar="true", help=meaning)
    add("--log_dir", metavar="DIR", help="Folder for the logs of the models; default: logs/ in --output_dir.")
    return parser


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text == "true"
