"""Slow and plain ways to compute what the report computes, and where to find its numbers."""

import numpy as np


def pair_of(numbers, first, second):
    return next(pair for pair in numbers["pairs"] if pair["models"] == [first, second])


def unbiased_hsic(kernel, other):
    """Song et al. (2012), equation 5, word by word."""
    n = len(kernel)
    kernel, other = kernel.copy(), other.copy()
    np.fill_diagonal(kernel, 0)
    np.fill_diagonal(other, 0)
    ones = np.ones(n)
    total = ones @ kernel @ ones * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return (np.trace(kernel @ other) + total - 2 / (n - 2) * ones @ kernel @ other @ ones) / (n * (n - 3))


def cka(a, b):
    kernel, other = (x.astype(np.float64) @ x.astype(np.float64).T for x in (a, b))
    norm = unbiased_hsic(kernel, kernel) * unbiased_hsic(other, other)
    return unbiased_hsic(kernel, other) / norm**0.5


def nearest(feats, k):
    """One cosine at a time."""
    values = [[float(x) for x in row] for row in feats]
    limit = np.mean([np.percentile(np.abs(row), 95) for row in values])
    values = [[max(-limit, min(limit, x)) for x in row] for row in values]

    def cosine(one, other):
        dot = sum(a * b for a, b in zip(one, other, strict=True))
        return dot / (sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5)

    def order(i):
        others = [j for j in range(len(values)) if j != i]
        return sorted(others, key=lambda j: -cosine(values[i], values[j]))[:k]

    return [order(i) for i in range(len(values))]


def mutual_neighbours(a, b, k):
    pairs = zip(nearest(a, k), nearest(b, k), strict=True)
    return np.mean([len(set(x) & set(y)) / k for x, y in pairs])


def effective_rank(feats):
    singular = np.linalg.svd(feats.astype(np.float64) - feats.mean(axis=0, dtype=np.float64), compute_uv=False)
    shares = [s / sum(singular) for s in singular if s > 1e-9 * singular[0]]
    return np.exp(-sum(p * np.log(p) for p in shares))


def rsa(a, b):
    """Spearman's correlation between dissimilarities; without ties."""
    upper = np.triu_indices(len(a), 1)
    ranks = [(1 - np.corrcoef(x.astype(np.float64)))[upper].argsort().argsort() for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]
