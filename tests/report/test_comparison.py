"""Models against each other: measured, shuffled, trained and untrained."""

import numpy as np
import pytest
from helpers import oracles


def test_shuffled_is_far_below_measured_where_models_agree(save, random_features, numbers):
    save("a", random_features(n=60, seed=1))
    save("b", random_features(n=60, seed=2))
    pair = oracles.pair_of(numbers(permutations=50), "a", "b")
    for measure in ("cka", "mutual_neighbours"):
        assert pair[measure]["best"] > 1.5 * pair[measure]["best_shuffled"]["p95"]
        assert pair[measure]["best_shuffled"]["mean"] >= pair[measure]["last_shuffled"]["mean"]
    assert pair["cka"]["last_shuffled"]["mean"] == pytest.approx(0, abs=0.05)
    assert pair["mutual_neighbours"]["last_shuffled"]["mean"] == pytest.approx(10 / 59, rel=0.1)


def test_shuffled_is_the_measure_of_shuffled_rows_with_the_best_layers_chosen_again(save, random_features, numbers):
    a, b = random_features(seed=1, layers=2), random_features(seed=2, layers=2)
    save("a", a)
    save("a", b, untrained=True)
    pair = oracles.pair_of(numbers(permutations=4, seed=8), "a", "a (untrained)")
    generator = np.random.default_rng(8)
    values = []
    for _ in range(4):
        shuffled = b[generator.permutation(24)]
        values.append([[oracles.cka(a[:, i], shuffled[:, j]) for j in range(2)] for i in range(2)])
    values = np.array(values)
    best, last = values.max(axis=(1, 2)), values[:, 1, 1]
    assert not np.allclose(best, last)
    same = [values[:, k, k] for k in range(2)]
    found = pair["cka"]
    summaries = [found["best_shuffled"], found["last_shuffled"], *found["same_layer_shuffled"]]
    for summary, expected in zip(summaries, [best, last, *same], strict=True):
        expected = np.mean(expected), np.percentile(expected, 95)
        assert (summary["mean"], summary["p95"]) == pytest.approx(expected, abs=1e-5)


def test_trained_meets_its_untrained_twin_and_no_other(save, random_features, numbers):
    save("vit", random_features(seed=1))
    save("vit", random_features(seed=2), untrained=True)
    save("deit", random_features(seed=3), untrained=True)
    found = numbers()
    twins = [pair["models"] for pair in found["pairs"] if pair["trained_and_untrained"]]
    assert twins == [["vit", "vit (untrained)"]]
    pair = oracles.pair_of(found, "vit", "vit (untrained)")
    assert len(pair["cka"]["same_layer_shuffled"]) == 3
