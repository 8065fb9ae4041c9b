"""Measures of one layer against formulas written out."""

import numpy as np
import pytest
from helpers import oracles

from lit_extract.report import similarity, statistics


def test_norms_are_percentiles_of_lengths():
    rows = np.array([[3, 4], [6, 8], [0, 1], [0, 0], [5, 12]], dtype=np.float32)
    found = statistics.norms(rows)
    assert (found.median, found.p5, found.p95) == pytest.approx((5, np.percentile([5, 10, 1, 0, 13], 5), 12.4))


@pytest.mark.parametrize("shape", [(20, 5), (6, 40)])
def test_effective_rank_is_of_the_singular_values(shape):
    feats = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1) + 7
    expected = oracles.effective_rank(feats)
    assert 1 < expected < min(shape[0] - 1, shape[1])
    assert statistics.effective_rank(similarity.centred_gram(feats)) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_known_shapes():
    line = np.outer(np.arange(8), [1, 2, 3]).astype(np.float32)
    assert statistics.effective_rank(similarity.centred_gram(line)) == pytest.approx(1, abs=1e-4)
    corners = np.eye(8, dtype=np.float32)  # spread alike along 7 dimensions
    assert statistics.effective_rank(similarity.centred_gram(corners)) == pytest.approx(7, rel=1e-4)
    assert statistics.effective_rank(similarity.centred_gram(np.ones((8, 3)))) is None


def test_outlier_dimensions_are_those_far_above_the_median_one():
    feats = np.random.default_rng(0).choice([-1.0, 1.0], size=(10, 64)).astype(np.float32)
    assert statistics.outliers(feats).dimensions == []
    feats[:, 11] *= 7
    feats[:, 40] *= -30
    feats[:, 5] *= 5.9
    found = statistics.outliers(feats)
    assert (found.dimensions, found.largest) == ([40, 11], 40)
    assert found.largest_share == pytest.approx(900 / (61 + 49 + 900 + 5.9**2), rel=1e-5)


def test_outliers_of_zeros_are_none():
    found = statistics.outliers(np.zeros((4, 3), dtype=np.float32))
    assert (found.dimensions, found.largest_share) == ([], 0)


def test_rows_that_are_not_finite_or_identical_are_found_across_chunks():
    rows = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    rows[9] = rows[1]
    rows[4] = rows[1]
    rows[10] = rows[8]
    rows[2, 1], rows[6, 0], rows[7] = np.inf, np.nan, np.nan
    finite, identical = statistics.look_at_rows(rows[first : first + 4] for first in range(0, 11, 4))
    assert np.flatnonzero(~finite).tolist() == [2, 6, 7]
    assert identical == [[1, 4, 9], [8, 10]]


def mean_features(massive, lengths, dim=64, seed=0):
    """Means (n, D) of random tokens, the first of which has one massive dimension."""
    generator = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        tokens = generator.normal(size=(length, dim))
        tokens[0, 3] += massive
        rows.append(tokens.mean(axis=0))
    return np.array(rows, dtype=np.float32)


LENGTHS = np.random.default_rng(1).integers(6, 30, size=200)


@pytest.mark.parametrize(
    ("massive", "lengths", "expected"),
    [
        (1000, LENGTHS, True),
        (300, LENGTHS, True),
        (0, LENGTHS, False),  # 1 / sqrt(length), which 1 / length correlates with
        (1000, np.full(200, 12), False),
        (1000, LENGTHS[:5], False),
    ],
)
def test_a_massive_first_token_is_seen_in_the_norms(massive, lengths, expected):
    assert statistics.follows_length(mean_features(massive, lengths), lengths) is expected


def test_tokens_with_a_common_direction_do_not_follow_the_length():
    assert statistics.follows_length(mean_features(0, LENGTHS) + 1, LENGTHS) is False
