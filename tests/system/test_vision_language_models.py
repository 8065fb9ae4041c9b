"""All vision-language models of Transformers, as docs/vision-language-models.md has them: tested, alike, or refused."""

from pathlib import Path

import pytest
import transformers
import vision_language_models
from helpers.vision_language_models import MAKERS, REFUSED
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from vision_language_models import ask

PAGE = Path(__file__).parents[2] / vision_language_models.PAGE


def test_what_is_said_to_be_tested_is():
    types = {config.model_type for _, config in (make() for make in MAKERS.values())}
    assert types == set(vision_language_models.TESTED)
    assert set(REFUSED) == set(vision_language_models.REFUSED)


@pytest.mark.parametrize(
    ("model_type", "language_model", "reason"),
    [
        ("paligemma", "GemmaModel", ""),
        ("florence2", "", "has an encoder for its text"),
        ("git", "", "is not composed of a language model"),
        ("blip-2", "", "no image_token_id"),
        ("chameleon", "", "can't be built"),
    ],
)
def test_models_of_each_kind(model_type, language_model, reason):
    answer = ask(model_type)
    assert answer.language_model == language_model
    assert reason in answer.reason
    assert bool(reason) == bool(answer.reason)


@pytest.mark.long
def test_the_page_is_what_the_models_give():
    text = PAGE.read_text()
    if f" of Transformers {transformers.__version__} " not in text:
        pytest.skip(f"the page is not of Transformers {transformers.__version__}")
    assert text == vision_language_models.page(map(ask, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
