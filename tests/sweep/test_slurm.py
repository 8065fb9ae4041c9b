"""The SLURM scripts do what they say, with the variables of SLURM and a srun that starts tasks on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted((REPOSITORY / "configs" / "slurm").glob("*.sh"))
MODEL = "test_vit.r160_in1k"
DEMO = [
    *("--config", "configs/demo/vision.yaml", "--config", "configs/trainer/cpu.yaml"),
    *("--trainer.precision", "32-true", "--data.batch_size", "2", "--data.shard_rows", "4", "--data.num_workers", "0"),
]
# As srun: each task a process of its own that knows its place; the exit code is the highest.
SRUN = """#!/bin/bash
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_STEP_ID=0 SLURM_PROCID=$task SLURM_NODEID=$((task / SLURM_NTASKS_PER_NODE)) \\
        SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) "$@" &
done
code=0
for task in $(jobs -p); do wait "$task" || code=$?; done
exit $code
"""


@pytest.fixture
def slurm(tmp_path):
    """A function that runs a script as SLURM would, with so many nodes of one task each; it returns code and output."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "srun": SRUN,
        "lit-extract": f'#!/bin/bash\nexec {sys.executable} -m lit_extract "$@"\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(script, *arguments, nodes=1, **variables):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            **{"PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
            **{"SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000), "SLURM_JOB_NAME": "lit-extract"},
            **{"SLURM_NTASKS": str(nodes), "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": str(nodes)},
            **{"SLURM_NODELIST": "localhost", "SLURM_CPUS_PER_TASK": "1", "MASTER_ADDR": "127.0.0.1"},
            **variables,
        }
        command = ["bash", str(REPOSITORY / "configs" / "slurm" / script), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_whole_and_ask_to_be_warned_and_queued_again(script):
    subprocess.run(["bash", "-n", script], check=True)
    asked = [line.split()[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--signal=USR1@90", "--requeue", "--open-mode=append"} <= set(asked)


@pytest.fixture
def commands(cli, tmp_path, monkeypatch):
    """The file with the commands of a sweep over one model, and the features file that it makes."""
    monkeypatch.chdir(REPOSITORY)
    models, output, file = tmp_path / "models.yml", tmp_path / "it's here", tmp_path / "commands.txt"
    models.write_text(f"vision: [{MODEL}]\n")
    rows = ("--data.query", "demo_id < 7 and image != 'x'", "--data.subset", "seven")
    code, out, _ = cli("sweep", *DEMO, *rows, "--models", models, "--untrained", "--output_dir", output, "--dry_run")
    assert code == 0
    file.write_text(out)
    return file, output / "demo" / "seven-untrained" / f"{MODEL}_pool-cls-untrained.pt"


def test_a_task_of_the_array_runs_its_line(slurm, commands):
    file, features = commands
    code, said = slurm("array.sh", file, SLURM_ARRAY_TASK_ID="1")
    assert code == 0, said
    assert torch.load(features, weights_only=True)["feats"].shape == (7, 6, 64)


def test_a_task_without_a_line_says_so(slurm, commands):
    file, features = commands
    code, said = slurm("array.sh", file, SLURM_ARRAY_TASK_ID="2")
    assert (code, said) == (2, f"{file} has no line 2\n")
    assert not features.exists()
    code, said = slurm("array.sh", SLURM_ARRAY_TASK_ID="1")
    assert code != 0
    assert "give the file with the commands" in said


@pytest.mark.slow
def test_two_machines_share_one_model(slurm, tmp_path):
    options = ("--model.name", MODEL, "--model.untrained", "true", "--output_dir", tmp_path)
    code, said = slurm("multi_node.sh", *DEMO, *options, nodes=2)
    assert code == 0, said
    assert f"{MODEL} (2 ranks): 24 of 24 images" in said
    file = tmp_path / "demo" / "all-untrained" / f"{MODEL}_pool-cls-untrained.pt"
    feats = torch.load(file, weights_only=True)["feats"]
    assert len(feats.flatten(1).unique(dim=0)) == 24
