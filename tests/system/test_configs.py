"""Every YAML in configs/ parses, alone and on every hardware, and says what it should."""

from pathlib import Path

import pytest
import yaml
from helpers.markdown import blocks_of

from lit_extract.commands.options import PREDICT_OPTIONS
from lit_extract.commands.predict import PredictCLI
from lit_extract.commands.spelling import check_spelling, settings_of_job
from lit_extract.storage.features import load_features

CONFIGS = Path(__file__).parents[2] / "configs"
VISION = {
    "nsd": "NSDDataModule",
    "bold5000": "BOLD5000DataModule",
    "things": "THINGSDataModule",
    "folder": "ImageFolderDataModule",
    "demo": "DemoDataModule",
}
OF_CAPTIONS = {"language": "LanguageExtractor", "text_encoder": "TextEncoderExtractor"}
JOBS = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name != "trainer"]
HARDWARE = sorted((CONFIGS / "trainer").glob("*.yaml"))


def name(path):
    return "/".join(path.with_suffix("").parts[-2:])


def parsed(capsys, *configs):
    """The settings that a run with these configs has; nothing is run."""
    captions = ["--data.captions=x.csv", "--data.prompt_name=x"] if configs[0].stem in OF_CAPTIONS else []
    with pytest.raises(SystemExit) as end:
        PredictCLI([f"--config={config}" for config in configs] + captions + ["--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_there_are_configs_for_each_dataset():
    assert {name(path) for path in JOBS} == {
        *(f"{dataset}/vision" for dataset in VISION),
        *(f"{dataset}/language" for dataset in VISION),
        *(f"{dataset}/text_encoder" for dataset in VISION),
        *(f"{dataset}/vision_language" for dataset in VISION),
        *(f"{dataset}/captions" for dataset in VISION),
    }
    assert len(HARDWARE) >= 3


@pytest.mark.parametrize("job", JOBS, ids=name)
def test_alone(capsys, job):
    config = parsed(capsys, job)
    model, data = config["model"], config["data"]
    classes = [part["class_path"].split(".")[-1] for part in (model, data)]
    assert data["init_args"]["query"] is None
    assert config["output_dir"] == "features"
    if job.stem == "captions":
        assert classes == ["Captioner", "ImageSourceDataModule"]
        assert data["init_args"]["dataset"] == job.parent.name
        assert (model["init_args"]["prompt"], model["init_args"]["engine"]) == ("caption", None)
        assert (config["trainer"]["accelerator"], config["trainer"]["devices"]) == ("cpu", 1)
        return
    if job.stem == "vision":
        assert classes == ["VisionExtractor", VISION[job.parent.name]]
    elif job.stem == "vision_language":
        assert classes == ["VisionLanguageExtractor", VISION[job.parent.name]]
        assert (model["init_args"]["pool"], model["init_args"]["prompt"]) == (["image", "prompt", "last"], "caption")
    else:
        assert classes == [OF_CAPTIONS[job.stem], "CaptionDataModule"]
        assert data["init_args"]["dataset"] == job.parent.name
    assert data["init_args"]["subset"] == "all"
    assert model["init_args"]["untrained"] is False


@pytest.mark.parametrize("hardware", HARDWARE, ids=name)
@pytest.mark.parametrize("job", JOBS, ids=name)
def test_with_hardware(capsys, job, hardware):
    alone, chosen = parsed(capsys, job), yaml.safe_load(hardware.read_text())
    assert set(chosen) == {"trainer"}, "hardware changes neither model nor data, so it fits all of them"
    config = parsed(capsys, job, hardware)
    assert (config["model"], config["data"]) == (alone["model"], alone["data"])
    assert chosen["trainer"].items() <= config["trainer"].items()


def test_captions_of_the_demo_are_there():
    data = yaml.safe_load((CONFIGS / "demo" / "language.yaml").read_text())["data"]["init_args"]
    assert (CONFIGS.parent / data["captions"]).is_file(), "relative to the repository, where the README begins"


def test_demo_runs(cli, tmp_path):
    code, out, err = cli(
        *("predict", "--config", CONFIGS / "demo" / "vision.yaml", "--config", CONFIGS / "trainer" / "cpu.yaml"),
        *("--model.name", "test_vit.r160_in1k", "--model.untrained", "true", "--trainer.precision", "32-true"),
        *("--data.num_workers", 0, "--output_dir", tmp_path),
    )
    file = tmp_path / "demo" / "all-untrained" / "test_vit.r160_in1k_pool-cls-untrained.pt"
    assert (code, err) == (0, "")
    assert f"{file}\n  24 stimuli × 6 layers × 64 dimensions, float32\n  layers blocks.0 … blocks.5 (6 layers)\n" in out
    features = load_features(file)
    assert features.stimulus_ids == list(range(24))
    assert features.feats.isfinite().all()
    assert len(features.layer(-1).unique(dim=0)) == 24


def test_the_yaml_of_the_docs_has_all_top_level_keys_and_is_right(capsys, tmp_path):
    (block,) = [block for block in blocks_of(CONFIGS.parent / "docs" / "configs.md") if block.marks == "yaml"]
    whole = block.code.replace("# output:", "output:")
    (tmp_path / "whole.yaml").write_text(whole)
    keys = {*yaml.safe_load(whole)}
    assert keys == {"model", "data", "trainer", *settings_of_job(), *(name[2:] for name in PREDICT_OPTIONS)}
    check_spelling(["--config", str(tmp_path / "whole.yaml")], PREDICT_OPTIONS)
    (tmp_path / "own.yaml").write_text(block.code.replace("gpu", "cpu"))
    config = parsed(capsys, tmp_path / "own.yaml")
    assert (config["model"]["init_args"]["pool"], config["tag"], config["output"]) == (["cls", "avg"], "224", None)
