"""Error rates of embeddings on a divided table, with replicates for paired intervals.

All methods on a table share pairs, draws and replicates, so that differences of errors can be
bootstrapped pair by pair. Test identities are resampled; in a closed set, whose identities are
fixed, test pictures are.

Shapes: N pictures of the test split, D dimensions, I clusters, S errors, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twinlens.data.table import ImageTable
from twinlens.measure.bootstrap import pair_weights, replicate
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.error_rates import SortedPairs, best_accuracy, det_curve, eer, matches
from twinlens.measure.few_shot import tied_credit
from twinlens.measure.pairs import Comparison, draw_pairs, pair_distances

__all__ = ["COSINE", "Errors", "Protocol", "measure_errors"]

Protocol = Literal["open", "skilled", "closed", "nearest"]
Floats = NDArray[np.float64]

COSINE = EuclideanComparison("cosine")
CLOSED_PAIRS = 10_000
GALLERIES = 20
REPLICATES = 200


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors by name, and their replicates, (R,) each."""

    value: dict[str, float]
    replicates: dict[str, Floats]


def measure_errors(
    protocol: Protocol,
    table: ImageTable,
    emb_ND: NDArray[Any],
    comparison: Comparison = COSINE,
    replicates: int = REPLICATES,
) -> Errors:
    """Test errors of a table's embeddings, rows in its order.

    - "open": EER of all test pairs, share of pictures whose nearest other one is of another
      identity, and share of wrong answers from one example each of all test identities.
    - "skilled": EER of genuine pairs against forgeries of the same identity.
    - "closed": balanced error of 20,000 test pairs at the best threshold of as many validation
      pairs.
    - "nearest": share of test pictures whose nearest training or validation picture is of another
      identity.
    """
    names, statistic, num = PROTOCOLS[protocol](table, emb_ND, comparison)
    value = statistic(np.ones(num, dtype=np.int64))
    drawn_RS = replicate(statistic, num, seed=0, replicates=replicates)
    return Errors(
        dict(zip(names, value.tolist(), strict=True)),
        {name: drawn_RS[:, column] for column, name in enumerate(names)} if drawn_RS.size else {},
    )


Statistic = Callable[[NDArray[np.int64]], Floats]
Prepared = tuple[tuple[str, ...], Statistic, int]


def _open(table: ImageTable, emb_ND: NDArray[Any], comparison: Comparison) -> Prepared:
    test = table.of_split("test")
    emb_ND, label_N = emb_ND[table.split == "test"], test.labels()
    dist_NN = comparison.matrix(emb_ND, emb_ND)
    a, b = np.triu_indices(len(emb_ND), 1)
    equal_error = _eer(dist_NN[a, b], label_N[a] == label_N[b], label_N[a], label_N[b])
    np.fill_diagonal(dist_NN, np.inf)
    wrong_N = 1 - tied_credit(dist_NN, label_N[:, None] == label_N)
    missed_N = _one_shot_errors(dist_NN, label_N)

    def statistic(count_I: NDArray[np.int64]) -> Floats:
        weight_N = count_I[label_N]
        return np.array([
            equal_error(count_I), weighted_mean(wrong_N, weight_N),
            weighted_mean(missed_N, weight_N),
        ])  # fmt: skip

    return ("EER", "recall@1 missed", "one-shot missed"), statistic, len(test.identities())


def _one_shot_errors(dist_NN: NDArray[Any], label_N: NDArray[np.int64]) -> Floats:
    """Mean error of each picture as a probe, over random galleries of an example each, (N,)."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(label_N == label) for label in range(label_N.max() + 1)]
    error_N, times_N = np.zeros(len(label_N)), np.zeros(len(label_N))
    for _ in range(GALLERIES):
        example = np.array([rng.choice(rows) for rows in members])
        probe = np.setdiff1d(np.arange(len(label_N)), example)
        right = label_N[probe][:, None] == np.arange(len(members))
        error_N[probe] += 1 - tied_credit(dist_NN[np.ix_(probe, example)], right)
        times_N[probe] += 1
    return np.asarray(error_N / np.maximum(times_N, 1), dtype=np.float64)


def _skilled(table: ImageTable, emb_ND: NDArray[Any], comparison: Comparison) -> Prepared:
    test = table.of_split("test")
    emb_ND, label_N = emb_ND[table.split == "test"], test.labels()
    a, b = np.triu_indices(len(emb_ND), 1)
    kept = (label_N[a] == label_N[b]) & ~(test.forged[a] & test.forged[b])
    a, b = a[kept], b[kept]
    dist_Q = comparison.pairwise(emb_ND[a], emb_ND[b])
    same_Q = ~test.forged[a] & ~test.forged[b]
    equal_error = _eer(dist_Q, same_Q, label_N[a], label_N[b])
    return ("EER, skilled",), lambda count: np.array([equal_error(count)]), len(test.identities())


def _eer(
    dist_Q: NDArray[Any], same_Q: NDArray[np.bool_], a_Q: NDArray[Any], b_Q: NDArray[Any]
) -> Callable[[NDArray[np.int64]], float]:
    pairs = SortedPairs.of(dist_Q[same_Q], dist_Q[~same_Q])

    def statistic(count_I: NDArray[np.int64]) -> float:
        if np.count_nonzero(count_I) < 2:
            return math.nan  # No impostor pairs.
        weight_Q = pair_weights(count_I, a_Q, b_Q)
        return eer(pairs.curve(weight_Q[same_Q], weight_Q[~same_Q]))

    return statistic


def _closed(table: ImageTable, emb_ND: NDArray[Any], comparison: Comparison) -> Prepared:
    dist, same = {}, {}
    for split in ("val", "test"):
        part = table.of_split(split)
        rng = np.random.default_rng(0)
        pairs = draw_pairs(part.labels(), part.forged, num_pairs=CLOSED_PAIRS, rng=rng)
        dist[split] = pair_distances(emb_ND[table.split == split], pairs, comparison)
        same[split] = pairs.same
    curve = det_curve(dist["val"][same["val"]], dist["val"][~same["val"]])
    wrong_Q = matches(dist["test"], best_accuracy(curve)[1]) != same["test"]

    def statistic(count_N: NDArray[np.int64]) -> Floats:
        weight_Q = count_N[pairs.a] * count_N[pairs.b]
        kinds = (same["test"], ~same["test"])
        errors = [weighted_mean(wrong_Q[kind], weight_Q[kind]) for kind in kinds]
        return np.array([np.mean(errors)])

    return ("pairs wrong",), statistic, len(part)


def _nearest(table: ImageTable, emb_ND: NDArray[Any], comparison: Comparison) -> Prepared:
    probe = table.split == "test"
    dist = comparison.matrix(emb_ND[probe], emb_ND[~probe])
    right = table.identity[probe][:, None] == table.identity[~probe]
    wrong_N = 1 - tied_credit(dist, right)
    label_N = table.of_split("test").labels()

    def statistic(count_I: NDArray[np.int64]) -> Floats:
        return np.array([weighted_mean(wrong_N, count_I[label_N])])

    return ("nearest wrong",), statistic, len(np.unique(label_N))


def weighted_mean(value_N: NDArray[Any], weight_N: NDArray[np.int64]) -> float:
    """NaN if all weights are zero."""
    return float(value_N @ weight_N / weight_N.sum()) if weight_N.any() else math.nan


PROTOCOLS: dict[Protocol, Callable[[ImageTable, NDArray[Any], Comparison], Prepared]] = {
    "open": _open,
    "skilled": _skilled,
    "closed": _closed,
    "nearest": _nearest,
}
