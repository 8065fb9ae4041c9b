"""What the README and the pages of docs/ show is right: commands, configs, Python, names and links."""

import argparse
import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest
import yaml
from docs_site import links_of_site, pages_of_commands
from helpers.markdown import PAGES, REPOSITORY, blocks_of, commands_of, run_page

import lit_extract
from lit_extract.cli import COMMANDS, main
from lit_extract.commands import arguments, predict
from lit_extract.commands.options import PREDICT_OPTIONS, SUBMIT_OPTIONS
from lit_extract.commands.spelling import check_spelling
from lit_extract.modules.registry import read_models
from lit_extract.storage.features import Features

README = REPOSITORY / "README.md"
HAVE_OWN_TESTS = ("brain-data.md", "captions-demo.md", "own-dataset.md", "own-model.md", "python.md")


def name(page):
    return page.relative_to(REPOSITORY).as_posix()


def pages_with(part):
    return pytest.mark.parametrize("page", [page for page in PAGES if part(page)], ids=name)


def has(*languages):
    return lambda page: any(block.marks in languages for block in blocks_of(page))


class Understood(BaseException):
    """The command line is right: the command would begin now."""


@pytest.fixture
def parse_only(monkeypatch):
    """Commands end as soon as all their settings are read."""
    parse = arguments.parse

    def parsed(parser, args):
        parse(parser, args)
        raise Understood

    for module in (arguments, predict):
        monkeypatch.setattr(module, "parse", parsed)


def write_yaml_of(page, folder):
    """Write the YAML of a page to the files that its text names; return each with its content."""
    files = {}
    for block in blocks_of(page):
        if block.marks == "yaml":
            path = folder / (block.file or "own.yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
            files[path] = yaml.safe_load(block.code)
    return files


def refusal_of(command, capsys):
    """Return why a command is refused, and None if it would run."""
    if command[0] == "submit" and "--help" not in command:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        for option, settings in SUBMIT_OPTIONS.items():
            parser.add_argument(option, **settings)
        command = ["sweep", *parser.parse_known_args(command[1:])[1]]
    if command[0] == "sweep" and "--help" not in command:
        capsys.readouterr()
        options = [option for option in command[1:] if option != "--dry_run"]
        assert main(["sweep", *options, "--dry_run"]) == 0, capsys.readouterr().err
        of_first_model = shlex.split(capsys.readouterr().out.splitlines()[0])
        command = of_first_model[of_first_model.index("predict") :]
    try:
        code = main(command)
    except Understood:
        return None
    except SystemExit as end:  # of --help
        code = end.code
    return capsys.readouterr().err if code else None


@pages_with(commands_of)
def test_each_command_is_understood(page, parse_only, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_yaml_of(page, tmp_path)
    for command in commands_of(page):
        assert refusal_of(command, capsys) is None, command


@pytest.mark.parametrize(
    "command",
    [
        "predict --config nsd/visoin",
        "predict --config nsd/vision --model.nam x",
        "predict --config nsd/vision --data.limit many",
        "predict --config missing.yaml",
        "verify FILE --paritty 8",
        "show",
        "nonsense",
    ],
)
def test_a_command_that_is_wrong_is_noticed(command, parse_only, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "lit-extract: error:" in refusal_of(command.split(), capsys)


@pages_with(has("yaml"))
def test_each_yaml_is_a_config_or_a_models_file(page, tmp_path):
    for path, content in write_yaml_of(page, tmp_path).items():
        if {"model", "data"} <= set(content):
            check_spelling(["--config", str(path)], PREDICT_OPTIONS)
        else:
            assert read_models(path)


@pages_with(has("bash"))
def test_each_shell_block_is_shell(page):
    for block in blocks_of(page):
        if block.marks == "bash":
            checked = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
            assert (checked.returncode, checked.stderr) == (0, ""), block.code


def test_extras_and_targets_exist():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for named in re.findall(r"(?:lit-extract|'\.)\[([\w,]+)\]", text):
            assert set(named.split(",")) <= set(extras), (page.name, named)
        for named in re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE):
            assert named in targets, (page.name, named)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """A folder in which the first command of the README was run."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = commands_of(README)[0]
        assert main([*command, "--trainer.accelerator", "cpu", "--data.num_workers", "0"]) == 0
    return folder


@pages_with(lambda page: has("python")(page) and page.name not in HAVE_OWN_TESTS)
def test_python_runs_on_the_features_of_the_demo(page, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    run_page(page)


@pages_with(has("python notest"))
def test_python_that_wants_a_dataset_uses_names_and_arguments_that_exist(page):
    for block in blocks_of(page):
        if block.marks == "python notest":
            check_names(ast.parse(block.code))


def check_names(tree):
    """Check what code imports from this package, how it calls that, and what it asks features for."""
    ours, features = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lit_extract":
            ours |= {alias.name: getattr(import_module(node.module), alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours:
            keywords = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(ours[node.func.id]).bind(*node.args, **keywords)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("load_features("):
            features |= {target.id for target in node.targets}
    known = {*dir(Features), *Features.__dataclass_fields__}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in features:
            assert node.attr in known, f"features.{node.attr}"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("from lit_extract import load_feature", AttributeError),
        ("from lit_extract import load_features\nload_features('x', pol='cls')", TypeError),
        ("from lit_extract import load_features\nf = load_features('x')\nf.feets", AssertionError),
    ],
)
def test_a_wrong_name_is_noticed(code, error):
    with pytest.raises(error):
        check_names(ast.parse(code))


def test_each_block_has_a_language_that_is_checked():
    known = {"bash", "console", "python", "python notest", "yaml", "text", "csv"}
    assert {block.marks for page in PAGES for block in blocks_of(page)} <= known


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_all_public_names_are_in_the_reference():
    reference = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    assert [name for name in dir(lit_extract) if not re.search(rf"\b{name}\b", reference)] == []


def test_each_command_has_a_page_with_its_help():
    pages = pages_of_commands()
    assert list(pages) == ["commands.md", *(f"commands/{name}.md" for name in COMMANDS)]
    for name in COMMANDS:
        assert f"usage: lit-extract {name}" in pages[f"commands/{name}.md"]
        assert f"(commands/{name}.md)" in pages["commands.md"]
    assert "## TransformersVisionExtractor\n\n```text\n--model Transf" in pages["commands/predict.md"]


@pytest.mark.parametrize(
    ("path", "text", "turned"),
    [
        ("index.md", "[a](docs/s3.md#x) [b](https://x.org/y) [c](#d)", "[a](s3.md#x) [b](https://x.org/y) [c](#d)"),
        ("index.md", '<img src="docs/images/a.png">', '<img src="images/a.png">'),
        ("s3.md", "[a](datasets.md) [b](../benchmarks/RESULTS.md#v)", "[a](datasets.md) [b](benchmarks.md#v)"),
        ("benchmarks.md", "![a](../docs/images/x.png)", "![a](images/x.png)"),
        ("caption-files.md", "[a](../../README.md)", "[a](index.md)"),
    ],
)
def test_links_lead_to_pages_of_the_site(path, text, turned):
    assert links_of_site(text, path) == turned


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert "memory-mapped" in page
    assert "stimulus_ids" in page
