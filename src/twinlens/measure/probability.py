"""Probability of a match from a distance, by Platt's curve or an isotonic one.

The probability holds **at even odds**: genuine and impostor pairs weigh the same, whatever their
numbers. No curve rises with distance.

Shapes: N pairs, K knots of a curve, I identities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from twinlens.errors import ConfigError
from twinlens.measure.stored import STRICT

__all__ = ["MAX_FOLDS", "Curve", "Isotonic", "Platt", "at_prior", "check_prior", "fit_isotonic",
           "fit_platt", "held_out_losses", "probability_limits"]  # fmt: skip

MAX_FOLDS = 5

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, config=STRICT)
class Platt:
    """p = 1 / (1 + exp(a * distance + b)), a >= 0 (Platt 1999).

    >>> Platt(a=2.0, b=-3.0)(np.array([1.5, np.inf])).tolist()
    [0.5, 0.0]
    """

    kind: Literal["platt"] = field(default="platt", kw_only=True)
    a: Annotated[float, Field(ge=0)]
    b: float

    def __call__(self, dist: Floats) -> Floats:
        """Probabilities of the shape of `dist`."""
        if self.a == 0:  # Also for an infinite distance.
            dist = np.zeros_like(dist)
        with np.errstate(over="ignore"):  # tanh saturates.
            return np.asarray(0.5 - 0.5 * np.tanh((self.a * dist + self.b) / 2), dtype=np.float64)


@dataclass(frozen=True, config=STRICT)
class Isotonic:
    """Straight lines between knots: `x` (K,) distances ascending, `y` (K,) never rising.

    The curve is level beyond its ends (Zadrozny & Elkan 2002).
    """

    kind: Literal["isotonic"] = field(default="isotonic", kw_only=True)
    x: tuple[float, ...]
    y: tuple[float, ...]

    @model_validator(mode="after")
    def _is_a_falling_curve(self) -> Self:
        if not len(self.x) == len(self.y) > 0:
            raise ValueError(f"found {len(self.x)} x and {len(self.y)} y; knots need both")
        if not np.all(np.diff(self.x) > 0):
            raise ValueError("x must ascend")
        if not (np.all(np.diff(self.y) <= 0) and self.y[0] <= 1 and self.y[-1] >= 0):
            raise ValueError("y must lie in [0, 1] and never rise")
        return self

    def __call__(self, dist: Floats) -> Floats:
        """Probabilities of the shape of `dist`."""
        return np.asarray(np.interp(dist, self.x, self.y), dtype=np.float64)


Curve = Annotated[Platt | Isotonic, Field(discriminator="kind")]


def probability_limits(num_genuine: int, num_impostor: int) -> tuple[float, float]:
    """The lowest and highest probability that so many pairs support.

    Laplace's rule of succession: n impostors, none of them so close, leave 1 / (n + 2) for the next
    one; likewise for genuine pairs far away.

    >>> probability_limits(8, 98)
    (0.1, 0.99)
    """
    return 1 / (num_genuine + 2), 1 - 1 / (num_impostor + 2)


def check_prior(prior: float) -> None:
    """Check a prior probability of a genuine pair.

    Raises:
        ConfigError: outside (0, 1).
    """
    if not 0 < prior < 1:
        raise ConfigError(
            f"the prior probability of a genuine pair must be in (0, 1), found {prior}"
        )


def at_prior(even_N: Floats, prior: float) -> Floats:
    """Probabilities at another prior: likelihood ratio x prior odds (Bayes).

    >>> at_prior(np.array([0.5, 0.9]), prior=0.1).round(3).tolist()
    [0.1, 0.5]

    Args:
        even_N: probabilities at even odds, any shape.
        prior: prior probability of a genuine pair.
    Raises:
        ConfigError: a prior outside (0, 1).
    """
    check_prior(prior)
    genuine_N = even_N * prior
    return np.asarray(genuine_N / (genuine_N + (1 - even_N) * (1 - prior)), dtype=np.float64)


def fit_platt(dist_N: Floats, same_N: Bools) -> Platt:
    """Platt's curve, as a logistic regression on weighted pairs.

    The targets are Platt's: (n + 1) / (n + 2) for genuine pairs and 1 / (n + 2) for impostors, n
    the number of their kind. Without them the slope has no end on pairs that separate. If larger
    distances look more alike, the result is level: the best curve that does not rise.
    """
    from sklearn.linear_model import LogisticRegression

    num_genuine = np.count_nonzero(same_N)
    num_impostor = len(same_N) - num_genuine
    weight_N = _even_odds(same_N)
    target_N = np.where(same_N, (num_genuine + 1) / (num_genuine + 2), 1 / (num_impostor + 2))
    center, scale = float(np.mean(dist_N)), float(np.std(dist_N)) or 1.0
    # A soft target is the same as both hard ones, weighted.
    fitted = LogisticRegression(C=math.inf, solver="newton-cg", tol=1e-10).fit(
        np.tile((dist_N - center) / scale, 2)[:, None],
        np.repeat([True, False], len(dist_N)),
        sample_weight=np.concatenate([weight_N * target_N, weight_N * (1 - target_N)]),
    )
    slope, level = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope > 0:
        mean = float(np.sum(weight_N * target_N))
        slope, level = 0.0, math.log(mean / (1 - mean))
    return Platt(-slope / scale + 0.0, slope * center / scale - level)


def fit_isotonic(dist_N: Floats, same_N: Bools) -> Isotonic:
    """The best curve that never rises, by weighted least squares (pool adjacent violators)."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=False).fit(
        dist_N, same_N.astype(np.float64), sample_weight=_even_odds(same_N)
    )
    # Rounded sums of weights leave upward steps of one last bit.
    falling = np.minimum.accumulate(fitted.y_thresholds_)
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(falling.tolist()))


def held_out_losses(
    dist_N: Floats, same_N: Bools, code_a: Ints, code_b: Ints, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Log-losses of Platt's and the isotonic curve on held-out identities.

    Identities are dealt into up to 5 folds of two or more. A curve is fitted on the pairs with no
    identity in a fold, and tested on those with both identities in it; pairs across would leak. The
    losses of genuine and of impostor pairs, over all folds, weigh one half each. Among impostors,
    forgeries (within one identity) and others weigh as in all pairs, though most of the others lie
    across folds and are not tested.

    Args:
        dist_N: distances, shape (N,).
        same_N: whether each pair is genuine, shape (N,).
        code_a: identities of the first pictures as numbers from 0, shape (N,).
        code_b: identities of the second pictures, shape (N,).
        seed: random seed of the folds.
    Returns:
        Both losses; (None, None) if the folds leave no genuine or no impostor pair.
    """
    num_identities = int(max(code_a.max(), code_b.max())) + 1
    num_folds = min(MAX_FOLDS, num_identities // 2)
    fold_I = np.random.default_rng(seed).permutation(num_identities) % max(1, num_folds)
    fold_a, fold_b = fold_I[code_a], fold_I[code_b]
    loss_2N = np.full((2, len(dist_N)), np.nan)
    for fold in range(num_folds if num_folds >= 2 else 0):
        fit = (fold_a != fold) & (fold_b != fold)
        test = (fold_a == fold) & (fold_b == fold)
        if 0 < np.count_nonzero(same_N[fit]) < np.count_nonzero(fit):
            loss_2N[:, test] = _losses(dist_N, same_N, fit, test)
    across = code_a != code_b
    genuine = _mean_by_kind(loss_2N, [same_N])
    impostor = _mean_by_kind(loss_2N, [~same_N & across, ~same_N & ~across])
    if genuine is None or impostor is None:
        return None, None
    platt, isotonic = (genuine + impostor) / 2
    return float(platt), float(isotonic)


def _mean_by_kind(loss_2N: Floats, kinds: Sequence[Bools]) -> Floats | None:
    """The mean over tested pairs, the kinds weighted by the number of all their pairs."""
    total, weight = np.zeros(2), 0.0
    for kind in kinds:
        tested_2N = loss_2N[:, kind & ~np.isnan(loss_2N[0])]
        if tested_2N.size:
            total += np.count_nonzero(kind) * tested_2N.mean(axis=1)
            weight += float(np.count_nonzero(kind))
    return total / weight if weight else None


def _losses(dist_N: Floats, same_N: Bools, fit: Bools, test: Bools) -> Floats:
    num_genuine = int(np.count_nonzero(same_N[fit]))
    limits = probability_limits(num_genuine, int(np.count_nonzero(fit)) - num_genuine)
    curves = (fit_platt(dist_N[fit], same_N[fit]), fit_isotonic(dist_N[fit], same_N[fit]))
    p_2N = np.clip(np.stack([curve(dist_N[test]) for curve in curves]), *limits)
    return np.asarray(-np.log(np.where(same_N[test], p_2N, 1 - p_2N)), dtype=np.float64)


def _even_odds(same_N: Bools) -> Floats:
    """Weights that give genuine and impostor pairs half of the total, 1, each."""
    num_genuine = np.count_nonzero(same_N)
    return np.where(same_N, 0.5 / num_genuine, 0.5 / (len(same_N) - num_genuine))
