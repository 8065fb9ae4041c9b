"""Similarity of the geometry of two layers, whatever their dimensions. Pure functions of numbers.

n stimuli, D hidden size, L layers, k neighbours, P = n(n - 1) / 2 pairs of stimuli.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

NEIGHBOURS = 10  # as in Huh et al. (2024)
TRUNCATED_AT = 95  # percentile of the absolute activations, also as there


def centred_gram(feats: Floats) -> NDArray[np.float64]:
    """Return inner products (n, n) of the rows (n, D) minus the mean row; exactly 0 if all rows are the same."""
    if (feats == feats[0]).all():
        return np.zeros((len(feats), len(feats)))
    centred = feats.astype(np.float64)
    centred -= centred.mean(axis=0)
    gram: NDArray[np.float64] = centred @ centred.T
    return gram


def cka_vector(gram: Floats) -> NDArray[np.float32]:
    """Return a vector (P,) of length 1; its inner product with that of another layer is their debiased linear CKA.

    Linear CKA (Kornblith et al., 2019) is the cosine between two Gram matrices. The usual centring, which ignores the
    diagonal, gives values near 1 for unrelated layers if there are fewer stimuli than dimensions. Here the matrices are
    U-centred (Székely & Rizzo, 2014), which makes HSIC unbiased (Song et al., 2012), as in Nguyen et al. (2021) and
    Murphy et al. (2024). Unrelated layers are then near 0, and may be slightly negative.

    Args:
        gram: Inner products (n, n), n ≥ 4, as :func:`centred_gram` gives them.

    Returns:
        NaN throughout if all rows of the layer are the same.
    """
    n = len(gram)
    off_diagonal = gram - np.diag(np.diag(gram))
    sums = off_diagonal.sum(axis=0)
    centred = off_diagonal - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    vector = centred[np.triu_indices(n, 1)]
    length = np.linalg.norm(vector)
    return np.asarray(vector / length if length else np.full_like(vector, np.nan), dtype=np.float32)


def cka(vectors: Floats, others: Floats) -> NDArray[np.float64]:
    """Return CKA between all layers of two models (L, L'), from their vectors (L, P) and (L', P)."""
    return np.asarray(vectors @ others.T, dtype=np.float64)


def neighbours_at_most(n: int) -> int:
    """Return the number of neighbours among n stimuli: 10, but at most a fifth of the stimuli.

    With few stimuli, ten neighbours would be half of them, and models would agree by chance alone.
    """
    return max(1, min(NEIGHBOURS, n // 5))


def nearest(feats: Floats, k: int) -> NDArray[np.int32]:
    """Return the k nearest neighbours (n, k) of each row (n, D), the nearest first, by cosine similarity.

    As in Huh et al. (2024, arXiv:2405.07987), large activations are first truncated at the 95th percentile of a
    stimulus' absolute activations, averaged over stimuli; here separately for each layer.

    Returns:
        -1 throughout if all rows of the layer are the same, so that none is nearer than another.
    """
    if (feats == feats[0]).all():
        return np.full((len(feats), k), -1, dtype=np.int32)
    limit = np.percentile(np.abs(feats.astype(np.float64)), TRUNCATED_AT, axis=1).mean()
    truncated = np.clip(feats.astype(np.float64), -limit, limit)
    lengths = np.linalg.norm(truncated, axis=1, keepdims=True)
    unit = truncated / np.where(lengths == 0, 1, lengths)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return torch.from_numpy(similarity).topk(k).indices.int().numpy()


def mutual_neighbours(nearest_a: Ints, nearest_b: Ints) -> NDArray[np.float64]:
    """Return the share of common neighbours for all pairs of layers of two models (L, L'), from (L, n, k), (L', n, k).

    This is mutual k-nearest-neighbour alignment (Huh et al., 2024): 1 if each stimulus has the same k neighbours in
    both layers, k / (n - 1) by chance. NaN if a layer has no neighbours.
    """
    _, n, _ = nearest_a.shape
    rows = np.arange(n)[:, None]
    shares = np.empty((len(nearest_a), len(nearest_b)))
    for place, of_layer in enumerate(nearest_a):
        is_neighbour = np.zeros((n, n), dtype=bool)
        is_neighbour[rows, of_layer] = True
        shares[place] = is_neighbour[rows, nearest_b].mean(axis=(1, 2))
    shares[nearest_a[:, 0, 0] < 0] = np.nan
    shares[:, nearest_b[:, 0, 0] < 0] = np.nan
    return shares


def rdm(feats: Floats) -> NDArray[np.float64]:
    """Return the dissimilarities (P,) of the rows (n, D), 1 - Pearson's r, from rsatoolbox."""
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    dataset = Dataset(feats.astype(np.float64))
    return np.asarray(calc_rdm(dataset, method="correlation").dissimilarities[0])


def rsa(rdms: Floats, others: Floats) -> NDArray[np.float64]:
    """Return Spearman's correlation between RDMs (L, P) and (L', P), from rsatoolbox; NaN where an RDM is NaN."""
    from rsatoolbox.rdm import compare

    values = np.full((len(rdms), len(others)), np.nan)
    one, two = (np.isfinite(of_model).all(axis=1) for of_model in (rdms, others))
    if one.any() and two.any():
        values[np.ix_(one, two)] = compare(rdms[one], others[two], method="spearman")
    return values


def shuffled_vectors(vectors: Floats, order: Ints) -> Floats:
    """Return CKA vectors (L, P) for another order of stimuli: the stimulus at each place (n,)."""
    n = len(order)
    pairs = np.zeros((n, n), dtype=np.int32)
    upper = np.triu_indices(n, 1)
    pairs[upper] = np.arange(len(upper[0]))
    pairs += pairs.T
    return vectors[:, pairs[np.ix_(order, order)][upper]]


def shuffled_nearest(nearest: Ints, order: Ints) -> Ints:
    """Return neighbours (L, n, k) for another order of the stimuli (n,); -1 stays."""
    return np.where(nearest[:, order] < 0, -1, np.argsort(order)[nearest[:, order]])


def best(similarity: Floats) -> tuple[float, tuple[int, int]] | None:
    """Return the largest value of (L, L') and its pair of layers; None if all are NaN."""
    if np.isnan(similarity).all():
        return None
    place = np.unravel_index(int(np.nanargmax(similarity)), similarity.shape)
    return float(similarity[place]), (int(place[0]), int(place[1]))
