"""Names that there are not are refused before torch is imported, with the nearest one; nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_extract.commands.options import PLAN_OPTIONS, PREDICT_OPTIONS
from lit_extract.commands.spelling import check_spelling, what_will_run
from lit_extract.common.errors import InputError
from lit_extract.common.shipped import shipped_configs

VISION = """# a comment
model:
  class_path: lit_extract.VisionExtractor
  init_args:
    name: vit_tiny
data: NSDDataModule
trainer:
  accelerator: cpu
"""
DEMO = ("--config", "demo/vision")
CALLBACK = "lightning.pytorch.callbacks.Timer"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refusal(tmp_path):
    """A function that checks a command line, which must be refused; it returns the message."""

    def check(*args, options=PREDICT_OPTIONS):
        with pytest.raises(InputError) as refused:
            check_spelling(args, options)
        return str(refused.value)

    return check


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*DEMO, "--model.nme", "x"), "--model.nme: no such setting of VisionExtractor; did you mean --model.name?"),
        ((*DEMO, "--model.nme=x"), "--model.nme: no such setting of VisionExtractor; did you mean --model.name?"),
        ((*DEMO, "--model.init_args.pol", "x"), "--model.init_args.pol: no such setting of VisionExtractor; did you"),
        ((*DEMO, "--data.batch_sizes", "3"), "--data.batch_sizes: no such setting of DemoDataModule; did you mean"),
        ((*DEMO, "--batch_size", "3"), "--batch_size: no such option; did you mean --data.batch_size?"),
        ((*DEMO, "--trainer.device", "1"), "--trainer.device: no such setting of the trainer; did you mean"),
        ((*DEMO, "--overwite"), "--overwite: no such option; did you mean --overwrite?"),
        ((*DEMO, "--zzz"), "--zzz: no such option; --help lists them"),
        ((*DEMO, "-x"), "-x: no such option"),
        (("--confg", "demo/vision"), "--confg: no such option; did you mean --config?"),
        ((*DEMO, "--model", "VisonExtractor"), "--model: there is no class 'VisonExtractor'; did you mean Vision"),
        ((*DEMO, "--model=lit_extract.VisonExtractor"), "--model: there is no class 'lit_extract.VisonExtractor'; did"),
        (
            (*DEMO, "--data.class_path", "NSDModule"),
            "--data: there is no class 'NSDModule'; did you mean NSDDataModule",
        ),
        ((*DEMO, "--rows", "3"), "--rows: no such option"),
        (("--model", "VisionExtractor"), "data: required, but not given: --config nsd/vision, or --data NSDDataModule"),
        ((), "model and data: required, but not given"),
        ((*DEMO, "--model.pool"), "--model.pool: needs a value"),
        ((*DEMO, "--data.root", "--quiet"), "--data.root: needs a value"),
        ((*DEMO, "--model.init_args.seed", "--data.limit=3"), "--model.init_args.seed: needs a value"),
        ((*DEMO, "--finalize"), "--finalize: needs a value"),
        ((*DEMO, "--trainer.devices", "-c", "trainer/cpu"), "--trainer.devices: needs a value"),
    ],
)
def test_a_name_on_the_command_line_that_there_is_not(refusal, args, message):
    assert refusal(*args).startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VISION.replace("name:", "nme:"), "line 5: model.init_args.nme: no such setting of VisionExtractor; did you"),
        (VISION.replace("accelerator:", "accelerater:"), "line 8: trainer.accelerater: no such setting of the trainer"),
        (VISION.replace("Extractor", "Extracter"), "line 3: there is no class 'lit_extract.VisionExtracter'; did you"),
        (
            VISION.replace("NSDDataModule", "NDSDataModule"),
            "line 6: there is no class 'NDSDataModule'; did you mean NSD",
        ),
        (VISION + "ouput_dir: x\n", "line 9: ouput_dir: no such setting; did you mean output_dir?"),
        (VISION.replace("init_args", "init_arg"), "line 4: model.init_arg: no such key; did you mean init_args?"),
    ],
)
def test_a_name_in_a_config_that_there_is_not_is_named_with_its_line(refusal, tmp_path, config, message):
    (tmp_path / "my.yaml").write_text(config)
    assert refusal("--config", "my.yaml").startswith(f"config: 'my.yaml', {message}")


RIGHT = [
    *[("--config", name) for name in shipped_configs() if not name.startswith(("slurm", "trainer"))],
    (*DEMO, "--config", "trainer/cpu", "--output_dir=x", "--overwrite", "--profile", "true", "--finalize", "false"),
    (*DEMO, "--model.options.img_size", "384", "--model.init_args.pool+", "avg", "--model.preprocessing.crop_pct=1"),
    (*DEMO, "--trainer.callbacks+", CALLBACK, "--trainer.callbacks.duration", "00:12:00:00", "--print_config"),
    (*DEMO, "--trainer", "cpu.yaml", "-ctrainer/cpu", "-c", "trainer/cpu"),
    (*DEMO, "--data.query", "--x in a value", "--data.root", "-1", "--model.init_args", "{name: x}"),
    (*DEMO, "--model", "mine.Extractor", "--model.anything", "3", "--data.batch_size", "2"),
    (*DEMO, "--data", "mine.Module", "--data.anything", "3"),
    (*DEMO, "--model", "lit_extract.modules.vision.VisionExtractor", "--model.pool", "avg"),
    (*DEMO, "--model", "TransformersVisionExtractor", "--model.backend", "pil", "--model.channels_last", "true"),
    ("--config", "{model: {class_path: mine.Extractor, init_args: {x: 1}}, data: mine.Module}", "--model.y", "1"),
    ("--model.help", "mine.Extractor"),
    ("--model", "VisionExtractor", "--data", "NSDDataModule", "--print_config=skip_default"),
]


@pytest.mark.parametrize("args", RIGHT, ids=" ".join)
def test_what_may_be_right_is_left_to_jsonargparse(args):
    check_spelling(args, PREDICT_OPTIONS)
    check_spelling(args, PLAN_OPTIONS)


def test_flags_need_no_value():
    flags = ["--model.untrained", "--keep_store", "--output_dir=x", "--overwrite", "--model.untrained"]
    completed = ["--model.untrained", "true", "--keep_store", "true", "--output_dir=x", "--overwrite"]
    assert check_spelling([*DEMO, *flags], PREDICT_OPTIONS) == [*DEMO, *completed, "--model.untrained", "true"]
    assert check_spelling([*DEMO, "--model.untrained", "false"], PREDICT_OPTIONS)[-1] == "false"


def test_a_second_config_may_have_settings_of_the_class_of_the_first(refusal, tmp_path):
    (tmp_path / "more.yaml").write_text("data:\n  init_args:\n    batch_size: 3\n")
    check_spelling([*DEMO, "--config", "more.yaml"], PREDICT_OPTIONS)
    (tmp_path / "more.yaml").write_text("data:\n  init_args:\n    batch: 3\n")
    assert "line 3: data.init_args.batch: no such setting of DemoDataModule" in refusal(*DEMO, "--config", "more.yaml")


def test_a_plan_has_options_of_its_own(refusal):
    check_spelling([*DEMO, "--rows", "3", "--json", "--models"], PLAN_OPTIONS)
    assert "did you mean --rows?" in refusal(*DEMO, "--row", "3", options=PLAN_OPTIONS)


def test_a_sweep_ends_before_anything_runs(cli, tmp_path):
    code, out, err = cli("sweep", *DEMO, "--data.batch_sizes", "3")
    assert (code, out) == (2, "")
    assert "--data.batch_sizes: no such setting of DemoDataModule; did you mean --data.batch_size?" in err
    assert [*tmp_path.iterdir()] == []


def test_what_will_run_is_said_unless_settings_are_asked_for():
    said = what_will_run([*DEMO, "--model.name", "vit_x"])
    assert said == "VisionExtractor vit_x on DemoDataModule: loading PyTorch …"
    assert "vit_tiny_patch16_224.augreg_in21k" in what_will_run(DEMO)
    assert what_will_run([*DEMO, "--print_config"]) is None
    assert what_will_run(["--model.help", "x"]) is None


@pytest.mark.parametrize(
    "args", [["--help"], ["--model.help", "VisionExtractor"], [*DEMO, "--model.nme", "x"], ["--config", "nsd/visoin"]]
)
@pytest.mark.parametrize("command", ["predict", "plan"])
def test_nothing_heavy_is_imported_for_help_and_errors_of_spelling(command, args):
    script = f"""
import sys
from lit_extract.cli import main
try:
    code = main({[command, *args]})
except SystemExit as end:
    code = end.code
heavy = {{"torch", "lightning", "transformers", "timm", "pandas", "numpy"}} & set(sys.modules)
print(code, sorted(heavy))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == f"{0 if 'help' in args[0] else 2} []", run.stderr


# errors of what is found out later: where the value was given


@pytest.fixture
def own(tmp_path):
    """A function that writes a config for the demo, with other values; it returns its name."""

    def write(pool="cls", name="test_vit.r160_in1k", subset="all", model="VisionExtractor"):
        (tmp_path / "own.yaml").write_text(
            f"model:\n  class_path: {model}\n  init_args:\n    name: {name}\n    pool: {pool}\n"
            f"data:\n  class_path: DemoDataModule\n  init_args:\n    subset: {subset}\ntrainer:\n  accelerator: cpu\n"
        )
        return "own.yaml"

    return write


def test_a_value_in_a_config_is_named_with_its_line_and_the_nearest_choice(cli, own):
    code, _, err = cli("predict", "--config", own(pool="avg_al"))
    assert code == 2
    assert "error: config: 'own.yaml', line 5: model.pool: 'avg_al' must be one of cls, avg, avg_all, " in err
    assert err.endswith("; did you mean avg_all?\n")


def test_a_value_of_the_command_line_is_not_blamed_on_a_config(cli, own):
    _, _, err = cli("predict", "--config", own(), "--model.pool", "clss")
    assert err.startswith("lit-extract: error: model.pool: 'clss' must be one of cls,")
    _, _, err = cli("predict", "--config", own(), "--model.pool", "[cls, clss]")
    assert err.startswith("lit-extract: error: model.pool: ")
    _, _, err = cli("predict", "--config", own(pool="clss"), "--model.pool", "avg")
    assert err.startswith("lit-extract: error: config: 'own.yaml', line 5: model.pool: 'clss' must be")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("pool", "cls,avg", "'cls,avg' must be one of cls, avg, avg_all, tokens, head, gridK, or a list of these, such "
         "as '[cls, avg]'\n"),
        ("pool", "[cls, clss]", "['cls', 'clss'] must be one of cls, avg, "),
        ("layers", "12", "12 out of range; the model has 6 blocks, -6 to 5\n"),
        ("layers", "[blocks.9]", "'blocks.9' must be blocks, norm, one of the blocks blocks.0, "),
        ("layers", "[1.5]", "'1.5' must be a whole number (int), or text, or a list\n"),
        ("options", "x", "'x' must be a mapping, such as '{name: value}'\n"),
        ("preprocessing", "[1]", "[1] must be a mapping, "),
    ],
)  # fmt: skip
def test_all_that_is_allowed_is_listed(cli, own, option, value, message):
    _, _, err = cli("predict", "--config", own(), f"--model.{option}", value)
    assert err.startswith(f"lit-extract: error: model.{option}: {message}")


def test_a_single_block_may_be_given_by_index_or_name(cli, own, tmp_path):
    for folder, layers in (("a", "5"), ("b", "[blocks.5]"), ("a", "blocks.5")):
        settings = ("--model.untrained", "true", "--model.layers", layers, "--output_dir", tmp_path / folder)
        code, out, err = cli("predict", "--config", own(), *settings)
        assert (code, "layers blocks.5\n" in out) == (0, True), err
    assert "\nalready done: " in out, "it has the same provenance"


def test_the_nearest_model_of_timm_is_suggested_with_the_line(cli, own):
    _, _, err = cli("predict", "--config", own(name="vit_tiny_patch16_225"))
    assert err.startswith("lit-extract: error: config: 'own.yaml', line 4: model.name: no model of timm is called")
    assert "vit_tiny_patch16_224.augreg_in21k" in err.partition("did you mean ")[2]


def test_a_model_of_timm_is_not_looked_for_on_the_hub(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    name = "vit_base_patch16_224.mae"
    for model, config in (("LanguageExtractor", "demo/language"), ("TransformersVisionExtractor", "demo/vision")):
        _, _, err = cli("predict", "--config", config, "--model", model, "--model.name", name)
        said = f"model.name: '{name}' is a model of timm, for --model VisionExtractor\n"
        assert err == f"lit-extract: error: {said}"


def test_the_nearest_model_of_models_yml_is_suggested(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    _, _, err = cli("predict", "--config", "demo/language", "--model.name", "bigscience/blomz-560m")
    assert "did you mean bigscience/bloomz-560m?" in err


def test_options_of_the_command_line_are_not_blamed_on_a_config(cli, own):
    _, _, err = cli("predict", "--config", own(), "--model.options", "{img_size: 97}")
    assert err.startswith(
        "lit-extract: error: model.options: with {'img_size': 97}, 'test_vit.r160_in1k' can't compute"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("224", '224 must be text: write it in quotes, as in "224"\n'),
        ("yes", 'true (also read as that: yes, no, on, off) must be text: write it in quotes, as in "true"\n'),
        ("[a]", "['a'] must be text\n"),
    ],
)
def test_text_that_looks_like_something_else_needs_quotes(cli, own, tmp_path, value, message):
    config = own()
    with (tmp_path / config).open("a") as file:
        file.write(f"tag: {value}\n")
    _, _, err = cli("predict", "--config", config)
    assert err == f"lit-extract: error: config: 'own.yaml', line 12: tag: {message}"


def test_names_of_subsets_and_hardware_are_named_with_their_line(cli, own):
    _, _, err = cli("predict", "--config", own(subset="../x"))
    assert err.startswith("lit-extract: error: config: 'own.yaml', line 9: data.subset: ")
    _, _, err = cli("predict", "--config", own(), "--trainer.accelerator", "abacus")
    assert err.startswith("lit-extract: error: trainer.accelerator: 'abacus' must be one of auto, gpu, cpu")
