"""A sweep is resumed with the commits that it began with, though somebody has since edited a model's card on the hub.

The hub is its own cache here, offline: real repositories, real commits, the real loading code.
"""

import os
import shutil
import subprocess
import sys

import pytest
import timm
from helpers.language_models import save_model
from helpers.text_encoders import save_encoder, save_head
from helpers.vision_families import FAMILIES, save
from safetensors.torch import save_file

from lit_extract import load_features

pytestmark = pytest.mark.slow
LONG = pytest.mark.long

FIRST, SECOND = "1" * 40, "2" * 40
DEMO = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--output_dir", "out")
VISION = ("--config", "{configs}/demo/vision.yaml", "--model.name", "test_vit.r160_in1k")
TRANSFORMERS_VISION = (
    *("--config", "{configs}/demo/vision.yaml", "--model", "TransformersVisionExtractor"),
    *("--model.name", "someone/tiny"),
)
LANGUAGE = (
    *("--config", "{configs}/demo/language.yaml", "--model.name", "someone/tiny"),
    *("--data.captions", "{configs}/../derivatives/captions/demo-captions-handwritten.csv"),
)
TEXT_ENCODER = (*(text.replace("language", "text_encoder") for text in LANGUAGE), "--model.pool", "head")


def commit(folder, repository, number, content):
    """A new commit of the main branch, with these files."""
    home = folder / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(content, home / "snapshots" / number)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(number)


@pytest.fixture
def predict(tmp_path, request):
    configs = request.config.rootpath / "configs"

    def run(*arguments):
        command = [text.format(configs=configs) for text in ("predict", *arguments, *DEMO)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
        return subprocess.run(
            [sys.executable, "-m", "lit_extract", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(request.config.rootpath)},
        )

    return run


@pytest.mark.parametrize(
    "kind",
    ["vision", "language", *(pytest.param(kind, marks=LONG) for kind in ("vision of transformers", "text encoder"))],
)
def test_a_commit_to_the_card_stops_no_run(kind, predict, tmp_path):
    content = tmp_path / "content"
    if kind == "vision":
        content.mkdir()
        model = timm.create_model("test_vit.r160_in1k")
        save_file(model.state_dict(), content / "model.safetensors")
        repository, settings = "timm/test_vit.r160_in1k", VISION
    elif kind == "vision of transformers":
        save(content, *FAMILIES["DINOv3"][:2])
        repository, settings = "someone/tiny", TRANSFORMERS_VISION
    elif kind == "text encoder":
        save_encoder(content, "t5")
        save_head(content, dense=[(16, "torch.nn.modules.linear.Identity")], prompts={"query": "a "}, default="query")
        repository, settings = "someone/tiny", TEXT_ENCODER
    else:
        save_model(content, "llama")
        repository, settings = "someone/tiny", LANGUAGE
    commit(tmp_path, repository, FIRST, content)
    first = predict(*settings, "--finalize", "false")
    assert first.returncode == 0, first.stderr
    (content / "README.md").write_text("A better card.")
    commit(tmp_path, repository, SECOND, content)

    asked = predict(*settings, "--model.revision", "main")
    assert asked.returncode == 2
    assert f"revision was '{FIRST}', now '{SECOND}'" in asked.stderr

    resumed = predict(*settings)
    assert resumed.returncode == 0, resumed.stderr
    (file,) = (tmp_path / "out").rglob("*.pt")
    assert load_features(file).provenance["revision"] == FIRST
    again = predict(*settings)
    assert again.returncode == 0, again.stderr
    assert "already done" in again.stdout

    replaced = predict(*settings, "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    assert load_features(file).provenance["revision"] == SECOND


def test_code_of_a_commit_runs_only_when_its_user_names_the_commit(predict, tmp_path):
    content = tmp_path / "content"
    save_model(content, "llama")
    commit(tmp_path, "someone/tiny", FIRST, content)
    trusting = (*LANGUAGE, "--model.trust_remote_code", "true")
    assert predict(*trusting, "--finalize", "false").returncode == 0
    commit(tmp_path, "someone/tiny", SECOND, content)
    refused = predict(*trusting)
    assert refused.returncode == 2
    assert "model.trust_remote_code" in refused.stderr
    assert f"--model.revision {FIRST}" in refused.stderr
    named = predict(*trusting, "--model.revision", FIRST)
    assert named.returncode == 0, named.stderr
