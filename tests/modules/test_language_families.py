"""Every family of language models of Transformers, by a tiny model of it: equal to its own hidden states, or refused.

The oracle is in scripts/language_models.py, which writes the page: ``output_hidden_states`` and logits of one caption
without padding, pooled by hand.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from language_models import NOT_TINY, PAGE, WRONG, all_families, ask, by_hand, padded, save_tiny
from safetensors.torch import load_file, save_file

from lit_extract.common.errors import InputError
from lit_extract.modules.language import LanguageExtractor
from lit_extract.modules.logits import logits_of

ROOT = Path(__file__).parents[2]
# One of each kind: own logits; other shapes and names of states; composed, with a class of text alone and without one.
KINDS = {
    "cohere": "embeddings, blocks.0, blocks.1, norm",
    "granite": "embeddings, blocks.0, blocks.1, norm",
    "bart": "embeddings, blocks.0, blocks.1, blocks.2",
    "opt": "embeddings, blocks.0, blocks.1, norm",
    "mamba2": "blocks.0, blocks.1, blocks.2, norm",
    "deepseek_v4": "embeddings, blocks.0, blocks.1, norm",
    "gemma3n_text": "embeddings, blocks.0, blocks.1, blocks.2, blocks.3, blocks.4",
    "llama4": "embeddings, blocks.0, blocks.1, norm",
    "mistral3": "embeddings, blocks.0, blocks.1, norm",
    "qwen3_5": "embeddings, blocks.0, blocks.1, norm",
}
REFUSED = {
    "bert": "not a causal",  # without is_decoder
    "hrm_text": "no list of",
    "prophetnet": "numbers in blocks",
    "t5gemma2": "an encoder for its text",
    "xlm": "are not the hidden states",
}


def covered():
    """The types of which the page says that they give features, those that are refused, and the others."""
    features, refused, unknown = re.split("\n## .*\n", (ROOT / PAGE).read_text())[1:]
    lists = [line.rstrip(".").split(", ") for part in (features, unknown) for line in part.splitlines()]
    of_tables = [re.findall(r"^\| ([\w.-]+) \|", part, re.M) for part in (features, refused)]
    (usual, not_tiny) = (
        words for words in lists if len(words) > 1 and all(re.fullmatch(r"[\w.-]+", word) for word in words)
    )
    head = {"type", "---"}
    return {*usual, *of_tables[0]} - head, {*of_tables[1]} - head, {*not_tiny}


@pytest.mark.parametrize("model_type", KINDS)
def test_one_of_each_kind_equals_the_hidden_states_of_transformers(model_type):
    answer = ask(model_type)
    assert (answer.reason, answer.remark, answer.hidden_states) == ("", "", KINDS[model_type])


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_does_not_go_is_refused_in_one_line(model_type, monkeypatch):
    monkeypatch.setitem(ask.__globals__["OWN"], "bert", {})
    answer = ask(model_type)
    assert REFUSED[model_type] in answer.reason
    assert not answer.reason.startswith((WRONG, NOT_TINY))


@pytest.mark.long
@pytest.mark.parametrize("model_type", sorted({*all_families()} - {*KINDS}))
def test_every_family_does_what_the_page_says(model_type):
    features, refused, unknown = covered()
    answer = ask(model_type)
    assert not answer.reason.startswith(WRONG)
    assert answer.remark in (ROOT / PAGE).read_text()
    known = "features" if answer.hidden_states else "unknown" if answer.reason.startswith(NOT_TINY) else "refused"
    assert model_type in {"features": features, "refused": refused, "unknown": unknown}[known], answer


def test_the_page_has_every_family_once():
    if f" of Transformers {transformers.__version__} " not in (ROOT / PAGE).read_text():
        pytest.skip(f"the page is not of Transformers {transformers.__version__}")
    parts = covered()
    assert sum(map(len, parts)) == len(all_families())
    assert set.union(*parts) == {*all_families()}
    assert {*KINDS} <= parts[0]


def test_a_vision_tower_is_neither_needed_nor_an_error(tmp_path):
    model = save_tiny("mistral3", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    of_text = {name: values for name, values in weights.items() if "vision" not in name and "projector" not in name}
    assert 0 < len(of_text) < len(weights)
    save_file(of_text, file, metadata={"format": "pt"})
    extractor = LanguageExtractor(str(tmp_path), layers="hidden_states", pool=["avg", "last"], loss=True)
    extractor.configure_model()
    caption = torch.arange(20, 30)
    with torch.no_grad():
        expected = by_hand(model, caption, extractor.layers)
        actual = extractor.activations(padded([caption]))
    torch.testing.assert_close(actual["feats"][0], expected["feats"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual["loss"][0], expected["loss"], rtol=1e-5, atol=1e-5)
    del of_text[next(name for name in of_text if name.endswith("layers.1.mlp.up_proj.weight"))]
    save_file(of_text, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no weights .*layers\.1\.mlp\.up_proj"):
        LanguageExtractor(str(tmp_path)).configure_model()


def test_sizes_and_context_are_those_of_the_text(tmp_path):
    save_tiny("mistral3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 77
    (tmp_path / "config.json").write_text(json.dumps(config))
    extractor = LanguageExtractor(str(tmp_path))
    assert extractor.preprocessing["context"] == 77
    assert extractor.layer_shapes == [(32,)] * 3
    config["text_config"]["num_hidden_layers"] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"num_hidden_layers 1000000000"):
        LanguageExtractor(str(tmp_path))


@pytest.mark.parametrize("model_type", ["cohere", "llama4"])
def test_logits_that_are_no_function_of_the_last_state_are_refused(tmp_path, monkeypatch, model_type):
    save_tiny(model_type, tmp_path)
    extractor = LanguageExtractor(str(tmp_path), loss=True)
    monkeypatch.setattr("lit_extract.modules.probe.logits_of", lambda *args: 1.01 * logits_of(*args))
    with pytest.raises(InputError, match=r"^model\.loss: "):
        extractor.configure_model()
