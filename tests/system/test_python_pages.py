"""docs/python.md, own-dataset.md and own-model.md run from beginning to end, on small models and without a network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.language_models import save_model
from helpers.markdown import run_page
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from lit_extract import CaptionDataModule, DemoDataModule, LanguageExtractor, VisionExtractor, extract

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_features_in_python(tmp_path, capsys):
    vit = "vit_tiny_patch16_224.augreg_in21k"
    torch.save(timm.create_model(vit).state_dict(), "vit.pth")
    extract(VisionExtractor(vit, checkpoint="vit.pth"), DemoDataModule(num_workers=0))
    save_model(tmp_path / "gpt", "gpt2")
    handwritten = "derivatives/captions/demo-captions-handwritten.csv"
    captions = CaptionDataModule(handwritten, "handwritten", dataset="demo")
    extract(LanguageExtractor("gpt2", checkpoint=str(tmp_path / "gpt"), pool="avg"), captions)
    capsys.readouterr()

    found = run_page(DOCS / "python.md")

    vision, language = found["vision"], found["language"]
    assert torch.equal(found["one"], vision.feats[7])
    assert torch.equal(found["several"], vision.feats[[7, 3]])
    np.testing.assert_array_equal(found["chosen"], vision.feats[7, 2])
    np.testing.assert_array_equal(found["table"].loc[7], vision.feats[7, 2])
    assert Path("vision.png").stat().st_size > 10_000
    pairs = [pdist(features.layer(-1).numpy(), "correlation") for features in (vision, language)]
    assert capsys.readouterr().out.splitlines()[-1] == f"blocks.11: {spearmanr(*pairs).statistic:.2f}"


def test_own_images(image_folder, capsys):
    shutil.copytree(image_folder, "faces")
    for number, name in enumerate(("anna", "ben")):
        Path(f"faces/{number}.png").rename(f"faces/{name}.png")
    Path("faces.csv").write_text("stimulus_id,image,age\ns01,faces/anna.png,31\ns02,faces/ben.png,45\n")
    Path("captions.csv").write_text("stimulus_id,caption\ns02,Ben smiles.\ns01,Anna laughs.\n")
    found = run_page(DOCS / "own-dataset.md")
    assert found["features"].stimulus_ids == ["s02"]
    assert found["captions"].stimuli["caption"].tolist() == ["Anna laughs.", "Ben smiles."]
    assert "torch.Size([6, 64])" in capsys.readouterr().out


def test_own_architecture():
    found = run_page(DOCS / "own-model.md")
    features, network = found["features"], found["network"].eval()
    assert features.shape == (24, 3, 48)
    assert features.provenance["preprocessing"]["input_size"] == [3, 64, 64]
    data = DemoDataModule(preprocessing=found["model"].preprocessing, num_workers=0)
    image = data.predict_dataloader().dataset[0]["image"][:1]
    pixels = (image.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        hidden = network.forward_intermediates(pixels, return_prefix_tokens=True, intermediates_only=True)
    for k, (_, prefix) in enumerate(hidden):
        torch.testing.assert_close(features[0][k], prefix[0, 0], rtol=1e-4, atol=1e-4)
