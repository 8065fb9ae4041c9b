"""models.yml: what may stand in it, and what the shipped one lists."""

import re
from pathlib import Path

import pytest
import timm

from lit_extract.common.errors import InputError
from lit_extract.modules.registry import (
    KINDS,
    ModelEntry,
    default_models_file,
    find_model,
    matching_models,
    read_models,
    unknown_model,
)

SHIPPED = Path(__file__).parents[2] / "models.yml"


@pytest.fixture
def models_file(tmp_path):
    def write(text):
        path = tmp_path / "some_models.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_names_and_mappings_in_the_order_of_the_file_without_commented_ones(models_file):
    path = models_file("""
vision:
  - b
  # - left_out
  - name: a
    checkpoint: weights/a.safetensors
    revision: 0123abc
    options: {img_size: 384}
  - {name: c}
""")
    assert read_models(path) == {
        "vision": [
            ModelEntry("b"),
            ModelEntry("a", "weights/a.safetensors", "0123abc", {"img_size": 384}),
            ModelEntry("c", None, None, {}),
        ],
        "language": [],
        "text_encoder": [],
        "vision_language": [],
    }


@pytest.mark.parametrize("text", ["", "# only a comment\n", "vision:\n  # - all commented out\n"])
def test_empty_lists(models_file, text):
    assert read_models(models_file(text)) == {kind: [] for kind in KINDS}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vision: [a", "can't be read"),
        ("sound: [a]", "expected lists under vision and language"),
        ("- a", "expected lists under vision and language"),
        ("vision: vit_tiny", "expected lists under vision and language"),
        ("vision: [{name: a, weights: b}]", "checkpoint, revision (both text) and options"),
        ("vision: [{checkpoint: b}]", "must be a name or a mapping with name"),
        ("vision: [{name: a, revision: 123}]", "both text"),
        ("vision: [{name: 3}]", "must be a name or a mapping with name"),
        ("language: [3]", "language entry 3"),
        ("vision: [{name: a, options: 384}]", "options"),
        ("vision: [{name: a, options: }]", "options"),
        ("vision: ['']", "at least 1"),
        ('vision: ["a\\eb"]', "control characters"),
        ("vision: [&a [*a]]", "alias"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_allowed(models_file, text, message):
    path = models_file(text)
    with pytest.raises(InputError) as error:
        read_models(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_bytes_that_are_not_text_are_not_yaml(tmp_path):
    path = tmp_path / "models.yml"
    path.write_bytes(b"vision: [\xff\xfe]")
    with pytest.raises(InputError, match="can't be read"):
        read_models(path)


@pytest.mark.parametrize("name", ["missing.yml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(InputError, match=str(tmp_path / name)):
        read_models(tmp_path / name)


def test_a_model_is_found_in_its_kind_only(models_file):
    path = models_file("vision: [a, {name: b, revision: main}]\nlanguage: [c]")
    assert find_model("vision", "b", path) == ModelEntry("b", revision="main")
    assert find_model("language", "c", path) == ModelEntry("c")
    assert find_model("vision", "c", path) is None


def test_the_working_directory_comes_before_the_shipped_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_models_file().resolve() == SHIPPED
    (tmp_path / "models.yml").write_text("vision: [mine]")
    assert read_models()["vision"] == [ModelEntry("mine")]


def test_shipped_file_lists_the_models_of_the_study():
    models = read_models(SHIPPED)
    assert [len(models["vision"]), len(models["language"])] == [17, 20]
    assert models["text_encoder"][0].name == "sentence-transformers/all-mpnet-base-v2"
    assert all(len({entry.name for entry in entries}) == len(entries) for entries in models.values())


@pytest.mark.parametrize("entry", read_models(SHIPPED)["vision"], ids=lambda entry: entry.name)
def test_timm_has_trained_weights_of_each_shipped_vision_model(entry):
    assert timm.is_model_pretrained(entry.name)


def test_timm_has_trained_weights_of_each_baseline_that_is_commented_out():
    vision = SHIPPED.read_text().partition("\nlanguage:")[0]
    baselines = re.findall(r"^  # - (\S+)", vision, re.MULTILINE)
    assert len(baselines) == len({*baselines}) == 30
    assert [name for name in baselines if not timm.is_model_pretrained(name)] == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("vit_bas_patch16_224.mae", "did you mean vit_base_patch16_224.mae?"),
        ("VIT_BASE_PATCH16_224.MAE", "did you mean vit_base_patch16_224.mae?"),
        ("zzz", "timm.list_models"),
        ("gpt2", "models of the Hugging Face hub need --model LanguageExtractor or TransformersVisionExtractor"),
        ("timm/vit_base_patch16_224.mae", "models of the Hugging Face hub need --model LanguageExtractor"),
    ],
)
def test_unknown_model_names_close_ones(name, named):
    message = str(unknown_model(name, ["vit_base_patch16_224.mae", "resnet50"]))
    assert repr(name) in message
    assert named in message
    assert "resnet50" not in message


@pytest.mark.parametrize(
    ("match", "names"),
    [(None, ["a.x", "b", "c.x"]), ("x", ["a.x", "c.x"]), ("*.x", ["a.x", "c.x"]), ("[ab]*", ["a.x", "b"])],
)
def test_models_that_match_in_the_order_of_the_file(models_file, match, names):
    path = models_file("vision: [a.x, b, c.x]\nlanguage: [a.x]")
    assert [entry.name for entry in matching_models("vision", path, match)] == names


def test_a_pattern_that_nothing_matches_lists_what_there_is(models_file):
    path = models_file("vision: [a, b]")
    with pytest.raises(InputError, match=r"match: no vision model of .* matches 'z'; it lists a, b"):
        matching_models("vision", path, "z")
    with pytest.raises(InputError, match="lists no language model"):
        matching_models("language", path)
