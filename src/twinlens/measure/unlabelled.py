"""A threshold from pictures without labels: most random pairs are impostors.

Genuine pairs, at most a stated share, lie in the lower tail. The rest of the distribution is free
of them, so the impostors' tail is extrapolated from it: quantiles of the logarithm of the distance
are a quadratic function of normal quantiles (Cornish & Fisher 1938, with skewness alone). Close
impostors cannot be told from genuine pairs, hence this is a second best.

Shapes: Q pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import CalibrationError, ConfigError
from twinlens.measure.calibration import Calibration
from twinlens.measure.pairs import PairSet
from twinlens.measure.probability import Curve, Isotonic, Platt

__all__ = ["FEWEST_PICTURES", "SHARE", "check_share", "random_pairs", "unlabelled_calibration",
           "unlabelled_thresholds"]  # fmt: skip

SHARE = 0.05  # genuine pairs among random ones: those of 20 identities with as many pictures each
MOST_SHARE = 0.2
MOST_PAIRS = 200_000
FEWEST_PICTURES = 30
BODY = (0.1, 0.7)  # quantiles that are fitted, above the genuine pairs
POINTS = 40
LEAST_DISTANCE = 1e-3  # added before the logarithm; relative to the median

Floats = NDArray[np.float64]


def check_share(share: float) -> None:
    """Check the largest share of genuine pairs among random ones.

    Raises:
        ConfigError: outside (0, 0.2].
    """
    if not 0 < share <= MOST_SHARE:
        raise ConfigError(
            f"the share of genuine pairs among random ones must be in (0, {MOST_SHARE}], such as "
            f"{SHARE} for 20 identities or more; found {share:g}"
        )


def random_pairs(num_pictures: int, rng: np.random.Generator) -> PairSet:
    """All pairs of pictures, or 200,000 random ones; all are taken for impostors.

    Raises:
        CalibrationError: fewer than 30 pictures.
    """
    if num_pictures < FEWEST_PICTURES:
        raise CalibrationError(
            f"found {num_pictures} pictures; a threshold without labels needs at least "
            f"{FEWEST_PICTURES}, of 20 identities or more"
        )
    if num_pictures * (num_pictures - 1) // 2 <= MOST_PAIRS:
        a, b = np.triu_indices(num_pictures, 1)
    else:
        a = rng.integers(0, num_pictures, MOST_PAIRS)
        b = (a + rng.integers(1, num_pictures, MOST_PAIRS)) % num_pictures
    return PairSet(a, b, np.zeros(len(a), np.bool_))


def unlabelled_thresholds(
    distance_Q: ArrayLike, far: float, share: float = SHARE
) -> tuple[float, float]:
    """The threshold at a target FAR, and a lower one that is safe.

    Half of the stated share is taken to be genuine. With far fewer the FAR exceeds the target: for
    a gamma distribution without genuine pairs, a share of 0.05 gives 2.2 % instead of 1 %. The safe
    threshold counts every close pair as an impostor, so genuine pairs cannot raise it.

    Args:
        distance_Q: distances of random pairs.
        far: target false accept rate.
        share: largest share of genuine pairs among them.
    Raises:
        CalibrationError: fewer pairs than 1 / far, or distances that are all equal.
    """
    from scipy.special import ndtri

    dist_Q = np.asarray(distance_Q, dtype=np.float64)
    if len(dist_Q) * far < 1:
        raise CalibrationError(
            f"found {len(dist_Q)} pairs; a FAR of {far:g} needs at least {1 / far:,.0f}: give more "
            "pictures"
        )
    safe = float(np.quantile(dist_Q, far, method="lower"))
    middle = float(np.median(dist_Q))
    if not middle > safe:
        raise CalibrationError(
            "found that most pairs have the smallest distance: the embeddings have collapsed, or "
            "most pictures are copies"
        )
    levels = np.linspace(*BODY, POINTS)
    impostor = (levels - share / 2) / (1 - share / 2)
    added = LEAST_DISTANCE * middle
    log_quantile = np.log(np.quantile(dist_Q, levels) + added)
    curve = np.polynomial.Polynomial.fit(ndtri(impostor), log_quantile, 2)
    # A quantile function rises; the parabola turns where it is extrapolated too far.
    tail = curve(np.linspace(ndtri(far), ndtri(impostor[0]), 200))
    return max(safe, float(np.exp(tail.min()) - added)), safe


def unlabelled_calibration(
    known: Calibration | None, distance_Q: ArrayLike, far: float, share: float
) -> Calibration:
    """A calibration by random pairs; the probability is that of the earlier one, moved.

    Its curve is stretched so that the earlier threshold lies at the new one. How far genuine pairs
    of the new pictures are apart is unknown, so without an earlier curve there is no probability.

    Args:
        known: earlier calibration of the model, at any FAR; None without.
        distance_Q: distances of random pairs.
        far: target false accept rate.
        share: largest share of genuine pairs among them.
    Raises:
        CalibrationError: too few pairs, or a threshold of 0.
    """
    check_share(share)
    threshold, safe = unlabelled_thresholds(distance_Q, far, share)
    if not (threshold > 0 and (known is None or known.threshold > 0)):
        raise CalibrationError("found a threshold of 0; calibrate on labelled pictures instead")
    return Calibration(
        threshold=threshold,
        low=safe,
        high=None,
        target_far=float(far),
        num_genuine=0 if known is None else known.num_genuine,
        num_impostor=int(np.size(distance_Q)),
        num_identities=0 if known is None else known.num_identities,
        curve=None if known is None else _stretched(known.curve, threshold / known.threshold),
        log_loss_platt=None,
        log_loss_isotonic=None,
        requested_far=float(far),
        assumed_share=float(share),
    )


def _stretched(curve: Curve | None, factor: float) -> Curve | None:
    """A curve over distances that are larger by a factor."""
    if isinstance(curve, Platt):
        return Platt(a=curve.a / factor, b=curve.b)
    if isinstance(curve, Isotonic):
        return Isotonic(x=tuple(x * factor for x in curve.x), y=curve.y)
    return None
