"""Confidence intervals, from a bootstrap over identities.

Pairs are not independent: one odd person spoils every pair they take part in. So the bootstrap
draws identities with replacement, not pairs: the vertex bootstrap of Snijders & Borgatti (1999),
"Non-parametric standard errors and tests for network statistics". An identity drawn c times
counts c times within itself, and a pair across identities i and j counts c_i * c_j times; pairs
between copies of one identity are left out. The interval runs from the 2.5th to the 97.5th
percentile. With few identities (say, fewer than 10) it is rough, and too narrow rather than too
wide; with one identity there is no interval.

Shapes: I identities (or other clusters), N pairs, R replicates, S statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import ConfigError
from twinlens.measure.estimate import Estimate

__all__ = ["LEVEL", "REPLICATES", "Estimate", "check_seed", "estimates", "interval",
           "mean_estimates", "pair_weights", "replicate", "rule_of_three"]  # fmt: skip

LEVEL = 0.95
REPLICATES = 200

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def check_seed(seed: int) -> None:
    """Check a random seed.

    Raises:
        ConfigError: below 0.
    """
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, found {seed}")


def rule_of_three(estimate: Estimate, num_independent: int) -> Estimate:
    """The estimate of an error rate; of 0, with the upper bound 3 / n.

    A bootstrap of no errors shows none, however few the trials. If n independent ones show none,
    the rate is at most 3 / n with 95 % confidence (ISO/IEC 19795-1, "rule of 3").

    >>> rule_of_three(Estimate(0.0, 0.0, 0.0), 60)
    Estimate(value=0.0, low=0.0, high=0.05)

    Args:
        estimate: the error rate.
        num_independent: n; for genuine pairs their identities, for impostor pairs half of theirs.
    """
    if estimate.value != 0:
        return estimate
    return Estimate(0.0, 0.0, min(1.0, 3 / max(1, num_independent)))


def pair_weights(count_I: Counts, a_N: NDArray[np.int64], b_N: NDArray[np.int64]) -> Counts:
    """Number of copies of each pair of identities: c_i within one, c_i * c_j across two.

    >>> pair_weights(np.array([2, 0, 3]), np.array([0, 0, 1]), np.array([0, 2, 2])).tolist()
    [2, 6, 0]
    """
    weight_N = count_I[a_N]
    across_N = a_N != b_N
    return np.where(across_N, weight_N * count_I[b_N], weight_N)


def replicate(
    statistic: Callable[[Counts], Floats],
    num_clusters: int,
    *,
    seed: int,
    replicates: int = REPLICATES,
) -> Floats:
    """Bootstrap replicates of a statistic, each from clusters drawn with replacement.

    Args:
        statistic: counts of the clusters (I,), which sum to I -> numbers (S,), NaN if undefined.
        num_clusters: I, the number of identities (or other independent clusters).
        seed: random seed of the draws.
        replicates: R.
    Returns:
        Shape (R, S); no rows for fewer than 2 clusters.
    """
    rng = np.random.default_rng(seed)
    rows = [
        statistic(
            np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        )
        for _ in range(replicates if num_clusters >= 2 else 0)
    ]
    return np.stack(rows) if rows else np.empty((0, 0))


def interval(values_R: ArrayLike) -> tuple[float, float] | tuple[None, None]:
    """Percentile interval of replicates, rounded outwards to two of them.

    Replicates that are NaN are left out. If that leaves less than half of them, or fewer than 2,
    there is no interval.
    """
    values = np.asarray(values_R, dtype=np.float64)
    valid = np.sort(values[~np.isnan(values)])
    if len(valid) < max(2, len(values) / 2):
        return None, None
    tail = (1 - LEVEL) / 2
    last = len(valid) - 1
    return float(valid[math.floor(tail * last)]), float(valid[math.ceil((1 - tail) * last)])


def estimates(values: Sequence[float], replicate_RS: Floats) -> list[Estimate]:
    """Estimates of S values; one that is NaN has neither a value nor bounds."""
    result = []
    for index, value in enumerate(values):
        if math.isnan(value):
            result.append(Estimate(None))
            continue
        low, high = interval(replicate_RS[:, index] if len(replicate_RS) else [])
        result.append(Estimate(float(value), low, high))
    return result


def mean_estimates(
    score_SN: Floats,
    cluster_N: NDArray[np.int64],
    num_clusters: int,
    *,
    seed: int,
    replicates: int = REPLICATES,
) -> list[Estimate]:
    """Estimates of the mean of each score over N items, from a bootstrap over their clusters.

    >>> mean_estimates(np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([0, 0, 1, 1]), 2, seed=0)
    [Estimate(value=0.25, low=0.0, high=0.5)]

    Args:
        score_SN: S scores of each item, shape (S, N).
        cluster_N: clusters of the items, from 0 to `num_clusters` - 1, shape (N,).
        num_clusters: number of clusters.
        seed: random seed of the draws.
        replicates: number of bootstrap replicates.
    """

    def means(count_I: Counts) -> Floats:
        weight_N = count_I[cluster_N]
        total = weight_N.sum()
        return score_SN @ weight_N / total if total else np.full(len(score_SN), np.nan)

    drawn = replicate(means, num_clusters, seed=seed, replicates=replicates)
    return estimates(score_SN.mean(axis=1).tolist(), drawn)
