"""Measures of one layer, or of the rows of a file. Pure functions of numbers.

N rows, n rows of a sample, D hidden size.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# An outlier dimension is, on average over stimuli, this many times as far from zero as the median dimension.
# Sun et al. (2024, arXiv:2402.17762) also compare with the median, but activations of single tokens, by a factor of a
# thousand; pooling and averaging reduce the difference.
OUTLIER_FACTOR = 6


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of rows: median, 5th and 95th percentile."""

    median: float
    p5: float
    p95: float


def norms(feats: Floats) -> Norms:
    """Return the norms of the rows (n, D), which are finite."""
    p5, median, p95 = np.percentile(np.linalg.norm(feats.astype(np.float64), axis=1), [5, 50, 95])
    return Norms(float(median), float(p5), float(p95))


FEWEST_LENGTHS = 10  # stimuli that a slope needs
LENGTHS_VARY = 0.05  # standard deviation of log length, at least; captions have about 0.2
FIRST_TOKEN_SLOPE, FIRST_TOKEN_CORRELATION = -0.75, -0.9


def follows_length(feats: Floats, lengths: NDArray[np.integer]) -> bool:
    """Return whether the norms of mean-pooled rows (n, D) follow 1 / length, because one massive token was averaged in.

    In logarithms, the slope is then -1. The mean of tokens of similar size and random direction also correlates with
    1 / length, but its slope is at most as steep as -0.5.
    """
    size = np.linalg.norm(feats.astype(np.float64), axis=1)
    if len(size) < FEWEST_LENGTHS or not (size > 0).all() or not (lengths > 0).all():
        return False
    x, y = np.log(lengths), np.log(size)
    if x.std() < LENGTHS_VARY or y.std() == 0:
        return False
    correlation = np.corrcoef(x, y)[0, 1]
    slope = correlation * y.std() / x.std()
    return bool(slope < FIRST_TOKEN_SLOPE and correlation < FIRST_TOKEN_CORRELATION)


@dataclass(frozen=True)
class Outliers:
    """Dimensions that are larger than the others.

    Args:
        dimensions: Dimensions whose mean absolute activation exceeds :data:`OUTLIER_FACTOR` times that of the median
            dimension, the largest first.
        largest: The dimension with the largest sum of squares.
        largest_share: Its share of the sum of squares of all dimensions, 0 to 1; 1 / D if all were equal. This is its
            contribution to the cosine similarity of a row with itself (compare Timkey & van Schijndel, 2021).
    """

    dimensions: list[int]
    largest: int
    largest_share: float


def outliers(feats: Floats) -> Outliers:
    """Return the outlier dimensions of a layer (n, D), which is finite."""
    size = np.abs(feats.astype(np.float64)).mean(axis=0)
    squares = np.square(feats.astype(np.float64)).sum(axis=0)
    beyond = np.flatnonzero(size > OUTLIER_FACTOR * np.median(size))
    largest = int(squares.argmax())
    total = squares.sum()
    dimensions = [int(k) for k in beyond[np.argsort(-size[beyond], kind="stable")]]
    return Outliers(dimensions, largest, float(squares[largest] / total) if total else 0.0)


def effective_rank(gram: Floats) -> float | None:
    """Return exp of the entropy of the normalized singular values (Roy & Vetterli, 2007).

    Args:
        gram: Inner products (n, n) of rows minus the mean row.

    Returns:
        From 1 (all rows on a line) to the smaller of n - 1 and D; None if all rows are the same.
    """
    values = np.linalg.eigvalsh(gram)
    floor = max(values[-1], 0) * len(gram) * np.finfo(np.float64).eps
    singular = np.sqrt(values[values > floor])
    if not singular.size:
        return None
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def look_at_rows(chunks: Iterable[Floats]) -> tuple[NDArray[np.bool_], list[list[int]]]:
    """Return which rows of one layer (N,) are finite, and groups of finite rows that are identical bit by bit.

    The rows come in order, some at a time.
    """
    finite: list[NDArray[np.bool_]] = []
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    row = 0
    for chunk in chunks:
        finite.append(np.asarray(np.isfinite(chunk).all(axis=1)))
        for numbers, is_finite in zip(np.ascontiguousarray(chunk), finite[-1], strict=True):
            if is_finite:
                rows_of[hashlib.blake2b(numbers.data, digest_size=16).digest()].append(row)
            row += 1
    return np.concatenate(finite), [rows for rows in rows_of.values() if len(rows) > 1]
