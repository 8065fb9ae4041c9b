"""Installed from a wheel, in a folder that is no clone: what the README says works there too."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from helpers.markdown import REPOSITORY, commands_of

pytestmark = pytest.mark.slow

README = REPOSITORY / "README.md"
DEMO_FILE = "features/demo/all-untrained/vit_tiny_patch16_224.augreg_in21k_pool-cls-untrained.pt"
# What a command of the README may lack on a machine without datasets, caption files, features and a network.
LACKING = re.compile(
    r"data\.root: (no folder given|'/data/)|can't be downloaded|no (such )?file|is not a file\n|is not a folder|"
    r"vLLM is not installed|No supported gpu backend|are not next to it|there is no SLURM here|squeue refuses: "
)
# Runs the commands of its input, JSON lists of arguments, in one process: the imports take ten seconds.
DRIVER = """
import contextlib, io, json, sys
from lit_extract.cli import main
results = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    results.append([code, out.getvalue(), err.getvalue()])
json.dump(results, sys.stdout)
"""


class Installation:
    """A fresh environment with the wheel, and an empty folder to work in; other packages are those of this one."""

    def __init__(self, folder):
        self.folder = folder / "work"
        self.folder.mkdir()
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
        (self.wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=False)
        self.bin = folder / "venv" / "bin"
        paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        self.packages = Path(sysconfig.get_path("purelib", vars=paths))
        # no editable installation is visible by that: a .pth file in a folder that a .pth file adds is not read
        (self.packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(self.wheel)]
        subprocess.run(install, check=True, capture_output=True)

    def run(self, program, *arguments, **options):
        hidden = ("PYTHONPATH", "NSD_DATASET", "BOLD_DATASET", "THINGS_DATASET")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env={**environment, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(self.folder / "hub")},
            capture_output=True,
            text=True,
            check=False,
            **options,
        )


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    return Installation(tmp_path_factory.mktemp("installed"))


def test_the_package_is_that_of_the_wheel(installation):
    where = installation.run("python", "-c", "import lit_extract; print(lit_extract.__file__)").stdout.strip()
    assert where == str(installation.packages / "lit_extract" / "__init__.py")


def test_all_configs_are_there_once_and_each_is_printed_as_it_is(installation):
    listed = installation.run("lit-extract", "configs").stdout
    for path in sorted((REPOSITORY / "configs").glob("*/*")):
        name = path.relative_to(REPOSITORY / "configs").as_posix().removesuffix(".yaml")
        assert f"\n{name} " in listed
    for name in ("nsd/vision", "configs/nsd/vision.yaml"):
        printed = installation.run("lit-extract", "configs", name).stdout
        assert printed == (REPOSITORY / "configs" / "nsd" / "vision.yaml").read_text()


def test_captions_and_models_are_there(installation):
    script = """
from lit_extract import load_captions
from lit_extract.modules.registry import read_models
print(len(load_captions("derivatives/captions/demo-captions-handwritten.csv")), len(read_models()["vision"]) > 5)
"""
    assert installation.run("python", "-c", script).stdout == "24 True\n"


def test_the_demo_runs_and_is_shown(installation):
    command = next(command for command in commands_of(README) if command[:3] == ["predict", "--config", "demo/vision"])
    run = installation.run("lit-extract", *command)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    assert f"{DEMO_FILE}\n  24 stimuli × 12 layers × 192 dimensions, float32\n" in run.stdout
    shown = installation.run("lit-extract", "show", DEMO_FILE)
    assert "24 stimuli × 12 layers × 192 dimensions" in shown.stdout
    again = installation.run("lit-extract", *command[:2], "configs/demo/vision.yaml", *command[3:])
    assert f"already done: {DEMO_FILE}" in again.stdout


def test_each_command_of_the_readme_is_understood(installation):
    """It lacks a dataset or a network, at most; none is refused for its options, configs or classes."""
    commands = commands_of(README)
    assert len(commands) > 8
    for command in commands:
        if command[0] == "sweep" and "--dry_run" not in command:
            command.append("--dry_run")
    run = installation.run("python", "-c", DRIVER, input=json.dumps(commands))
    assert run.returncode == 0, run.stderr
    for command, (code, _, err) in zip(commands, json.loads(run.stdout), strict=True):
        assert code in (0, 2, 3), (command, err)
        assert code != 2 or LACKING.search(err), (command, err)
