"""Reliability of probabilities: whether pairs said to match with probability p do so that often.

Genuine pairs weigh as much as the prior, impostors the rest, whatever their numbers: the counts of
an evaluation say nothing about the pairs in use.

- The calibration error (ECE) is the mean gap between the probability and the share of genuine
  pairs, over bins of equal weight (Nixon et al. 2019, "Measuring calibration in deep learning").
- Cllr is the log-loss at even odds in bits (Brümmer & du Preez 2006, "Application-independent
  evaluation of speaker detection"): 0 is perfect, and 1 knows nothing. min Cllr is its minimum over
  all curves that never rise with distance (pool adjacent violators): what separation allows. The
  difference is the loss by calibration.

Shapes: G genuine pairs, I impostor pairs, B bins, T points of a DET curve, S statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import DetCurve
from twinlens.measure.estimate import Estimate, NumberEstimate
from twinlens.measure.probability import at_prior, check_prior

__all__ = ["NUM_BINS", "ReliabilityBin", "ReliabilityPairs", "ReliabilityResult", "min_cllr"]

NUM_BINS = 10
MOST_POINTS = 5000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of similar probability: its mean, and the share of genuine pairs among them."""

    probability: float
    share: Estimate

    def as_json(self) -> dict[str, Any]:
        """`{"probability", "share"}`."""
        return {"probability": self.probability, "share": self.share.as_json()}


@dataclass(frozen=True)
class ReliabilityResult:
    """Calibration error, Cllr and the reliability curve of a model's probabilities.

    `prior` holds for `ece` and `curve`; Cllr is at even odds. The curve ascends by probability.
    """

    prior: float
    ece: Estimate
    cllr: Estimate
    min_cllr: Estimate
    curve: tuple[ReliabilityBin, ...]

    def as_json(self) -> dict[str, Any]:
        """`{"prior", "ece", "cllr", "min_cllr", "curve"}`."""
        return {
            "prior": self.prior,
            **{name: getattr(self, name).as_json() for name in ("ece", "cllr", "min_cllr")},
            "curve": [point.as_json() for point in self.curve],
        }


@dataclass(frozen=True, eq=False)
class ReliabilityPairs:
    """Pairs in bins of equal weight, for the statistics of each bootstrap replicate.

    Attributes:
        prior: prior probability of a genuine pair.
        p_genuine: probabilities of the genuine pairs at the prior, (G,).
        p_impostor: the same of the impostor pairs, (I,).
        bin_genuine: bins of the genuine pairs, (G,).
        bin_impostor: bins of the impostor pairs, (I,).
        bits_genuine: log-losses in bits at even odds, (G,).
        bits_impostor: log-losses of the impostor pairs, (I,).
        num_bins: number of bins.
    """

    prior: float
    p_genuine: Floats
    p_impostor: Floats
    bin_genuine: Ints
    bin_impostor: Ints
    bits_genuine: Floats
    bits_impostor: Floats
    num_bins: int

    @classmethod
    def of(
        cls, genuine: NDArray[Any], impostor: NDArray[Any], calibrated: Calibration, prior: float
    ) -> Self:
        """Bin the pairs by the probabilities of a calibration.

        Args:
            genuine: distances of genuine pairs, shape (G,), G > 0.
            impostor: distances of impostor pairs, shape (I,), I > 0.
            calibrated: calibration with the probabilities.
            prior: prior probability of a genuine pair.
        Raises:
            ConfigError: a prior outside (0, 1).
        """
        check_prior(prior)
        even = [calibrated.probability(distance) for distance in (genuine, impostor)]
        p = [at_prior(values, prior) for values in even]
        weight = np.repeat([prior / len(genuine), (1 - prior) / len(impostor)], list(map(len, p)))
        # Equal probabilities share a bin: that of the middle of their weight.
        _, code = np.unique(np.concatenate(p), return_inverse=True)
        weight_U = np.bincount(code, weight)
        middle_U = np.cumsum(weight_U) - weight_U / 2
        bin_U = np.minimum((NUM_BINS * middle_U).astype(np.int64), NUM_BINS - 1)
        used, bin_U = np.unique(bin_U, return_inverse=True)
        bins = bin_U[code]
        return cls(
            prior, p[0], p[1], bins[: len(genuine)], bins[len(genuine) :],
            -np.log2(even[0]), -np.log2(1 - even[1]), len(used),
        )  # fmt: skip

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics; the shares of the bins come last."""
        return ("ece", "cllr", "min_cllr", *(f"share {place}" for place in range(self.num_bins)))

    def statistics(
        self, w_genuine: NDArray[Any], w_impostor: NDArray[Any], curve: DetCurve
    ) -> Floats:
        """ECE, Cllr, min Cllr and the share of genuine pairs of each bin.

        Args:
            w_genuine: weights of the genuine pairs, (G,), not all zero.
            w_impostor: weights of the impostor pairs, (I,).
            curve: DET curve of the pairs under these weights.
        Returns:
            Shape (3 + B,); NaN for a bin without weight.
        """
        genuine, impostor = w_genuine / w_genuine.sum(), w_impostor / w_impostor.sum()
        genuine_B, impostor_B, expected_B = self._bins(genuine, impostor)
        weight_B = genuine_B + impostor_B
        share_B = np.full(self.num_bins, np.nan)
        np.divide(genuine_B, weight_B, out=share_B, where=weight_B > 0)
        ece = np.abs(expected_B - genuine_B).sum()
        cllr = (genuine @ self.bits_genuine + impostor @ self.bits_impostor) / 2
        return np.array([ece, cllr, min_cllr(curve), *share_B])

    def _bins(self, genuine: Floats, impostor: Floats) -> tuple[Floats, Floats, Floats]:
        """Weights of genuine and impostor pairs, and weighted probabilities, of each bin."""
        genuine, impostor = self.prior * genuine, (1 - self.prior) * impostor

        def total(place: Ints, weight: Floats) -> Floats:
            return np.bincount(place, weight, self.num_bins).astype(np.float64, copy=False)

        expected_B = total(self.bin_genuine, genuine * self.p_genuine)
        expected_B += total(self.bin_impostor, impostor * self.p_impostor)
        return total(self.bin_genuine, genuine), total(self.bin_impostor, impostor), expected_B

    def result(self, estimates: Sequence[Estimate]) -> ReliabilityResult:
        """The result of the estimates of `statistics`.

        The interval of ECE and of both Cllr is widened to the value, since replicates are biased:
        drawn twice, a pair looks less calibrated, and easier to calibrate.
        """
        ece, cllr, lowest = map(_containing, estimates[:3])
        even = [np.full(len(part), 1 / len(part)) for part in (self.p_genuine, self.p_impostor)]
        genuine_B, impostor_B, expected_B = self._bins(*even)
        probability_B = expected_B / (genuine_B + impostor_B)
        points = zip(probability_B.tolist(), estimates[3:], strict=True)
        return ReliabilityResult(
            self.prior,
            ece,
            NumberEstimate.of(cllr),
            NumberEstimate.of(lowest),
            tuple(ReliabilityBin(*point) for point in points),
        )


def min_cllr(curve: DetCurve) -> float:
    """The smallest Cllr of any probabilities that never rise with distance.

    Of more than 5,000 distances, neighbours are pooled, which costs less than 0.001.

    >>> from twinlens.measure.error_rates import det_curve
    >>> min_cllr(det_curve(genuine=[0.1, 0.4], impostor=[0.3, 0.9]))
    0.5
    """
    from sklearn.isotonic import isotonic_regression

    point = np.unique(np.linspace(0, len(curve.far) - 1, MOST_POINTS + 1).astype(np.int64))
    genuine_T, impostor_T = -np.diff(curve.frr[point]), np.diff(curve.far[point])
    weight_T = genuine_T + impostor_T
    some = weight_T > 0
    genuine_T, impostor_T, weight_T = genuine_T[some], impostor_T[some], weight_T[some]
    p_T = isotonic_regression(genuine_T / weight_T, sample_weight=weight_T, increasing=False)
    bits = 0.0
    for part_T, p in ((genuine_T, p_T), (impostor_T, 1 - p_T)):
        bits -= float(part_T[part_T > 0] @ np.log2(np.maximum(p[part_T > 0], 1e-300)))
    return bits / 2


def _containing(estimate: Estimate) -> Estimate:
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None:
        return estimate
    return replace(estimate, low=min(low, value), high=max(high, value))
