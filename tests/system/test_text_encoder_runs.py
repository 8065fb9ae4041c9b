"""Whole commands with a text encoder: plan, predict, verify, status, report, sweep, and one that is resumed."""

import json
import signal
import sys

import pytest
from helpers import runs
from helpers.text_encoders import save_encoder, save_head

from lit_extract.storage.features import load_features
from lit_extract.sweep.runs import plan_runs

CONFIG = runs.REPOSITORY / "configs" / "demo" / "text_encoder.yaml"
CAPTIONS = runs.REPOSITORY / "derivatives" / "captions" / "demo-captions-handwritten.csv"


@pytest.fixture
def model(tmp_path):
    """The settings of a tiny MPNet."""
    save_encoder(tmp_path / "tiny", "mpnet")
    save_head(tmp_path / "tiny")
    trainer = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.devices", "1")
    return ("--model.name", "tiny", "--model.checkpoint", str(tmp_path / "tiny"), *trainer)


def settings(output, *others):
    return ("--config", str(CONFIG), "--output_dir", str(output), "--data.captions", str(CAPTIONS), *others)


def test_from_captions_to_a_certificate(cli, tmp_path, model):
    output = tmp_path / "features"
    code, out, err = cli("plan", *settings(output, *model))
    assert (code, err) == (0, "")
    assert "24 captions of demo, pooling avg" in out
    assert "3×32" in out
    assert cli("predict", *settings(output, *model, "--model.pool", "[avg, cls]"))[0] == 0
    assert cli("predict", *settings(output, *model, "--model.pool", "head"))[0] == 0
    folder = output / "demo" / "all"
    files = [folder / f"tiny_pool-{pool}_prompt-handwritten.pt" for pool in ("avg", "cls", "head")]
    assert sorted(folder.glob("*.pt")) == files
    assert load_features(files[0]).layers == ["blocks.0", "blocks.1", "blocks.2"]
    head = load_features(files[2])
    assert (head.layers, head.shape) == (["head"], (24, 1, 32))
    assert head.layer(0).norm(dim=1).tolist() == pytest.approx([1.0] * 24)
    assert "head_meaning: embedding of sentence-transformers: mean, normalized" in cli("show", files[2])[1]
    code, out, _ = cli("verify", *files, "--parity", 3, "--checkpoint", tmp_path / "tiny", "--captions", CAPTIONS)
    assert code == 0, out
    code, out, _ = cli("predict", *settings(output, *model, "--model.pool", "[avg, cls]"))
    assert (code, out.count("already done")) == (0, 2)


def test_other_special_tokens_do_not_mix(cli, tmp_path, model):
    output = tmp_path / "features"
    assert cli("predict", *settings(output, *model))[0] == 0
    code, _, err = cli("predict", *settings(output, *model, "--model.special_tokens", "excluded"))
    assert code == 2
    assert "special_tokens was 'included', now 'excluded'" in err


def test_a_loss_is_refused(cli, tmp_path, model):
    code, _, err = cli("predict", *settings(tmp_path / "features", *model, "--model.loss", "true"))
    assert code == 2
    assert "loss" in err
    assert len(err.splitlines()) == 1


def test_what_status_and_a_report_call_it(cli, tmp_path, model):
    output = tmp_path / "features"
    assert cli("predict", *settings(output, *model))[0] == 0
    code, out, _ = cli("status", output)
    assert code == 0
    assert "missing" not in out, "no sweep has made it"
    (entry,) = json.loads(cli("status", output, "--json")[1])["entries"]
    assert (entry["kind"], entry["prompt"]) == ("text_encoder", "handwritten")
    code, _, err = cli("report", output / "demo" / "all", "--out", tmp_path / "report", "--captions", CAPTIONS)
    assert (code, err) == (0, "")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Text-encoder, trained" in page
    assert "pooling avg, captions handwritten" in page
    assert "have a meaning similar to the stimulus" in " ".join(page.split())


def test_a_sweep_goes_through_the_text_encoders_of_models_yml(tmp_path):
    models = tmp_path / "models.yml"
    models.write_text("text_encoder: [org/one, org/two]\nlanguage: [org/three]\n")
    runs_of = plan_runs([str(CONFIG)], [], models=str(models))
    assert [run.model for run in runs_of] == ["org/one", "org/two"]
    assert runs_of[0].command[2:5] == [sys.executable, "-m", "lit_extract"]


@pytest.mark.slow
def test_killed_and_resumed(cli, tmp_path, model):
    shards = ("--data.token_budget", "60", "--data.shard_rows", "4")
    code, _, err = cli("predict", *settings(tmp_path / "undisturbed", *model, *shards))
    assert (code, err) == (0, "")
    output = tmp_path / "features"
    name = "demo/all/tiny_pool-avg_prompt-handwritten"
    given, store = settings(output, *model, *shards), output / f"{name}.zarr"
    with runs.slow(tmp_path / "log", "predict", *given, SLOW_STEP="0.1") as run:
        assert run.wait_until(lambda: len([*store.glob("avg/c/*/0/0")]) >= 2), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    done = len([*store.glob("avg/c/*/0/0")])
    assert done < 6
    code, out, err = cli("predict", *given)
    assert code == 0, err
    assert f"{done} of 6 shards done" in out + err
    runs.assert_same_features(output / f"{name}.pt", tmp_path / "undisturbed" / f"{name}.pt")
