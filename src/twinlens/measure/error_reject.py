"""Error versus reject: FNMR at a fixed FMR as the pairs of lowest quality are rejected.

Of Grother and Tabassi, "Performance of Biometric Quality Measures" (2007): a pair has the lower
quality of its two pictures, and the threshold stays. A quality that predicts errors makes the curve
fall; one that does not leaves it level.

Shapes: N pictures, Q pairs, G genuine pairs, I identities, S shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, replicate
from twinlens.measure.error_rates import matches, threshold_at_far
from twinlens.measure.pairs import PairSet

__all__ = ["ErrorRejectResult", "error_reject"]

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ErrorRejectResult:
    """Error versus reject curve.

    Attributes:
        fmr: false match rate that the threshold was set for, on all pairs.
        threshold: that threshold.
        fnmr: false non-match rate by share of rejected genuine pairs.
        gain: area that the curve gains over rejecting at random, by what rejecting exactly the
            errors would gain: 1 for a perfect quality, 0 for none, negative for a misleading one.
        median_quality: median score of the pictures.
    """

    fmr: float
    threshold: float
    fnmr: dict[float, Estimate]
    gain: Estimate
    median_quality: float

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {
            "fmr": self.fmr,
            "threshold": self.threshold,
            "curve": [
                {"rejected": share, "fnmr": fnmr.as_json()} for share, fnmr in self.fnmr.items()
            ],
            "gain": self.gain.as_json(),
            "median_quality": self.median_quality,
        }


def error_reject(
    quality_N: NDArray[np.floating[Any]],
    pairs: PairSet,
    dist_Q: NDArray[np.floating[Any]],
    label: ArrayLike,
    *,
    fmr: float = 0.01,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> ErrorRejectResult | None:
    """The curve of genuine and impostor pairs.

    None if fewer than 1 / `fmr` are impostors, or too many of them share the smallest distance.

    Args:
        quality_N: score of each picture; higher is better.
        pairs: Q pairs of the pictures.
        dist_Q: their distances.
        label: identities as integers, shape (N,).
        fmr: false match rate at which the threshold is fixed.
        seed: random seed of the bootstrap.
        replicates: number of bootstrap replicates over identities.
    """
    if np.count_nonzero(~pairs.same) * fmr < 1 or not pairs.same.any():
        return None
    threshold = threshold_at_far(dist_Q[~pairs.same], fmr)
    if not np.isfinite(threshold):
        return None
    names, code_N = np.unique(np.asarray(label), return_inverse=True)
    a_G, b_G = pairs.a[pairs.same], pairs.b[pairs.same]
    quality_G = np.minimum(quality_N[a_G], quality_N[b_G]).astype(np.float64)
    order_G = np.argsort(quality_G, kind="stable")
    quality_G, code_G = quality_G[order_G], code_N[a_G][order_G]
    error_G = ~matches(dist_Q[pairs.same][order_G], threshold)
    last_T = np.flatnonzero(np.diff(quality_G, append=np.inf))  # of each group of ties

    def statistics(count_I: NDArray[np.int64]) -> Floats:
        weight_G = count_I[code_G].astype(np.float64)
        return _curve_and_gain(weight_G, error_G, last_T)

    values = statistics(np.ones(len(names), np.int64))
    drawn = replicate(statistics, len(names), seed=seed, replicates=replicates)
    *fnmr, gain = estimates(values.tolist(), drawn)
    return ErrorRejectResult(
        fmr=fmr,
        threshold=float(threshold),
        fnmr=dict(zip(SHARES, fnmr, strict=True)),
        gain=gain,
        median_quality=float(np.median(quality_N)),
    )


def _curve_and_gain(
    weight_G: Floats, error_G: NDArray[np.bool_], last_T: NDArray[np.int64]
) -> Floats:
    """FNMR at each of `SHARES`, and the gain, of pairs in the order of their quality, (S + 1,).

    Ties are rejected together: in part, as if drawn at random.
    """
    total = weight_G.sum()
    if not total:
        return np.full(len(SHARES) + 1, np.nan)
    share_S = np.array(SHARES)
    rejected_T = np.concatenate([[0.0], np.cumsum(weight_G)[last_T]]) / total
    errors_T = np.concatenate([[0.0], np.cumsum(weight_G * error_G)[last_T]]) / total
    left_S = errors_T[-1] - np.interp(share_S, rejected_T, errors_T)
    fnmr_S, start = left_S / (1 - share_S), errors_T[-1]
    best_S = np.maximum(start - share_S, 0) / (1 - share_S)
    possible = np.trapezoid(start - best_S, share_S)
    gain = np.trapezoid(start - fnmr_S, share_S) / possible if possible > 0 else np.nan
    return np.append(fnmr_S, gain)
