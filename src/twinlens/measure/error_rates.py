"""Error rates of distances: curves and thresholds.

A *genuine* pair shows the same thing twice, an *impostor* pair does not. A pair matches at or below
a threshold (`matches`). Everything takes weights, through which the bootstrap repeats a
measurement, and is computed in float64.

Accuracy is *balanced* here, 1 - (FAR + FRR) / 2. It does not depend on how many impostor pairs
were drawn, and equals the share of right answers for equal numbers of both kinds, as in LFW's
protocol (Huang et al. 2007).

Shapes: G genuine pairs, I impostor pairs, N pairs of any kind, T thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import CalibrationError, DataError

__all__ = ["DetCurve", "SortedPairs", "auc", "best_accuracy", "det_curve", "eer",
           "far_at", "frr_at", "larger_rate", "matches", "point_at_far", "tar_at_far",
           "threshold_at_far"]  # fmt: skip

Floats = NDArray[np.float64]


def matches(distance: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Decide whether pairs match: `distance <= threshold`. No other place decides.

    >>> matches([0.3, 0.5, 0.7], threshold=0.5).tolist()
    [True, True, False]

    The comparison is in float64: numpy would otherwise round the threshold to the distances' type,
    and accept a float32 distance just above it.

    Args:
        distance: distances, any shape and float type.
        threshold: largest distance that matches; -inf matches nothing.
    """
    return np.asarray(np.asarray(distance, dtype=np.float64) <= np.float64(threshold))


@dataclass(frozen=True, eq=False)
class DetCurve:
    """FAR and FRR at every threshold (ISO/IEC 19795-1: FMR and FNMR).

    `threshold` (T,) ascends: -inf, which accepts nothing (far 0, frr 1), then each distinct
    distance once, ties accepted together; the last one accepts everything (far 1, frr 0).
    `far` (T,) never falls and `frr` (T,) never rises.
    """

    threshold: Floats
    far: Floats
    frr: Floats

    def at(self, threshold: float) -> tuple[float, float]:
        """FAR and FRR at any threshold."""
        index = int(np.searchsorted(self.threshold, threshold, side="right")) - 1
        return float(self.far[index]), float(self.frr[index])


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """Genuine and impostor distances, sorted once, so that each weighting costs O(N).

    `genuine_order` and `impostor_order` sort the given distances; `num_genuine` (T,) and
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
                "rates need at least one of each: add pictures or identities"
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
        """The curve under weights (G,) and (I,), in the order of the given distances.

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
    """FAR and FRR at every distinct distance (ISO/IEC 19795-1).

    FAR(t) = share of impostor pairs with distance <= t; FRR(t) = share of genuine pairs with
    distance > t. With weights, these are shares of the weight.

    >>> curve = det_curve(genuine=[0.1, 0.4], impostor=[0.3, 0.9])
    >>> curve.threshold.tolist(), curve.far.tolist(), curve.frr.tolist()
    ([-inf, 0.1, 0.3, 0.4, 0.9], [0.0, 0.0, 0.5, 0.5, 1.0], [1.0, 0.5, 0.5, 0.0, 0.0])
    >>> eer(curve), auc(curve)
    (0.5, 0.75)

    Args:
        genuine: distances of genuine pairs, shape (G,), any order.
        impostor: distances of impostor pairs, shape (I,), any order.
        w_genuine: weights of the genuine pairs, shape (G,); 1 each by default.
        w_impostor: weights of the impostor pairs, shape (I,).
    Raises:
        DataError: no pairs of one kind, or a distance that is not a finite number.
        ValueError: weights of another length, negative, not finite, or all zero.
    """
    return SortedPairs.of(genuine, impostor).curve(w_genuine, w_impostor)


def eer(curve: DetCurve) -> float:
    """The equal error rate: where FAR = FRR (ISO/IEC 19795-1).

    The rates cross between two neighbouring thresholds, and the EER lies on the straight line
    between these: there the polygon of the ROC curve meets its antidiagonal. Ties thus count as if
    broken at random.
    """
    gap_T = curve.far - curve.frr
    after = int(np.searchsorted(gap_T, 0.0, side="left"))
    share = -gap_T[after - 1] / (gap_T[after] - gap_T[after - 1])
    return float(curve.far[after - 1] + share * (curve.far[after] - curve.far[after - 1]))


def auc(curve: DetCurve) -> float:
    """The area under the ROC curve: P(genuine < impostor) + P(genuine = impostor) / 2.

    By the trapezoidal rule (Hanley & McNeil 1982); equal to `sklearn.metrics.roc_auc_score` on
    negated distances.
    """
    tar_T = 1.0 - curve.frr
    return float(np.sum(np.diff(curve.far) * (tar_T[1:] + tar_T[:-1])) / 2)


def best_accuracy(curve: DetCurve) -> tuple[float, float]:
    """The largest balanced accuracy, 1 - (FAR + FRR) / 2, and a threshold that gives it.

    This is the "best threshold" accuracy of LFW's protocol without its folds. It is optimistic,
    being chosen on the pairs that it is measured on. Of several best thresholds the smallest
    counts, which has the smallest FAR. It lies halfway to the next larger distance, so that
    rounding on another machine does not tip a pair over. It is the distance itself if no number
    lies between, and -inf if nothing beats rejecting every pair.

    Returns:
        Accuracy in [0.5, 1], and the threshold.
    """
    accuracy_T = 1.0 - (curve.far + curve.frr) / 2
    best = int(np.argmax(accuracy_T))
    # Pairs of weight 0 are points on the curve where no rate changes.
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
    threshold is one of the impostor distances: nothing is known about the gap above it.

    >>> threshold_at_far([0.5, 0.6, 0.7, 0.8], target_far=0.5)
    0.6

    Args:
        impostor_dist: distances of impostor pairs, shape (N,), any order.
        target_far: a fraction in (0, 1).
        weight: weights of the pairs, shape (N,); 1 each by default.
    Returns:
        A distance; -inf if even the closest impostor pair would break the target.
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
    """Index of `threshold_at_far` on the curve; 0, which accepts nothing, if that is -inf.

    It does not check that there are enough pairs, since weights hide their number.
    """
    return _last_within(curve.far, target_far)


def _distances(distance: ArrayLike, what: str) -> Floats:
    values = np.asarray(distance, dtype=np.float64).ravel()
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise DataError(
            f"{broken} of {values.size} {what} distances are NaN or infinite, so the embeddings "
            "are broken: train the model again, at a lower learning rate"
        )
    return values


def _weights(weight: ArrayLike, size: int, what: str) -> Floats:
    values = np.asarray(weight, dtype=np.float64)
    if values.shape != (size,):
        raise ValueError(f"{what} weights must have shape ({size},), found {values.shape}")
    total = values.sum()
    if not (np.isfinite(total) and values.min(initial=0.0) >= 0 and total > 0):
        raise ValueError(f"{what} weights must be finite, not negative, and not all zero")
    return values


def _accepted(
    weight: ArrayLike | None, order: NDArray[np.int64], count_T: NDArray[np.int64], what: str
) -> tuple[Floats, float]:
    """Weight of the first `count_T` pairs in `order`, shape (T,), and of all pairs."""
    if weight is None:
        return count_T.astype(np.float64), float(len(order))
    total_N = np.zeros(len(order) + 1)
    np.cumsum(_weights(weight, len(order), what)[order], out=total_N[1:])
    return total_N[count_T], float(total_N[-1])


def _share(hit_N: NDArray[np.bool_], weight: ArrayLike | None, what: str) -> float:
    if not hit_N.size:
        raise DataError(f"found no {what} pairs; an error rate needs at least one")
    if weight is None:
        return float(np.count_nonzero(hit_N) / hit_N.size)
    values = _weights(weight, hit_N.size, what)
    return float(values[hit_N].sum() / values.sum())


def _last_within(far_T: Floats, target_far: float) -> int:
    """First index of the last value of the ascending `far_T` that keeps to the target."""
    last = int(np.searchsorted(far_T, target_far, side="right")) - 1
    return int(np.searchsorted(far_T, far_T[last], side="left"))


def _resolvable(num_impostor: int, target_far: float) -> None:
    if not 0 < target_far < 1:
        raise CalibrationError(f"the target FAR must be in (0, 1), found {target_far}")
    if num_impostor == 0 or 1 / num_impostor > target_far:
        needed = int(np.ceil(1 / target_far))
        raise CalibrationError(
            f"found {num_impostor} impostor pairs; a FAR of {target_far:g} needs at least "
            f"{needed}: add pictures of more identities, or set a larger FAR"
            f"{larger_rate(num_impostor)}"
        )


def larger_rate(num: int) -> str:
    """ ", such as 0.05": the least rate that `num` comparisons resolve; "" if they resolve none."""
    return f", such as {np.ceil(1000 / num) / 1000:g}" if num > 1 else ""
