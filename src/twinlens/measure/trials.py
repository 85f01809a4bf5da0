"""Results on a given list of trials: pairs, or one-shot choices.

A trial tells only whether two pictures show the same identity, not which. Trials that share
pictures are not independent: the bootstrap redraws the identities that genuine pairs join, or
groups of trials (`cluster`). Without either it redraws trials, and the interval is too narrow if
they share people.

Shapes: N pairs or candidates, T trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.display import Result
from twinlens.errors import DataError
from twinlens.measure.bootstrap import (
    REPLICATES,
    Estimate,
    estimates,
    mean_estimates,
    pair_weights,
    replicate,
    rule_of_three,
)
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import SortedPairs, auc, eer, matches
from twinlens.measure.reliability import ReliabilityPairs, ReliabilityResult

__all__ = ["OneShotTrialsResult", "PairTrialsResult", "one_shot_trials", "pair_trials"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class PairTrialsResult(Result):
    """Error rates on given pairs.

    `far` and `frr` are those of the calibrated threshold, and `accuracy` is balanced there; None
    without a calibration, as is `reliability`. If all pairs are of one kind, `accuracy` is the
    share of right answers, `auc`, `eer` and one of `far` and `frr` have no value, and
    `reliability` is None.
    """

    accuracy: Estimate | None
    far: Estimate | None
    frr: Estimate | None
    auc: Estimate
    eer: Estimate
    num_genuine: int
    num_impostor: int
    reliability: ReliabilityResult | None

    def as_json(self) -> dict[str, Any]:
        """All attributes that are not None."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: part if isinstance(part, int) else part.as_json()
            for name, part in parts.items()
            if part is not None
        }


@dataclass(frozen=True, repr=False)
class OneShotTrialsResult(Result):
    """Share of `num_trials` whose nearest candidate is the right one."""

    accuracy: Estimate
    num_trials: int

    def as_json(self) -> dict[str, Any]:
        """`{"accuracy", "num_trials"}`."""
        return {"accuracy": self.accuracy.as_json(), "num_trials": self.num_trials}


def pair_trials(
    distance: ArrayLike,
    same: ArrayLike,
    *,
    calibrated: Calibration | None,
    prior: float = 0.5,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> PairTrialsResult:
    """FAR, FRR and accuracy at the calibrated threshold, AUC, EER and reliability of given pairs.

    Args:
        distance: distances of the pairs, shape (N,).
        same: whether each pair is genuine, shape (N,).
        calibrated: calibration with threshold and probabilities; None leaves out what needs them.
        prior: prior probability of a genuine pair, for the reliability.
        cluster: groups that the bootstrap redraws whole, shape (N,); or those of both pictures,
            such as identities, shape (2, N), as of `bootstrap.pair_weights`; each pair by default.
        seed: random seed of the bootstrap.
        replicates: number of bootstrap replicates.
    Raises:
        DataError: no pairs, or a distance that is not a finite number.
    """
    dist_N = np.asarray(distance, dtype=np.float64)
    same_N = np.asarray(same, dtype=bool)
    if not len(dist_N) or not np.isfinite(dist_N).all():
        raise DataError(
            f"found {len(dist_N)} pairs, {np.count_nonzero(~np.isfinite(dist_N))} of them without "
            "a finite distance; trials need at least one pair, and a distance for each"
        )
    (a_N, b_N), num_clusters = _clusters(cluster, len(dist_N))
    two_kinds = 0 < np.count_nonzero(same_N) < len(same_N)
    pairs = SortedPairs.of(dist_N[same_N], dist_N[~same_N]) if two_kinds else None
    right_N = None if calibrated is None else matches(dist_N, calibrated.threshold) == same_N
    reliability = None
    if two_kinds and calibrated is not None and calibrated.curve is not None:
        reliability = ReliabilityPairs.of(dist_N[same_N], dist_N[~same_N], calibrated, prior)
    num_statistics = 5 + (0 if reliability is None else 3 + reliability.num_bins)

    def statistics(count_I: Ints) -> Floats:
        weight_N = pair_weights(count_I, a_N, b_N)
        genuine, impostor = weight_N[same_N], weight_N[~same_N]
        values = np.full(num_statistics, np.nan)
        if right_N is not None:
            values[:3] = _errors(right_N, same_N, weight_N)
        if pairs is not None and genuine.any() and impostor.any():
            curve = pairs.curve(genuine, impostor)
            values[3:5] = auc(curve), eer(curve)
            if reliability is not None:
                values[5:] = reliability.statistics(genuine, impostor, curve)
        return values

    drawn = replicate(statistics, num_clusters, seed=seed, replicates=replicates)
    values = statistics(np.ones(num_clusters, dtype=np.int64))
    accuracy, far, frr, area, equal_rate, *reliable = estimates(values.tolist(), drawn)
    independent = [_num_independent(a_N[kind], b_N[kind]) for kind in (~same_N, same_N)]
    return PairTrialsResult(
        accuracy=None if calibrated is None else accuracy,
        far=None if calibrated is None else rule_of_three(far, independent[0]),
        frr=None if calibrated is None else rule_of_three(frr, independent[1]),
        auc=area,
        eer=equal_rate,
        num_genuine=int(np.count_nonzero(same_N)),
        num_impostor=int(np.count_nonzero(~same_N)),
        reliability=None if reliability is None else reliability.result(reliable),
    )


def one_shot_trials(
    trial: ArrayLike,
    distance: ArrayLike,
    same: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> OneShotTrialsResult:
    """Share of trials whose nearest candidate is right, as in Lake et al. (2015).

    If candidates tie for the nearest, the trial counts the share of right ones among them.

    >>> distance, same = [0.1, 0.5, 0.4, 0.2], [True, False, True, False]
    >>> one_shot_trials([1, 1, 2, 2], distance, same, replicates=0).accuracy.value
    0.5

    Args:
        trial: trial of each candidate, shape (N,), numbers or strings, any order.
        distance: distance from the trial's probe to the candidate, shape (N,).
        same: whether the candidate shows the probe's identity, shape (N,).
        cluster: groups of trials that the bootstrap redraws whole, such as runs, shape (N,), the
            same for all candidates of a trial; each trial by default.
        seed: random seed of the bootstrap.
        replicates: number of bootstrap replicates.
    Raises:
        DataError: no trials, a trial without a right candidate or in two clusters, or a distance
            that is NaN.
    """
    dist_N = np.asarray(distance, dtype=np.float64)
    same_N = np.asarray(same, dtype=bool)
    if not len(dist_N) or np.isnan(dist_N).any():
        raise DataError(
            f"found {len(dist_N)} candidates, {np.count_nonzero(np.isnan(dist_N))} of them without "
            "a distance; trials need at least one candidate, and a distance for each"
        )
    names, first, trial_N = np.unique(trial, return_index=True, return_inverse=True)
    unanswered = np.bincount(trial_N, weights=same_N, minlength=len(names)) == 0
    if unanswered.any():
        raise DataError(
            f"{np.count_nonzero(unanswered)} of {len(names)} trials have no candidate marked "
            f"same, such as trial {names[unanswered][0]}; each trial needs at least one"
        )
    (code_N, _), num_clusters = _clusters(trial_N if cluster is None else cluster, len(dist_N))
    if (code_N != code_N[first][trial_N]).any():
        raise DataError("found trials in two clusters; each trial must lie in one")
    credit_T = _credits(trial_N, dist_N, same_N, len(names))
    accuracy, *_ = mean_estimates(
        credit_T[None], code_N[first], num_clusters, seed=seed, replicates=replicates
    )
    return OneShotTrialsResult(accuracy, len(names))


def _credits(trial_N: Ints, dist_N: Floats, same_N: NDArray[np.bool_], num_trials: int) -> Floats:
    smallest_T = np.full(num_trials, np.inf)
    np.minimum.at(smallest_T, trial_N, dist_N)
    nearest_N = dist_N == smallest_T[trial_N]
    right_T = np.bincount(trial_N, weights=nearest_N & same_N, minlength=num_trials)
    return np.asarray(right_T / np.bincount(trial_N, weights=nearest_N), dtype=np.float64)


def _errors(right_N: NDArray[np.bool_], same_N: NDArray[np.bool_], weight_N: Ints) -> Floats:
    """Balanced accuracy, FAR and FRR; NaN without weight."""
    far, frr = (
        float(weight_N[kind] @ ~right_N[kind] / weight_N[kind].sum())
        if weight_N[kind].any()
        else np.nan
        for kind in (~same_N, same_N)
    )
    errors = [rate for rate, kind in ((far, ~same_N), (frr, same_N)) if kind.any()]
    return np.array([1 - sum(errors) / len(errors), far, frr])


def _clusters(cluster: ArrayLike | None, size: int) -> tuple[Ints, int]:
    """Numbers of the groups of both pictures, (2, N), and how many there are."""
    given = np.arange(size) if cluster is None else np.asarray(cluster)
    names, code = np.unique(given, return_inverse=True)
    return np.broadcast_to(code.reshape(given.shape), (2, size)), len(names)


def _num_independent(a_N: Ints, b_N: Ints) -> int:
    """The number of pairs that share no group."""
    num = len(np.unique(np.concatenate([a_N, b_N])))
    return num // 2 if (a_N != b_N).any() else num
