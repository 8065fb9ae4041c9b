"""Which models a sweep runs and with which command; what can't hold for all models is refused before anything runs."""

import sys

import pytest

from lit_extract.common.errors import InputError
from lit_extract.jobs.run_state import Outcome
from lit_extract.sweep import run as sweep
from lit_extract.sweep.display import Display
from lit_extract.sweep.runs import last_given, plan_runs

MODELS = """
vision:
  - vit_a
  - {name: vit_b, checkpoint: b.safetensors}
  - deit_c
language:
  - org/lm
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a file and returns its name; a models.yml is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.yml").write_text(MODELS)

    def write(name, text):
        (tmp_path / name).write_text(text)
        return name

    return write


@pytest.fixture
def vision(write):
    return write(
        "vision.yaml", "model:\n  class_path: lit_extract.VisionExtractor\n  init_args: {name: vit_x, pool: avg}\n"
    )


def test_each_model_of_the_kind_gets_a_command_with_all_that_was_given(vision, write):
    hardware = write("cpu.yaml", "trainer: {accelerator: cpu}\n")
    options = ["--data.root", "/a b", "--model.pool=[cls, avg]"]
    planned = plan_runs([vision, hardware], options, "models.yml", None, True)
    predict = ["env", "LIT_EXTRACT_SWEEP=1", sys.executable, "-m", "lit_extract", "predict"]
    predict += ["--config", vision, "--config", hardware, *options]
    predict += ["--model.models", "models.yml", "--model.untrained", "true", "--model.name"]
    assert [run.command for run in planned] == [[*predict, name] for name in ("vit_a", "vit_b", "deit_c")]
    assert [(run.number, run.model, run.state) for run in planned] == [
        (1, "vit_a", "waiting"),
        (2, "vit_b", "waiting"),
        (3, "deit_c", "waiting"),
    ]


def test_a_pattern_chooses_and_nothing_is_added_that_was_not_given(vision):
    (run,) = plan_runs([vision], [], match="deit*")
    assert run.command[4:] == ["--config", vision, "--model.name", "deit_c"]


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("model: LanguageExtractor\n", []),
        ("model:\n  class_path: lit_extract.modules.language.LanguageExtractor\n", []),
        ("model: VisionExtractor\n", ["--model", "LanguageExtractor"]),
        ("model: VisionExtractor\n", ["--model.class_path=lit_extract.LanguageExtractor"]),
        ("data: {class_path: x}\n", ["--model=LanguageExtractor"]),
    ],
)
def test_the_class_of_the_model_says_the_kind(write, config, options):
    assert [run.model for run in plan_runs([write("c.yaml", config)], options)] == ["org/lm"]


def test_the_later_config_counts(vision, write):
    later = write("later.yaml", "model: {class_path: lit_extract.LanguageExtractor}\n")
    assert [run.model for run in plan_runs([vision, later], [])] == ["org/lm"]


def test_models_of_the_config_are_used_unless_others_are_given(write):
    config = write("c.yaml", "model:\n  class_path: VisionExtractor\n  init_args: {models: own.yml}\n")
    write("own.yml", "vision: [vit_own]\n")
    assert [run.model for run in plan_runs([config], [])] == ["vit_own"]
    assert [run.model for run in plan_runs([config], [], "models.yml")] == ["vit_a", "vit_b", "deit_c"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.name", "vit_a"], ["model.name", "--match"]),
        (["--model.init_args.name=vit_a"], ["model.name", "--match"]),
        (["--model.models", "x.yml"], ["model.models", "--models"]),
        (["--model.checkpoint", "x.pth"], ["model.checkpoint", "models.yml"]),
        (["--model.init_args.revision=abc"], ["model.revision", "models.yml"]),
        (["--print_config"], ["--print_config"]),
        (["--model.help", "VisionExtractor"], ["--model.help"]),
        (["more.yaml"], ["unrecognized argument: 'more.yaml'"]),
    ],
)
def test_options_that_are_of_one_model_or_of_none_are_refused(vision, options, named):
    with pytest.raises(InputError) as refusal:
        plan_runs([vision], options)
    assert [text for text in named if text not in str(refusal.value)] == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("model: {class_path: lit_extract.Captioner}\n", "Captioner makes captions with one model; use predict"),
        ("model: {class_path: mine.Extractor}\n", "'mine.Extractor'"),
        ("data: {class_path: x}\n", "no config has a model"),
        ("model:\n  class_path: VisionExtractor\n  init_args: {checkpoint: x.pth}\n", "model.checkpoint: 'x.pth'"),
        ("model: [1\n", "can't be read"),
        ("just text\n", "must hold settings"),
        (None, "No such file"),
    ],
)
def test_configs_that_no_sweep_can_have_are_refused(write, tmp_path, config, named):
    if config is not None:
        write("c.yaml", config)
    with pytest.raises(InputError) as refusal:
        plan_runs(["c.yaml"], [])
    assert named in str(refusal.value)


def test_last_given():
    options = ["--a", "1", "--b=2", "--a=3", "--c"]
    assert [last_given(options, name) for name in ("--a", "--b", "--c", "--d")] == ["3", "2", None, None]


NO_GPU = Outcome("failed", "config: 'a40.yaml', line 3: trainer.accelerator: 'gpu', but there is none", 2)
OF_MODEL = Outcome("failed", "model.layers: 13 out of range; the model has 12 blocks", 2)
DONE = Outcome("done", "", 0)


@pytest.mark.parametrize(
    ("outcomes", "n_run", "lines"),
    [
        ([NO_GPU] * 3, 2, [f"  vit_a, vit_b: failed: {NO_GPU.reason}",
                           "  the other models were not started, because this reason is not about the model"]),
        ([NO_GPU, DONE, NO_GPU], 3, [f"  vit_a, deit_c: failed: {NO_GPU.reason}"]),
        ([DONE, NO_GPU, NO_GPU], 3, [f"  vit_b, deit_c: failed: {NO_GPU.reason}"]),
        ([OF_MODEL] * 3, 3, [f"  vit_a, vit_b, deit_c: failed: {OF_MODEL.reason}"]),
        ([Outcome("failed", "OSError: x", 1)] * 3, 3, ["  vit_a, vit_b, deit_c: failed: OSError: x"]),
    ],
)  # fmt: skip
def test_a_reason_common_to_all_models_stops_the_sweep(vision, tmp_path, monkeypatch, capsys, outcomes, n_run, lines):
    left = iter(outcomes)
    monkeypatch.setattr(sweep, "_run_model", lambda *_: next(left))
    runs = plan_runs([vision], [])
    with Display(runs) as display:
        assert sweep.run_models(runs, str(tmp_path), tmp_path, display) == 0
    assert [run.state == "waiting" for run in runs] == [k >= n_run for k in range(3)]
    assert sweep.summary(runs)[1:] == lines
    assert sweep.exit_code(runs) == 1


def test_the_output_folder_of_a_sweep(write):
    config = write("out.yaml", "output_dir: mine\n")
    assert sweep.output_dir_of([], []) == "features"
    assert sweep.output_dir_of([config], []) == "mine"
    assert sweep.output_dir_of([config], ["--output_dir=other"]) == "other"
    with pytest.raises(InputError, match=r"^output_dir: '' is empty"):
        sweep.output_dir_of([config], ["--output_dir", ""])
