"""Configs of predict, plan and sweep: the settings that they say, or one error.

Nothing is made of a class that they name unless it has a place there.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from helpers.guard import REFUSED, RIGHT, fuzzed, outcome
from helpers.mutations import HOSTILE, changed_values, damaged_bytes
from hypothesis import given
from hypothesis import strategies as st

from lit_extract.commands.config import check_files
from lit_extract.commands.options import PREDICT_OPTIONS
from lit_extract.commands.plan import PlanCLI
from lit_extract.commands.predict import PredictCLI
from lit_extract.commands.spelling import check_spelling
from lit_extract.common.errors import InputError
from lit_extract.modules.registry import read_models
from lit_extract.sweep.runs import plan_runs

pytestmark = pytest.mark.slow

POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "X"]}}
TIMER = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": "00:12:00:00"}}
CONFIG = {
    "model": {
        "class_path": "lit_extract.VisionExtractor",
        "init_args": {
            "name": "test_vit.r160_in1k",
            "untrained": True,
            "seed": 3,
            "revision": None,
            "options": {"depth": 3},
            "pool": ["cls", "avg"],
            "layers": [0, -1],
        },
    },
    "data": {
        "class_path": "lit_extract.DemoDataModule",
        "init_args": {
            "query": "demo_id < 5",
            "subset": "few",
            "batch_size": 2,
            "shard_rows": 4,
            "num_workers": 0,
            "on_bad_image": "stop",
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "32-true",
        "callbacks": [TIMER],
    },
    "output_dir": "features",
    "finalize": True,
    "overwrite": False,
}
WORDS_OF_SETTINGS = "subprocess.Popen auto ddp gpu all cls 1e400 null - 0,1 [1".split()
SETTINGS = st.sampled_from(
    [POPEN, TIMER, [0, 0], [2**70], "{a: 1}", "&a [*a]", "!!python/object:os.system x", *WORDS_OF_SETTINGS]
)
MUTATED = changed_values(CONFIG, HOSTILE | SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty working directory, without a network."""
    folder = tmp_path_factory.mktemp("configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        PredictCLI.read(["--config", write(folder, CONFIG)])  # all modules are imported now
        yield folder


def write(folder, content):
    file = folder / "config.yaml"
    file.write_bytes(
        content if isinstance(content, bytes) else yaml.dump(content, Dumper=Plain).encode("utf-8", "replace")
    )
    return str(file)


class Plain(yaml.SafeDumper):
    """Writes out what occurs twice, instead of an alias."""

    def ignore_aliases(self, data):
        return True


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def says(config, content):
    """Whether the settings are those of the content, of the right types."""
    given = dict(leaves(content))
    parsed = dict(leaves(config.as_dict()))
    types = {("model", "init_args", "seed"): int, ("model", "init_args", "untrained"): bool,
             ("data", "init_args", "batch_size"): int, ("data", "init_args", "subset"): str,
             ("trainer", "num_nodes"): int, ("output_dir",): str, ("overwrite",): bool}  # fmt: skip
    for path, kind in types.items():
        assert type(parsed[path]) is kind, path
        if path in given:
            assert parsed[path] == given[path] or str(given[path]) == str(parsed[path]), path
    return True


def read(cli, file):
    return cli.read(["--config", file])


@fuzzed(60)
@given(MUTATED)
def test_a_changed_config_is_what_it_says_or_refused(folder, content):
    file = write(folder, content)
    outcome("config of predict", folder, lambda: read(PredictCLI, file), lambda cli: says(cli.config, content))


@fuzzed(60)
@given(MUTATED)
def test_what_is_refused_for_its_names_is_refused_by_jsonargparse_too(folder, content):
    file = write(folder, content)
    found = outcome(
        "names in a config", folder, lambda: check_spelling(["--config", file], PREDICT_OPTIONS), lambda _: True
    )
    if found == REFUSED:
        with pytest.raises(InputError):
            read(PredictCLI, file)


@fuzzed(40)
@given(MUTATED)
def test_a_changed_config_of_plan_is_what_it_says_or_refused(folder, content):
    file = write(folder, content)
    outcome("config of plan", folder, lambda: read(PlanCLI, file), lambda cli: says(cli.config, content))


@fuzzed(60)
@given(damaged_bytes(yaml.dump(CONFIG).encode()))
def test_a_damaged_config_is_what_it_says_or_refused(folder, content):
    file = write(folder, content)
    if any(
        not name.startswith((b"lit_extract.", b"lightning.")) for name in re.findall(rb"class_path: *(\S+)", content)
    ):
        return  # a config is a script: the modules that it names are imported
    is_right = lambda cli: says(cli.config, yaml.safe_load(content))  # noqa: E731
    outcome("config of predict", folder, lambda: read(PredictCLI, file), is_right)


@fuzzed(600)
@given(MUTATED | HOSTILE, st.data())
def test_a_config_of_a_sweep_is_what_it_says_or_refused(folder, content, data):
    damaged = data.draw(st.booleans())
    text = yaml.dump(content, Dumper=Plain).encode("utf-8", "replace")
    file = write(folder, data.draw(damaged_bytes(text)) if damaged else text)

    def is_right(turns):
        listed = {entry.name for entries in read_models().values() for entry in entries}
        return turns and all(turn.model in listed and file in turn.command for turn in turns)

    outcome("config of sweep", folder, lambda: plan_runs([file], []), is_right)


MODELS = {
    "vision": ["vit_tiny", {"name": "b", "checkpoint": "x.pth", "options": {"img_size": 384}}],
    "language": [{"name": "org/c", "revision": "main"}],
}


@fuzzed(600)
@given(changed_values(MODELS), st.data())
def test_models_are_those_of_the_file(folder, content, data):
    text = yaml.dump(content, Dumper=Plain).encode("utf-8", "replace")
    text = data.draw(damaged_bytes(text)) if data.draw(st.booleans()) else text
    file = Path(write(folder, text))

    def is_right(models):
        expected = yaml.safe_load(text) or {}
        for kind in ("vision", "language"):
            names = [entry if isinstance(entry, str) else entry["name"] for entry in expected.get(kind) or []]
            assert [entry.name for entry in models[kind]] == names
            assert all(isinstance(entry.options, dict) and "\x1b" not in entry.name for entry in models[kind])
        return True

    outcome("models.yml", folder, lambda: read_models(file), is_right)


OPTIONS = ["--model", "--model.name", "--model.pool", "--model.layers", "--model.options", "--model.seed", "--data",
           "--data.batch_size", "--data.query", "--data.subset", "--data.num_workers", "--data.shard_rows", "--trainer",
           "--trainer.devices", "--trainer.callbacks", "--trainer.precision", "--trainer.num_nodes", "--output_dir",
           "--overwrite", "--config", "-c", "--model.init_args", "--data.init_args", "--trainer.strategy"]  # fmt: skip
WORDS = (
    HOSTILE.map(str) | SETTINGS.map(str) | st.sampled_from(["9" * 30, "[" * 999, "{a: " * 99, "&a [*a]", "null", "~"])
)


@fuzzed(80)
@given(st.sampled_from(OPTIONS), WORDS)
def test_an_option_is_taken_or_refused(folder, option, word):
    if "\0" in word:  # no operating system passes it on
        return
    args = ["--config", write(folder, CONFIG), f"{option}={word}" if option != "-c" else f"-c{word}"]
    outcome("option of predict", folder, lambda: PredictCLI.read(args), lambda cli: says(cli.config, {}))


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"trainer: 3", "trainer must have settings"),
        (b"trainer:", "trainer must have settings"),
        (b"model: {init_args: {pool: null}}", "model.pool: null is not allowed"),
        (b"output_dir: null", "output_dir: null is not allowed"),
        (b"trainer: {devices: 1180591620717411303424}", "trainer.devices"),
        (b"trainer: {devices: 100000000}", "trainer.devices"),
        (b"model: {init_args: {seed: 1180591620717411303424}}", "model.seed"),
        (b"output_dir: caf\xe9", "can't be read"),
        (b"a: &a [*a]", "alias"),
        (BOMB.encode(), "alias"),
        (b"a: " + b"[" * 5000, "nested more than"),
        (b"a: 1\na: 2", "occurs twice"),
        (b"!!python/object/apply:os.system ['touch X']", "tag"),
        (b"", "is empty; it must hold settings"),
        (b"- model", "must hold settings"),
        (b"1: 2", "not text"),
        (b"overwrite: 'a\0b'", "can't be read"),
        (b"model: /etc/passwd", "must be the name of a class"),
        (b"model: config.yaml", "must be the name of a class"),
        (b"model: {class_path: subprocess.Popen, init_args: {args: [touch, X]}}", "'subprocess.Popen' is not allowed"),
        (b"data: {class_path: subprocess.Popen, init_args: {args: [touch, X]}}", "'subprocess.Popen' is not allowed"),
        (b"model: {init_args: {options: '&a [*a]'}}", "model.options"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else "",
)
def test_what_is_wrong_with_a_config_is_one_line(cli, folder, content, said):
    good, bad = folder / "good.yaml", write(folder, content)
    good.write_text(yaml.dump(CONFIG))
    code, _, err = cli("predict", "--config", good, "--config", bad)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "good.yaml"]
    good.unlink()


@pytest.mark.parametrize("setting", ["callbacks", "strategy", "accelerator", "precision", "devices", "num_nodes"])
@pytest.mark.parametrize("wrap", [lambda spec: spec, lambda spec: [spec]], ids=["", "list"])
def test_the_trainer_starts_no_process(folder, setting, wrap):
    content = {**CONFIG, "trainer": {**CONFIG["trainer"], setting: wrap(POPEN)}}
    file = write(folder, content)
    assert outcome("config of predict", folder, lambda: read(PredictCLI, file), lambda _: False) == REFUSED


def test_no_function_is_taken_that_starts_a_process(folder):
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.system"}}
    file = write(folder, {**CONFIG, "trainer": {**CONFIG["trainer"], "callbacks": [callback]}})
    assert outcome("config of predict", folder, lambda: read(PredictCLI, file), lambda _: False) == REFUSED


def test_no_object_is_made_of_what_may_be_anything(folder):
    model = {**CONFIG["model"], "init_args": {**CONFIG["model"]["init_args"], "options": {"act_layer": POPEN}}}
    file = write(folder, {**CONFIG, "model": model})
    assert outcome("config of predict", folder, lambda: read(PredictCLI, file), lambda _: False) == REFUSED


def test_a_callback_is_made(folder):
    file = write(folder, CONFIG)
    is_right = lambda cli: "Timer" in {type(callback).__name__ for callback in cli.trainer.callbacks}  # noqa: E731
    assert outcome("config of predict", folder, lambda: read(PredictCLI, file), is_right) == RIGHT


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "long", "large", "/dev/zero"])
def test_what_is_no_file_is_not_read(folder, tmp_path, kind):
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**40)
    good = write(folder, CONFIG)
    for args in (["--config", str(path)], [f"-c{path}"], ["--config", good, "--trainer", str(path)]):
        assert outcome("config of predict", folder, lambda args=args: PredictCLI.read(args), lambda _: False) == REFUSED
    assert outcome("config of sweep", folder, lambda: plan_runs([str(path)], []), lambda _: False) == REFUSED
    assert outcome("models.yml", folder, lambda: read_models(path), lambda _: False) == REFUSED
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("option", ["--model", "--data", "--trainer", "--config", "--trainer.callbacks"])
@pytest.mark.parametrize("address", ["http://127.0.0.1/x.yaml", "s3://bucket/x.yaml", "file:///etc/passwd"])
def test_no_address_is_read(folder, option, address):
    args = ["--config", write(folder, CONFIG), option, address]
    assert outcome("option of predict", folder, lambda: PredictCLI.read(args), lambda _: False) == REFUSED


def test_settings_may_be_given_in_place_of_a_file(folder):
    check_files(["--config", "{overwrite: true}", "--trainer", "{devices: 1}"])
    with pytest.raises(InputError, match="trainer must have settings"):
        check_files(["--config", "{trainer: 3}"])
    with pytest.raises(InputError, match="'overwrite' occurs twice"):
        check_files(["--config", "{overwrite: true, overwrite: false}"])
