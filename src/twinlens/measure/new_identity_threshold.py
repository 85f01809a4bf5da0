"""The threshold at a target FAR, for pairs of identities that are not among the given ones.

It keeps to the target on the given pairs. With a confidence of 95 % it keeps to 1.5 times the
target on new identities: by a bootstrap over identities and, if these are too few for it, by a
hierarchical model of impostor distances (`new_identities`).

Shapes: G genuine pairs, I impostor pairs, R replicates or draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlens.errors import CalibrationError
from twinlens.measure.bootstrap import interval, pair_weights, replicate
from twinlens.measure.error_rates import SortedPairs, matches, point_at_far, threshold_at_far
from twinlens.measure.new_identities import draw_far, is_resolved

__all__ = ["CONFIDENCE", "EXCESS", "FEWEST_IDENTITIES", "ImpostorPairs", "ThresholdFit", "lowest"]

CONFIDENCE, EXCESS = 0.95, 1.5
"""With this confidence the FAR of new identities is at most `EXCESS` times the target."""

EASIER_FARS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
FEWEST_IDENTITIES = 3
"""Identities, at least, for a statement on new ones: two make one pair only."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ThresholdFit:
    """A threshold for new identities.

    Attributes:
        far: target FAR.
        threshold: the threshold.
        unadjusted: largest distance that keeps to the target on the given pairs.
        low: lower end of the 95 % interval of the distance at which new identities have the target
            FAR; None if too few identities.
        high: upper end.
    """

    far: float
    threshold: float
    unadjusted: float
    low: float | None
    high: float | None


class ImpostorPairs:
    """Impostor pairs to fit thresholds on, with the genuine pairs that these shall accept.

    Args:
        genuine: distances of genuine pairs, (G,).
        impostor: distances of impostor pairs, (I,).
        code_a: identities of the impostor pairs' first pictures, from 0, (I,).
        code_b: identities of the second pictures; of a forgery, the claimed one.
        num_identities: number of identities in all pairs.
        seed: random seed.
        replicates: number of bootstrap replicates.
        new_identities: whether the threshold is for new identities, unlike in a closed set; if not,
            it keeps to the target on the given pairs only.
    """

    def __init__(
        self,
        genuine: Floats,
        impostor: Floats,
        code_a: Ints,
        code_b: Ints,
        num_identities: int,
        *,
        seed: int,
        replicates: int,
        new_identities: bool = True,
    ) -> None:
        self.pairs = SortedPairs.of(genuine, impostor)
        self.genuine, self.impostor, self.codes = genuine, impostor, (code_a, code_b)
        self.num_identities, self.seed, self.replicates = num_identities, seed, replicates
        self.new_identities = new_identities

    @property
    def is_stated(self) -> bool:
        """Whether anything is stated of new identities."""
        return self.new_identities and self.num_identities >= FEWEST_IDENTITIES

    def fit_nearest(self, target_far: float) -> ThresholdFit:
        """Fit at the target, or at the next easier FAR that the pairs allow.

        A FAR is not allowed if the pairs are too few, or if the threshold for new identities
        accepts no genuine pair though the unadjusted one does.

        Raises:
            CalibrationError: no FAR is allowed.
        """
        problem: CalibrationError | None = None
        for far in (target_far, *(far for far in EASIER_FARS if far > target_far)):
            try:
                fit = self.fit(far)
            except CalibrationError as error:
                problem = problem or error
                continue
            accepts = matches(self.genuine, fit.threshold).any()
            if accepts or not matches(self.genuine, fit.unadjusted).any():
                return fit
            problem = problem or self._too_few_identities(far)
        assert problem is not None
        raise problem

    def fit(self, far: float) -> ThresholdFit:
        """Fit at one FAR.

        Raises:
            CalibrationError: fewer impostor pairs than 1 / `far`, or too many equally close.
        """
        unadjusted = threshold_at_far(self.impostor, far)
        if not math.isfinite(unadjusted):
            raise CalibrationError(
                f"found that more than {far:.3g} of the impostor pairs share the smallest "
                "distance, so no threshold keeps to that FAR. Either the embeddings have collapsed "
                "(train again), or pictures are filed under two identities (twinlens inspect DATA)"
            )
        at_R, limit_R = self._bootstrap(far)
        threshold, low_quantile = unadjusted, lowest(limit_R)
        # A resample of few identities may resolve no threshold.
        if self.new_identities and math.isfinite(low_quantile):
            threshold = min(threshold, low_quantile)
        if self.is_stated and not is_resolved(*self.codes, EXCESS * far):
            draws = draw_far(self.impostor, *self.codes, seed=self.seed)
            at_R = draws.threshold(far)
            threshold = min(threshold, lowest(draws.threshold(EXCESS * far)))
        if not math.isfinite(threshold):
            raise self._too_few_identities(far)
        low, high = interval(at_R)
        if low is None or high is None or not math.isfinite(low):
            return ThresholdFit(far, threshold, unadjusted, None, None)
        return ThresholdFit(far, threshold, unadjusted, min(low, threshold), max(high, threshold))

    def _too_few_identities(self, far: float) -> CalibrationError:
        return CalibrationError(
            f"found {self.num_identities} identities; no distance between different pictures is "
            f"sure to keep to a FAR of {far:.3g} on new ones and accepts a genuine pair: add "
            "identities, or set a larger FAR"
        )

    def _bootstrap(self, far: float) -> tuple[Floats, Floats]:
        """Replicates of the distances where the FAR is the target, and its multiple; each (R,)."""

        def thresholds(count_I: Ints) -> Floats:
            weight = pair_weights(count_I, *self.codes)
            if not weight.any():
                return np.array([np.nan, np.nan])
            curve = self.pairs.curve(None, weight)
            return curve.threshold[[point_at_far(curve, rate) for rate in (far, EXCESS * far)]]

        values = replicate(
            thresholds, self.num_identities, seed=self.seed, replicates=self.replicates
        )
        return (values[:, 0], values[:, 1]) if len(values) else (np.empty(0), np.empty(0))


def lowest(threshold_R: Floats) -> float:
    """The threshold that all but 5 % of the replicates exceed; NaN without any."""
    valid = threshold_R[~np.isnan(threshold_R)]
    return float(np.quantile(valid, 1 - CONFIDENCE, method="lower")) if len(valid) else math.nan
