"""The help of predict and plan: examples first, then ten settings, then all other settings."""

import inspect
import re
import shlex

import pytest

from lit_extract import extract, predict_trainer
from lit_extract.commands.help import help_asked_for
from lit_extract.commands.options import PLAN_OPTIONS, PREDICT_OPTIONS
from lit_extract.commands.spelling import PARTS, check_spelling, known_classes
from lit_extract.common.errors import InputError

OPTIONS = {"predict": PREDICT_OPTIONS, "plan": PLAN_OPTIONS}


@pytest.fixture(params=sorted(OPTIONS))
def command(request):
    return request.param


def section(text, title):
    """The names of the items below a title."""
    (body,) = re.findall(rf"^{title}:\n(.*?)\n(?:\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^  (\S+)$", body, re.MULTILINE)


def test_three_examples_come_first_and_are_right(command):
    text = help_asked_for(command, ["--help"], OPTIONS[command])
    (block,) = re.findall(r"^examples:\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    examples = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert text.index("examples:") < text.index("common settings:") < text.index("other settings:")
    assert [example[:2] for example in examples] == [["lit-extract", command]] * 3
    for example in examples:
        check_spelling(example[2:], OPTIONS[command])


def test_ten_settings_follow_and_then_each_other_once(command):
    text = help_asked_for(command, ["--config", "x", "-h"], OPTIONS[command])
    usual, others = section(text, "common settings"), section(text, "other settings")
    assert len(usual) == 10
    wanted = {f"--{name}" for name in inspect.signature(extract).parameters} - {"--model", "--data", "--trainer"}
    wanted |= {f"--trainer.{name}" for name in inspect.signature(predict_trainer).parameters} | {*OPTIONS[command]}
    assert wanted <= {*usual, *others}
    assert len({*usual, *others}) == len(usual) + len(others)


def test_classes_are_listed_and_each_has_a_help_of_its_own(command):
    text = help_asked_for(command, ["--help"], OPTIONS[command])
    for part in PARTS:
        for name in known_classes(part):
            assert f"\n  {name}\n" in text
            own = help_asked_for(command, [f"--{part}.help", name], OPTIONS[command])
            assert f"--{part} {name}\n" in own
            assert own == help_asked_for(command, [f"--{part}.help=lit_extract.{name}"], OPTIONS[command])


def test_what_must_be_given_and_defaults_are_said():
    text = " ".join(help_asked_for("predict", ["--model.help", "VisionExtractor"], PREDICT_OPTIONS).split())
    assert '--model.name The model, as timm calls it, such as "vit_base_patch16_224.mae". (required)' in text
    assert "--model.seed Seed of the random weights. (default: 0)" in text


def test_defaults_that_are_constants_are_shown():
    text = " ".join(help_asked_for("predict", ["--data.help", "CaptionDataModule"], PREDICT_OPTIONS).split())
    assert "names the output folder. (default: all)" in text


@pytest.mark.parametrize("after", [(), ("--model.pool", "avg")], ids=["last", "before another option"])
def test_without_a_class_it_is_that_of_the_config(after):
    args = ["--config", "nsd/vision", "--data.help", *after]
    assert help_asked_for("predict", args, PREDICT_OPTIONS).startswith("--data NSDDataModule\n")
    with pytest.raises(InputError, match=r"--model\.help: needs the name of a class: VisionExtractor, "):
        help_asked_for("predict", ["--model.help"], PREDICT_OPTIONS)


def test_a_class_of_others_is_left_to_jsonargparse():
    assert help_asked_for("predict", ["--model.help", "mine.Extractor"], PREDICT_OPTIONS) is None
    assert help_asked_for("predict", ["--config", "x"], PREDICT_OPTIONS) is None
