"""What submit asks a scheduler for, and what it refuses; the jobs themselves: tests/system/test_slurm_submit.py."""

import os
import re
import sys

import pytest

from lit_extract.planning.duration import estimate_seconds, measure_seconds_left
from lit_extract.planning.needs import Needs
from lit_extract.sweep.request import GIB, Request

MODELS = ("test_vit.r160_in1k", "test_resnet.r160_in1k")
CONFIGS = ("--config", "demo/vision", "--config", "trainer/cpu")
POOL = ("--model.pool", "avg")


@pytest.fixture
def submit(cli, tmp_path, monkeypatch):
    """A function that runs ``lit-extract submit`` where nobody would run a job."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    models = tmp_path / "models.yml"
    models.write_text(f"vision: [{', '.join(MODELS)}]\n")
    given = (*CONFIGS, "--models", models, "--untrained", "--output_dir", tmp_path / "it's here", *POOL)
    return lambda *options: cli("submit", *given, *options)


@pytest.mark.parametrize(
    ("n_bytes", "seconds", "memory", "time"),
    [
        (1, 0, 2, "0:30:00"),
        (10 * GIB, 400, 16, "0:30:00"),
        (10 * GIB + 1, 401, 17, "1:00:00"),
        (GIB, 2 * 3600, 3, "6:30:00"),
        (GIB, 10**6, 3, "12:00:00"),
    ],
)
def test_memory_and_time_have_margins_and_a_limit(n_bytes, seconds, memory, time):
    assert Request(None, None, "1", 8).filled(n_bytes, seconds) == Request(memory, time, "1", 8)


def test_what_is_given_is_asked_for():
    given = Request(3, "2-0", "a40:2", 4)
    assert given.filled(10**12, 10**9) == given
    assert (given.n_gpus, Request(3, "1", "0", 1).n_gpus) == (2, 0)


def test_more_rows_take_longer_and_a_measured_rate_counts_before_any_estimate():
    on_gpu = Needs("m", rows=1000, operations=75e12, device=1, geometry="224")
    assert estimate_seconds(on_gpu, 8) == pytest.approx(1000 + 1000 / 800)
    assert estimate_seconds(Needs("m", rows=1000, operations=75e12, device=1, seconds_left=7.0), 8) == 7
    on_cpu = Needs("m", rows=10, operations=2e10, disk_peak=10**9)
    assert estimate_seconds(on_cpu, 4) == pytest.approx(10 / 4 + 5)


def test_the_rest_of_a_store_takes_what_its_shards_took_without_the_pause_between_two_runs(make_store):
    store, _ = make_store(n=60, shard_rows=6, shards=range(7))
    array = next(iter(store.feats_arrays.values()))
    for shard, second in zip(range(7), (0, 10, 20, 30, 90_000, 90_010, 90_020), strict=True):
        os.utime(store.path / array.key(shard), (second, second))
    assert measure_seconds_left(store.path) == 30
    for shard in (0, 1, 2, 3):
        (store.path / array.key(shard)).unlink()
    assert measure_seconds_left(store.path) is None
    assert measure_seconds_left(store.path.with_name("none")) is None


def test_the_scripts_run_the_commands_of_a_sweep(submit, cli, tmp_path):
    options = ("--data.query", "image != 'x'", "--data.subset", "all of them")
    code, out, err = submit(*options, "--partition", "gpu", "--gpus", "a40:2", "--sbatch", "qos=long", "--dry_run")
    assert (code, err) == (0, "")
    _, commands, _ = cli(
        *("sweep", *CONFIGS, "--models", tmp_path / "models.yml", "--untrained"),
        *("--output_dir", tmp_path / "it's here", *POOL, *options, "--dry_run"),
    )
    run = re.findall(r"^exec srun (.*)$", out, re.MULTILINE)
    assert run == commands.splitlines()
    asked = [line.removeprefix("#SBATCH --") for line in out.splitlines() if line.startswith("#SBATCH")]
    for setting in ("signal=USR1@90", "requeue", "open-mode=append", "partition=gpu", "gres=gpu:a40:2", "qos=long"):
        assert asked.count(setting) == 2, setting
    assert asked.count("ntasks-per-node=2") == 2, "a task for each GPU"
    assert [line for line in asked if line.startswith("job-name=")] == [f"job-name={name}" for name in MODELS]
    assert all(re.fullmatch(r"mem=\d+G|time=\d+:[03]0:00", line) for line in asked if line.startswith(("mem", "time")))
    assert not (tmp_path / "it's here").exists()


def test_without_a_need_for_estimates_nothing_is_planned(submit, monkeypatch):
    monkeypatch.setitem(sys.modules, "lit_extract.commands.plan", None)
    code, out, _ = submit("--time", "1-0", "--memory", "7", "--dry_run")
    assert (code, out.count("#SBATCH --mem=7G\n"), out.count("#SBATCH --time=1-0\n")) == (0, 2, 2)
    assert "gres" not in out, "the run is on the CPU"


def test_a_model_that_can_not_be_planned_is_not_queued(submit, tmp_path):
    (tmp_path / "models.yml").write_text(f"vision: [vit_nobody_has, {MODELS[0]}]\n")
    code, out, _ = submit("--dry_run")
    assert code == 3
    assert out.count("#SBATCH --job-name") == 1
    assert "vit_nobody_has: not queued: model.name: no model of timm is called 'vit_nobody_has'" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--partiton", "gpu"), "--partiton: no such option; did you mean --partition?"),
        (("--time", "tomorrow"), "time: 'tomorrow' must be in SLURM's format"),
        (("--gpus", "many"), "gpus: 'many' must be a number, or a type and a number"),
        (("--memory", "0"), "memory: 0 must be 1 or more"),
        (("--cpus", "-1"), "cpus: -1 must be 1 or more"),
        (("--sbatch", "--qos long"), "sbatch: '--qos long' must be the name and value of an option"),
        (("--sbatch", "comment=mine"), "sbatch: 'comment=mine' can't be given"),
        (("--sbatch", "qos=a\nrm x"), "sbatch: 'qos=a\\nrm x' must be the name and value of an option"),
        (("--partition", "a b"), "partition: 'a b' must be a name"),
        (("--cluster", "moon"), "invalid choice: 'moon'"),
        (("--model.name", "x"), "model.name: a sweep runs all models of models.yml"),
    ],
)
def test_bad_input_is_one_line(submit, tmp_path, options, said):
    code, out, err = submit(*options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "it's here").exists()


def test_what_sbatch_refuses_is_one_line(submit, tmp_path):
    refusal = "echo 'sbatch: error: invalid partition specified: moon' >&2\nexit 1\n"
    for name, script in {"squeue": "", "sbatch": refusal}.items():
        tool = tmp_path / "bin" / name
        tool.write_text(f"#!/bin/sh\n{script}")
        tool.chmod(0o755)
    code, _, err = submit("--time", "1", "--memory", "1", "--partition", "moon")
    assert code == 2
    assert err.count("\n") == 1
    assert f"sbatch refuses {MODELS[0]}: " in err
    assert "invalid partition specified: moon" in err


def test_where_there_is_no_slurm_it_says_so(submit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = submit("--time", "1", "--memory", "1")
    assert code == 2
    assert "cluster: there is no SLURM here; run this on a login node, or with --cluster local" in err
