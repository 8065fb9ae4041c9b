"""Which layers are meant."""

import pytest

from lit_extract.common.errors import InputError
from lit_extract.modules.selection import LANGUAGE_LAYERS, VISION_LAYERS, select_layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("blocks", [0, 1, 2, 3]), ([0], [0]), ([-1, 0], [3, 0]), ([3, 1, -2], [3, 1, 2])],
)
def test_blocks_are_named_in_the_order_asked_for(layers, expected):
    assert select_layers(layers, 4, VISION_LAYERS) == [f"blocks.{k}" for k in expected]
    assert select_layers(layers, 4, LANGUAGE_LAYERS) == [f"blocks.{k}" for k in expected]


def test_a_list_mixes_names_and_indices_of_blocks():
    blocks = [f"blocks.{k}" for k in range(4)]
    for layers, expected in {
        "norm": ["norm"],
        ("blocks", "norm"): [*blocks, "norm"],
        ("norm", -1, 0): ["norm", "blocks.3", "blocks.0"],
    }.items():
        assert select_layers(layers, 4, VISION_LAYERS) == expected


def test_hidden_states_begin_with_the_embeddings_and_end_with_the_norm():
    assert select_layers("hidden_states", 3, LANGUAGE_LAYERS) == ["embeddings", "blocks.0", "blocks.1", "norm"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], r"4 out of range; the model has 4 blocks, -4 to 3"),
        ([-5, 9], r"-5, 9 out of range"),
        ([1, -3], "none twice"),
        ([], "at least one"),
        (["blocks", 2], "none twice"),
        (["norm", "norm"], "none twice"),
        ("hidden_states", "'hidden_states' must be blocks or norm, or a list"),
        ("block", "'block' must be blocks or norm, or a list"),
        ([0, "head", "block"], "'head', 'block' must be blocks or norm, or a list"),
    ],
)
def test_other_layers_are_refused(layers, message):
    with pytest.raises(InputError, match=rf"^model.layers: .*{message}"):
        select_layers(layers, 4, VISION_LAYERS)
