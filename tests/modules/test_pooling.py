"""Pooling against plain numpy in float64.

B batch, T tokens, D hidden size.
"""

import itertools
import re

import numpy as np
import pytest
import torch

from lit_extract.common.errors import InputError
from lit_extract.modules.layer_set import columns_of
from lit_extract.modules.pooling import (
    LANGUAGE_POOLINGS,
    VISION_POOLINGS,
    LayerForm,
    check_pools,
    full_columns,
    vision_pooling,
)
from lit_extract.parity import language, vision


def pool_image(hidden, pooling, n_prefix):
    form = LayerForm(n_prefix, hidden.shape[1] - n_prefix, None, hidden.shape[2])
    return VISION_POOLINGS[pooling].pool(hidden, form)


def pool_text(hidden, pooling, mask, full=(0, 0)):
    return LANGUAGE_POOLINGS[pooling](hidden, mask, full)


def random_tokens(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("n_prefix", [0, 1, 2, 5])
def test_image_poolings_equal_numpy(n_prefix):
    hidden = random_tokens(3, 9, 4)
    tokens = hidden.numpy().astype(np.float64)
    expected = {
        "cls": tokens[:, 0],
        "avg": tokens[:, n_prefix:].sum(axis=1) / (9 - n_prefix),
        "avg_all": tokens.sum(axis=1) / 9,
    }
    for pooling, values in expected.items():
        np.testing.assert_allclose(pool_image(hidden, pooling, n_prefix).numpy(), values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 8), (5, 7), (1, 3)])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_grid_is_the_mean_of_the_patches_in_each_part(rows, columns, k):
    """Against loops over places: a part begins at the floor, and ends at the ceiling, of its share of the patches."""
    hidden = random_tokens(2, 1 + rows * columns, 3)
    form = LayerForm(1, rows * columns, columns, 3)
    pooled = vision_pooling(f"grid{k}").pool(hidden, form).numpy()
    assert pooled.shape == (2, *vision_pooling(f"grid{k}").shape(form)) == (2, k * k, 3)
    places = hidden[:, 1:].numpy().astype(np.float64).reshape(2, rows, columns, 3)
    for i, j in itertools.product(range(k), repeat=2):
        in_rows = [y for y in range(rows) if (y + 1) * k > i * rows and y * k < (i + 1) * rows]
        in_columns = [x for x in range(columns) if (x + 1) * k > j * columns and x * k < (j + 1) * columns]
        expected = np.mean([places[:, y, x] for y in in_rows for x in in_columns], axis=0)
        np.testing.assert_allclose(pooled[:, i * k + j], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("n_patches", "size", "columns"),
    [(196, (3, 224, 224), 14), (48, (3, 96, 128), 8), (247, (3, 200, 300), 19), (12, (3, 96, 96), None)],
)
def test_patches_are_a_grid_where_they_have_the_shape_of_the_image(n_patches, size, columns):
    assert columns_of(n_patches, size) == columns


@pytest.mark.parametrize("pooling", ["avg", "avg_all"])
def test_bf16_tokens_are_averaged_in_float32(pooling):
    hidden = 100 + random_tokens(2, 1025, 8)  # far from zero, where bf16 steps are 0.5
    hidden = hidden.to(torch.bfloat16)
    exact = hidden.double().numpy()[:, 0 if pooling == "avg_all" else 1 :].mean(axis=1)
    pooled = pool_image(hidden, pooling, 1)
    assert pooled.dtype == torch.float32
    assert np.abs(pooled.numpy() - exact).max() < 1e-4
    in_bf16 = hidden[:, 0 if pooling == "avg_all" else 1 :].mean(dim=1).float().numpy()
    assert np.abs(in_bf16 - exact).max() > 1e-2, "else this test shows nothing"


def test_bf16_class_token_is_not_changed():
    hidden = random_tokens(2, 5, 8, dtype=torch.bfloat16)
    pooled = pool_image(hidden, "cls", 1)
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == hidden[:, 0].tolist()


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("pooling", "pool"), [("avg", lambda real: real.mean(axis=0)), ("last", lambda real: real[-1])]
)
def test_text_poolings_equal_numpy_over_the_tokens_of_the_mask(pooling, pool):
    hidden = random_tokens(4, 5, 3)
    expected = [pool(tokens[row].astype(np.float64)) for tokens, row in zip(hidden.numpy(), MASK.numpy(), strict=True)]
    np.testing.assert_allclose(pool_text(hidden, pooling, MASK).numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("mask", "full"),
    [
        (["111111", "111111"], (0, 6)),
        (["111111", "111000"], (0, 3)),
        (["011111", "011100"], (1, 4)),
        (["111111", "100000"], (0, 1)),
        (["011111", "010000"], (1, 2)),
        (["1110", "0001"], (0, 0)),
        (["1"], (0, 1)),
    ],
)
@pytest.mark.parametrize("garbage", [float("nan"), 1e30])
def test_columns_of_all_rows_are_pooled_without_a_copy_to_the_same_numbers(mask, full, garbage):
    mask = torch.tensor([[letter == "1" for letter in row] for row in mask])
    assert full_columns(mask) == full
    hidden = random_tokens(*mask.shape, 8).masked_fill(~mask[:, :, None], garbage)
    expected = [
        tokens[row].astype(np.float64).mean(axis=0) for tokens, row in zip(hidden.numpy(), mask.numpy(), strict=True)
    ]
    for columns in (full, (0, 0)):
        np.testing.assert_allclose(pool_text(hidden, "avg", mask, columns).numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pooling", ["avg", "last"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_what_stands_in_the_padding_does_not_matter(pooling, garbage):
    hidden = random_tokens(4, 5, 3)
    spoilt = hidden.masked_fill(~MASK[:, :, None], garbage)
    assert torch.equal(pool_text(spoilt, pooling, MASK), pool_text(hidden, pooling, MASK))


def test_bf16_text_is_averaged_in_float32():
    hidden = (100 + random_tokens(2, 1000, 8)).to(torch.bfloat16)
    mask = torch.ones(2, 1000, dtype=torch.bool)
    mask[1, 700:] = False
    exact = np.stack([hidden[0].double().numpy().mean(axis=0), hidden[1, :700].double().numpy().mean(axis=0)])
    pooled = pool_text(hidden, "avg", mask)
    assert pooled.dtype == torch.float32
    assert np.abs(pooled.numpy() - exact).max() < 1e-4


def test_an_unknown_pooling_is_no_mean():
    hidden = random_tokens(4, 5, 3)
    with pytest.raises(KeyError, match="last"):
        pool_image(hidden, "last", 1)
    with pytest.raises(KeyError, match="cls"):
        pool_text(hidden, "cls", MASK)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ("max", "'max' must be one or more of avg, head, none twice"),
        (["avg", "avg"], "none twice"),
        ([], "one or more of"),
        (["avg", "cls"], "no class token, so there is no 'cls'; allowed: avg, head"),
        (["avg", "head"], "give it alone"),
    ],
)
def test_poolings_that_can_not_be_given_are_refused(pool, message):
    with pytest.raises(InputError, match=rf"^model.pool: .*{re.escape(message)}"):
        check_pools(pool, VISION_POOLINGS, ["avg", "head"], "it has no class token")


def test_each_pooling_has_an_independent_twin():
    assert vision.POOLINGS.keys() == VISION_POOLINGS.keys()
    assert language.POOLINGS.keys() == LANGUAGE_POOLINGS.keys()
