"""Scores of candidate models on pictures that they did not learn from, and their fusion.

The pictures are divided into folds. A candidate that learned without a fold embeds its pictures,
and these are compared with each other only: embeddings of different folds are of different models.
The fused distance is a weighted sum of the candidates' cosine distances.

Shapes: K folds; n pictures of a fold; Q pairs of a fold; M candidates; I identities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from twinlens.measure.bootstrap import Estimate, interval, pair_weights, replicate
from twinlens.measure.error_rates import SortedPairs, det_curve, eer
from twinlens.measure.pairs import PairSet, draw_pairs, sample_pictures

__all__ = ["Distances", "Fold", "HeldOutPairs", "Matrices", "Scores", "assign_folds", "fuse",
           "fused_distances", "gain", "make_fold", "scores"]  # fmt: skip

MOST_FOLDS = 5
MAX_PICTURES = 1500  # of a fold
MAX_PAIRS = 20_000  # of each kind, of a fold
FUSION_PAIRS = 5_000  # of them, to choose weights: many trials are compared
FARS = (0.01, 0.1)  # of the tail
REPLICATES = 200
MAX_ROUNDS = 6  # of fusion
SHARES = (0.1, 0.25, 0.5)  # that a further member gets
LEAST_GAIN = 0.01  # relative, of a further member
FUSED = ""  # several candidates as one

Matrices = Mapping[int, NDArray[np.float32]]
"""Distances (n, n) of each fold's pictures, by fold."""
PairDistances = Mapping[int, NDArray[np.float32]]
"""Distances (Q,) of each fold's pairs, by fold."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Pictures that are held out together.

    Attributes:
        row: their rows, (n,).
        label: their identities, (n,).
        pairs: genuine and impostor pairs among them, by place in `row`.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    pairs: PairSet


Distances = tuple[Fold, NDArray[np.float32]]
"""A fold with distances (n, n)."""


@dataclass(frozen=True, eq=False)
class HeldOutPairs:
    """Distances of a model between held-out pictures, for its threshold.

    Attributes:
        distance: of each pair, (Q,).
        same: whether it is genuine, (Q,).
        a: position of its first picture, (Q,).
        b: position of its second picture, (Q,).
    """

    distance: NDArray[np.float64]
    same: NDArray[np.bool_]
    a: NDArray[np.int64]
    b: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[Distances]) -> HeldOutPairs:
        """The pairs of some folds by their distances (n, n)."""
        distance = [dist[fold.pairs.a, fold.pairs.b] for fold, dist in parts]
        return cls(
            np.concatenate(distance).astype(np.float64),
            np.concatenate([fold.pairs.same for fold, _ in parts]),
            np.concatenate([fold.row[fold.pairs.a] for fold, _ in parts]),
            np.concatenate([fold.row[fold.pairs.b] for fold, _ in parts]),
        )


@dataclass(frozen=True)
class Scores:
    """Errors on held-out pictures, shares: lower is better.

    Attributes:
        eer: equal error rate of all pairs.
        recall_error: 1 - recall at 1, each picture among the others of its fold.
        overlap: EER of two normal distributions with the means and deviations of the distances.
        tail: mean FRR at a FAR of 1 % and of 10 %.
    """

    eer: float
    recall_error: float
    overlap: float
    tail: float

    @property
    def error(self) -> float:
        """What candidates are chosen by.

        On few pictures the EER and recall may be perfect for several of them. The overlap tells
        these apart; the tail matters among many identities.
        """
        return (self.eer + self.overlap + self.tail) / 3


def assign_folds(
    label: NDArray[np.int64],
    is_validation: NDArray[np.bool_],
    *,
    by_identity: bool,
    seed: int,
) -> NDArray[np.int64]:
    """The fold of each picture, (N,): 0 for validation pictures, the others in parts as large.

    Args:
        label: identities, (N,).
        is_validation: whether each picture is of the validation split, (N,).
        by_identity: whether an identity is in one fold, as for open sets.
        seed: random seed.

    >>> label = np.repeat(np.arange(6), 2)
    >>> assign_folds(label, label < 2, by_identity=True, seed=0).tolist()
    [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 1]
    """
    fold_N = np.zeros(len(label), dtype=np.int64)
    unit = label if by_identity else np.arange(len(label))
    rest = np.unique(unit[~is_validation])
    num_validation = len(np.unique(unit[is_validation]))
    num = round(len(rest) / num_validation) if num_validation else MOST_FOLDS - 1
    # Two identities at least, for impostor pairs.
    num = max(0, min(MOST_FOLDS - 1, num, len(rest) // 2))
    shuffled = np.random.default_rng([seed, 5]).permutation(rest)
    first = 1 if num_validation else 0
    parts = np.array_split(shuffled, num) if num else [shuffled]
    for number, part in enumerate(parts, first):
        fold_N[np.isin(unit, part) & ~is_validation] = number
    return fold_N


def make_fold(
    row: NDArray[np.int64], label: NDArray[np.int64], forged: NDArray[np.bool_], seed: int
) -> Fold | None:
    """A fold of some rows, of at most 1,500 pictures; None without pairs of both kinds.

    Args:
        row: rows of the pictures, (n,).
        label: their identities, (n,).
        forged: whether they are forged, (n,).
        seed: random seed of the sample.
    """
    rng = np.random.default_rng([seed, 6])
    kept = sample_pictures(label, MAX_PICTURES, rng)
    pairs = draw_pairs(label[kept], forged[kept], num_pairs=MAX_PAIRS, rng=rng)
    if not pairs.same.any() or pairs.same.all():
        return None
    return Fold(row[kept], label[kept], pairs)


def scores(folds: Mapping[int, Fold], matrices: Matrices) -> Scores:
    """The mean errors over the folds that have distances."""
    results = []
    for number, dist in matrices.items():
        by_eer, overlap, tail = _pair_errors(folds[number], _of_pairs(folds[number], dist))
        recall_error = 1 - float(_is_nearest(dist, folds[number]).mean())
        results.append((by_eer, recall_error, overlap, tail))
    return Scores(*(float(mean) for mean in np.mean(results, axis=0)))


def _of_pairs(fold: Fold, dist: NDArray[np.float32]) -> NDArray[np.float32]:
    """The distances (Q,) of a fold's pairs."""
    return dist[fold.pairs.a, fold.pairs.b]


def _pair_errors(fold: Fold, distance: NDArray[np.float32]) -> tuple[float, float, float]:
    """EER, overlap and tail, see `Scores`, by the distances (Q,) of a fold's pairs."""
    genuine, impostor = distance[fold.pairs.same], distance[~fold.pairs.same]
    tail = np.mean([(genuine > limit).mean() for limit in np.quantile(impostor, FARS)])
    return eer(det_curve(genuine, impostor)), _overlap(genuine, impostor), float(tail)


def _overlap(genuine: NDArray[np.float32], impostor: NDArray[np.float32]) -> float:
    """EER of two normal distributions with the means and deviations of some distances."""
    deviations = float(genuine.std() + impostor.std())
    apart = float(impostor.mean() - genuine.mean())
    return float(ndtr(-apart / max(deviations, 1e-12)))


def _is_nearest(dist: NDArray[np.float32], fold: Fold) -> NDArray[np.bool_]:
    """Whether the nearest other picture shows the same identity, of pictures with a mate, (n,)."""
    others = dist.copy()
    np.fill_diagonal(others, np.inf)
    _, code, count = np.unique(fold.label, return_inverse=True, return_counts=True)
    right: NDArray[np.bool_] = fold.label[others.argmin(1)] == fold.label
    return right[count[code] > 1]


def fuse(folds: Mapping[int, Fold], matrices: Mapping[str, Matrices]) -> dict[str, float]:
    """The weights of candidates that together have the fewest errors on held-out pictures.

    A network may have fewer folds than features, and features chosen on these alone are chosen by
    few identities; those chosen on every fold are not the ones that add most to the network. The
    weights are then the mean of both choices.

    Args:
        folds: the folds.
        matrices: distances of each candidate, in a fold or more.
    Returns:
        The weight of each chosen candidate, which sum to 1.
    """
    folds = {number: _with_few_pairs(fold) for number, fold in folds.items()}
    distances = {
        name: {number: _of_pairs(folds[number], dist) for number, dist in own.items()}
        for name, own in matrices.items()
    }
    everywhere = {name: own for name, own in distances.items() if len(own) == len(folds)}
    common = [number for number in folds if all(number in own for own in distances.values())]
    on_common = {name: {k: own[k] for k in common} for name, own in distances.items()}
    at_once = _fuse_greedily(folds, on_common)
    if len(everywhere) in (0, len(distances)):
        return at_once
    first = _fuse_greedily(folds, everywhere)
    fused = fused_distances(first, on_common, common)
    rest = {name: own for name, own in on_common.items() if name not in everywhere}
    shares = _fuse_greedily(folds, {**rest, FUSED: fused})
    share = shares.pop(FUSED, 0.0)
    in_turn = shares | {name: share * weight for name, weight in first.items()}
    mean = {name: (at_once.get(name, 0.0) + in_turn.get(name, 0.0)) / 2 for name in distances}
    return {name: weight for name, weight in mean.items() if weight}


def fused_distances(
    weights: Mapping[str, float], distances: Mapping[str, Matrices], numbers: Iterable[int]
) -> Matrices:
    """The distances of a fused model in some folds, (n, n) or (Q,) as those of its members."""
    return {
        number: np.sum([w * distances[name][number] for name, w in weights.items()], axis=0)
        for number in numbers
    }


def _with_few_pairs(fold: Fold) -> Fold:
    """The fold with so many pairs as suffice to compare candidates."""
    pairs = fold.pairs
    kinds = [np.flatnonzero(pairs.same == kind) for kind in (True, False)]
    kept = np.concatenate([rows[:: -(-len(rows) // FUSION_PAIRS)] for rows in kinds])
    return replace(fold, pairs=PairSet(pairs.a[kept], pairs.b[kept], pairs.same[kept]))


def _fuse_greedily(
    folds: Mapping[int, Fold], distances: Mapping[str, PairDistances]
) -> dict[str, float]:
    """The weights of candidates by the distances (Q,) of pairs, in the same folds.

    As the ensemble selection of Caruana 2004: in each round the candidate and the share that help
    most are added, until none helps by a hundredth of the error.
    """

    def error(own: PairDistances) -> float:
        each = [_pair_errors(folds[number], distance) for number, distance in own.items()]
        return float(np.mean(each))

    first = min(distances, key=lambda name: error(distances[name]))
    weights, total = {first: 1.0}, distances[first]
    best = error(total)
    for _ in range(MAX_ROUNDS):
        trials = {
            (name, share): {k: (1 - share) * total[k] + share * dist for k, dist in own.items()}
            for name, own in distances.items()
            for share in SHARES
        }
        errors = {key: error(trial) for key, trial in trials.items()}
        key = min(trials, key=errors.__getitem__)
        if errors[key] > (1 - LEAST_GAIN) * best:
            break
        (name, share), total, best = key, trials[key], errors[key]
        weights = {other: (1 - share) * weight for other, weight in weights.items()}
        weights[name] = weights.get(name, 0.0) + share
    return weights


def gain(folds: Mapping[int, Fold], own: Matrices, other: Matrices, *, seed: int) -> Estimate:
    """The EER of `other` less that of `own`, with an interval from a bootstrap over identities.

    Above 0, `own` is better. Both are resampled alike, since the same pictures are hard for both.
    """
    parts = [_FoldPairs.of(folds[number], own[number], other[number]) for number in own]
    starts = np.cumsum([0, *(part.num_identities for part in parts)])

    def statistic(count_I: NDArray[np.int64]) -> NDArray[np.float64]:
        differences = [
            part.difference(count_I[low:high])
            for part, low, high in zip(parts, starts[:-1], starts[1:], strict=True)
        ]
        valid = [value for value in differences if not np.isnan(value)]
        return np.array([np.mean(valid) if valid else np.nan])

    ones = np.ones(int(starts[-1]), dtype=np.int64)
    values = replicate(statistic, int(starts[-1]), seed=seed, replicates=REPLICATES)
    low, high = interval(values[:, 0] if len(values) else [])
    return Estimate(float(statistic(ones)[0]), low, high)


@dataclass(frozen=True, eq=False)
class _FoldPairs:
    """The pairs of a fold by two candidates, sorted once for all replicates."""

    sorted_pairs: Sequence[SortedPairs]
    identities: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    num_identities: int

    @classmethod
    def of(cls, fold: Fold, own: NDArray[np.float32], other: NDArray[np.float32]) -> _FoldPairs:
        pairs = fold.pairs
        _, code = np.unique(fold.label, return_inverse=True)
        kinds = (pairs.same, ~pairs.same)
        both = [
            SortedPairs.of(*(dist[pairs.a[kind], pairs.b[kind]] for kind in kinds))
            for dist in (own, other)
        ]
        identities = [(code[pairs.a[kind]], code[pairs.b[kind]]) for kind in kinds]
        return cls(both, identities, int(code.max()) + 1)

    def difference(self, count_I: NDArray[np.int64]) -> float:
        genuine, impostor = (pair_weights(count_I, a, b) for a, b in self.identities)
        if not genuine.any() or not impostor.any():
            return np.nan
        own, other = (eer(pairs.curve(genuine, impostor)) for pairs in self.sorted_pairs)
        return other - own
