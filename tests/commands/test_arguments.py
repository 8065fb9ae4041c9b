"""The order of arguments does not matter: options win over configs, later configs over earlier ones."""

import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest

from lit_extract.commands.arguments import in_order
from lit_extract.commands.predict import PredictCLI

REPOSITORY = Path(__file__).parents[2]
VISION = str(REPOSITORY / "configs" / "demo" / "vision.yaml")
NAME = ["--model.name", "test_vit.r160_in1k"]


@pytest.fixture
def other(tmp_path):
    """A second config, with another model and another batch size."""
    file = tmp_path / "other.yaml"
    model = "{class_path: lit_extract.VisionExtractor, init_args: {name: test_vit3.r160_in1k}}"
    file.write_text(f"model: {model}\ndata: {{class_path: lit_extract.DemoDataModule, init_args: {{batch_size: 3}}}}\n")
    return str(file)


class ParseCLI(PredictCLI):
    """The settings, and nothing made of them."""

    def instantiate_classes(self):
        self.config_init = self.config


def settings(args):
    config = ParseCLI(args).config
    return config.model.init_args.name, config.model.init_args.untrained, config.data.init_args.batch_size


def test_any_order_of_options_and_configs_means_the_same(other):
    first, second = ["--config", VISION], [f"--config={other}"]
    options = [["--model.name=test_vit.r160_in1k"], ["--model.untrained", "true"]]
    for order in itertools.permutations([first, second, *options]):
        if order.index(first) < order.index(second):
            assert settings([part for given in order for part in given]) == ("test_vit.r160_in1k", True, 3), order


def test_later_configs_win_over_earlier_ones_and_short_options_are_known(other):
    untrained = ["--model.untrained", "true"]
    assert settings([*untrained, "-c", VISION, "-c", other])[0] == "test_vit3.r160_in1k"
    assert settings([*untrained, "-c", other, "-c", VISION])[0] == "vit_tiny_patch16_224.augreg_in21k"


def test_classes_may_come_after_their_settings():
    args = [*NAME, "--data.batch_size", "5", "--model", "VisionExtractor", "--data", "DemoDataModule"]
    assert settings(args) == ("test_vit.r160_in1k", False, 5)


@pytest.mark.parametrize(
    ("args", "ordered"),
    [
        (["--a", "1", "--config", "f", "--b"], ["--config", "f", "--a", "1", "--b"]),
        (["--a", "--config=f", "-c", "g", "--b"], ["--config=f", "-c", "g", "--a", "--b"]),
        (["--config_x", "1", "--model.name", "m"], ["--config_x", "1", "--model.name", "m"]),
        (["--a", "--config"], ["--config", "--a"]),
        ([], []),
    ],
)
def test_each_group_keeps_its_order(args, ordered):
    assert in_order(args) == ordered


def test_plan_takes_any_order(cli):
    own = ["--json", "--rows", "10", "--trainer.accelerator", "cpu"]
    results = [cli("plan", *args) for args in ([*NAME, *own, "--config", VISION], ["--config", VISION, *NAME, *own])]
    assert [code for code, _, _ in results] == [0, 0]
    (first,), (second,) = (json.loads(out)["models"] for _, out, _ in results)
    assert first["model"] == second["model"] == NAME[1]


def test_a_sweep_takes_any_order(cli, other, tmp_path):
    models = tmp_path / "models.yml"
    models.write_text("vision: [test_vit]\n")
    given = ["--dry_run", "--models", models]
    rest = ["--data.batch_size", "5"]
    code, out, _ = cli("sweep", *rest, "-c", VISION, *given, f"--config={other}")
    assert code == 0
    predict = ["env", "LIT_EXTRACT_SWEEP=1", sys.executable, "-m", "lit_extract", "predict"]
    configs = ["--config", VISION, "--config", other]
    assert shlex.split(out) == [*predict, *configs, *rest, "--model.models", str(models), "--model.name", "test_vit"]
