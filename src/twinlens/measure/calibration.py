"""Calibration of a model for pairs: the threshold at a target FAR, and a probability.

Both are fitted on pairs of identities that the model was not trained on, and belong to that model.
The threshold is one for identities that are new again (`new_identity_threshold`).
The curve is fitted **at even odds**: genuine and impostor pairs weigh the same whatever their
numbers, since the share of impostors among future pairs is unknown. A known prior is an argument of
`Calibration.probability`.

Shapes: N pairs, I identities.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from twinlens.errors import CalibrationError, DataError
from twinlens.measure.bootstrap import REPLICATES
from twinlens.measure.estimate import NumberEstimate
from twinlens.measure.new_identity_threshold import EXCESS, ImpostorPairs
from twinlens.measure.probability import (
    Curve,
    at_prior,
    fit_isotonic,
    fit_platt,
    held_out_losses,
    probability_limits,
)
from twinlens.measure.stored import STRICT, Count, CountOrZero, as_plain, read_calibration

__all__ = ["Calibration", "fit_calibration"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """The threshold of a model for pairs, and the probability of a match at each distance.

    Attributes:
        threshold: distance that keeps the FAR at `target_far` on the calibration pairs and, with a
            confidence of 95 %, at `far_limit` on new identities.
        low: lower end of the 95 % interval of the distance at which new identities have
            `target_far`; None if too few identities.
        high: upper end.
        target_far: target false accept rate.
        num_genuine: genuine pairs.
        num_impostor: impostor pairs.
        num_identities: identities in these pairs.
        curve: probability of a match at each distance; None if no labels were ever used, and then
            the counts of genuine pairs and of identities are 0.
        log_loss_platt: log-loss of Platt's curve on held-out identities; None if too few
            identities, and then `curve` is Platt's.
        log_loss_isotonic: the same of the isotonic curve.
        requested_far: the requested target; `target_far` is the nearest that the pairs allow. None
            in models of earlier versions, as the following.
        unadjusted: largest distance that keeps to `target_far` on the calibration pairs.
        far_limit: 1.5 times `target_far`; None in closed sets, and if too few identities for a
            statement on new ones.
        assumed_share: largest share of genuine pairs among random ones, if the threshold was set on
            pictures without labels (`measure.unlabelled`); then `low` is a threshold that keeps the
            FAR in any case. None with labels.
    """

    threshold: float
    low: float | None
    high: float | None
    target_far: Annotated[float, Field(gt=0, lt=1)]
    num_genuine: CountOrZero
    num_impostor: Count
    num_identities: CountOrZero
    curve: Curve | None
    log_loss_platt: float | None
    log_loss_isotonic: float | None
    requested_far: float | None = None
    unadjusted: float | None = None
    far_limit: float | None = None
    assumed_share: float | None = None

    def probability(self, distance: ArrayLike, prior: float = 0.5) -> Floats:
        """Probability that a pair at each distance is genuine.

        It never rises with distance. At even odds it stays between 1 / (num_genuine + 2) and
        1 - 1 / (num_impostor + 2) (`probability_limits`). Its odds there are the likelihood ratio,
        which is multiplied by the prior odds.

        >>> from twinlens.measure.probability import Platt
        >>> pairs = {"num_genuine": 98, "num_impostor": 998, "num_identities": 20}
        >>> curve = Platt(a=10.0, b=-8.0)
        >>> known = Calibration(threshold=0.5, low=0.4, high=0.6, target_far=0.01, **pairs,
        ...                     curve=curve, log_loss_platt=None, log_loss_isotonic=None)
        >>> known.probability([0.2, 0.8, 5.0]).round(3).tolist()
        [0.998, 0.5, 0.01]
        >>> known.probability([0.2, 0.8, 5.0], prior=0.01).round(3).tolist()
        [0.803, 0.01, 0.0]

        Args:
            distance: any shape and float type; may be infinite.
            prior: probability that a pair is genuine before it is compared, in (0, 1).
        Raises:
            CalibrationError: no labels were used, so there is no `curve`.
            DataError: a distance is NaN.
            ConfigError: a prior outside (0, 1).
        """
        if self.curve is None:
            raise CalibrationError(
                "the model is calibrated without labels, which gives no probability"
            )
        dist = np.asarray(distance, dtype=np.float64)
        if np.isnan(dist).any():
            raise DataError("found a distance that is NaN; a probability needs numbers")
        limits = probability_limits(self.num_genuine, self.num_impostor)
        return at_prior(np.clip(self.curve(dist), *limits), prior)

    def threshold_estimate(self) -> NumberEstimate:
        """The threshold with its interval."""
        return NumberEstimate(self.threshold, self.low, self.high)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; `from_json` gives back an equal calibration."""
        return as_plain(self)

    @classmethod
    def from_json(cls, values: Any) -> Calibration:
        """Read what `as_json` gave, after json has parsed it.

        Raises:
            ModelError: damaged; names every problem.
        """
        remedy = "Calibrate it again: twinlens calibrate MODEL DATA"
        return read_calibration(cls, values, "the model's calibration", remedy)


def fit_calibration(
    distance: ArrayLike,
    same: ArrayLike,
    identity_a: ArrayLike,
    identity_b: ArrayLike,
    *,
    target_far: float,
    seed: int = 0,
    replicates: int = REPLICATES,
    new_identities: bool = True,
) -> Calibration:
    """Fit the threshold at `target_far` with its interval, and the probability of a match.

    If the pairs do not allow the target, the next of 0.1, 0.2, 0.5, 1, 2, 5 and 10 % is taken
    (`ImpostorPairs.fit_nearest`). The curve is Platt's or the isotonic one, by the lower log-loss
    on held-out identities (`held_out_losses`); Platt's if both are equal or no identities can be
    held out.

    Args:
        distance: distances of pairs, shape (N,).
        same: whether each pair is genuine, shape (N,).
        identity_a: identities of the pairs' first pictures, shape (N,), numbers or strings.
        identity_b: identities of the second pictures; the claimed identity of a forgery.
        target_far: target false accept rate, a fraction in (0, 1).
        seed: random seed for bootstrap, draws and folds.
        replicates: number of bootstrap replicates.
        new_identities: whether the threshold is for new identities, unlike in a closed set.
    Raises:
        CalibrationError: no genuine pairs, too few impostor pairs for any of these rates, or so
            many of them equally close that no threshold keeps to one.
        DataError: a distance that is not a finite number.
    """
    dist_N, same_N = np.asarray(distance, dtype=np.float64), np.asarray(same, dtype=bool)
    names, code_2N = np.unique(np.concatenate([identity_a, identity_b]), return_inverse=True)
    code_a, code_b = code_2N[: len(dist_N)], code_2N[len(dist_N) :]
    if not same_N.any():
        raise CalibrationError(
            "found no genuine pairs; calibration needs identities with at least two pictures"
        )
    pairs = ImpostorPairs(
        dist_N[same_N], dist_N[~same_N], code_a[~same_N], code_b[~same_N], len(names),
        seed=seed, replicates=replicates, new_identities=new_identities,
    )  # fmt: skip
    fit = pairs.fit_nearest(target_far)
    loss_platt, loss_isotonic = held_out_losses(dist_N, same_N, code_a, code_b, seed)
    isotonic = loss_platt is not None and loss_isotonic is not None and loss_isotonic < loss_platt
    return Calibration(
        threshold=fit.threshold,
        low=fit.low,
        high=fit.high,
        target_far=float(fit.far),
        num_genuine=int(np.count_nonzero(same_N)),
        num_impostor=int(np.count_nonzero(~same_N)),
        num_identities=len(names),
        curve=(fit_isotonic if isotonic else fit_platt)(dist_N, same_N),
        log_loss_platt=loss_platt,
        log_loss_isotonic=loss_isotonic,
        requested_far=float(target_far),
        unadjusted=fit.unadjusted,
        far_limit=EXCESS * fit.far if pairs.is_stated else None,
    )
