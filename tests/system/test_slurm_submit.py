"""``lit-extract submit`` on a real SLURM, and on this machine alone."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import runs
from helpers.slurm_cluster import PACKAGES, Cluster, why_not

pytestmark = pytest.mark.slow

SLOW_PREDICT = Path(runs.__file__).with_name("slow_predict.py")
OUTPUT = "it's 100% out"
NAMES = ("test_vit.r160_in1k", "test_resnet.r160_in1k")
SETTINGS = ("--data.batch_size", "2", "--data.shard_rows", "2", "--data.num_workers", "0", "--data.cache", "off")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if (reason := why_not()) is not None:
        pytest.skip(f"no SLURM can be started ({PACKAGES}): {reason}")
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        cluster.environment |= {**runs.ENVIRONMENT, "PYTHONPATH": str(runs.REPOSITORY)}
        yield cluster


@pytest.fixture
def given(tmp_path):
    (tmp_path / "models.yml").write_text(f"vision: [{', '.join(NAMES)}]\n")
    configs = [runs.REPOSITORY / "configs" / name for name in ("demo/vision.yaml", "trainer/cpu.yaml")]
    given = [part for config in configs for part in ("--config", config)]
    given += ["--models", tmp_path / "models.yml", "--untrained", "--model.pool", "avg", *SETTINGS]
    return [*given, "--output_dir", tmp_path / OUTPUT]


@pytest.fixture
def submit(cli, given, tmp_path, monkeypatch):
    """A function that submits two models; their python takes SLOW_STEP seconds a batch."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nshift 2\nexec {sys.executable} {SLOW_PREDICT} "$@"\n')
    python.chmod(0o755)

    def run(*options, **variables):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(python))
            for name, value in {**runs.ENVIRONMENT, **variables}.items():
                patched.setenv(name, value)
            return cli("submit", *given, *options)

    return run


def features(output):
    return sorted(file.name for file in (output / "demo" / "all-untrained").glob("*.pt"))


def test_a_submitted_sweep_is_warned_queued_again_shown_and_done(cluster, submit, cli, tmp_path):
    output, options = tmp_path / OUTPUT, ("--cpus", "1", "--memory", "2", "--partition", "main")
    code, scripts, _ = submit(*options, "--dry_run")
    assert (code, scripts.count("#!/bin/bash")) == (0, 2)
    code, out, err = submit(*options, **cluster.environment, SLOW_STEP="3")
    assert (code, err) == (0, ""), out
    jobs = dict(re.findall(r"^(\S+): job (\d+), 2 GB, 0:30:00$", out, re.MULTILINE))
    assert [*jobs] == [*NAMES]
    (logs,) = (output / "logs").iterdir()
    job = jobs[NAMES[0]]
    assert _command(cluster.tool("scontrol", "write", "batch_script", job, "-")) == _command(scripts)

    store = output / "demo" / "all-untrained" / f"{NAMES[0]}_pool-avg-untrained.zarr"
    cluster.wait_until(job, lambda: len([*store.glob("avg/c/*/0/0")]) >= 2)
    _, shown, _ = cli("status", output, "--models", tmp_path / "models.yml")
    assert re.search(rf"running: {re.escape(NAMES[0])}: process \d+ on .*, SLURM job {job}$", shown, re.MULTILINE), (
        shown
    )
    code, out, _ = submit(*options, **cluster.environment)
    assert (code, out) == (0, "".join(f"{name}: already queued as job {jobs[name]}\n" for name in NAMES))
    cluster.tool("scancel", "--signal=USR1", job)

    assert [cluster.wait(number) for number in jobs.values()] == ["COMPLETED", "COMPLETED"], _logs(logs)
    assert cluster.job(job)["Restarts"] == "1"
    said = (logs / f"{NAMES[0]}-{job}.log").read_text()
    (done,) = re.findall(r"stopped by SIGUSR1: (\d+) of 12 shards are done", said)
    assert f"job {job} is queued again" in said
    assert f"resuming {store}: {done} of 12 shards done" in said
    assert features(output) == sorted(f"{name}_pool-avg-untrained.pt" for name in NAMES)

    code, out, _ = submit(*options, **cluster.environment)
    assert (code, out) == (0, "".join(f"{name}: already done\n" for name in NAMES))


def test_what_slurm_refuses_is_one_line(cluster, submit):
    code, out, err = submit("--time", "1", "--memory", "1", "--partition", "moon", **cluster.environment)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "invalid partition specified: moon" in err


def test_here_a_sweep_runs_in_the_background(cli, given, tmp_path):
    command = [sys.executable, "-m", "lit_extract", "submit", *given, "--cluster", "local"]
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **runs.ENVIRONMENT, "PYTHONPATH": str(runs.REPOSITORY)},
        cwd=runs.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    number, log = re.search(r"process (\d+) runs the sweep; its output goes to (.*); lit-extract", done.stdout).groups()
    _wait(lambda: not psutil.pid_exists(int(number)), Path(log))
    assert "2 models: 2 done" in Path(log).read_text()
    assert features(tmp_path / OUTPUT) == sorted(f"{name}_pool-avg-untrained.pt" for name in NAMES)
    assert cli("submit", *given, "--cluster", "local")[:2] == (0, "".join(f"{name}: already done\n" for name in NAMES))


def _command(script):
    """What a script runs first."""
    return next(line for line in script.splitlines() if line.startswith("exec srun "))


def _logs(folder):
    return "\n".join(file.read_text() for file in folder.glob("*.log"))


def _wait(condition, log, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
