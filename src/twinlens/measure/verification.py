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

from twinlens.display import Result
from twinlens.measure.bootstrap import (
    REPLICATES,
    Estimate,
    estimates,
    pair_weights,
    replicate,
    rule_of_three,
)
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import (
    DetCurve,
    SortedPairs,
    auc,
    best_accuracy,
    eer,
    point_at_far,
)
from twinlens.measure.estimate import NumberEstimate
from twinlens.measure.pairs import Comparison, PairSet, draw_pairs, pair_distances
from twinlens.measure.reliability import ReliabilityPairs, ReliabilityResult

__all__ = ["TARGET_FARS", "ErrorRatesAtThreshold", "PairBootstrap", "PairRates",
           "SkilledForgeryResult", "VerificationResult", "verification"]  # fmt: skip

TARGET_FARS = ("0.1", "0.01", "0.001")
_RATES = ("auc", "eer", "accuracy", "threshold")
_NAMES = (*_RATES, *TARGET_FARS, "far", "frr", "accuracy_at")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ErrorRatesAtThreshold:
    """Error rates at a calibrated threshold, whose interval is that of the calibration.

    FAR and FRR are shares of pairs: the false match and false non-match rate (FMR, FNMR) of
    ISO/IEC 19795-1.
    """

    threshold: Estimate
    far: Estimate
    frr: Estimate
    accuracy: Estimate

    def as_json(self) -> dict[str, Any]:
        """`{"threshold", "far", "frr", "accuracy"}`."""
        return {name: getattr(self, name).as_json() for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class SkilledForgeryResult:
    """Error rates of genuine pairs against forgeries of the same identity ("skilled forgeries").

    `far` is that of the calibrated threshold; None without a calibration.
    """

    auc: Estimate
    eer: Estimate
    far: Estimate | None
    num_impostor: int

    def as_json(self) -> dict[str, Any]:
        """`{"auc", "eer", "far", "num_impostor"}`; without `far` if None."""
        return {
            "auc": self.auc.as_json(),
            "eer": self.eer.as_json(),
            **({} if self.far is None else {"far": self.far.as_json()}),
            "num_impostor": self.num_impostor,
        }


@dataclass(frozen=True, eq=False, repr=False)
class VerificationResult(Result):
    """Error rates of genuine and impostor pairs.

    `accuracy` is balanced, at the best `threshold` of these same pairs, hence optimistic; that of
    `calibrated` is not. `tar_at_far` has no value for fewer impostor pairs than 1 / FAR.
    `calibrated` and `reliability` are None without a calibration. `pairs` and `distance` are the
    compared pairs and their distances, for a report.
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
    reliability: ReliabilityResult | None = None

    def as_json(self) -> dict[str, Any]:
        """Estimates and counts; `calibrated`, `skilled` and `reliability` unless None."""
        names = ("calibrated", "skilled", "reliability")
        parts = {name: getattr(self, name) for name in names}
        counts = ("num_genuine", "num_impostor", "num_identities")
        return {
            **{name: getattr(self, name).as_json() for name in _RATES},
            "tar_at_far": {far: tar.as_json() for far, tar in self.tar_at_far.items()},
            **{name: part.as_json() for name, part in parts.items() if part is not None},
            **{name: getattr(self, name) for name in counts},
        }


def verification(
    emb_ND: NDArray[Any],
    label: ArrayLike,
    forged: ArrayLike,
    comparison: Comparison,
    *,
    calibrated: Calibration | None,
    prior: float = 0.5,
    num_pairs: int | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> VerificationResult:
    """AUC, EER, accuracy, TAR at FAR and reliability on genuine and impostor pairs.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether each picture is a forgery, shape (N,).
        comparison: distances between embeddings.
        calibrated: calibration whose threshold and probabilities are measured too; None for none.
        prior: prior probability of a genuine pair, for the reliability.
        num_pairs: maximum of pairs of each kind, see `draw_pairs`.
        seed: random seed for pairs and bootstrap.
        replicates: number of bootstrap replicates.
    Raises:
        DataError: no genuine or no impostor pairs, or a distance that is not a finite number.
        ConfigError: a prior outside (0, 1).
    """
    label_N, forged_N = np.asarray(label), np.asarray(forged, dtype=bool)
    rng = np.random.default_rng(seed)
    pairs = draw_pairs(label_N, forged_N, num_pairs=num_pairs, rng=rng)
    dist_Q = pair_distances(emb_ND, pairs, comparison)
    names, code_N = np.unique(label_N, return_inverse=True)
    bootstrap = PairBootstrap(
        len(names), None if calibrated is None else calibrated.threshold, seed, replicates
    )
    code_a, code_b = code_N[pairs.a], code_N[pairs.b]
    reliability = None
    both_kinds = 0 < np.count_nonzero(pairs.same) < len(pairs)
    if calibrated is not None and calibrated.curve is not None and both_kinds:
        genuine, impostor = dist_Q[pairs.same], dist_Q[~pairs.same]
        reliability = ReliabilityPairs.of(genuine, impostor, calibrated, prior)
    measured = bootstrap.measure(dist_Q, pairs.same, code_a, code_b, reliability)
    rates = measured.rates
    skilled_Q = pairs.same | (forged_N[pairs.b] & (code_a == code_b))
    skilled = None
    if np.count_nonzero(skilled_Q) > np.count_nonzero(pairs.same):
        kept = (part[skilled_Q] for part in (dist_Q, pairs.same, code_a, code_b))
        against_forgeries = bootstrap.measure(*kept).rates
        skilled = SkilledForgeryResult(
            against_forgeries["auc"],
            against_forgeries["eer"],
            None if calibrated is None else against_forgeries["far"],
            int(np.count_nonzero(skilled_Q & ~pairs.same)),
        )
    return VerificationResult(
        **{name: rates[name] for name in _RATES},
        tar_at_far={far: rates[far] for far in TARGET_FARS},
        calibrated=None
        if calibrated is None
        else ErrorRatesAtThreshold(
            calibrated.threshold_estimate(), rates["far"], rates["frr"], rates["accuracy_at"]
        ),
        skilled=skilled,
        num_genuine=int(np.count_nonzero(pairs.same)),
        num_impostor=int(np.count_nonzero(~pairs.same)),
        num_identities=len(names),
        pairs=pairs,
        distance=dist_Q,
        reliability=measured.reliability,
    )


@dataclass(frozen=True)
class PairRates:
    """Estimates of a set of pairs.

    Attributes:
        rates: "auc", "eer", "accuracy", "threshold", the TAR at each of `TARGET_FARS`; and "far",
            "frr" and "accuracy_at" at the given threshold, without a value if there is none.
        reliability: reliability of the probabilities, if measured.
    """

    rates: Mapping[str, Estimate]
    reliability: ReliabilityResult | None


@dataclass(frozen=True)
class PairBootstrap:
    """Settings of the bootstrap, shared by sets of pairs of the same identities.

    Attributes:
        num_identities: number of identities.
        threshold: calibrated threshold, if any.
        seed: random seed of the draws.
        replicates: number of replicates.
    """

    num_identities: int
    threshold: float | None
    seed: int
    replicates: int

    def measure(
        self,
        dist_Q: NDArray[Any],
        same_Q: NDArray[np.bool_],
        code_a: Ints,
        code_b: Ints,
        reliability: ReliabilityPairs | None = None,
    ) -> PairRates:
        """Estimates of pairs; they are sorted once, and each replicate is O(Q).

        Args:
            dist_Q: distances, shape (Q,).
            same_Q: whether each pair is genuine, shape (Q,).
            code_a: identities of the first pictures, from 0, shape (Q,).
            code_b: identities of the second pictures.
            reliability: the same pairs with their probabilities.
        Raises:
            DataError: no genuine or no impostor pairs, or a distance that is not a finite number.
        """
        pairs = SortedPairs.of(dist_Q[same_Q], dist_Q[~same_Q])
        genuine, first, second = code_a[same_Q], code_a[~same_Q], code_b[~same_Q]

        def statistics(count_I: Ints) -> Floats:
            w_genuine, w_impostor = count_I[genuine], pair_weights(count_I, first, second)
            if not w_genuine.any() or not w_impostor.any():
                return np.full(len(values), np.nan)
            return figures(pairs.curve(w_genuine, w_impostor), w_genuine, w_impostor)

        def figures(curve: DetCurve, w_genuine: Ints, w_impostor: Ints) -> Floats:
            rates = _rates(curve, self.threshold)
            if reliability is None:
                return rates
            return np.append(rates, reliability.statistics(w_genuine, w_impostor, curve))

        values = figures(pairs.curve(), np.ones_like(genuine), np.ones_like(first))
        for place, name in enumerate(_NAMES):
            if name in TARGET_FARS and 1 / len(first) > float(name):
                values[place] = np.nan
        drawn = replicate(
            statistics, self.num_identities, seed=self.seed, replicates=self.replicates
        )
        figure = estimates(values.tolist(), drawn)
        rates = dict(zip(_NAMES, figure, strict=False))
        rates["threshold"] = NumberEstimate.of(rates["threshold"])
        num_impostors = len(np.unique(np.concatenate([first, second])))
        across = bool((first != second).any())
        # Independent impostor pairs share no identity; a forgery needs only its own.
        rates["far"] = rule_of_three(rates["far"], num_impostors // (2 if across else 1))
        rates["frr"] = rule_of_three(rates["frr"], len(np.unique(genuine)))
        kept = figure[len(_NAMES) :]
        return PairRates(rates, None if reliability is None else reliability.result(kept))


def _rates(curve: DetCurve, threshold: float | None) -> Floats:
    """Statistics in the order of `_NAMES`."""
    tars = [1 - curve.frr[point_at_far(curve, float(far))] for far in TARGET_FARS]
    far, frr = (np.nan, np.nan) if threshold is None else curve.at(threshold)
    return np.array(
        [auc(curve), eer(curve), *best_accuracy(curve), *tars, far, frr, 1 - (far + frr) / 2]
    )
