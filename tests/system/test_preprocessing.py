"""What the subject saw: a photograph seen whole, from the command line to features, certificate and cache."""

import json

import numpy as np
import pytest
import timm
import torch
from helpers.runs import REPOSITORY
from PIL import Image

from lit_extract import load_dataset, load_features

TINY = "test_vit.r160_in1k"
SQUASH = "{crop_pct: 1.0, crop_mode: squash}"
FILE = f"demo/all-untrained/{TINY}_pool-cls-untrained.pt"


@pytest.fixture
def predict(cli, tmp_path):
    def run(*settings, to="out"):
        job = ("--config", REPOSITORY / "configs" / "demo" / "vision.yaml", "--model.name", TINY)
        where = ("--model.untrained", "true", "--trainer.accelerator", "cpu", "--output_dir", tmp_path / to)
        return cli("predict", *job, *where, *settings)

    return run


@torch.no_grad()
def test_the_demo_seen_whole(predict, cli, tmp_path):
    code, out, err = predict("--model.preprocessing", SQUASH)
    assert code == 0, err
    assert "sees the whole picture, squashed to 160 × 160" in out
    file = tmp_path / "out" / FILE
    features = load_features(file)
    torch.manual_seed(0)
    model = timm.create_model(TINY).eval()
    for row, path in enumerate(load_dataset("demo")["image"][:4]):  # by Pillow, not by timm's transform
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((160, 160), Image.Resampling.BICUBIC))
        seen = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        layers = model.forward_intermediates(seen, norm=False, intermediates_only=True, return_prefix_tokens=True)
        expected = torch.stack([prefix[0, 0] for _, prefix in layers])
        torch.testing.assert_close(features.feats[row], expected, rtol=1e-4, atol=1e-5)

    assert predict("--model.preprocessing", SQUASH)[1].splitlines()[1].startswith("already done")
    code, _, err = predict()
    assert code == 2
    assert "preprocessing.crop_mode was 'squash', now 'center'" in err
    assert predict(to="own")[0] == 0
    own = load_features(tmp_path / "own" / FILE)
    assert not torch.allclose(own.feats[0], features.feats[0], atol=1e-3)

    code, out, _ = cli("verify", file, "--parity", 4)
    assert code == 0, out
    assert "crop_pct 1.0 instead of 0.95, crop_mode squash instead of center" in out
    assert "crop_pct" not in cli("verify", own.path, "--parity", 4)[1]
    assert "sees the whole picture, squashed to 160 × 160" in cli("show", file)[1]


def test_pixels_of_one_geometry_are_not_taken_for_another(predict, tmp_path):
    """Both runs have one folder of pixels, the first of which fills it."""
    cache = tmp_path / "pixels"
    assert predict("--data.cache", cache, to="own")[0] == 0
    assert predict("--data.cache", cache, "--model.preprocessing", SQUASH, to="whole")[0] == 0
    assert predict("--data.cache", "off", "--model.preprocessing", SQUASH, to="alone")[0] == 0
    whole, alone = (load_features(tmp_path / to / FILE).feats for to in ("whole", "alone"))
    assert torch.equal(whole, alone)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("{crop_pct: 1.5}", "model.preprocessing: crop_pct"),
        ("{crop: 1}", "model.preprocessing: crop: must be one of crop_pct"),
        ("{input_size: [3, 100, 100]}", "model.preprocessing: input_size [3, 100, 100]"),
        ("squash", "preprocessing"),
    ],
)
def test_a_bad_value_is_one_line(predict, tmp_path, given, named):
    code, out, err = predict("--model.preprocessing", given)
    assert (code, err.count("\n")) == (2, 1)
    assert out.endswith("on DemoDataModule: loading PyTorch …\n")
    assert named in err
    assert not (tmp_path / "out").exists()


def test_the_parts_of_a_config_may_have_it(predict, tmp_path):
    config = tmp_path / "whole.yaml"
    config.write_text(json.dumps({"model": {"init_args": {"preprocessing": {"crop_mode": "border"}}}}))
    code, out, err = predict("--config", config)
    assert code == 0, err
    assert "(91 % of its area), fitted into 160 × 160 with a border" in out
