"""Curves from a distance to the probability of a match at even odds, and which fits better.

*At even odds*: genuine and impostor pairs weigh the same, whatever their numbers. A curve never
rises with distance. This module knows nothing of thresholds.

Shapes: N pairs, K knots of a curve, I identities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_FOLDS",
    "Isotonic",
    "Platt",
    "fit_isotonic",
    "fit_platt",
    "held_out_losses",
    "probability_limits",
]

MAX_FOLDS = 5

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Platt:
    """p = 1 / (1 + exp(a * distance + b)), a >= 0 (Platt 1999)."""

    a: float
    b: float

    def __call__(self, dist: Floats) -> Floats:
        """Probabilities of the shape of `dist`."""
        # tanh saturates where exp would overflow.
        return np.asarray(0.5 - 0.5 * np.tanh((self.a * dist + self.b) / 2), dtype=np.float64)


@dataclass(frozen=True)
class Isotonic:
    """Straight lines between knots: `x` (K,) distances ascending, `y` (K,) never rising.

    The best of all curves that never rise (Zadrozny & Elkan 2002); level beyond its ends.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, dist: Floats) -> Floats:
        """Probabilities of the shape of `dist`."""
        return np.asarray(np.interp(dist, self.x, self.y), dtype=np.float64)


def probability_limits(num_genuine: int, num_impostor: int) -> tuple[float, float]:
    """The lowest and highest probability that so many pairs can speak for.

    Laplace's rule of succession: having met n impostors, none of them so close, leaves 1 / (n + 2)
    for the next one; likewise for genuine pairs far away.
    """
    return 1 / (num_genuine + 2), 1 - 1 / (num_impostor + 2)


def fit_platt(dist_N: Floats, same_N: NDArray[np.bool_]) -> Platt:
    """Newton's method with halved steps (Lin, Lin & Weng 2007) on weighted pairs.

    The targets are Platt's, (n + 1) / (n + 2) for genuine pairs and 1 / (n + 2) for impostors, n
    the number of their kind: without them the slope has no end on pairs that separate. Where
    larger distances look more alike, the best curve that never rises is level, and is returned.
    """
    weight_N = _even_odds(same_N)
    num_genuine = np.count_nonzero(same_N)
    num_impostor = len(same_N) - num_genuine
    target_N = np.where(same_N, (num_genuine + 1) / (num_genuine + 2), 1 / (num_impostor + 2))
    center, spread = float(np.mean(dist_N)), float(np.std(dist_N)) or 1.0
    x_2N = np.stack([(dist_N - center) / spread, np.ones_like(dist_N)])
    theta = np.zeros(2)

    def loss(at: Floats) -> float:
        score_N = at @ x_2N
        return float(np.sum(weight_N * (np.logaddexp(0, score_N) - target_N * score_N)))

    for _ in range(100):
        p_N = 0.5 + 0.5 * np.tanh(theta @ x_2N / 2)
        gradient = x_2N @ (weight_N * (p_N - target_N))
        hessian = (x_2N * (weight_N * p_N * (1 - p_N))) @ x_2N.T
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        size, now = 1.0, loss(theta)
        while size > 1e-10 and loss(theta - size * step) > now - 1e-4 * size * (gradient @ step):
            size /= 2
        if size <= 1e-10 or np.abs(size * step).max() < 1e-12:
            break
        theta = theta - size * step
    slope, level = float(theta[0]), float(theta[1])
    if slope > 0:
        mean = float(np.sum(weight_N * target_N))
        slope, level = 0.0, math.log(mean / (1 - mean))
    return Platt(-slope / spread + 0.0, slope * center / spread - level)


def fit_isotonic(dist_N: Floats, same_N: NDArray[np.bool_]) -> Isotonic:
    """The weighted least-squares curve that never rises, by pooling adjacent violators."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=False).fit(
        dist_N, same_N.astype(np.float64), sample_weight=_even_odds(same_N)
    )
    # Sums of weights leave steps of a last bit upwards.
    falling = np.minimum.accumulate(fitted.y_thresholds_)
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(falling.tolist()))


def held_out_losses(
    dist_N: Floats, same_N: Bools, code_a: Ints, code_b: Ints, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Log-losses of Platt's and the isotonic curve on identities that took no part in the fit.

    Identities are dealt into up to 5 folds of two or more. A curve is fitted on the pairs with no
    identity in a fold and judged on those with both in it; pairs across would leak. The losses of
    genuine and of impostor pairs, over all folds, weigh one half each; among impostors, forgeries
    (within one identity) and strangers weigh as in all pairs, though most strangers are unjudged.

    Args:
        dist_N: distances, shape (N,).
        same_N: whether each pair is genuine, shape (N,).
        code_a: identities of the first pictures as numbers from 0, shape (N,).
        code_b: identities of the second pictures, shape (N,).
        seed: deals the folds.
    Returns:
        Both losses, or (None, None) where the folds leave no genuine or no impostor pair.
    """
    num_identities = int(max(code_a.max(), code_b.max())) + 1
    num_folds = min(MAX_FOLDS, num_identities // 2)
    fold_I = np.random.default_rng(seed).permutation(num_identities) % max(1, num_folds)
    fold_a, fold_b = fold_I[code_a], fold_I[code_b]
    loss_2N = np.full((2, len(dist_N)), np.nan)
    for fold in range(num_folds if num_folds >= 2 else 0):
        fit = (fold_a != fold) & (fold_b != fold)
        judged = (fold_a == fold) & (fold_b == fold)
        if 0 < np.count_nonzero(same_N[fit]) < np.count_nonzero(fit):
            loss_2N[:, judged] = _losses(dist_N, same_N, fit, judged)
    across = code_a != code_b
    genuine = _mean_by_kind(loss_2N, [same_N])
    impostor = _mean_by_kind(loss_2N, [~same_N & across, ~same_N & ~across])
    if genuine is None or impostor is None:
        return None, None
    platt, isotonic = (genuine + impostor) / 2
    return float(platt), float(isotonic)


def _mean_by_kind(loss_2N: Floats, kinds: Sequence[Bools]) -> Floats | None:
    """The mean over judged pairs, the kinds weighted by the number of all their pairs."""
    total, weight = np.zeros(2), 0.0
    for kind in kinds:
        judged_2N = loss_2N[:, kind & ~np.isnan(loss_2N[0])]
        if judged_2N.size:
            total += np.count_nonzero(kind) * judged_2N.mean(axis=1)
            weight += float(np.count_nonzero(kind))
    return total / weight if weight else None


def _losses(dist_N: Floats, same_N: Bools, fit: Bools, judged: Bools) -> Floats:
    num_genuine = int(np.count_nonzero(same_N[fit]))
    limits = probability_limits(num_genuine, int(np.count_nonzero(fit)) - num_genuine)
    curves = (fit_platt(dist_N[fit], same_N[fit]), fit_isotonic(dist_N[fit], same_N[fit]))
    p_2N = np.clip(np.stack([curve(dist_N[judged]) for curve in curves]), *limits)
    return np.asarray(-np.log(np.where(same_N[judged], p_2N, 1 - p_2N)), dtype=np.float64)


def _even_odds(same_N: NDArray[np.bool_]) -> Floats:
    """Weights that give genuine and impostor pairs half of the total, 1, each."""
    num_genuine = np.count_nonzero(same_N)
    return np.where(same_N, 0.5 / num_genuine, 0.5 / (len(same_N) - num_genuine))
