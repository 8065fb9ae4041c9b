"""Whole commands with the layer norm and the pooling head, and a run of the latter that is killed and resumed."""

import signal
from pathlib import Path

import pytest
from helpers import runs

from lit_extract.storage.features import load_features

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "vision.yaml"
TINY = "test_vit.r160_in1k"


def predict(cli, output, *settings):
    model = ("--model.name", TINY, "--model.untrained", "true")
    trainer = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--data.num_workers", 0)
    code, out, err = cli("predict", "--config", CONFIG, *model, *trainer, "--output_dir", output, *settings)
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize(
    ("settings", "pool", "shape", "layers"),
    [
        (("--model.layers", "[blocks, norm]"), "cls", (24, 7, 64), [*(f"blocks.{k}" for k in range(6)), "norm"]),
        (("--model.layers", "[0, -1, norm]"), "cls", (24, 3, 64), ["blocks.0", "blocks.5", "norm"]),
        (("--model.pool", "head"), "head", (24, 1, 1000), ["head"]),
    ],
)
def test_from_photographs_to_a_certificate(cli, tmp_path, settings, pool, shape, layers):
    predict(cli, tmp_path, *settings, "--finalize", "false")
    file = tmp_path / "demo" / "all-untrained" / f"{TINY}_pool-{pool}-untrained.pt"
    code, out, _ = cli("status", tmp_path)
    assert code == 0
    assert f"{shape[1]}×{shape[2]}" in out
    code, out, err = cli("finalize", file.with_suffix(".zarr"))
    assert (code, err) == (0, "")
    features = load_features(file)
    assert (features.shape, features.layers) == (shape, layers)
    assert len(features.layer(-1).unique(dim=0)) == 24
    assert features.metadata["notes"].get("head_meaning") == ("logits of 1,000 classes" if pool == "head" else None)
    code, out, _ = cli("show", file)
    assert code == 0
    assert ("head_meaning: logits of 1,000 classes" in out) == (pool == "head")
    code, out, _ = cli("verify", file, "--parity", 4)
    assert code == 0, out
    assert "already done" in predict(cli, tmp_path, *settings)


def test_a_plan_knows_the_width_of_the_output(cli, tmp_path):
    model = ("--model.name", "vit_base_patch16_clip_224.laion2b", "--model.pool", "head")
    code, out, err = cli("plan", "--config", CONFIG, *model, "--output_dir", tmp_path)
    assert code == 0, err
    assert "1×512" in out


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    images = runs.write_images(tmp_path / "images", 600)
    settings = (*runs.ONE_RANK, "--model.pool", "head")
    runs.complete(images, tmp_path / "undisturbed", *settings)
    output = tmp_path / "features"
    store = runs.store_folder(output, "head")
    with runs.slow_predict(images, output, *settings, SLOW_STEP="0.05") as run:
        assert run.wait_until(lambda: len([*store.glob("head/c/*/0/0")]) >= 3), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    done = len([*store.glob("head/c/*/0/0")])
    assert done < 10
    assert f"{done} of 10 shards done" in runs.complete(images, output, *settings)
    runs.assert_same_features(*(runs.features_file(tmp_path / at, "head") for at in ("features", "undisturbed")))
