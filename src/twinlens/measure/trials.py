"""Given trials: lists of pairs, and of one-shot choices, that someone else has drawn.

Which identities the pictures show is not known here, only whether two are the same; so the
bootstrap redraws trials, or the groups (`cluster`) that the caller names. Trials that share
people are not independent, and an interval over them is narrower than one over identities.

Shapes: N pairs or candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, replicate
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import SortedPairs, auc, eer, matches

__all__ = ["OneShotTrialsResult", "PairTrialsResult", "one_shot_trials", "pair_trials"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairTrialsResult:
    """Given pairs, judged.

    `accuracy` is balanced, at the calibrated threshold; None without a calibration. `auc` and
    `eer` have no value where all pairs are of one kind; `accuracy` is then the share of right
    answers.
    """

    accuracy: Estimate | None
    auc: Estimate
    eer: Estimate
    num_genuine: int
    num_impostor: int

    def as_json(self) -> dict[str, Any]:
        """`{"accuracy", "auc", "eer", "num_genuine", "num_impostor"}`, accuracy where it is."""
        found: dict[str, Any] = {}
        if self.accuracy is not None:
            found["accuracy"] = self.accuracy.as_json()
        found |= {"auc": self.auc.as_json(), "eer": self.eer.as_json()}
        return found | {"num_genuine": self.num_genuine, "num_impostor": self.num_impostor}


@dataclass(frozen=True)
class OneShotTrialsResult:
    """The share of `num_trials` whose nearest candidate is the right one."""

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
        distance: shape (N,).
        same: whether each pair shows the same thing, shape (N,).
        calibrated: gives the threshold.
        cluster: groups that the bootstrap redraws whole, shape (N,); each pair by default.
        seed: draws the replicates.
        replicates: how many times the clusters are redrawn.
    Raises:
        DataError: no pairs, or a distance that is not a finite number.
    """
    dist_N = np.asarray(distance, dtype=np.float64)
    same_N = np.asarray(same, dtype=bool)
    if not len(dist_N) or not np.isfinite(dist_N).all():
        raise DataError(
            f"found {len(dist_N)} pairs, {np.count_nonzero(~np.isfinite(dist_N))} of them without "
            "a finite distance; trials need pairs, and each needs its distance"
        )
    code_N, num_clusters = _clusters(cluster, len(dist_N))
    two_kinds = 0 < np.count_nonzero(same_N) < len(same_N)
    ranked = SortedPairs.of(dist_N[same_N], dist_N[~same_N]) if two_kinds else None
    right_N = None if calibrated is None else matches(dist_N, calibrated.threshold) == same_N

    def measured(count_I: Ints) -> Floats:
        weight_N = count_I[code_N]
        genuine, impostor = weight_N[same_N], weight_N[~same_N]
        found = [
            np.nan if right_N is None else _balanced(right_N, same_N, weight_N),
            np.nan,
            np.nan,
        ]
        if ranked is not None and genuine.any() and impostor.any():
            curve = ranked.curve(genuine, impostor)
            found[1:] = [auc(curve), eer(curve)]
        return np.array(found)

    drawn = replicate(measured, num_clusters, seed=seed, replicates=replicates)
    found = estimates(measured(np.ones(num_clusters, dtype=np.int64)).tolist(), drawn)
    return PairTrialsResult(
        accuracy=None if calibrated is None else found[0],
        auc=found[1],
        eer=found[2],
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
    """The share of trials whose nearest candidate is marked the same, as in Lake et al. (2015).

    Where several candidates tie for the nearest, the trial counts the share of right ones.

    Args:
        trial: which trial a candidate stands in, shape (N,), numbers or strings, any order.
        distance: from the trial's probe to the candidate, shape (N,).
        same: whether the candidate shows the same as the probe, shape (N,).
        cluster: groups of trials that the bootstrap redraws whole, such as runs, shape (N,), one
            value for all candidates of a trial; each trial by default.
        seed: draws the replicates.
        replicates: how many times the clusters are redrawn.
    Raises:
        DataError: no trials, a trial without a right candidate or in two clusters, or a distance
            that is NaN.
    """
    dist_N = np.asarray(distance, dtype=np.float64)
    same_N = np.asarray(same, dtype=bool)
    if not len(dist_N) or np.isnan(dist_N).any():
        raise DataError(
            f"found {len(dist_N)} candidates, {np.count_nonzero(np.isnan(dist_N))} of them without "
            "a distance; trials need candidates, and each needs its distance"
        )
    names, first, trial_N = np.unique(trial, return_index=True, return_inverse=True)
    unanswered = np.bincount(trial_N, weights=same_N, minlength=len(names)) == 0
    if unanswered.any():
        raise DataError(
            f"{np.count_nonzero(unanswered)} of {len(names)} trials have no candidate marked "
            f"same, such as trial {names[unanswered][0]}; each needs at least one"
        )
    code_N, num_clusters = _clusters(trial_N if cluster is None else cluster, len(dist_N))
    if (code_N != code_N[first][trial_N]).any():
        raise DataError("some trials stand in two clusters; each must lie whole in one")
    credit_T = _credits(trial_N, dist_N, same_N, len(names))

    def measured(count_I: Ints) -> Floats:
        weight_T = count_I[code_N[first]]
        return np.array([credit_T @ weight_T / weight_T.sum()])

    drawn = replicate(measured, num_clusters, seed=seed, replicates=replicates)
    return OneShotTrialsResult(estimates([float(credit_T.mean())], drawn)[0], len(names))


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
