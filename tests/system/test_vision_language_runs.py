"""Whole commands with a vision-language model that looks at the photographs: one that is killed and resumed, too."""

import json
import signal

import pytest
from helpers import runs
from helpers.vision_language_models import save_model

from lit_extract.storage.features import load_features

CONFIG = runs.REPOSITORY / "configs" / "demo" / "vision_language.yaml"
POOLS = ["image", "prompt", "last"]


@pytest.fixture
def model(tmp_path):
    """The settings of a tiny Pixtral."""
    folder = tmp_path / "tiny"
    save_model(folder, "pixtral")
    trainer = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.devices", "1")
    return ("--model.name", "tiny", "--model.checkpoint", str(folder), *trainer, "--data.num_workers", "0")


def settings(output, *others):
    return ("--config", str(CONFIG), "--output_dir", str(output), *others)


def test_from_photographs_to_a_certificate(cli, tmp_path, model):
    output = tmp_path / "features"
    folder = output / "demo" / "all"
    code, out, err = cli("plan", *settings(output, *model))
    assert code == 0, err
    assert "24 images of demo, pooling image, prompt, last" in out
    assert "3×32" in out
    code, out, err = cli("predict", *settings(output, *model, "--finalize", "false"))
    assert (code, err) == (0, "")
    (store,) = folder.glob("*.zarr")
    assert store.name == "tiny_pool-image+prompt+last_prompt-caption.zarr"
    code, out, err = cli("finalize", store)
    assert (code, err) == (0, "")
    files = [folder / f"tiny_pool-{pool}_prompt-caption.pt" for pool in POOLS]
    assert sorted(folder.glob("*.pt")) == sorted(files)
    for file in files:
        features = load_features(file)
        assert (features.shape, features.layers) == ((24, 3, 32), ["blocks.0", "blocks.1", "blocks.2"])
        assert len(features.layer(-1).unique(dim=0)) == 24
    code, out, _ = cli("show", files[0])
    assert code == 0
    assert "prompt_text: Describe this image in one plain English sentence, as you would tell" in out
    assert "<s>[INST][IMG]Describe this image" in out
    code, out, _ = cli("verify", *files, "--parity", 3, "--checkpoint", tmp_path / "tiny")
    assert code == 0, out
    question = ("--model.prompt", "What is moving in this picture?", "--model.prompt_name", "moving")
    code, out, err = cli("predict", *settings(output, *model, *question, "--model.pool", "last"))
    assert (code, err) == (0, "")
    assert "tiny_pool-last_prompt-moving.pt" in out
    code, out, _ = cli("predict", *settings(output, *model))
    assert code == 0
    assert out.count("already done") == 3


def test_what_a_report_and_status_call_it(cli, tmp_path, model):
    output = tmp_path / "features"
    assert cli("predict", *settings(output, *model, "--model.pool", "[image, last]"))[0] == 0
    code, out, _ = cli("status", output)
    assert code == 0
    assert "missing" not in out, "no sweep has made it"
    entries = json.loads(cli("status", output, "--json")[1])["entries"]
    assert [(entry["kind"], entry["prompt"], entry["pools"]) for entry in entries] == [
        ("vision_language", "caption", ["image"]),
        ("vision_language", "caption", ["last"]),
    ]
    code, _, err = cli("report", output / "demo" / "all", "--out", tmp_path / "report")
    assert (code, err) == (0, "")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Vision-language, trained" in page
    assert "pooling image, prompt caption" in page


def test_another_prompt_of_the_same_name_does_not_mix(cli, tmp_path, model):
    output = tmp_path / "features"
    first = ("--model.prompt", "What is moving in this picture?", "--model.prompt_name", "mine")
    other = ("--model.prompt", "What is still in this picture?", "--model.prompt_name", "mine")
    assert cli("predict", *settings(output, *model, *first))[0] == 0
    code, _, err = cli("predict", *settings(output, *model, *other))
    assert code == 2
    assert "prompt_text was 'What is moving" in err


@pytest.mark.slow
def test_killed_and_resumed(cli, tmp_path, model):
    shards = ("--data.batch_size", "2", "--data.shard_rows", "4")
    code, out, err = cli("predict", *settings(tmp_path / "undisturbed", *model, *shards))
    assert (code, err) == (0, "")
    output = tmp_path / "features"
    given = settings(output, *model, *shards)
    store = output / "demo" / "all" / "tiny_pool-image+prompt+last_prompt-caption.zarr"
    with runs.slow(tmp_path / "log", "predict", *given, SLOW_STEP="0.1") as run:
        assert run.wait_until(lambda: len([*store.glob("last/c/*/0/0")]) >= 2), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    done = len([*store.glob("last/c/*/0/0")])
    assert done < 6
    code, out, err = cli("predict", *given)
    assert code == 0, err
    assert f"{done} of 6 shards done" in out + err
    for pool in POOLS:
        name = f"demo/all/tiny_pool-{pool}_prompt-caption.pt"
        runs.assert_same_features(output / name, tmp_path / "undisturbed" / name)
