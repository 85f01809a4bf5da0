"""Results on a given list of trials: pairs, or one-shot choices.

A trial tells only whether two pictures show the same identity, not which. So the bootstrap redraws
trials, or groups of them (`cluster`). Trials that share people are not independent: an interval
over them is narrower than one over identities.

Shapes: N pairs or candidates, T trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, mean_estimates, replicate
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import SortedPairs, auc, eer, matches

__all__ = ["OneShotTrialsResult", "PairTrialsResult", "one_shot_trials", "pair_trials"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairTrialsResult:
    """Accuracy, AUC and EER on given pairs.

    `accuracy` is balanced, at the calibrated threshold; None without a calibration. If all pairs
    are of one kind, it is the share of right answers, and `auc` and `eer` have no value.
    """

    accuracy: Estimate | None
    auc: Estimate
    eer: Estimate
    num_genuine: int
    num_impostor: int

    def as_json(self) -> dict[str, Any]:
        """`{"accuracy", "auc", "eer", "num_genuine", "num_impostor"}`; without accuracy if None."""
        return {
            **({} if self.accuracy is None else {"accuracy": self.accuracy.as_json()}),
            "auc": self.auc.as_json(),
            "eer": self.eer.as_json(),
            "num_genuine": self.num_genuine,
            "num_impostor": self.num_impostor,
        }


@dataclass(frozen=True)
class OneShotTrialsResult:
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
    cluster: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> PairTrialsResult:
    """Accuracy at the calibrated threshold, AUC and EER of given pairs.

    Args:
        distance: distances of the pairs, shape (N,).
        same: whether each pair is genuine, shape (N,).
        calibrated: calibration with the threshold; None leaves the accuracy out.
        cluster: groups that the bootstrap redraws whole, shape (N,); each pair by default.
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
    code_N, num_clusters = _clusters(cluster, len(dist_N))
    two_kinds = 0 < np.count_nonzero(same_N) < len(same_N)
    pairs = SortedPairs.of(dist_N[same_N], dist_N[~same_N]) if two_kinds else None
    right_N = None if calibrated is None else matches(dist_N, calibrated.threshold) == same_N

    def statistics(count_I: Ints) -> Floats:
        weight_N = count_I[code_N]
        genuine, impostor = weight_N[same_N], weight_N[~same_N]
        accuracy = np.nan if right_N is None else _balanced(right_N, same_N, weight_N)
        if pairs is None or not genuine.any() or not impostor.any():
            return np.array([accuracy, np.nan, np.nan])
        curve = pairs.curve(genuine, impostor)
        return np.array([accuracy, auc(curve), eer(curve)])

    drawn = replicate(statistics, num_clusters, seed=seed, replicates=replicates)
    values = statistics(np.ones(num_clusters, dtype=np.int64))
    accuracy, area, equal_rate = estimates(values.tolist(), drawn)
    return PairTrialsResult(
        accuracy=None if calibrated is None else accuracy,
        auc=area,
        eer=equal_rate,
        num_genuine=int(np.count_nonzero(same_N)),
        num_impostor=int(np.count_nonzero(~same_N)),
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
    code_N, num_clusters = _clusters(trial_N if cluster is None else cluster, len(dist_N))
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


def _balanced(right_N: NDArray[np.bool_], same_N: NDArray[np.bool_], weight_N: Ints) -> float:
    shares = [
        float(weight_N[kind] @ right_N[kind] / weight_N[kind].sum())
        for kind in (same_N, ~same_N)
        if weight_N[kind].any()
    ]
    both = bool(same_N.any()) + bool((~same_N).any())
    return sum(shares) / len(shares) if len(shares) == both else np.nan


def _clusters(cluster: ArrayLike | None, size: int) -> tuple[Ints, int]:
    if cluster is None:
        return np.arange(size), size
    names, code_N = np.unique(np.asarray(cluster), return_inverse=True)
    return code_N, len(names)
