"""Whole commands with models whose layers differ in width, and a run that is killed and resumed."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import runs

from lit_extract.storage.features import load_features

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "vision.yaml"
TINY = "test_resnet.r160_in1k"
WIDTHS = {"act1": 32, "layer1": 32, "layer2": 48, "layer3": 192, "layer4": 96}


def settings_of(name):
    model = ("--model.name", name, "--model.untrained", "true", "--model.pool", "avg")
    return *model, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        (TINY, WIDTHS),
        ("test_convnext.r160_in1k", {f"stages.{k}": width for k, width in enumerate((24, 32, 48, 64))}),
        ("swin_tiny_patch4_window7_224.ms_in1k", {f"layers.{k}": 96 * 2**k for k in range(4)}),
    ],
)
def test_from_photographs_to_a_certificate_and_a_report(cli, tmp_path, name, widths):
    where = ("--config", CONFIG, *settings_of(name), "--data.num_workers", 0, "--output_dir", tmp_path)
    first, *_, last = widths.values()
    shape = f"{len(widths)}×{first}…{last}"
    code, out, err = cli("plan", *where)
    assert (code, err) == (0, "")
    assert shape in out
    code, out, err = cli("predict", *where, "--finalize", "false")
    assert (code, err) == (0, "")
    file = tmp_path / "demo" / "all-untrained" / f"{name}_pool-avg-untrained.pt"
    code, out, _ = cli("status", tmp_path)
    assert code == 0
    assert shape in out
    code, out, err = cli("finalize", file.with_suffix(".zarr"))
    assert (code, err) == (0, "")
    features = load_features(file)
    content = torch.load(file, weights_only=True)
    assert features.layers == content["layers"] == [*widths]
    for layer, width in widths.items():
        rows = features.layer(layer)
        assert rows.shape == (24, width)
        assert torch.equal(rows, content["feats"][layer])
        assert len(rows.unique(dim=0)) == 24
    code, out, _ = cli("show", file)
    assert code == 0
    assert all(layer in out for layer in widths)
    code, out, _ = cli("verify", file, "--parity", 4)
    assert code == 0, out
    code, out, _ = cli("report", file.parent, "--out", tmp_path / "report", "--permutations", 2)
    assert code in (0, 3), out
    (of_model,) = json.loads((tmp_path / "report" / "report.json").read_text())["models"]
    assert [layer["name"] for layer in of_model["layers"]] == [*widths]
    assert f"{len(widths)} × {first}…{last}" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    code, out, err = cli("predict", *where)
    assert (code, err) == (0, "")
    assert "already done" in out


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    images = runs.write_images(tmp_path / "images", 600)
    settings = (*runs.ONE_RANK, "--model.name", TINY, "--model.pool", "avg")
    runs.complete(images, tmp_path / "undisturbed", *settings)
    output, name = tmp_path / "features", f"folder/all-untrained/{TINY}_pool-avg-untrained"

    def done():
        return len([*(output / f"{name}.zarr").glob("avg.4/c/*/0")])

    with runs.slow_predict(images, output, *settings, SLOW_STEP="0.05") as run:
        assert run.wait_until(lambda: done() >= 3), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    assert done() < 10
    assert f"{done()} of 10 shards done" in runs.complete(images, output, *settings)
    found, expected = (
        torch.load(tmp_path / at / f"{name}.pt", weights_only=True) for at in ("features", "undisturbed")
    )
    assert found["stimulus_ids"] == expected["stimulus_ids"]
    assert [*found["feats"]] == [*expected["feats"]] == [*WIDTHS]
    for layer, rows in expected["feats"].items():
        assert np.array_equal(found["feats"][layer].numpy(), rows.numpy())
