"""SLURM's variables say what was asked for; who has started the processes is another question."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import runs

from lit_extract.common.errors import InputError
from lit_extract.common.host import is_task_of_srun
from lit_extract.jobs.trainer import predict_trainer

REPOSITORY = Path(__file__).parents[2]
SHELL = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "features", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}


@pytest.fixture
def run(tmp_path):
    """A function that runs a tiny model on the demo's photographs, with a srun on PATH; returns code, output, file."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nexit 1\n")
    srun.chmod(0o755)
    output = tmp_path / "out"

    def run(*options, **variables):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        environment |= {"PATH": f"{tmp_path}:{environment['PATH']}", **runs.ENVIRONMENT, **variables}
        config = str(REPOSITORY / "configs" / "demo" / "vision.yaml")
        arguments = ["predict", "--config", config, *runs.MODEL, "--data.num_workers", "0", "--output_dir", output]
        command = [sys.executable, "-m", "lit_extract", *arguments, *options]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said = done.stdout.partition("loading PyTorch …\n")[2]
        return done.returncode, said, output / "demo" / "all-untrained"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("of_node", [{}, {"SLURM_NTASKS_PER_NODE": "8"}, {"SLURM_STEP_ID": "4294967290"}])
def test_a_single_device_runs_in_a_shell_of_a_job_with_eight_tasks(run, of_node):
    code, said, folder = run(**SHELL, **of_node)
    assert code == 0, said
    assert "`srun`" not in said
    assert torch.load(next(folder.glob("*.pt")), weights_only=True)["feats"].shape == (24, 6, 64)


@pytest.mark.slow
def test_no_hint_at_srun_without_a_job(run):
    code, said, _ = run()
    assert code == 0, said
    assert "`srun`" not in said


@pytest.mark.slow
def test_two_devices_of_such_a_shell_are_shared_without_srun(run):
    code, said, folder = run("--trainer.devices", "2", "--data.batch_size", "2", "--data.shard_rows", "4", **SHELL)
    assert code == 0, said
    assert "(2 ranks)" in said
    assert len(list(folder.glob("*.pt"))) == 1


@pytest.mark.slow
def test_several_machines_need_srun_which_is_said_in_one_line(run):
    code, said, folder = run("--trainer.num_nodes", "2", **SHELL)
    assert code == 2
    assert said.startswith("lit-extract: error: trainer.num_nodes: 2 machines")
    assert "srun lit-extract" in said
    assert said.count("\n") == 1
    assert not folder.exists()


@pytest.mark.slow
def test_tasks_of_srun_that_do_not_fit_the_devices_are_refused_in_one_line(run):
    code, said, _ = run(**SHELL, SLURM_STEP_ID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
    assert code == 2
    assert "--ntasks-per-node=8" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "is_task"),
    [
        ({}, False),
        (SHELL, False),
        ({**SHELL, "SLURM_STEP_ID": "0"}, True),
        ({**SHELL, "SLURM_STEP_ID": "4294967290"}, False),
        ({**SHELL, "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "40000"}, False),
    ],
)
def test_who_is_a_task_of_srun(variables, is_task):
    assert is_task_of_srun(variables) == is_task


ON_CPU = "must be a number of processes from 1 to 1,024, or auto, as the run is on the CPU"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerator": "gpu"}, "accelerator: 'gpu', but PyTorch finds no GPU here .* --trainer.accelerator cpu$"),
        ({"accelerator": "gup"}, r"accelerator: 'gup' must be one of auto, gpu, cpu, .*; did you mean gpu\?$"),
        ({"accelerator": None}, "accelerator: None must be one of auto"),
        ({"devices": "0,1"}, f"devices: '0,1' {ON_CPU}$"),
        ({"devices": [0]}, rf"devices: \[0\] {ON_CPU}$"),
        ({"devices": 0}, f"devices: 0 {ON_CPU}$"),
        ({"devices": True}, f"devices: True {ON_CPU}$"),
        ({"devices": 10**9}, f"devices: 1000000000 {ON_CPU}$"),
        ({"precision": "bf16"}, "precision: 'bf16' must be one of bf16-true, bf16-mixed, 32-true; did you mean"),
        ({"precision": "16-mixed"}, "precision: '16-mixed' must be one of bf16-true"),
        ({"strategy": "dpp"}, r"strategy: Lightning has no 'dpp'; did you mean ddp\?$"),
        ({"num_nodes": 0}, "num_nodes: 0 must be a whole number from 1 to 100,000$"),
        ({"num_nodes": "2"}, "num_nodes: '2' must be a whole number"),
    ],
)
def test_the_wrong_setting_is_named(monkeypatch, settings, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=rf"^trainer\.{message}"):
        predict_trainer(**settings)


@pytest.mark.parametrize("devices", [3, "3", [0, 2], "0,2", [], [0, 0], "x", 2.5, 0, None])
def test_gpus_that_are_not_here_are_refused(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = (
        r"must be a number of GPUs from 1 to 2, which are here, a list of their numbers from 0 to 1, such as '\[0\]'"
    )
    with pytest.raises(InputError, match=message):
        predict_trainer(devices=devices)


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 2, "1", [1], "0,1", "1,"])
def test_gpus_that_are_here_are_left_to_lightning(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("lit_extract.jobs.trainer.Trainer", lambda **given: given)
    monkeypatch.setattr("lit_extract.jobs.trainer._check_meeting_place", lambda _: None)
    assert predict_trainer(devices=devices, precision="32-true")["devices"] == devices
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert predict_trainer(devices=4, precision="32-true")["devices"] == 4, "each process sees its own GPU"
