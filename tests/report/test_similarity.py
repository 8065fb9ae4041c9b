"""CKA and mutual nearest neighbours against other ways to compute them, and against what they must not depend on."""

import numpy as np
import pytest
from helpers import oracles

from lit_extract.report import similarity


def features(n=20, dim=7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def found_cka(a, b):
    vectors = [similarity.cka_vector(similarity.centred_gram(x))[None] for x in (a, b)]
    return similarity.cka(*vectors)[0, 0]


@pytest.mark.parametrize(("n", "dims"), [(20, (7, 4)), (5, (3, 8)), (12, (50, 90))])
def test_cka_is_the_ratio_of_unbiased_hsics(n, dims):
    a, b = features(n, dims[0], 1), features(n, dims[1], 2)
    b[:, :2] += a[:, :2]
    assert found_cka(a, b) == pytest.approx(oracles.cka(a, b), abs=1e-6)


def test_cka_does_not_depend_on_rotation_scale_or_shift():
    a = features(dim=6)
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))
    b = (1000 * a @ rotation + 5).astype(np.float32)
    assert found_cka(a, b) == pytest.approx(1, abs=1e-6)
    assert found_cka(a, a * np.array([9, 1, 1, 1, 1, 1], dtype=np.float32)) < 0.95


def test_unrelated_features_of_more_dimensions_than_stimuli_are_near_zero():
    """The usual estimate would be near 1."""
    found = [found_cka(features(24, 800, seed), features(24, 800, seed + 100)) for seed in range(10)]
    assert abs(np.mean(found)) < 0.05
    assert max(map(abs, found)) < 0.2


def test_a_constant_layer_has_no_cka():
    constant = np.full((9, 4), 0.3, dtype=np.float32)
    assert np.isnan(found_cka(constant, features(9)))
    assert np.isnan(found_cka(constant, constant))


@pytest.mark.parametrize("k", [1, 4, 10])
def test_mutual_neighbours_are_those_of_brute_force(k):
    a, b = features(21, 5, 1), features(21, 9, 2)
    b[:, :4] += 2 * a[:, :4]
    a[:, 3] += 100  # a dimension that would decide everything, were it not truncated
    near = [similarity.nearest(x, k) for x in (a, b)]
    assert near[0].tolist() == oracles.nearest(a, k)
    expected = oracles.mutual_neighbours(a, b, k)
    assert 0 < expected < 1
    assert similarity.mutual_neighbours(near[0][None], near[1][None])[0, 0] == pytest.approx(expected, abs=1e-12)


def test_mutual_neighbours_of_several_layers_are_those_of_each_two():
    layers, others = [features(15, 4, seed) for seed in (1, 2)], [features(15, 6, seed) for seed in (3, 4, 5)]
    near, near_others = (np.array([similarity.nearest(x, 3) for x in xs]) for xs in (layers, others))
    found = similarity.mutual_neighbours(near, near_others)
    assert found.shape == (2, 3)
    expected = [[similarity.mutual_neighbours(a[None], b[None])[0, 0] for b in near_others] for a in near]
    np.testing.assert_array_equal(found, expected)
    assert similarity.mutual_neighbours(near, near).diagonal().tolist() == [1, 1]


def test_a_constant_layer_has_no_neighbours():
    """Ties would be broken alike, and two constant layers agree perfectly."""
    constant = similarity.nearest(np.ones((9, 4), dtype=np.float32), 2)
    assert np.isnan(similarity.mutual_neighbours(constant[None], constant[None])).all()
    assert np.isnan(similarity.mutual_neighbours(constant[None], similarity.nearest(features(9), 2)[None])).all()


def test_a_row_of_zeros_is_no_error():
    feats = features(9)
    feats[4] = 0
    assert similarity.nearest(feats, 2).shape == (9, 2)


def orders(n, count, seed):
    generator = np.random.default_rng(seed)
    return [generator.permutation(n) for _ in range(count)]


def test_shuffling_is_computing_again_from_shuffled_rows():
    feats = features(12, 5)
    vectors = similarity.cka_vector(similarity.centred_gram(feats))[None]
    near = similarity.nearest(feats, 3)[None]
    for order in orders(12, 5, seed=0):
        rows = feats[order]
        expected = similarity.cka_vector(similarity.centred_gram(rows))[None]
        np.testing.assert_allclose(similarity.shuffled_vectors(vectors, order), expected, atol=1e-6)
        np.testing.assert_array_equal(similarity.shuffled_nearest(near, order)[0], similarity.nearest(rows, 3))


def test_shuffled_neighbours_are_in_common_by_chance():
    n, k = 60, 6
    near = similarity.nearest(features(n, 5), k)[None]
    shuffled = [similarity.shuffled_nearest(near, order) for order in orders(n, 200, seed=1)]
    found = [similarity.mutual_neighbours(near, other)[0, 0] for other in shuffled]
    assert np.mean(found) == pytest.approx(k / (n - 1), rel=0.05)


def test_rsa_is_of_ranks_and_of_layers_that_have_an_rdm():
    a, b = features(12, 5, 1), features(12, 9, 2)
    a[:, 1:] += b[:, :4]
    rdms = np.array([similarity.rdm(a), np.full(66, np.nan)])
    assert rdms[0] == pytest.approx((1 - np.corrcoef(a))[np.triu_indices(12, 1)])
    found = similarity.rsa(rdms, similarity.rdm(b)[None])
    assert found[0, 0] == pytest.approx(oracles.rsa(a, b), abs=1e-9)
    assert np.isnan(found[1, 0])


@pytest.mark.parametrize(("n", "k"), [(4, 1), (24, 4), (49, 9), (50, 10), (1000, 10)])
def test_few_stimuli_have_few_neighbours(n, k):
    assert similarity.neighbours_at_most(n) == k


def test_the_best_layers():
    values = np.array([[0.1, np.nan, 0.3], [0.2, 0.9, -1]])
    assert similarity.best(values) == (0.9, (1, 1))
    assert similarity.best(np.full((2, 2), np.nan)) is None
