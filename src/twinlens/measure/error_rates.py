"""Numbers from distances: error rates, curves, thresholds and ranks.

A distance is lower for closer; a pair matches when `distance <= threshold` (`matches`). A
*genuine* pair shows the same thing twice, an *impostor* pair does not. Everything takes weights,
which is how the bootstrap repeats a measurement; everything is computed in float64. This module
does not know where the distances come from, and draws nothing at random.

Accuracy is *balanced* here, 1 - (FAR + FRR) / 2: it does not depend on how many impostor pairs
were drawn, and equals the share of right answers where there are as many of one kind as of the
other, as in LFW's protocol (Huang et al. 2007).

Shapes: G genuine pairs, I impostor pairs, N pairs of any kind, T thresholds, P probes, K ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import CalibrationError, DataError

__all__ = [
    "DetCurve",
    "SortedPairs",
    "auc",
    "best_accuracy",
    "det_curve",
    "eer",
    "far_at",
    "frr_at",
    "map_at_r",
    "matches",
    "point_at_far",
    "recall_at_k",
    "tar_at_far",
    "threshold_at_far",
]

Floats = NDArray[np.float64]


def matches(distance: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Whether pairs match: `distance <= threshold`, the one place that decides.

    Compared in float64: numpy would otherwise round the threshold to the distances' own type,
    and accept a float32 distance that lies just above it.

    Args:
        distance: distances of any shape and float type.
        threshold: the largest distance that matches; -inf matches nothing.
    """
    return np.asarray(np.asarray(distance, dtype=np.float64) <= np.float64(threshold))


@dataclass(frozen=True, eq=False)
class DetCurve:
    """What every threshold costs (ISO/IEC 19795-1: FMR and FNMR at a threshold).

    `threshold` (T,) ascends: -inf, where nothing is accepted (far 0, frr 1), then each distinct
    distance once, ties accepted together; at the last everything is accepted (far 1, frr 0).
    `far` (T,) never falls and `frr` (T,) never rises.
    """

    threshold: Floats
    far: Floats
    frr: Floats

    def at(self, threshold: float) -> tuple[float, float]:
        """FAR and FRR when pairs match up to `threshold`, any number."""
        index = int(np.searchsorted(self.threshold, threshold, side="right")) - 1
        return float(self.far[index]), float(self.frr[index])


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """Genuine and impostor distances sorted once, so that each weighting costs O(N).

    `genuine_order` and `impostor_order` sort the distances as given; `num_genuine` (T,) and
    `num_impostor` (T,) count those that each threshold accepts.
    """

    threshold: Floats
    genuine_order: NDArray[np.int64]
    impostor_order: NDArray[np.int64]
    num_genuine: NDArray[np.int64]
    num_impostor: NDArray[np.int64]

    @classmethod
    def of(cls, genuine: ArrayLike, impostor: ArrayLike) -> SortedPairs:
        """Sort the distances of genuine (G,) and impostor (I,) pairs.

        Raises:
            DataError: no pairs of one kind, or a distance that is not a finite number.
        """
        genuine_G, impostor_I = _distances(genuine, "genuine"), _distances(impostor, "impostor")
        if not genuine_G.size or not impostor_I.size:
            raise DataError(
                f"found {genuine_G.size} genuine and {impostor_I.size} impostor pairs; error "
                "rates need at least one of each: add pictures, or identities"
            )
        order_G, order_I = np.argsort(genuine_G), np.argsort(impostor_I)
        values = np.unique(np.concatenate([genuine_G, impostor_I]))
        threshold_T = np.concatenate([[-np.inf], values])
        return cls(
            threshold_T,
            order_G,
            order_I,
            np.searchsorted(genuine_G[order_G], threshold_T, side="right"),
            np.searchsorted(impostor_I[order_I], threshold_T, side="right"),
        )

    def curve(
        self, w_genuine: ArrayLike | None = None, w_impostor: ArrayLike | None = None
    ) -> DetCurve:
        """The curve under weights (G,) and (I,) in the order the distances were given.

        Raises:
            ValueError: weights of another length, negative, not finite, or all zero.
        """
        tar_T, genuine = _accepted(w_genuine, self.genuine_order, self.num_genuine, "genuine")
        far_T, impostor = _accepted(w_impostor, self.impostor_order, self.num_impostor, "impostor")
        return DetCurve(self.threshold, far_T / impostor, (genuine - tar_T) / genuine)


def det_curve(
    genuine: ArrayLike,
    impostor: ArrayLike,
    w_genuine: ArrayLike | None = None,
    w_impostor: ArrayLike | None = None,
) -> DetCurve:
    """FAR and FRR at every threshold that tells them apart (ISO/IEC 19795-1).

    FAR(t) = share of impostor pairs with distance <= t; FRR(t) = share of genuine pairs with
    distance > t; shares of weight where weights are given.

    Args:
        genuine: distances of genuine pairs, shape (G,), any order.
        impostor: distances of impostor pairs, shape (I,), any order.
        w_genuine: weights of the genuine pairs, shape (G,); one each by default.
        w_impostor: weights of the impostor pairs, shape (I,).
    Raises:
        DataError: no pairs of one kind, or a distance that is not a finite number.
        ValueError: weights of another length, negative, not finite, or all zero.
    """
    return SortedPairs.of(genuine, impostor).curve(w_genuine, w_impostor)


def eer(curve: DetCurve) -> float:
    """The equal error rate: where FAR = FRR (ISO/IEC 19795-1).

    The two cross between two neighbouring thresholds, and the rate is read off the straight line
    between them: the polygon of the ROC curve meets its antidiagonal there. Ties, which are
    accepted together, thus count as if broken at random.
    """
    gap_T = curve.far - curve.frr
    after = int(np.searchsorted(gap_T, 0.0, side="left"))
    share = -gap_T[after - 1] / (gap_T[after] - gap_T[after - 1])
    return float(curve.far[after - 1] + share * (curve.far[after] - curve.far[after - 1]))


def auc(curve: DetCurve) -> float:
    """The area under the ROC curve: P(genuine < impostor) + P(genuine = impostor) / 2.

    The trapezoidal rule gives exactly this, ties counting half (Hanley & McNeil 1982); equal to
    `sklearn.metrics.roc_auc_score` on negated distances.
    """
    tar_T = 1.0 - curve.frr
    return float(np.sum(np.diff(curve.far) * (tar_T[1:] + tar_T[:-1])) / 2)


def best_accuracy(curve: DetCurve) -> tuple[float, float]:
    """The largest balanced accuracy, 1 - (FAR + FRR) / 2, and a threshold that gives it.

    Ties are accepted together, so the accuracy is one that `matches` really reaches (the "best
    threshold" accuracy of LFW's protocol, without its folds: it is optimistic, being chosen on
    the pairs it is measured on). Of several best, the smallest threshold's, which has the
    smallest FAR. The threshold lies halfway to the next larger distance, so that rounding on
    another machine does not tip a pair over; it is the distance itself where there is no next
    one or no number between them, and -inf where nothing beats rejecting every pair.

    Returns:
        Accuracy in [0.5, 1], and the threshold.
    """
    accuracy_T = 1.0 - (curve.far + curve.frr) / 2
    best = int(np.argmax(accuracy_T))
    # Pairs of weight zero have points of their own on the curve, but mark no change of error.
    alike = (curve.far == curve.far[best]) & (curve.frr == curve.frr[best])
    after = int(np.flatnonzero(alike)[-1]) + 1
    low = float(curve.threshold[best])
    if best == 0 or after == len(curve.threshold):
        return float(accuracy_T[best]), low
    high = float(curve.threshold[after])
    middle = low / 2 + high / 2
    return float(accuracy_T[best]), middle if low <= middle < high else low


def far_at(impostor: ArrayLike, threshold: float, weight: ArrayLike | None = None) -> float:
    """The share of impostor pairs (I,) that match at `threshold` (ISO/IEC 19795-1, FMR)."""
    return _share(matches(_distances(impostor, "impostor"), threshold), weight, "impostor")


def frr_at(genuine: ArrayLike, threshold: float, weight: ArrayLike | None = None) -> float:
    """The share of genuine pairs (G,) that do not match at `threshold` (FNMR)."""
    return _share(~matches(_distances(genuine, "genuine"), threshold), weight, "genuine")


def threshold_at_far(
    impostor_dist: ArrayLike, target_far: float, weight: ArrayLike | None = None
) -> float:
    """The largest threshold whose false accept rate does not exceed `target_far`.

    FAR(t) = mean(impostor_dist <= t); ties are accepted together (ISO/IEC 19795-1, FMR). The
    threshold is one of the impostor distances: the gap above it holds no evidence.

    Args:
        impostor_dist: distances of impostor pairs, shape (N,), any order.
        target_far: a fraction in (0, 1).
        weight: weights of the pairs, shape (N,); one each by default.
    Returns:
        A distance. -inf where even the closest impostor pair would break the target.
    Raises:
        CalibrationError: fewer impostor pairs than 1 / target_far can resolve.
    """
    dist_N = _distances(impostor_dist, "impostor")
    _resolvable(dist_N.size, target_far)
    order = np.argsort(dist_N)
    value_T = np.unique(dist_N)
    accepted_T = np.searchsorted(dist_N[order], value_T, side="right")
    weight_T, total = _accepted(weight, order, accepted_T, "impostor")
    point = _last_within(np.concatenate([[0.0], weight_T / total]), target_far)
    return float(value_T[point - 1]) if point else -np.inf


def tar_at_far(genuine: ArrayLike, impostor: ArrayLike, target_far: float) -> float:
    """The share of genuine pairs accepted at `threshold_at_far` (the TAR@FAR of NIST's and IJB's).

    Raises:
        CalibrationError: fewer impostor pairs than 1 / target_far can resolve.
    """
    return 1.0 - frr_at(genuine, threshold_at_far(impostor, target_far))


def point_at_far(curve: DetCurve, target_far: float) -> int:
    """Where on the curve `threshold_at_far` lies: 0, which accepts nothing, where it is -inf.

    It does not ask whether there are enough pairs: weights hide how many there are.
    """
    return _last_within(curve.far, target_far)


def recall_at_k(correct_PK: ArrayLike, k: int) -> Floats:
    """Whether each probe finds one of its own among its `k` nearest (Jegou et al. 2011).

    Metric learning's "recall at k"; at k = 1 it is the precision at 1, and rank-1 identification.

    Args:
        correct_PK: whether the gallery's pictures, nearest first, are right, shape (P, K). Where
            K < k, the K nearest are the whole gallery.
        k: at least 1.
    Returns:
        0 or 1 for each probe, shape (P,); their mean is the figure.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    found_P: NDArray[np.bool_] = np.any(np.asarray(correct_PK, dtype=bool)[:, :k], axis=1)
    return found_P.astype(np.float64)


def map_at_r(correct_PK: ArrayLike, num_relevant_P: ArrayLike) -> Floats:
    """Average precision at R of each probe, R being how many right pictures the gallery holds.

    AP@R = (1/R) sum over ranks i <= R of correct_i * precision at i (Musgrave et al. 2020,
    "A Metric Learning Reality Check", section 4.3): 1 only if the R nearest are all right.

    Args:
        correct_PK: whether the gallery's pictures, nearest first, are right, shape (P, K), with
            K at least the largest R.
        num_relevant_P: R of each probe, at least 1, shape (P,).
    Returns:
        A number in [0, 1] for each probe, shape (P,); their mean is MAP@R.
    """
    correct = np.asarray(correct_PK, dtype=bool)
    relevant = np.asarray(num_relevant_P, dtype=np.int64)
    if relevant.size and (relevant.min() < 1 or relevant.max() > correct.shape[1]):
        raise ValueError(f"each R must be between 1 and the {correct.shape[1]} ranks given")
    rank_K = np.arange(1, correct.shape[1] + 1)
    counted = correct & (rank_K <= relevant[:, None])
    precision = np.cumsum(counted, axis=1) / rank_K
    return np.asarray((precision * counted).sum(axis=1) / relevant, dtype=np.float64)


def _distances(distance: ArrayLike, what: str) -> Floats:
    values = np.asarray(distance, dtype=np.float64).ravel()
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise DataError(
            f"{broken} of {values.size} {what} distances are NaN or infinite; they must be finite "
            "numbers: the embeddings are broken, so train the model again, at a lower rate"
        )
    return values


def _weights(weight: ArrayLike, size: int, what: str) -> Floats:
    values = np.asarray(weight, dtype=np.float64)
    if values.shape != (size,):
        raise ValueError(f"{what} weights have shape {values.shape}; {size} pairs need ({size},)")
    total = values.sum()
    if not (np.isfinite(total) and values.min(initial=0.0) >= 0 and total > 0):
        raise ValueError(f"{what} weights must be finite, not negative, and not all zero")
    return values


def _accepted(
    weight: ArrayLike | None, order: NDArray[np.int64], count_T: NDArray[np.int64], what: str
) -> tuple[Floats, float]:
    """The weight of the first `count_T` pairs in `order`, shape (T,), and that of all pairs."""
    if weight is None:
        return count_T.astype(np.float64), float(len(order))
    total_N = np.zeros(len(order) + 1)
    np.cumsum(_weights(weight, len(order), what)[order], out=total_N[1:])
    return total_N[count_T], float(total_N[-1])


def _share(hit_N: NDArray[np.bool_], weight: ArrayLike | None, what: str) -> float:
    if not hit_N.size:
        raise DataError(f"no {what} pairs; an error rate needs at least one")
    if weight is None:
        return float(np.count_nonzero(hit_N) / hit_N.size)
    values = _weights(weight, hit_N.size, what)
    return float(values[hit_N].sum() / values.sum())


def _last_within(far_T: Floats, target_far: float) -> int:
    """The first point of the last stretch of the ascending `far_T` that keeps to the target."""
    last = int(np.searchsorted(far_T, target_far, side="right")) - 1
    return int(np.searchsorted(far_T, far_T[last], side="left"))


def _resolvable(num_impostor: int, target_far: float) -> None:
    if not 0 < target_far < 1:
        raise CalibrationError(f"the target FAR must be in (0, 1), found {target_far}")
    if num_impostor == 0 or 1 / num_impostor > target_far:
        needed = int(np.ceil(1 / target_far))
        raise CalibrationError(
            f"found {num_impostor} impostor pairs; a FAR of {target_far:g} needs at least "
            f"{needed}: add pictures of more identities, or ask for a larger FAR"
        )
