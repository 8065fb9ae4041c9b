"""A sweep goes through all models whatever happens to one, says what happened, and hands on each signal once."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from helpers import runs
from rich.console import Console

from lit_extract.jobs.run_state import Outcome, RunProgress, RunState, read_state
from lit_extract.sweep.display import Display, window
from lit_extract.sweep.processes import outcome_of
from lit_extract.sweep.run import exit_code, summary
from lit_extract.sweep.runs import ModelRun

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PROGRESS = RunProgress("images", 100, 40, 12.34, 75.0)

SWEEP = """
import sys
from lit_extract.cli import main
code = main(["sweep", *sys.argv[1:]])
heavy = {"torch", "lightning", "numpy", "pandas", "zarr", "timm", "transformers"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""
N_IMAGES = 400
GOOD, BROKEN, ALSO_GOOD = "test_vit.r160_in1k", "resnet18.a1_in1k", "test_vit"


def sweep_process(arguments, is_first=False, **settings):
    """A sweep in a process; the first one, with nothing there, fails when it has imported anything heavy."""
    start = ["-c", SWEEP] if is_first else ["-m", "lit_extract", "sweep"]
    return subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **runs.ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **settings},
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Three models, of which one fails: stopped by SIGTERM in the first, then run to the end; what both runs said."""
    folder = tmp_path_factory.mktemp("sweep")
    output = folder / "out put"
    models = folder / "models.yml"
    models.write_text(yaml.safe_dump({"vision": [GOOD, BROKEN, ALSO_GOOD]}))
    images = runs.write_images(folder / "images", N_IMAGES)
    arguments = [
        *("--config", REPOSITORY / "configs" / "folder" / "vision.yaml"),
        *("--config", REPOSITORY / "configs" / "trainer" / "cpu.yaml"),
        *("--models", models, "--untrained", "--data.root", images, "--output_dir", output),
        *("--data.batch_size", 8, "--data.shard_rows", 8, "--data.num_workers", 0, "--trainer.precision", "32-true"),
    ]
    first = sweep_process(arguments, is_first=True)
    while len(runs.done_shards(output)) < 2 and first.poll() is None:
        time.sleep(0.002)
    first.send_signal(signal.SIGTERM)
    said_first, _ = first.communicate()
    done = len(runs.done_shards(output))
    second = sweep_process(arguments)
    said_second, _ = second.communicate()
    return {
        "arguments": arguments,
        "output": output,
        "done": done,
        "first": (first.returncode, said_first),
        "second": (second.returncode, said_second),
    }


def test_stopped_by_a_signal_it_reports_how_far_it_is_and_how_to_resume(swept):
    code, said = swept["first"]
    assert code == 128 + signal.SIGTERM, said
    assert 2 <= swept["done"] < N_IMAGES // 8
    assert f"SIGTERM: waiting until {GOOD} has stopped\n" in said
    assert "3 models: 1 stopped, 2 not started" in said
    assert f"  {GOOD}: stopped: {swept['done']} of 50 shards are done\n" in said
    again = said.splitlines()[-1]
    assert again.startswith("to resume: lit-extract sweep ")
    assert shlex.split(again.partition(": ")[2])[2:] == [str(argument) for argument in swept["arguments"]]
    assert f"[2 of 3] {BROKEN}" not in said


def test_given_again_it_resumes_and_a_failure_keeps_no_other_from_running(swept):
    code, said = swept["second"]
    assert code == 1, said
    lines = said.splitlines()
    assert f"[1 of 3] {GOOD}: starts" in lines
    assert any(line.startswith(f"[1 of 3] {GOOD}: done, {N_IMAGES} of {N_IMAGES} images, ") for line in lines)
    assert any(line.startswith(f"[2 of 3] {BROKEN}: failed, ") for line in lines)
    assert any(line.startswith(f"[3 of 3] {ALSO_GOOD}: done, {N_IMAGES} of {N_IMAGES} images, ") for line in lines)
    assert lines[-2].startswith("3 models: 2 done, 1 failed, in ")
    assert lines[-1].startswith(f"  {BROKEN}: failed: config: ")
    assert f", line 6: model.pool: the layers of '{BROKEN}' are maps" in lines[-1]
    for model in (GOOD, ALSO_GOOD):
        file = swept["output"] / "folder" / "all-untrained" / f"{model}_pool-cls-untrained.pt"
        feats = torch.load(file, weights_only=True)["feats"]
        assert len(feats) == N_IMAGES
        assert feats.isfinite().all()


def test_each_model_has_a_log_and_what_was_started_was_resumed(swept):
    sweeps = sorted((swept["output"] / "logs").iterdir(), key=lambda folder: folder.stat().st_mtime)
    assert [sorted(log.name for log in folder.iterdir()) for folder in sweeps] == [
        [f"01-{GOOD}.log"],
        [f"01-{GOOD}.log", f"02-{BROKEN}.log", f"03-{ALSO_GOOD}.log"],
    ]
    log = (sweeps[1] / f"01-{GOOD}.log").read_text()
    assert f"{swept['done']} of 50 shards done" in log
    assert "--model.untrained true" in log.splitlines()[0]
    assert "starts" not in (sweeps[1] / f"03-{ALSO_GOOD}.log").read_text()


def test_what_is_done_is_skipped(swept):
    file = swept["output"] / "folder" / "all-untrained" / f"{GOOD}_pool-cls-untrained.pt"
    before = file.stat().st_mtime_ns
    process = sweep_process([*swept["arguments"], "--match", "test_vit.*"])
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "1 model: 1 already done" in said
    assert f"[1 of 1] {GOOD}: already done" in said
    assert f"{GOOD}: starts" not in said, "no process was started"
    assert file.stat().st_mtime_ns == before


def test_features_of_other_settings_are_no_reason_to_skip_a_model(swept):
    process = sweep_process([*swept["arguments"], "--match", "test_vit.*", "--model.seed", 5])
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert f"[1 of 1] {GOOD}: starts" in said
    assert "seed was 0, now 5" in said


def test_dry_run_prints_commands_for_a_shell_and_runs_nothing(swept, cli, tmp_path):
    output = tmp_path / "it's here"
    query = ("--data.query", "stimulus_id < '00002'", "--data.subset", "two", "--output_dir", output)
    code, out, err = cli("sweep", *swept["arguments"], *query, "--dry_run")
    assert (code, err) == (0, "")
    assert not output.exists()
    lines = out.splitlines()
    assert [shlex.split(line)[-1] for line in lines] == [GOOD, BROKEN, ALSO_GOOD]
    options = shlex.split(lines[0])
    assert options[options.index("two") - 2] == "stimulus_id < '00002'"
    assert str(output) in options


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--match", "no such model"], ["match", "no such model"]),
        (["--model.name", "x"], ["model.name", "--match"]),
        (["--untrained", "perhaps"], ["--untrained", "perhaps"]),
        (["--log_dir", "/proc/none"], ["logs", "/proc/none"]),
        (["--models"], ["--models"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_runs(cli, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("sweep", "--config", REPOSITORY / "configs" / "demo" / "vision.yaml", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lit-extract: error: ")
    assert err.count("\n") == 1
    assert [text for text in named if text not in err] == []
    assert list(tmp_path.iterdir()) == []


CHILD = """
import os, signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: heard.append(number))
print("ready in a group of its own" if os.getpgrp() == os.getpid() else "ready", flush=True)
end = time.monotonic() + 20
while not heard and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.5)
print("heard", *map(int, heard), flush=True)
sys.exit(128 + heard[0])
"""
PARENT = """
import sys
from pathlib import Path
from lit_extract.sweep.display import Display
from lit_extract.sweep.run import run_models
from lit_extract.sweep.runs import ModelRun
runs = [ModelRun(number, f"m{number}", [sys.executable, sys.argv[2]]) for number in (1, 2)]
with Display(runs) as display:
    received = run_models(runs, sys.argv[1], Path(sys.argv[1]), display)
print([run.state for run in runs])
sys.exit(128 + received)
"""


@pytest.fixture
def parent(tmp_path):
    """The command of a sweep over two programs that count signals, and the log of the first."""
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    return [sys.executable, "-c", PARENT, str(tmp_path), str(child)], tmp_path / "01-m1.log"


def wait_for(log, text):
    end = time.monotonic() + 30
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < end, log.read_text() if log.exists() else "no log"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "handed_on"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)],
)
def test_a_signal_is_handed_on_once_and_the_next_model_is_not_begun(parent, number, handed_on):
    command, log = parent
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        wait_for(log, "ready")
        process.send_signal(number)
        said, _ = process.communicate()
    assert process.returncode == 128 + number, said
    assert f"heard {int(handed_on)}\n" in log.read_text()
    assert "['stopped', 'waiting']" in said
    assert not log.with_name("02-m2.log").exists()


def test_ctrl_c_in_a_terminal_reaches_the_model_once_though_it_goes_to_the_whole_group(parent):
    command, log = parent
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execv(command[0], command)
    wait_for(log, "ready")
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert "heard 2\n" in log.read_text()
    assert "ready in a group of its own" in log.read_text(), "two that come at once may be heard as one"
    os.close(terminal)


def test_a_second_signal_is_handed_on_as_well(parent):
    command, log = parent
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        wait_for(log, "ready")
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 130
    assert "heard 2 15\n" in log.read_text()


def test_a_killed_sweep_leaves_no_model_running(parent):
    command, log = parent
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        wait_for(log, "ready")
        process.kill()
    wait_for(log, "heard 15")


RECORDED = RunState(outcome=Outcome("failed", "data.root: gone", 2))


@pytest.mark.parametrize(
    ("code", "state", "was_stopped", "expected", "named"),
    [
        (2, RECORDED, False, "failed", "data.root: gone"),
        (2, RECORDED, True, "failed", "data.root: gone"),
        (143, RunState(outcome=Outcome("stopped", "3 of 9", 143)), True, "stopped", "3 of 9"),
        (130, RunState(), True, "stopped", ""),
        (-15, RunState(), True, "stopped", ""),
        (-9, RunState(progress=PROGRESS), False, "failed", "SIGKILL (out of memory?); its output is in x.log"),
        (-11, RunState(outcome=Outcome("done", "", 0)), False, "failed", "SIGSEGV; its output is in x.log"),
        (1, RunState(), False, "failed", "exit code 1; its output is in x.log"),
        (1, RunState(), True, "failed", "exit code 1; its output is in x.log"),
        (200, RunState(), False, "failed", "signal 72; its output is in x.log"),
    ],
)
def test_outcome_of(code, state, was_stopped, expected, named):
    outcome = outcome_of(code, state, Path("x.log"), was_stopped)
    assert (outcome.state, outcome.exit_code) == (expected, code)
    assert named in outcome.reason


def runs_in(*states):
    return [
        ModelRun(number, f"m{number}", [], state, log=Path("x.log")) for number, state in enumerate(states, start=1)
    ]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["done", "already done"], 0),
        (["done", "bad rows"], 3),
        (["bad rows", "failed", "done"], 1),
    ],
)
def test_exit_code(states, code):
    assert exit_code(runs_in(*states)) == code


def test_summary_has_each_reason():
    ended = runs_in("done", "failed", "bad rows", "waiting")
    ended[1].reason, ended[2].reason = "data.root: gone", "2 rows are NaN"
    assert summary(ended, ["lit-extract", "sweep", "--overwrite"]) == [
        "4 models: 1 done, 1 done with bad rows, 1 failed, 1 not started, in 00:00",
        "  m2: failed: data.root: gone",
        "  m3: bad rows: 2 rows are NaN",
        "to resume: lit-extract sweep --overwrite",
        "  without --overwrite, which would start the finished models from scratch",
    ]


def test_the_table_shows_every_state_and_stays_when_it_is_closed():
    shown = runs_in("done", "failed", "running", "waiting")
    shown[0].progress, shown[2].progress = RunProgress("images", 100, 100, 1.0, 0.0), PROGRESS
    shown[1].reason = "[no markup] of mine"
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=20, color_system=None)
    with Display(shown, console) as display:
        display.update(shown[2])
        assert "40 of 100 images  12.3/s  01:15" in screen.getvalue()
        display.end(shown[1])
        assert "m2: failed, 00:00: [no markup] of mine" in screen.getvalue()
        display.note("something else")
        assert "something else" in screen.getvalue()
        drawn = len(screen.getvalue())
    kept = screen.getvalue()[drawn:]
    for run in shown:
        assert any(run.model in line and run.state in line for line in kept.splitlines())


def test_without_a_terminal_there_are_lines(capsys):
    shown = runs_in("running", "waiting")
    with Display(shown) as display:
        display.start(shown[0])
        shown[0].progress = PROGRESS
        display.update(shown[0])
        shown[0].state, shown[0].seconds = "done", 62.0
        display.end(shown[0])
    assert capsys.readouterr().out == "[1 of 2] m1: starts\n[1 of 2] m1: done, 40 of 100 images, 01:02\n"


@pytest.mark.parametrize(
    ("states", "fitting", "shown"),
    [
        (["done", "running", "waiting"], 5, [1, 2, 3]),
        (["done"] * 8 + ["running"] + ["waiting"] * 8, 4, [7, 8, 9, 10]),
        (["running"] + ["waiting"] * 8, 4, [1, 2, 3, 4]),
        (["done"] * 8 + ["running"], 4, [6, 7, 8, 9]),
        (["done"] * 9, 4, [6, 7, 8, 9]),
    ],
)
def test_a_small_window_shows_what_is_going_on(states, fitting, shown):
    assert [run.number for run in window(runs_in(*states), fitting)] == shown


def test_a_run_records_how_far_it_is_with_what_was_done_before(run_job, tmp_path, monkeypatch):
    file = tmp_path / "state.json"
    assert read_state(file) == RunState()
    monkeypatch.setenv("LIT_EXTRACT_RUN_STATE", str(file))
    monkeypatch.setattr("lit_extract.jobs.progress.SECONDS_BETWEEN_RECORDS", 0.0)
    store = run_job(data_shard_rows=2, finalize=False).store
    progress = read_state(file).progress
    assert (progress.unit, progress.rows, progress.rows_done, progress.seconds_left) == ("images", 7, 7, 0)
    for shard in (1, 3):
        (store / "cls" / "c" / str(shard) / "0" / "0").unlink()
    history = []
    monkeypatch.setattr("lit_extract.jobs.progress.record", lambda progress: history.append(progress.rows_done))
    run_job(data_shard_rows=2)
    assert history == [6, 7, 7]
    file.write_text(json.dumps({"progress": None})[:-3])
    assert read_state(file) == RunState(), "cut off"


def test_predict_records_its_outcome(cli, image_folder, tmp_path, monkeypatch):
    file = tmp_path / "state.json"
    monkeypatch.setenv("LIT_EXTRACT_RUN_STATE", str(file))
    predict = [*runs.predict_arguments(image_folder, tmp_path / "out"), "--data.num_workers", "0"]
    assert cli(*predict)[0] == 0
    assert read_state(file).outcome == Outcome("done", "", 0)
    assert read_state(file).progress.rows_done == 7
    assert cli(*predict)[0] == 0
    assert read_state(file).outcome == Outcome("already done", "", 0)
    assert cli(*predict, "--model.seed", "3")[0] == 2
    failed = read_state(file).outcome
    assert (failed.state, failed.exit_code) == ("failed", 2)
    assert "seed was 0, now 3" in failed.reason
    (image_folder / "3.png").write_bytes(b"none")
    assert cli(*predict, "--overwrite", "--data.on_bad_image", "skip")[0] == 3
    bad = read_state(file).outcome
    assert (bad.state, bad.exit_code) == ("bad rows", 3)
    assert "could not be decoded" in bad.reason
