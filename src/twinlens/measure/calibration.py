"""From a distance to an answer: the threshold at a target FAR, and a probability.

Both are fitted on pairs of identities that the model was not trained on, and belong to that
model. The probability is that of a match **at even odds**: genuine and impostor pairs weigh the
same whatever their numbers, since nobody knows how often a user meets an impostor. Whoever knows
their prior odds multiplies p / (1 - p) by them. This module knows nothing of pictures or models.

Shapes: N pairs, I identities.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import CalibrationError, DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, interval, pair_weights, replicate
from twinlens.measure.error_rates import SortedPairs, point_at_far, threshold_at_far
from twinlens.measure.probability import (
    Isotonic,
    Platt,
    fit_isotonic,
    fit_platt,
    held_out_losses,
    probability_limits,
)
from twinlens.measure.stored import (
    curve_as_json,
    read_count,
    read_curve,
    read_number,
    read_optional,
    reading,
)

__all__ = ["Calibration", "Isotonic", "Platt", "fit_calibration"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What a model's distances mean, measured on a user's own pairs.

    `threshold` keeps the FAR at `target_far` on the pairs it was measured on; `low` and `high`
    are its 95 % interval, None where none can be had. `log_loss_platt` and `log_loss_isotonic`
    are the held-out losses between which `curve` was chosen; None where there were too few
    identities to hold any out, and Platt's curve was taken.
    """

    threshold: float
    low: float | None
    high: float | None
    target_far: float
    num_genuine: int
    num_impostor: int
    num_identities: int
    curve: Platt | Isotonic
    log_loss_platt: float | None
    log_loss_isotonic: float | None

    def probability(self, distance: ArrayLike) -> Floats:
        """How likely a pair at each distance is genuine, at even odds; never rises with distance.

        It stays between 1 / (num_genuine + 2) and 1 - 1 / (num_impostor + 2), Laplace's rule of
        succession: having seen n impostors and none so close says no more than that.

        Args:
            distance: of any shape and float type; infinity is allowed.
        Raises:
            DataError: a distance is NaN.
        """
        dist = np.asarray(distance, dtype=np.float64)
        if np.isnan(dist).any():
            raise DataError("a distance is NaN, so no probability can be given: check the picture")
        limits = probability_limits(self.num_genuine, self.num_impostor)
        return np.clip(self.curve(dist), *limits)

    def threshold_estimate(self) -> Estimate:
        """The threshold with its interval."""
        return Estimate(self.threshold, self.low, self.high)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; `from_json` gives back an equal calibration."""
        found = asdict(self)
        found["curve"] = curve_as_json(self.curve)
        return found

    @classmethod
    def from_json(cls, values: Any) -> Calibration:
        """Read what `as_json` gave, once json has parsed it.

        Raises:
            ModelError: something is missing, of the wrong type, or cannot be.
        """
        remedy = "calibrate it again: twinlens calibrate MODEL DATA"
        with reading("the model's calibration", remedy):
            return _read(values)


def fit_calibration(
    distance: ArrayLike,
    same: ArrayLike,
    identity_a: ArrayLike,
    identity_b: ArrayLike,
    *,
    target_far: float,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Calibration:
    """The threshold at `target_far` with its interval, and the probability of a match.

    The interval is a bootstrap over identities. The curve is Platt's or the isotonic one, by the
    lower log-loss on held-out identities (up to 5 folds: fitted on the pairs with no identity in
    the fold, judged on those with both in it); Platt's where both are equal or none can be held
    out.

    Args:
        distance: shape (N,).
        same: whether each pair is genuine, shape (N,).
        identity_a: the identities of the pairs' first pictures, shape (N,), numbers or strings.
        identity_b: those of the second; for a forgery, the identity that it claims to be.
        target_far: a fraction in (0, 1).
        seed: draws the replicates and the folds.
        replicates: how many times the identities are redrawn.
    Raises:
        CalibrationError: no genuine pairs, fewer impostor pairs than 1 / target_far, or so many
            of them equally close that no threshold keeps to it.
        DataError: a distance that is not a finite number.
    """
    dist_N, same_N = np.asarray(distance, dtype=np.float64), np.asarray(same, dtype=bool)
    names, code_2N = np.unique(np.concatenate([identity_a, identity_b]), return_inverse=True)
    code_a, code_b = code_2N[: len(dist_N)], code_2N[len(dist_N) :]
    if not same_N.any():
        raise CalibrationError(
            "found no genuine pairs; calibration needs identities with two pictures or more"
        )
    threshold = threshold_at_far(dist_N[~same_N], target_far)
    if not math.isfinite(threshold):
        raise CalibrationError(
            f"more than {target_far:.3g} of the impostor pairs share the smallest distance, so no "
            "threshold keeps to that FAR: the embeddings may have collapsed (train again), or "
            "pictures may be filed under two identities (twinlens inspect DATA)"
        )
    low, high = _threshold_interval(
        dist_N, same_N, code_a, code_b, len(names), target_far, seed, replicates
    )
    loss_platt, loss_isotonic = held_out_losses(dist_N, same_N, code_a, code_b, seed)
    better = loss_platt is not None and loss_isotonic is not None and loss_isotonic < loss_platt
    return Calibration(
        threshold=threshold,
        low=low,
        high=high,
        target_far=float(target_far),
        num_genuine=int(np.count_nonzero(same_N)),
        num_impostor=int(np.count_nonzero(~same_N)),
        num_identities=len(names),
        curve=(fit_isotonic if better else fit_platt)(dist_N, same_N),
        log_loss_platt=loss_platt,
        log_loss_isotonic=loss_isotonic,
    )


def _threshold_interval(
    dist_N: Floats,
    same_N: NDArray[np.bool_],
    code_a: NDArray[np.int64],
    code_b: NDArray[np.int64],
    num_identities: int,
    target_far: float,
    seed: int,
    replicates: int,
) -> tuple[float | None, float | None]:
    ranked = SortedPairs.of(dist_N[same_N], dist_N[~same_N])
    first, second = code_a[~same_N], code_b[~same_N]

    def redrawn(count_I: NDArray[np.int64]) -> Floats:
        weight = pair_weights(count_I, first, second)
        if not weight.any():
            return np.array([np.nan])
        curve = ranked.curve(None, weight)
        return curve.threshold[[point_at_far(curve, target_far)]]

    values = replicate(redrawn, num_identities, seed=seed, replicates=replicates)
    low, high = interval(values[:, 0] if len(values) else [])
    return _bound(low), _bound(high)


def _bound(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _read(values: Any) -> Calibration:
    found = Calibration(
        threshold=read_number(values, "threshold"),
        low=read_optional(values, "low"),
        high=read_optional(values, "high"),
        target_far=read_number(values, "target_far"),
        num_genuine=read_count(values, "num_genuine"),
        num_impostor=read_count(values, "num_impostor"),
        num_identities=read_count(values, "num_identities"),
        curve=read_curve(values["curve"]),
        log_loss_platt=read_optional(values, "log_loss_platt"),
        log_loss_isotonic=read_optional(values, "log_loss_isotonic"),
    )
    if not 0 < found.target_far < 1:
        raise ValueError(f"target_far is {found.target_far}, not between 0 and 1")
    return found
