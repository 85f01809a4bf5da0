"""Verification: error rates of distances between genuine and impostor pairs.

Every rate has a 95 % interval from a bootstrap over identities (`bootstrap`).

Shapes: N pictures, D numbers in an embedding, Q pairs, I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, pair_weights, replicate
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import (
    DetCurve,
    SortedPairs,
    auc,
    best_accuracy,
    eer,
    point_at_far,
)
from twinlens.measure.pairs import Comparison, PairSet, draw_pairs, pair_distances

__all__ = ["TARGET_FARS", "ErrorRatesAtThreshold", "SkilledForgeryResult", "VerificationResult",
           "verification"]  # fmt: skip

TARGET_FARS = ("0.1", "0.01", "0.001")
_NAMES = ("auc", "eer", "accuracy", "threshold", *TARGET_FARS, "far", "frr", "accuracy_at")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ErrorRatesAtThreshold:
    """What a calibrated threshold does on these pairs; its own interval is the calibration's."""

    threshold: Estimate
    far: Estimate
    frr: Estimate
    accuracy: Estimate

    def as_json(self) -> dict[str, Any]:
        """`{"threshold", "far", "frr", "accuracy"}`."""
        return {name: getattr(self, name).as_json() for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class SkilledForgeryResult:
    """Genuine pairs against forgeries of the claimed identity only ("skilled forgeries").

    `far` is that of the calibrated threshold; None without a calibration.
    """

    auc: Estimate
    eer: Estimate
    far: Estimate | None
    num_impostor: int

    def as_json(self) -> dict[str, Any]:
        """`{"auc", "eer", "num_impostor"}`, and `far` where it is."""
        found: dict[str, Any] = {"auc": self.auc.as_json(), "eer": self.eer.as_json()}
        if self.far is not None:
            found["far"] = self.far.as_json()
        return found | {"num_impostor": self.num_impostor}


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """How well distances tell genuine pairs from impostors.

    `accuracy` is the balanced one at the best `threshold` of these very pairs, hence optimistic;
    `calibrated` is the honest one. A figure of `tar_at_far` has no value where there are fewer
    impostor pairs than 1 / FAR. `pairs` and `distance` are what was measured, for a report.
    """

    auc: Estimate
    eer: Estimate
    accuracy: Estimate
    threshold: Estimate
    tar_at_far: Mapping[str, Estimate]
    calibrated: ErrorRatesAtThreshold | None
    skilled: SkilledForgeryResult | None
    num_genuine: int
    num_impostor: int
    num_identities: int
    pairs: PairSet
    distance: NDArray[np.float32]

    def as_json(self) -> dict[str, Any]:
        """The figures and counts; `calibrated` and `skilled` where they apply."""
        found: dict[str, Any] = {
            name: getattr(self, name).as_json() for name in ("auc", "eer", "accuracy", "threshold")
        }
        found["tar_at_far"] = {far: figure.as_json() for far, figure in self.tar_at_far.items()}
        for name in ("calibrated", "skilled"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name).as_json()
        for name in ("num_genuine", "num_impostor", "num_identities"):
            found[name] = getattr(self, name)
        return found


def verification(
    emb_ND: NDArray[Any],
    label: ArrayLike,
    forged: ArrayLike,
    comparison: Comparison,
    *,
    calibrated: Calibration | None,
    num_pairs: int | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> VerificationResult:
    """AUC, EER, accuracy and TAR at FAR on genuine and impostor pairs.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether a picture is a forgery, shape (N,).
        comparison: gives the distances.
        calibrated: whose threshold to judge as well.
        num_pairs: how many pairs of each kind, see `draw_pairs`.
        seed: draws pairs and replicates.
        replicates: how many times the identities are redrawn.
    Raises:
        DataError: no genuine or no impostor pairs, or a distance that is not a finite number.
    """
    label_N, forged_N = np.asarray(label), np.asarray(forged, dtype=bool)
    rng = np.random.default_rng(seed)
    pairs = draw_pairs(label_N, forged_N, num_pairs=num_pairs, rng=rng)
    dist_Q = pair_distances(emb_ND, pairs, comparison)
    names, code_N = np.unique(label_N, return_inverse=True)
    draws = _VerificationBootstrap(
        len(names), None if calibrated is None else calibrated.threshold, seed, replicates
    )
    code_a, code_b = code_N[pairs.a], code_N[pairs.b]
    found = draws.measure(dist_Q, pairs.same, code_a, code_b)
    skilled_Q = pairs.same | (forged_N[pairs.b] & (code_a == code_b))
    skilled = None
    if np.count_nonzero(skilled_Q) > np.count_nonzero(pairs.same):
        kept = (part[skilled_Q] for part in (dist_Q, pairs.same, code_a, code_b))
        figure = draws.measure(*kept)
        skilled = SkilledForgeryResult(
            figure["auc"],
            figure["eer"],
            None if calibrated is None else figure["far"],
            int(np.count_nonzero(skilled_Q & ~pairs.same)),
        )
    return VerificationResult(
        **{name: found[name] for name in ("auc", "eer", "accuracy", "threshold")},
        tar_at_far={far: found[far] for far in TARGET_FARS},
        calibrated=None
        if calibrated is None
        else ErrorRatesAtThreshold(
            calibrated.threshold_estimate(), found["far"], found["frr"], found["accuracy_at"]
        ),
        skilled=skilled,
        num_genuine=int(np.count_nonzero(pairs.same)),
        num_impostor=int(np.count_nonzero(~pairs.same)),
        num_identities=len(names),
        pairs=pairs,
        distance=dist_Q,
    )


@dataclass(frozen=True)
class _VerificationBootstrap:
    """What stays the same when two sets of pairs of the same identities are measured."""

    num_identities: int
    threshold: float | None
    seed: int
    replicates: int

    def measure(
        self, dist_Q: NDArray[Any], same_Q: NDArray[np.bool_], code_a: Ints, code_b: Ints
    ) -> dict[str, Estimate]:
        """The figures named in `_NAMES`; pairs are sorted once, and each replicate is O(Q)."""
        ranked = SortedPairs.of(dist_Q[same_Q], dist_Q[~same_Q])
        genuine, first, second = code_a[same_Q], code_a[~same_Q], code_b[~same_Q]

        def redrawn(count_I: Ints) -> Floats:
            w_genuine, w_impostor = count_I[genuine], pair_weights(count_I, first, second)
            if not w_genuine.any() or not w_impostor.any():
                return np.full(len(_NAMES), np.nan)
            return _read_off(ranked.curve(w_genuine, w_impostor), self.threshold)

        values = _read_off(ranked.curve(), self.threshold)
        for place, name in enumerate(_NAMES):
            if name in TARGET_FARS and 1 / len(first) > float(name):
                values[place] = np.nan
        drawn = replicate(redrawn, self.num_identities, seed=self.seed, replicates=self.replicates)
        return dict(zip(_NAMES, estimates(values.tolist(), drawn), strict=True))


def _read_off(curve: DetCurve, threshold: float | None) -> Floats:
    """The numbers named in `_NAMES`, in that order."""
    tars = [1 - curve.frr[point_at_far(curve, float(far))] for far in TARGET_FARS]
    far, frr = (np.nan, np.nan) if threshold is None else curve.at(threshold)
    return np.array(
        [auc(curve), eer(curve), *best_accuracy(curve), *tars, far, frr, 1 - (far + frr) / 2]
    )
