"""All features files of one folder have the same stimuli in the same order, the dataset's: whole commands."""

import csv
import io
from pathlib import Path

import pytest
import torch
from helpers.language_models import save_model

from lit_extract import load_features

DEMO = ("--config", "configs/demo/language.yaml", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
SHIPPED = "derivatives/captions/demo-captions-handwritten.csv"


@pytest.fixture
def predict(cli, tmp_path):
    save_model(tmp_path / "model", "llama")

    def run(captions, *options, name="tiny"):
        model = ("--model.name", name, "--model.checkpoint", tmp_path / "model")
        where = ("--data.captions", captions, "--output_dir", tmp_path / "out")
        return cli("predict", *DEMO, *model, *where, *options)

    return run


@pytest.fixture
def write(tmp_path):
    """A function that writes rows of the shipped captions in another order."""
    with Path(SHIPPED).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)

    def run(order, change=lambda row: row):
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([header, *(change(rows[place]) for place in order)])
        (tmp_path / "captions.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
        return tmp_path / "captions.csv"

    return run


def feats(tmp_path, subset="all", name="tiny"):
    return load_features(tmp_path / "out" / "demo" / subset / f"{name}_pool-avg_prompt-handwritten.pt")


def test_half_of_the_captions_in_reverse_order_is_no_dataset(predict, write, tmp_path):
    assert predict(SHIPPED, name="whole")[0] == 0
    whole = feats(tmp_path, name="whole")
    half = write(range(11, -1, -1))
    code, _, err = predict(half)
    assert code == 2
    assert "no caption for 12 of 24 stimuli of demo: 12, 13" in err
    assert not list((tmp_path / "out" / "demo" / "all").glob("tiny*"))
    code, out, _ = predict(half, "--data.subset", "half")
    assert code == 0
    assert "rows are sorted in the order of demo" in out
    found = feats(tmp_path, "half")
    assert found.stimulus_ids == list(range(12))
    assert torch.allclose(found.feats, whole.feats[:12], atol=1e-6)


def test_a_reversed_file_gives_the_same_bytes(predict, write, tmp_path):
    assert predict(SHIPPED, name="whole")[0] == 0
    code, _, err = predict(write(range(23, -1, -1), lambda row: [f"{row[0]}.0", *row[1:]]))
    assert (code, err) == (0, "")
    assert torch.equal(feats(tmp_path).feats, feats(tmp_path, name="whole").feats)
    assert feats(tmp_path).stimulus_ids == feats(tmp_path, name="whole").stimulus_ids == list(range(24))


def test_another_part_in_the_same_folder_is_refused_before_a_model_is_loaded(predict, write, tmp_path, monkeypatch):
    assert predict(write(range(12)), "--data.subset", "part", name="first")[0] == 0
    monkeypatch.setattr("lit_extract.modules.language.LanguageExtractor.configure_model", None)  # it would fail
    code, _, err = predict(write(range(6, 18)), "--data.subset", "part")
    assert code == 2
    assert "first_pool-avg_prompt-handwritten.pt' has 12 stimuli, and this run has 12; 6 are in both" in err
    assert "--data.subset NAME" in err
    assert [path.name for path in (tmp_path / "out" / "demo" / "part").iterdir()] == [
        "first_pool-avg_prompt-handwritten.pt"
    ]


def test_vision_and_language_features_of_a_folder_can_be_compared(cli, tmp_path, image_folder):
    """Captions that this program makes of a folder keep the path; another folder of images is refused."""
    save_model(tmp_path / "model", "llama")
    vision = (
        *("predict", "--config", "configs/folder/vision.yaml", "--trainer.accelerator", "cpu"),
        *("--model.name", "test_vit.r160_in1k", "--model.untrained", "true", "--output_dir", tmp_path / "out"),
    )
    assert cli(*vision, "--data.root", image_folder)[0] == 0
    (file,) = (tmp_path / "out").rglob("*.pt")
    stimuli = load_features(file).stimulus_ids
    rows = [f"{path},name,a caption of {path},model,caption" for path in reversed(stimuli)]
    (tmp_path / "captions.csv").write_text("\n".join(["path,name,caption,model,prompt", *rows]) + "\n")
    language = (
        *("predict", "--config", "configs/folder/language.yaml", "--trainer.accelerator", "cpu"),
        *("--model.name", "tiny", "--model.checkpoint", tmp_path / "model", "--output_dir", tmp_path / "out"),
        *("--data.captions", tmp_path / "captions.csv", "--data.prompt_name", "own"),
    )
    code, _, err = cli(*language, "--data.root", image_folder)
    assert (code, err) == (0, "")
    (captions,) = (tmp_path / "out").rglob("tiny*.pt")
    assert load_features(captions).stimulus_ids == stimuli
    other = tmp_path / "other"
    other.mkdir()
    (image_folder / stimuli[0]).rename(other / "z.png")
    code, _, err = cli(*vision, "--model.seed", 1, "--model.name", "vit_tiny_patch16_224", "--data.root", other)
    assert code == 2
    assert f"data.root: '{other}': " in err
    assert "; 0 are in both" in err
