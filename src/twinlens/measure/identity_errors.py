"""Identities filed under two names, and names with two identities, by errors made on purpose.

An identity divided in halves shows how alike two names of one identity are, and two identities
pooled show how far apart two under one name are. Such made-up errors and the data as they are give
the two densities of a local false discovery rate (Efron 2008); its prior is fitted.

Shapes: N pictures, I identities, B rows of a block, M distances of each pair, K candidate
identities of a picture, n pictures of an identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlens.measure.label_errors import (
    BLOCK,
    Distances,
    Evidence,
    LabelErrors,
    collect_evidence,
)

__all__ = ["Merge", "Split", "find_merges", "find_splits"]

LEAST_PICTURES, MOST_PICTURES = 4, 1000  # of an identity that is divided
LEAST_GROUP = 2
REASSIGNMENTS = 20
DEGREES = 8  # of Student's t, whose heavy tails make the probabilities cautious
ROUNDS = 100  # of the prior
LARGEST_PRIOR = 0.3
LEAST_VALUES = 3
LEAST_CONTRAST = 2.0  # of made-up errors, in deviations of the data

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Merge:
    """Two identities, and the probability that they are one."""

    a: int
    b: int
    probability: float


@dataclass(frozen=True, eq=False)
class Split:
    """An identity, the rows of its smaller group, and the probability that they are another one."""

    identity: int
    rows: Ints
    probability: float


def find_merges(
    distances: Distances,
    evidence: Evidence,
    errors: LabelErrors,
    label: Ints,
    group: Ints,
    *,
    seed: int = 0,
) -> list[Merge]:
    """The nearest other identity of each, and whether it is as near as a half of the same one.

    The statistic of two identities is how much better their pictures fit their own identity, in
    logits and on average. It is about 0 for two names of one.

    Args:
        distances: of all pairs.
        evidence: of these labels.
        errors: fitted to the evidence; pictures that are probably wrong are left out.
        label: identities from 0, (N,).
        group: pictures of one number are copies, (N,).
        seed: random seed of the halves.
    """
    kept = errors.wrong < 0.5
    margins = _margins(evidence, errors, label, kept)
    nearest: dict[int, tuple[float, int]] = {}
    for (a, b), value in margins.items():
        for one, other in ((a, b), (b, a)):
            nearest[one] = min(nearest.get(one, (np.inf, -1)), (value, other))
    observed = np.array([value for value, _ in nearest.values()])
    probability = np.zeros(len(observed))
    for half in _halves(label, group, seed):
        halves, place = np.unique(2 * label + half, return_inverse=True)
        of_halves = _margins(collect_evidence(distances, place, group), errors, place, kept)
        same = [v for (a, b), v in of_halves.items() if halves[a] // 2 == halves[b] // 2]
        probability = np.maximum(probability, _error_probability(-observed, -np.array(same)))
    best: dict[tuple[int, int], float] = {}
    for (a, (_, b)), value in zip(nearest.items(), probability.tolist(), strict=True):
        pair = (min(a, b), max(a, b))
        best[pair] = max(best.get(pair, 0.0), value)
    return [Merge(*pair, value) for pair, value in best.items()]


def _halves(label: Ints, group: Ints, seed: int) -> Iterator[Ints]:
    """Two divisions of each identity, (N,): at random, and in the middle.

    Pictures of one occasion often lie together, so that halves of the second kind differ by more.
    Copies stay together, so that a half is no proof of the other.
    """
    rng = np.random.default_rng(seed)
    for is_random in (True, False):
        half = np.zeros(len(label), dtype=np.int64)
        for identity in range(int(label.max()) + 1):
            own = label == identity
            numbers = np.unique(group[own])
            numbers = rng.permutation(numbers) if is_random else numbers
            half[own] = np.isin(group[own], numbers[len(numbers) // 2 :])
        yield half


def _margins(
    evidence: Evidence, errors: LabelErrors, label: Ints, kept: Mask
) -> dict[tuple[int, int], float]:
    """The statistic of all pairs of identities that most pictures of both have as a candidate."""
    score_NK = errors.scores(evidence)
    margin_NK = score_NK[:, :1] - score_NK[:, 1:]
    row, place = np.nonzero(np.isfinite(margin_NK) & kept[:, None])
    num = int(label.max()) + 1
    key = label[row] * num + evidence.candidate[:, 1:][row, place]
    keys, code = np.unique(key, return_inverse=True)
    count = np.bincount(code, minlength=len(keys))
    mean = np.bincount(code, margin_NK[row, place], minlength=len(keys)) / np.maximum(count, 1)
    size = np.bincount(label[kept & evidence.judged], minlength=num)
    common = 2 * count >= size[keys // num]
    one_way = {
        (int(k // num), int(k % num)): float(v)
        for k, v in zip(keys[common], mean[common], strict=True)
    }
    return {
        (a, b): (value + one_way[b, a]) / 2
        for (a, b), value in one_way.items()
        if a < b and (b, a) in one_way
    }


def find_splits(
    distances: Distances,
    errors: LabelErrors,
    label: Ints,
    group: Ints,
    *,
    seed: int = 0,
) -> list[Split]:
    """The best division of each identity, and whether it is as deep as that of two identities.

    Identities of 4 to 1,000 pictures are divided. The statistic is how much nearer the pictures are
    to their own group, by the mean and by the nearest distance.

    Args:
        distances: of all pairs.
        errors: fitted to these labels; pictures that are probably wrong are left out.
        label: identities from 0, (N,).
        group: pictures of one number are copies, (N,).
        seed: random seed of the pooled identities.
    """
    kept = errors.wrong < 0.5
    rows_of = {c: np.flatnonzero((label == c) & kept) for c in range(int(label.max()) + 1)}
    rows_of = {c: r for c, r in rows_of.items() if LEAST_PICTURES <= len(r) <= MOST_PICTURES}
    shuffled = np.random.default_rng(seed).permutation(list(rows_of))
    pools = {
        int(a): np.concatenate([rows_of[int(a)][::2], rows_of[int(b)][1::2]])
        for a, b in zip(shuffled, np.roll(shuffled, 1), strict=True)
        if a != b
    }
    own, pooled = _matrices(distances, errors.weight, group, (rows_of, pools))
    divided = {c: _divide(dist) for c, dist in own.items()}
    divided = {c: part for c, part in divided.items() if np.isfinite(part[1])}
    injected = np.array([_divide(dist)[1] for dist in pooled.values()])
    observed = np.array([margin for _, margin in divided.values()])
    probability = _error_probability(observed, injected[np.isfinite(injected)])
    return [
        Split(c, rows_of[c][second], value)
        for (c, (second, _)), value in zip(divided.items(), probability.tolist(), strict=True)
    ]


def _matrices(
    distances: Distances, weight: Floats, group: Ints, sets: tuple[Mapping[int, Ints], ...]
) -> list[dict[int, Floats]]:
    """Fused distances (n, n) within sets of rows; NaN between copies."""
    parts = [{c: np.empty((len(rows),) * 2) for c, rows in some.items()} for some in sets]
    places: dict[int, list[tuple[Floats, Ints, int]]] = {}
    for some, part in zip(sets, parts, strict=True):
        for c, rows in some.items():
            for place, row in enumerate(rows.tolist()):
                places.setdefault(row, []).append((part[c], rows, place))
    for block, dist_MBN in distances.blocks(max(1, BLOCK // distances.num)):
        dist_BN = np.tensordot(weight, dist_MBN, 1)
        for row, dist_N in zip(block.tolist(), dist_BN, strict=True):
            for matrix, rows, place in places.get(row, []):
                matrix[place] = np.where(group[rows] == group[row], np.nan, dist_N[rows])
    return parts


def _divide(dist_nn: Floats) -> tuple[Mask, float]:
    """The smaller of two groups, as a mask (n,), and the statistic; NaN without two groups.

    The sign of the first principal coordinate (Gower 1966), then each picture joins the group that
    is nearer on average.
    """
    valid = np.isfinite(dist_nn)
    nothing = np.zeros(len(dist_nn), dtype=np.bool_), float("nan")
    if not valid.any():
        return nothing
    filled = np.where(valid, dist_nn, 0)
    centred = filled - filled.mean(0) - filled.mean(1)[:, None] + filled.mean()
    second: Mask = np.linalg.eigh(-centred)[1][:, -1] > 0
    for _ in range(REASSIGNMENTS):
        if min(second.sum(), (~second).sum()) < LEAST_GROUP:
            return nothing
        first_n, second_n = (_means(filled, valid, part) for part in (~second, second))
        moved = np.where(np.isnan(first_n + second_n), second, second_n < first_n)
        if (moved == second).all():
            break
        second = moved
    if 2 * second.sum() > len(second):
        second = ~second
    if second.sum() < LEAST_GROUP:
        return nothing
    means = np.stack([_means(filled, valid, part) for part in (~second, second)])
    far = np.where(valid, dist_nn, np.inf)
    nearest = np.stack([far[:, part].min(1) for part in (~second, second)])
    own, other = second.astype(np.int64), 1 - second.astype(np.int64)
    row = np.arange(len(second))
    margin = (means + nearest)[other, row] - (means + nearest)[own, row]
    margin = margin[np.isfinite(margin)]
    return second, float(margin.mean()) if len(margin) else float("nan")


def _means(filled_nn: Floats, valid_nn: Mask, part_n: Mask) -> Floats:
    """Mean distance of each picture to a group, (n,); NaN without a picture to compare with."""
    count = valid_nn[:, part_n].sum(1)
    total = filled_nn[:, part_n].sum(1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _error_probability(observed: Floats, injected: Floats) -> Floats:
    """Probability that each observed value belongs to the errors made on purpose, which are larger.

    Args:
        observed: values of the data, most of them right.
        injected: values of errors made on purpose.
    """
    from scipy.stats import t

    if len(observed) < LEAST_VALUES or len(injected) < LEAST_VALUES:
        return np.zeros(len(observed))
    (centre, spread), (high, width) = (_location(values) for values in (observed, injected))
    if high - centre < LEAST_CONTRAST * spread:  # Such errors look like the data.
        return np.zeros(len(observed))
    x = np.clip(observed, centre, high)
    density = t.logpdf((x - high) / width, DEGREES) - np.log(width)
    density = np.exp(density - t.logpdf((x - centre) / spread, DEGREES) + np.log(spread))
    prior = 1 / len(observed)
    for _ in range(ROUNDS):
        odds = prior * density
        prior = min(LARGEST_PRIOR, float((odds / (odds + 1 - prior)).mean()))
    return np.asarray(prior * density / (prior * density + 1 - prior))


def _location(values: Floats) -> tuple[float, float]:
    """Median and spread (of a normal distribution), which a few errors do not move."""
    centre = float(np.median(values))
    return centre, max(1.4826 * float(np.median(np.abs(values - centre))), 1e-6)
