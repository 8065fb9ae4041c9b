"""Configs by name: those that ship with the package, in any folder; a file of the user's own comes first."""

from pathlib import Path

import pytest

from lit_extract.commands.config import find_config, with_found_configs
from lit_extract.common.shipped import shipped_config, shipped_configs, shipped_file

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = str(CONFIGS / "nsd" / "vision.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory, as that of a lab."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["nsd/vision", "nsd/vision.yaml", "configs/nsd/vision.yaml"])
def test_a_shipped_config_is_found_by_its_name_and_by_its_path(name):
    assert find_config(name) == SHIPPED


def test_a_file_of_ones_own_comes_first_and_a_folder_does_not(tmp_path):
    own = tmp_path / "configs" / "nsd" / "vision.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("output_dir: mine\n")
    (tmp_path / "nsd" / "vision").mkdir(parents=True)
    assert find_config("configs/nsd/vision.yaml") == "configs/nsd/vision.yaml"
    assert find_config("nsd/vision") == SHIPPED


@pytest.mark.parametrize("name", ["../configs/nsd/vision", "nsd", "", "configs", "a\0b", "{output_dir: x}"])
def test_what_is_no_name_is_left_as_it_is(name):
    assert find_config(name) == name
    assert shipped_config(name) is None


def test_only_files_that_ship_are_found():
    assert shipped_file("models.yml").is_file()
    assert shipped_file("pyproject.toml") is None
    assert shipped_file("../models.yml") is None


def test_names_are_replaced_wherever_a_command_line_has_configs():
    args = ["--a", "nsd/vision", "--config", "nsd/vision", "--config=nsd/vision", "-cnsd/vision", "-c", "nsd/vision"]
    found = ["--a", "nsd/vision", "--config", SHIPPED, f"--config={SHIPPED}", f"-c{SHIPPED}", "-c", SHIPPED]
    assert with_found_configs(args) == found
    assert with_found_configs(["--config"]) == ["--config"]


def test_a_sweep_knows_the_names_too(cli):
    code, out, err = cli("sweep", "--config", "demo/vision", "--config", "trainer/cpu", "--dry_run", "--match", "clip")
    assert (code, err) == (0, "")
    assert " --config demo/vision --config trainer/cpu " in out.splitlines()[0]


@pytest.mark.parametrize("command", ["predict", "sweep"])
@pytest.mark.parametrize(
    ("name", "near"), [("nsd/visoin", "nsd/vision"), ("configs/nsd/visio.yaml", "configs/nsd/vision.yaml")]
)
def test_the_nearest_name_is_suggested(cli, command, name, near):
    code, _, err = cli(command, "--config", name)
    assert code == 2
    assert err.endswith(f"config: {name!r} can't be read: No such file or directory; did you mean {near}?\n")


def test_all_are_listed_with_what_they_say_of_themselves(cli):
    code, out, _ = cli("configs")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[1:]] == list(shipped_configs())
    for path, line in zip(shipped_configs().values(), lines[1:], strict=True):
        assert len(line.split()) > 3, f"{path} begins with a comment"


def test_one_is_printed_as_it_is(cli):
    assert cli("configs", "nsd/vision") == (0, Path(SHIPPED).read_text(), "")
    code, out, err = cli("configs", "nsd/visoin")
    assert (code, out) == (2, "")
    assert "did you mean nsd/vision?" in err
