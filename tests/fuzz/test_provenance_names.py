"""The provenance of a features file: nothing in it becomes a model, a dataset, a path or an address unchecked."""

import re

import pytest
import timm
from helpers.guard import REFUSED, RIGHT, fuzzed, outcome
from helpers.mutations import HOSTILE, NAMES, changed_values
from hypothesis import given
from hypothesis import strategies as st

from lit_extract.modules.registry import default_models_file, read_models
from lit_extract.parity.certificate import RebuildSettings
from lit_extract.parity.provenance_form import check_provenance

pytestmark = pytest.mark.slow

NOTHING_GIVEN = RebuildSettings()
SHA, COMMIT = "0123456789abcdef" * 4, "0123456789abcdef0123456789abcdef01234567"
LAYERS = ["blocks.0", "blocks.1"]
RUN = {"precision": "bf16-true", "subset": "all", "query": None, "n_stimuli": 24, "torch": "2.9.0", "layers": LAYERS}
VISION = {
    **RUN,
    "model": "test_vit.r160_in1k",
    "options": {"img_size": 160, "depth": 2, "dynamic_img_size": True},
    "weights": "hub:timm/test_vit.r160_in1k",
    "revision": COMMIT,
    "pool": "cls",
    "dataset": "demo",
    "stimuli_sha256": SHA,
    "preprocessing": {"input_size": [3, 160, 160], "mean": [0.5, 0.5, 0.5], "crop_pct": 1.0, "crop_mode": "squash"},
    "preprocessing_given": ["input_size", "crop_pct", "crop_mode"],
}
UNTRAINED = {**VISION, "weights": "untrained", "seed": 0}
LANGUAGE = {
    **RUN,
    "model": "meta-llama/Llama-2-7b",
    "source": "meta-llama/Llama-2-7b-hf",
    "options": {"add_bos_token": True},
    "weights": "hub:meta-llama/Llama-2-7b-hf",
    "revision": COMMIT,
    "pool": "avg",
    "dataset": "nsd",
    "prompt_name": "caption",
    "tokens_sha256": SHA,
    "truncate": False,
    "exclude_bos": "first",
    "loss": True,
    "tokenizer": "huggingface",
}
LOCAL = {key: value for key, value in LANGUAGE.items() if key not in ("source", "revision")}
LOCAL |= {"model": "tiny", "weights": "checkpoint", "checkpoint_sha256": SHA}
VISION_LANGUAGE = {
    **RUN,
    "model": "google/gemma-3-4b-it",
    "source": "google/gemma-3-4b-it",
    "options": {"do_pan_and_scan": True, "size": {"height": 896, "width": 896}},
    "weights": "hub:google/gemma-3-4b-it",
    "revision": COMMIT,
    "pool": "image",
    "dataset": "nsd",
    "stimuli_sha256": SHA,
    "preprocessing": {"image_processor": "Gemma3ImageProcessor", "backend": "torchvision", "settings": {}, "call": {}},
    "prompt_name": "caption",
    "prompt_text": "What is there?",
    "chat_tokens_sha256": SHA,
    "image_token": "<image_soft_token>",
}
GOOD = [VISION, UNTRAINED, LANGUAGE, LOCAL, VISION_LANGUAGE]

ADDRESSES = (
    "hf_hub:a/b local-dir:/tmp https://127.0.0.1/x test_vit.r160_in1k/../x vit:x main HEAD test_vit test_vit.x "
    "sentencepiece checkpoint untrained hub: hub:../x embeddings"
).split()
OPTION_NAMES = (
    "pretrained_cfg checkpoint_path cache_dir trust_remote_code gguf_file subfolder revision token code_revision depth "
    "attn_implementation img_size act_layer quantization_config device_map block_fn config _from_auto"
).split()
OPTIONS = st.dictionaries(st.sampled_from(OPTION_NAMES), HOSTILE, max_size=2)
MUTATED = st.sampled_from(GOOD).flatmap(
    lambda good: changed_values(good, HOSTILE | st.sampled_from(ADDRESSES) | OPTIONS)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("provenance")


def is_right(known, layers):
    """Check the promise of check_provenance in another way."""
    models = read_models(default_models_file())
    is_of_text = "tokens_sha256" in known or "prompt_text" in known
    kind = "language" if "tokens_sha256" in known else "vision_language" if is_of_text else "vision"
    texts = [known[key] for key in ("model", "weights", "dataset", "precision", "pool")]
    assert all(type(text) is str and not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text) for text in texts)
    assert known["query"] is None or type(known["query"]) is str
    if kind != "language":
        assert known["dataset"] in ("nsd", "bold5000", "things", "folder", "demo")
    if is_of_text:
        assert "source" not in known or known["source"] in {e.checkpoint or e.name for e in models[kind]}
        assert known["weights"] in ("untrained", "checkpoint", f"hub:{known.get('source')}")
    else:
        name = known["model"]
        is_listed = name in timm.list_models() + timm.list_pretrained() + [entry.name for entry in models[kind]]
        assert is_listed or known["weights"] == "checkpoint"
        given = {key: known["preprocessing"][key] for key in known.get("preprocessing_given", [])}
        assert set(given) <= {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
        assert all(1 <= side <= 4096 for side in given.get("input_size", []))
        assert 0.1 <= given.get("crop_pct", 1) <= 1
        assert given.get("crop_mode", "center") in ("center", "squash", "border")
    if known["weights"].startswith("hub:"):
        assert re.fullmatch("[0-9a-f]{40}", known["revision"])
    paths = {
        "pretrained_cfg",
        "checkpoint_path",
        "cache_dir",
        "trust_remote_code",
        "subfolder",
        "revision",
    }
    assert not paths & set(known["options"])
    assert re.fullmatch(r"[^/\\]+[.]gguf", known["options"].get("gguf_file", "x.gguf"))
    allowed = r"embeddings|norm|blocks\.[0-9]+" if is_of_text else r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*"
    assert all(re.fullmatch(allowed, layer) for layer in layers)
    return True


@fuzzed(2000)
@given(MUTATED)
def test_a_changed_provenance_is_checked(folder, provenance):
    def read():
        check_provenance(provenance, LAYERS, NOTHING_GIVEN)
        return provenance

    if isinstance(provenance, dict):
        outcome("provenance", folder, read, lambda known: is_right(known, LAYERS))


@fuzzed(300)
@given(changed_values(LAYERS))
def test_layers_are_those_of_a_model(folder, layers):
    outcome(
        "layers",
        folder,
        lambda: check_provenance(VISION, layers, NOTHING_GIVEN),
        lambda _: is_right(VISION, layers),
    )


@fuzzed(300)
@given(st.sampled_from(NAMES + ADDRESSES) | st.text(max_size=30), st.sampled_from(["model", "source"]))
def test_no_name_is_used_that_is_not_known(folder, name, key):
    good = LANGUAGE if key == "source" else VISION
    known = {**good, key: name}
    if key == "source" and isinstance(name, str):
        known["weights"] = f"hub:{name}"
    outcome(
        "model name",
        folder,
        lambda: check_provenance(known, LAYERS, NOTHING_GIVEN),
        lambda _: is_right(known, LAYERS),
    )


@pytest.mark.parametrize("good", GOOD, ids=lambda good: good["weights"])
def test_what_runs_write_is_accepted(folder, good):
    assert outcome("provenance", folder, lambda: check_provenance(good, LAYERS, NOTHING_GIVEN), lambda _: True) == RIGHT


@pytest.mark.parametrize("name", ["hf-hub:someone/else", "http://127.0.0.1/x", "../x", "/etc/passwd"])
def test_the_word_of_the_user_is_enough(folder, name):
    for where, expected in (
        (NOTHING_GIVEN, REFUSED),
        (RebuildSettings(model=name), RIGHT),
        (RebuildSettings(model="x"), REFUSED),
    ):

        def read(where=where):
            check_provenance({**VISION, "model": name}, LAYERS, where)

        assert outcome("model name", folder, read, lambda _: True) == expected
