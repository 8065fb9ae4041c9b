"""The command line: what is wrong is said in one line with exit code 2, before anything heavy happens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from lit_extract import __version__
from lit_extract.cli import COMMANDS

REPOSITORY = Path(__file__).parents[1]
DEMO = ("predict", "--config", REPOSITORY / "configs" / "demo" / "vision.yaml")
TINY = (*DEMO, "--model.name", "test_vit.r160_in1k", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
UNTRAINED = (*TINY, "--model.untrained", "true")


@pytest.fixture
def refusal(cli, tmp_path, monkeypatch):
    """A function that runs a command line which must be refused; it returns the one line."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())

    def run(*arguments):
        code, _, err = cli(*arguments)
        assert code == 2
        assert err.startswith("lit-extract: error: ")
        assert err.count("\n") == 1, "one line, no traceback"
        assert not (tmp_path / "features").exists()
        return err

    yield run
    assert set(tmp_path.iterdir()) >= before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((*UNTRAINED, "--data", "FolderDataModule"), ["FolderDataModule"]),
        ((*UNTRAINED, "--data", "ImageFolderDataModule"), ["--data.root"]),
        ((*UNTRAINED, "--data.root", "nowhere"), ["data.root", "nowhere"]),
        ((*UNTRAINED, "--data.query", "demo_id < 3"), ["data.query", "data.subset"]),
        ((*UNTRAINED, "--data.query", "id < 3", "--data.subset", "x"), ["data.query: 'id < 3' fails", "demo_id"]),
        ((*UNTRAINED, "--data.subset", "../x"), ["data.subset: ", "../x"]),
        ((*UNTRAINED, "--data.batch_size", "many"), ["data.batch_size", "int", "many"]),
        ((*UNTRAINED, "--data.batch_size", "0"), ["data.batch_size: 0"]),
        ((*UNTRAINED, "--data.shard_rows", "5"), ["data.shard_rows: 5", "data.batch_size"]),
        ((*UNTRAINED, "--data.on_bad_image", "ignore"), ["data.on_bad_image", "stop", "skip", "ignore"]),
        (
            (*DEMO, "--model.name", "vit_tiny_patch16_225"),
            ["'vit_tiny_patch16_225'", "vit_tiny_patch16_224.augreg_in21k"],
        ),
        (
            (*DEMO, "--model.name", "vit_base_patch16_siglip_224.webli"),
            ["model.pool", "no class token", "avg, avg_all"],
        ),
        ((*DEMO, "--model.name", "resnet18.a1_in1k"), ["'resnet18.a1_in1k' are maps", "allowed: avg"]),
        ((*UNTRAINED, "--model.pool", "max"), ["model.pool", "cls", "avg_all", "max"]),
        ((*UNTRAINED, "--model.layers", "[0, 6]"), ["model.layers: 6 out of range", "6 blocks, -6 to 5"]),
        ((*UNTRAINED, "--model.layers", "[5, -1]"), ["model.layers: [5, -1]", "none twice"]),
        ((*UNTRAINED, "--model.checkpoint", "x.pth"), ["model.untrained", "model.checkpoint", "x.pth"]),
        ((*TINY, "--model.checkpoint", "x.pth"), ["model.checkpoint: 'x.pth' is not a file"]),
        ((*UNTRAINED, "--model.models", "no.yml"), ["models file no.yml"]),
        ((*UNTRAINED, "--model.weights", "x"), ["model", "weights"]),
        ((*UNTRAINED, "--trainer.max_epochs", "3"), ["--trainer.max_epochs: no such setting of the trainer"]),
        ((*UNTRAINED, "--trainer.precision", "16"), ["trainer.precision", "bf16-true", "16"]),
        ((*UNTRAINED, "--trainer.accelerator", "abacus"), ["trainer.accelerator: 'abacus' must be one of", "cpu"]),
        ((*UNTRAINED, "--nonsense"), ["--nonsense: no such option"]),
        (("predict",), ["required", "data", "model"]),
        (("predict", "--config", "no.yaml"), ["config", "no.yaml"]),
        (("finalize",), ["store"]),
        (("finalize", "no.zarr"), ["'no.zarr' is not a folder"]),
        (("finalize", "no.zarr", "--keep_stor"), ["--keep_stor: no such option; did you mean --keep_store?"]),
        (("finalize", "no.zarr", "--zzz=1"), ["--zzz: no such option; --help lists them"]),
        (("sweep", "--config", "demo/vision", "--untraned"), ["--untraned: no such option; did you mean --untrained?"]),
        (("submit", "--config", "demo/vision", "--partiton=x"), ["--partiton: no such option; did you mean --parti"]),
        (("show", "no.pt"), ["no file 'no.pt'"]),
        (("extract",), ["extract: no such command; one of predict, plan, sweep, "]),
        (("prdict", "--config", "demo/vision"), ["prdict: no such command; did you mean predict?"]),
        (("--verson",), ["--verson: no such command; did you mean --version?"]),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_in_one_line(refusal, arguments, named):
    line = refusal(*arguments)
    assert [text for text in named if text not in line] == []


def test_a_config_that_is_not_yaml_is_refused(refusal, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: [1")
    assert "while parsing" in refusal("predict", "--config", "bad.yaml")


@pytest.mark.parametrize("form", ["--output_dir=~/out", "--output_dir ~/out", "--config=~/own.yaml"])
def test_the_home_is_replaced_wherever_a_folder_is_given(cli, tmp_path, monkeypatch, form):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "own.yaml").write_text("output_dir: ~/out\n")
    code, out, _ = cli(*UNTRAINED, "--data.limit", "2", *form.split())
    assert code == 0
    assert str(tmp_path / "home" / "out") in out
    assert cli("status", "~/out")[1].startswith(str(tmp_path / "home" / "out"))
    assert not (tmp_path / "~").exists()


def test_a_missing_dataset_names_its_variable(refusal, monkeypatch):
    monkeypatch.delenv("NSD_DATASET", raising=False)
    assert "NSD_DATASET" in refusal(*UNTRAINED, "--data", "NSDDataModule")


def test_an_output_folder_that_is_a_file_is_refused(refusal, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "taken" in refusal(*UNTRAINED, "--output_dir", tmp_path / "taken")


def test_weights_of_another_model_are_refused(refusal, tmp_path):
    torch.save(timm.create_model("test_vit2.r160_in1k").state_dict(), tmp_path / "other.pth")
    line = refusal(*TINY, "--model.checkpoint", "other.pth", "--output_dir", tmp_path / "out")
    assert "model.checkpoint: 'other.pth' does not fit 'test_vit.r160_in1k'" in line


def test_weights_that_can_not_be_downloaded_are_refused(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    line = refusal(*TINY, "--output_dir", tmp_path / "out")
    for text in ("timm/test_vit.r160_in1k", "HF_HUB_OFFLINE is set", "checkpoint"):
        assert text in line


def test_a_defect_of_ours_keeps_its_traceback(cli, monkeypatch):
    def defect(*arguments, **settings):
        raise ValueError("a defect")

    monkeypatch.setattr("lit_extract.modules.vision.check_pools", defect)
    with pytest.raises(ValueError, match="a defect"):
        cli(*UNTRAINED)


def help_of(cli, capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli(*arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_of_predict_is_about_prediction(cli, capsys):
    text = help_of(cli, capsys, "predict", "--help")
    for setting in ("--output_dir", "--overwrite", "--trainer.devices", "--model", "--data", "--config"):
        assert setting in text, setting
    for setting in ("max_epochs", "gradient_clip_val", "ckpt_path", "seed_everything", "optimizer", "lr_scheduler"):
        assert setting not in text, setting


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("--model.help", "VisionExtractor"), ["untrained", "checkpoint", "pool", "layers"]),
        (("--model.help", "TransformersVisionExtractor"), ["untrained", "checkpoint", "pool", "layers", "backend"]),
        (("--data.help", "NSDDataModule"), ["root", "query", "subset", "batch_size", "on_bad_image"]),
    ],
)
def test_help_of_classes_has_their_settings(cli, capsys, arguments, settings):
    text = help_of(cli, capsys, "predict", *arguments)
    assert all(setting in text for setting in settings)


def test_help_and_version_are_light():
    script = f"""
import sys
from lit_extract.cli import main
for arguments in (["--help"], ["--version"], *([command, "--help"] for command in {[*COMMANDS]})):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code
heavy = {{"torch", "lightning", "transformers", "pandas", "zarr"}} & set(sys.modules)
assert not heavy, heavy
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert __version__ in run.stdout
    for command, summary in COMMANDS.items():
        assert f"\n  {command} " in run.stdout
        assert f"usage: lit-extract {command} " in run.stdout
        assert summary.split()[-1] in run.stdout


def test_without_a_command_help_is_printed(cli):
    code, out, err = cli()
    assert (code, err) == (2, "")
    assert out == cli("--help")[1]
    assert "usage: lit-extract COMMAND" in out


def test_help_has_the_arguments_and_exit_codes_of_the_docstring(cli, capsys):
    text = " ".join(help_of(cli, capsys, "check", "--help").split())
    for part in ("Flag captions", "3 some captions are flagged.", "--accept [{true,false}]", "Replace an existing"):
        assert part in text, part
    assert "Args:" not in text


@pytest.mark.parametrize("value", [["--keep_store"], ["--keep_store", "true"], ["--keep_store=true"]])
def test_a_flag_needs_no_value(cli, make_store, value):
    store, _ = make_store()
    assert cli("finalize", store.path, *value)[0] == 0
    assert store.path.is_dir()


def test_a_flag_may_be_turned_off(cli, make_store):
    store, _ = make_store()
    assert cli("finalize", store.path, "--keep_store", "false")[0] == 0
    assert not store.path.exists()


@pytest.mark.parametrize("arguments", [["--help"], ["status", ".", "--json"]])
def test_a_reader_that_has_seen_enough_ends_it_without_a_traceback(tmp_path, arguments):
    """As ``lit-extract status | head -0``, of more than a pipe holds."""
    for number in range(300):
        (tmp_path / f"{number}.pt").write_bytes(b"")
    command = [sys.executable, "-m", "lit_extract", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    os.close(writer)
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, "")


def test_show_and_finalize(cli, make_store):
    store, _ = make_store()
    code, out, err = cli("finalize", store.path, "--keep_store", "true")
    assert (code, out, err) == (0, f"{store.path.parent / 'm_pool-cls.pt'}\n", "")
    assert store.path.is_dir()
    code, out, err = cli("show", store.path.parent / "m_pool-cls.pt")
    assert (code, err) == (0, "")
    assert "10 stimuli × 3 layers × 4 dimensions, pooling cls" in out


def test_a_damaged_store_is_said_in_one_line(refusal, make_store):
    store, _ = make_store()
    shard = store.path / "cls" / "c" / "1" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    assert "rows 4 to 7" in refusal("finalize", store.path)


def test_ctrl_c_is_one_line_and_no_traceback(cli, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_extract.commands.show.main", interrupted)
    assert cli("show", "x.pt") == (130, "", "lit-extract: stopped\n")
