"""All models of Transformers that take images, as docs/transformers-vision.md has them: tested, alike, or refused."""

from pathlib import Path

import pytest
import transformers
import transformers_vision_models
from helpers.vision_families import FAMILIES, REFUSED
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers_vision_models import ask

PAGE = Path(__file__).parents[2] / transformers_vision_models.PAGE


def test_what_is_said_to_be_tested_is():
    types = {config().model_type for config, _, _ in FAMILIES.values()}
    assert types == set(transformers_vision_models.TESTED)


def test_what_is_refused_when_tiny_is_refused_by_default():
    types = {config().model_type for config, _, _ in REFUSED.values()} - {"gpt2", "pixtral"}
    assert all(ask(model_type).reason for model_type in types)
    assert not ask("gpt2").tower
    assert not ask("gpt2").reason


@pytest.mark.parametrize(
    ("model_type", "tower", "n_prefix", "pools", "has_norm"),
    [
        ("dinov2", "Dinov2Model", 1, "cls, avg, avg_all, head", True),
        ("gemma3", "SiglipVisionModel", 0, "avg, avg_all", True),
        ("mlcd_vision_model", "MLCDVisionModel", 1, "cls, avg, avg_all, head", False),
        ("siglip2", "Siglip2VisionModel", 0, "avg, avg_all, head", True),
        ("sapiens2", "Sapiens2Model", 9, "cls, avg, avg_all, head", True),
    ],
)
def test_models_of_each_kind(model_type, tower, n_prefix, pools, has_norm):
    assert ask(model_type) == (model_type, tower, n_prefix, pools, has_norm, "")


@pytest.mark.long
def test_the_page_is_what_the_models_give():
    text = PAGE.read_text()
    if f" of Transformers {transformers.__version__} " not in text:
        pytest.skip(f"the page is not of Transformers {transformers.__version__}")
    assert text == transformers_vision_models.page(map(ask, MODEL_MAPPING_NAMES))
