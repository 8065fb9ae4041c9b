"""The text encoders of Transformers, as docs/text-encoders.md has them: tested, alike, or refused."""

from pathlib import Path

import pytest
import text_encoder_models
import transformers
from helpers.text_encoders import DEPENDING_ON_PADDING, FAMILIES
from text_encoder_models import ask

PAGE = Path(__file__).parents[2] / text_encoder_models.PAGE


def test_what_is_said_to_be_tested_is():
    known = transformers.CONFIG_MAPPING.keys()  # an earlier version has fewer
    here = {*text_encoder_models.TESTED}.intersection(known)
    assert {config.model_type for config, _, _ in FAMILIES.values()} == here
    assert set(DEPENDING_ON_PADDING) == set(text_encoder_models.REFUSED)


@pytest.mark.parametrize(
    ("model_type", "tower", "last", "reason"),
    [
        ("mpnet", "MPNetModel", "blocks.11", ""),
        ("t5", "T5EncoderModel", "norm", ""),
        ("clip", "CLIPTextModel", "blocks.11", ""),
        ("albert", "", "", "no list of 12 blocks"),
        ("perceiver", "", "", "num_hidden_layers"),
        ("longformer", "", "", "can't be traced"),
    ],
)
def test_models_of_each_kind(model_type, tower, last, reason):
    answer = ask(model_type)
    assert (answer.tower, answer.last) == (tower, last)
    assert reason in answer.reason
    assert bool(reason) == bool(answer.reason)


@pytest.mark.long
def test_the_page_is_what_the_models_give():
    text = PAGE.read_text()
    if f"Transformers {transformers.__version__} " not in text:
        pytest.skip(f"the page is not of Transformers {transformers.__version__}")
    assert text == text_encoder_models.page(map(ask, text_encoder_models.types()))
