"""The FAR of identities that are not among the calibration pairs.

Pairs of a few identities are far from independent, so a share of them says little about new
identities. Impostor distances are taken as `m + u_i + u_j + v_ij + noise`: effects of both
identities, of the pair of identities, and of the pictures. The variances come from an analysis of
variance, as for a half diallel (Griffing 1956). Their uncertainty is drawn as generalised pivotal
quantities (Weerahandi 1993), with a weak prior, and the tail is that of a Pearson III distribution
whose skew is drawn as well: similar identities, such as two kinds of apples, make it heavy. All of
it is in square roots of distances, which end at 0 less abruptly.

Shapes: N impostor pairs, C pairs of identities, I identities, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FarDraws", "draw_far", "is_resolved"]

DRAWS, OVERSAMPLED = 2000, 10
PRIOR_PAIRS, PRIOR_FREEDOM = 1.0, 3.0
"""Prior variance of pairs of identities, relative to pictures', and its degrees of freedom."""

PRIOR_IDENTITIES = 0.05
"""Prior variance of identities, relative to that of pictures."""

PRIOR_SKEW, SKEW_DEVIATION = -0.5, 0.5
MOST_IDENTITIES = 1000  # of the analysis of variance
RESOLVED = 10.0  # pairs of identities that are expected at or below a threshold

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Kind:
    """Draws of one kind of impostor pairs: mean, deviation and skew (R,), and its share."""

    share: float
    mean: Floats
    deviation: Floats
    skew: Floats

    def far(self, threshold_R: Floats) -> Floats:
        """Share of new pairs at or below a threshold of each draw, by Pearson's type III."""
        from scipy.special import gammainc, gammaincc

        z_R = (threshold_R - self.mean) / self.deviation
        shape_R = 4 / self.skew**2
        gamma_R = np.maximum(0.0, shape_R + 2 * z_R / self.skew)
        below_R = np.where(self.skew < 0, gammaincc(shape_R, gamma_R), gammainc(shape_R, gamma_R))
        return np.asarray(below_R, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class FarDraws:
    """The FAR of new identities as a function of the threshold, in R equally likely draws."""

    kinds: tuple[_Kind, ...]

    def threshold(self, far: float) -> Floats:
        """The threshold at a FAR, (R,), by bisection; -inf where even 0 exceeds it."""
        low = np.min([kind.mean - 20 * kind.deviation for kind in self.kinds], axis=0)
        high = np.max([kind.mean + 20 * kind.deviation for kind in self.kinds], axis=0)
        for _ in range(50):
            middle = (low + high) / 2
            is_above = self._far(middle) > far
            low, high = np.where(is_above, low, middle), np.where(is_above, middle, high)
        return np.where(low > 0, low**2, -np.inf)

    def _far(self, threshold_R: Floats) -> Floats:
        parts = [kind.share * kind.far(threshold_R) for kind in self.kinds]
        return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def is_resolved(code_a: Ints, code_b: Ints, far: float) -> bool:
    """Whether the pairs of identities (I,) resolve a FAR without a model of their distances."""
    low, high = np.minimum(code_a, code_b), np.maximum(code_a, code_b)
    num_cells = len(np.unique(low * (int(high.max()) + 1) + high))
    return far * num_cells >= RESOLVED


def draw_far(distance_N: Floats, code_a: Ints, code_b: Ints, *, seed: int) -> FarDraws:
    """Draw the FAR of new identities from impostor distances.

    Args:
        distance_N: impostor distances, shape (N,).
        code_a: identities of the first pictures, from 0, shape (N,).
        code_b: identities of the second pictures; of a forgery, the claimed one.
        seed: random seed of the draws.
    """
    rng = np.random.default_rng([seed, 8])
    num = int(max(code_a.max(), code_b.max())) + 1
    if num > MOST_IDENTITIES:
        kept_I = np.zeros(num, dtype=bool)
        kept_I[rng.permutation(num)[:MOST_IDENTITIES]] = True
        kept_N = kept_I[code_a] & kept_I[code_b]
        distance_N, code_a, code_b = distance_N[kept_N], code_a[kept_N], code_b[kept_N]
    across = code_a != code_b
    kinds = []
    for is_kind, two_way in ((across, True), (~across, False)):
        if is_kind.any():
            part = (np.sqrt(np.maximum(0.0, distance_N[is_kind])), code_a[is_kind], code_b[is_kind])
            kinds.append(_draw_kind(*part, float(is_kind.mean()), two_way=two_way, rng=rng))
    return FarDraws(tuple(kinds))


def _draw_kind(
    dist_N: Floats,
    code_a: Ints,
    code_b: Ints,
    share: float,
    *,
    two_way: bool,
    rng: np.random.Generator,
) -> _Kind:
    num = int(max(code_a.max(), code_b.max())) + 1
    low, high = np.minimum(code_a, code_b), np.maximum(code_a, code_b)
    cell_C, cell_N = np.unique(low * num + high, return_inverse=True)
    count_C = np.bincount(cell_N)
    mean_C = np.bincount(cell_N, dist_N) / count_C
    freedom = max(1, len(dist_N) - len(count_C))
    noise = max(float(np.sum((dist_N - mean_C[cell_N]) ** 2)) / freedom, 1e-12 * dist_N.var())
    noise = max(noise, np.finfo(np.float64).tiny)
    table = _anova(mean_C, cell_C // num, cell_C % num) if two_way else _one_way(mean_C)
    pairs = PRIOR_PAIRS * noise
    if two_way:
        pair_R, own_R = _draw_variances(table, pairs, PRIOR_IDENTITIES * noise, rng)
    else:
        pair_R = (table.pairs + PRIOR_FREEDOM * pairs) / rng.chisquare(
            table.freedom_pairs + PRIOR_FREEDOM, DRAWS
        )
        own_R = np.zeros(DRAWS)
    of_mean_R = 4 * own_R / table.num_identities + pair_R / len(mean_C)
    mean_R = dist_N.mean() + rng.standard_normal(DRAWS) * np.sqrt(of_mean_R)
    skew_R = _draw_skew(dist_N - table.center[cell_N], pair_R.mean(), noise, len(mean_C), rng)
    return _Kind(share, mean_R, np.sqrt(2 * own_R + pair_R + noise), skew_R)


def _draw_variances(
    table: _Anova, prior_pairs: float, prior_own: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draw the variances of pairs of identities and of identities, (R,) each.

    Draws in which that of identities is negative are left out (Box & Tiao 1973): of folds of three
    identities, only the sum of both is known, and it limits each.
    """
    factor = max(table.factor, 1.0)
    num = OVERSAMPLED * DRAWS
    square_pairs = table.pairs + PRIOR_FREEDOM * prior_pairs
    square_own = table.own + PRIOR_FREEDOM * (prior_pairs + factor * prior_own)
    pair = square_pairs / rng.chisquare(table.freedom_pairs + PRIOR_FREEDOM, num)
    total = square_own / rng.chisquare(table.freedom_own + PRIOR_FREEDOM, num)
    is_valid = total >= pair
    if not is_valid.any():
        pair = np.minimum(pair, total)
        is_valid = np.ones(num, dtype=np.bool_)
    kept_R = rng.choice(np.flatnonzero(is_valid), DRAWS)
    return pair[kept_R], (total[kept_R] - pair[kept_R]) / factor


def _draw_skew(
    residual_N: Floats, pairs: float, noise: float, num_cells: int, rng: np.random.Generator
) -> Floats:
    """Draw the skew of all distances; the cells, not the pairs, are its sample."""
    deviation = residual_N.std()
    measured = float(np.mean((residual_N / deviation) ** 3)) if deviation > 0 else PRIOR_SKEW
    error = 12 * (pairs / (pairs + noise)) ** 3 / num_cells
    weight = SKEW_DEVIATION**2 / (SKEW_DEVIATION**2 + error)
    center = PRIOR_SKEW + weight * (measured - PRIOR_SKEW)
    drawn_R = center + np.sqrt(weight * error) * rng.standard_normal(DRAWS)
    skew_R = np.clip(drawn_R, -2.0, 0.5)
    return np.where(np.abs(skew_R) < 0.02, -0.02, skew_R)


@dataclass(frozen=True, eq=False)
class _Anova:
    """Sums of squares of identities (`own`) and of their pairs, with degrees of freedom.

    `center` (C,) is the mean of each group of compared identities, such as a fold. The expected
    square of identities is the variance of pairs plus `factor` times that of identities.
    """

    own: float
    freedom_own: float
    pairs: float
    freedom_pairs: float
    factor: float
    num_identities: int
    center: Floats


def _one_way(mean_C: Floats) -> _Anova:
    squares = float(np.sum((mean_C - mean_C.mean()) ** 2))
    center_C = np.full(len(mean_C), mean_C.mean())
    return _Anova(0.0, 0.0, squares, len(mean_C) - 1, 0.0, len(mean_C), center_C)


def _anova(mean_C: Floats, first_C: Ints, second_C: Ints) -> _Anova:
    """Fit m_ij = e_i + e_j by least squares over the pairs of identities that were compared."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, code = np.unique(np.concatenate([first_C, second_C]), return_inverse=True)
    num, a_C, b_C = len(names), code[: len(first_C)], code[len(first_C) :]
    degree_I = np.bincount(code)
    normal_II = np.diag(degree_I.astype(np.float64))
    np.add.at(normal_II, (code, np.concatenate([b_C, a_C])), 1.0)
    total_I = np.bincount(code, np.tile(mean_C, 2))
    effect_I, _, rank, _ = np.linalg.lstsq(normal_II, total_I)
    fitted_C = effect_I[a_C] + effect_I[b_C]
    num_groups, group_I = connected_components(
        coo_array((np.ones(len(a_C)), (a_C, b_C)), (num, num)), directed=False
    )
    group_C = group_I[a_C]
    center_C = (np.bincount(group_C, mean_C) / np.bincount(group_C))[group_C]
    return _Anova(
        float(np.sum((fitted_C - center_C) ** 2)),
        max(0, int(rank) - num_groups),
        float(np.sum((mean_C - fitted_C) ** 2)),
        max(0, len(mean_C) - int(rank)),
        max(0.0, float(degree_I.mean()) - 1),
        num,
        center_C,
    )
