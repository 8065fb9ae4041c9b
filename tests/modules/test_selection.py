"""Which layers are meant."""

import pytest

from lit_extract.common.errors import InputError
from lit_extract.modules.selection import LANGUAGE_LAYERS, VISION_LAYERS, select_layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("blocks", [0, 1, 2, 3]),
        ([0], [0]),
        ([-1, 0], [3, 0]),
        ([3, 1, -2], [3, 1, 2]),
        (2, [2]),
        (-1, [3]),
        ("blocks.2", [2]),
        (["blocks.3", 0, "blocks.1"], [3, 0, 1]),
    ],
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


def test_stages_have_names_of_their_own():
    for layers in ("layer3", 2, [-1]):
        assert select_layers(layers, 3, VISION_LAYERS, stages=["layer1", "layer2", "layer3"]) == ["blocks.2"]
    with pytest.raises(InputError, match="must be blocks, norm, one of the stages layer1, layer2 or its index"):
        select_layers("blocks.1", 2, VISION_LAYERS, stages=["layer1", "layer2"])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], r"4 out of range; the model has 4 blocks, -4 to 3"),
        ([-5, 9], r"-5, 9 out of range"),
        ([1, -3], "none twice"),
        ([], "at least one"),
        (["blocks", 2], "none twice"),
        (["norm", "norm"], "none twice"),
        (4, r"4 out of range"),
        ([1, "blocks.1"], "none twice"),
        (
            "blocks.4",
            r"'blocks\.4' must be blocks, norm, one of the blocks blocks\.0, .*, blocks\.3 or its index, or a list",
        ),
        ("hidden_states", "'hidden_states' must be blocks, norm, one of"),
        ("Block", r"'Block' must be .* or a list of these, such as '\[0, -1\]'; did you mean blocks\?"),
        ([0, "head", "block"], "'head', 'block' must be blocks, norm, one of"),
    ],
)
def test_other_layers_are_refused(layers, message):
    with pytest.raises(InputError, match=rf"^model.layers: .*{message}"):
        select_layers(layers, 4, VISION_LAYERS)
