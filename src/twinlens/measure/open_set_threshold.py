"""Measuring the threshold of a gallery at a target FPIR.

A threshold for pairs accepts a stranger with some small chance *per comparison*, and a stranger is
compared with every identity of a gallery. So a gallery needs a threshold of its own, at a target
false positive identification rate (FPIR, ISO/IEC 19795-1:2021: the share of probes of people who
are not enrolled for which an identity is returned). It is measured on the gallery's own templates,
each left out in turn, or on given pictures.

Shapes: P probes (of which G mated, S strangers), M templates, D numbers in an embedding, K knots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.measure.bootstrap import REPLICATES, Estimate, interval, mean_estimates, replicate
from twinlens.measure.error_rates import matches, threshold_at_far
from twinlens.measure.fusion import RULES, check_rule
from twinlens.measure.new_identity_threshold import EXCESS, lowest
from twinlens.measure.open_set_calibration import (
    OpenSetCalibration,
    check_fpir,
    check_num_strangers,
    finite_threshold,
    kept_ranks,
    margins,
)
from twinlens.measure.pairs import Comparison, OnProgress
from twinlens.measure.probability import (
    Isotonic,
    Platt,
    fit_isotonic,
    fit_platt,
    held_out_losses,
)
from twinlens.measure.rank_probes import BestIdentities, balanced_sample, rank_left_out, rank_probes

__all__ = ["calibrate_open_set", "calibrate_open_set_on_probes"]

MOST_PROBES, FALSE_MATCHES = 2000, 20
"""Probes of each kind; more if the target lets fewer than so many strangers match falsely."""

CONTESTED_WRONG, FEWEST_CONTESTED = 0.1, 10
"""Share of answers with a runner-up within the threshold that may be wrong, and their minimum."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def calibrate_open_set(
    emb_MD: NDArray[Any],
    code_M: ArrayLike,
    comparison: Comparison,
    *,
    target_fpir: float = 0.01,
    rule: str = "auto",
    most_probes: int | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
    progress: OnProgress | None = None,
) -> OpenSetCalibration:
    """Calibrate a gallery on its own templates.

    Each template is a non-mated probe of the gallery without its identity. If its identity has
    another template, it is also a mated probe of the gallery without the template itself. Up to
    `most_probes` of each kind are drawn, of as many identities as possible.

    Args:
        emb_MD: templates, shape (M, D).
        code_M: identity codes of the templates, integers from 0, shape (M,).
        comparison: distances between embeddings.
        target_fpir: target FPIR, a fraction in (0, 1).
        rule: fusion rule, of `fusion.RULES`. "auto" takes the one with the highest `tpir` at the
            target, the first of equal ones; "nearest" if each identity has one template, since
            all rules are the same then.
        most_probes: maximum of each kind; by default the larger of 2,000 and 20 / `target_fpir`.
        seed: random seed for probes, bootstrap and folds.
        replicates: number of bootstrap replicates.
        progress: called with the number of probes done and of all probes.
    Raises:
        CalibrationError: fewer strangers than 1 / `target_fpir` (a gallery of one identity has
            none), or so many of them equally close that no threshold keeps to the target.
        ConfigError: unknown rule.
        DataError: a distance that is not a finite number.
    """
    check_rule(rule, "auto")
    check_fpir(target_fpir)
    if most_probes is None:
        most_probes = max(MOST_PROBES, math.ceil(FALSE_MATCHES / target_fpir))
    code = np.asarray(code_M, dtype=np.int64)
    _, own_M, count_I = np.unique(code, return_inverse=True, return_counts=True)
    check_num_strangers(target_fpir, min(len(code), most_probes) if len(count_I) > 1 else 0)
    pair_M = count_I[own_M] > 1
    strangers = balanced_sample(code, most_probes, np.random.default_rng(seed))
    mated = strangers
    if not pair_M[strangers].all():
        rows = np.flatnonzero(pair_M)
        mated = rows[balanced_sample(code[rows], most_probes, np.random.default_rng(seed))]
    row_P = np.union1d(mated, strangers)
    as_mated, as_stranger = rank_left_out(
        row_P, emb_MD, code, comparison, _rules_to_compare(rule, pair_M), progress=progress
    )
    is_mated, is_stranger = np.isin(row_P, mated), np.isin(row_P, strangers)
    probes = _Probes(code[row_P][is_mated], own_M[row_P][is_mated], own_M[row_P][is_stranger])
    by_rule = [
        _RuleScores.of(name, _rows(as_mated[name], is_mated), _rows(as_stranger[name], is_stranger))
        for name in as_mated
    ]
    return _fit(by_rule, probes, target_fpir, (len(count_I), len(code)), seed, replicates)


def calibrate_open_set_on_probes(
    probe_emb_PD: NDArray[Any],
    probe_code_P: ArrayLike,
    gallery_emb_MD: NDArray[Any],
    gallery_code_M: ArrayLike,
    comparison: Comparison,
    *,
    target_fpir: float = 0.01,
    rule: str = "auto",
    probe_identity_P: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
    progress: OnProgress | None = None,
) -> OpenSetCalibration:
    """Calibrate a gallery on pictures that are not in it, some of them of strangers.

    Args:
        probe_emb_PD: embeddings of the probes, shape (P, D).
        probe_code_P: identity codes of the probes, shape (P,); -1, or any other code that the
            gallery lacks, for a stranger.
        gallery_emb_MD: templates, shape (M, D).
        gallery_code_M: identity codes of the templates, integers from 0, shape (M,).
        comparison: distances between embeddings.
        target_fpir: target FPIR, a fraction in (0, 1).
        rule: fusion rule, as for `calibrate_open_set`.
        probe_identity_P: identities of all probes, in any terms, which the bootstrap redraws,
            shape (P,). By default each picture of a stranger is an identity of its own.
        seed: random seed for bootstrap and folds.
        replicates: number of bootstrap replicates.
        progress: called with the number of probes done and of all probes.
    Raises:
        CalibrationError, ConfigError, DataError: as `calibrate_open_set`.
    """
    check_rule(rule, "auto")
    code, gallery_code = np.asarray(probe_code_P), np.asarray(gallery_code_M, dtype=np.int64)
    names, count_I = np.unique(gallery_code, return_counts=True)
    is_mated = np.isin(code, names)
    check_num_strangers(target_fpir, int(np.count_nonzero(~is_mated)) if len(names) else 0)
    if probe_identity_P is None:
        own_P = np.where(is_mated, code, -1 - np.arange(len(code)))
    else:
        own_P = np.asarray(probe_identity_P)
    _, own_P = np.unique(own_P, return_inverse=True)
    best_by_rule = rank_probes(probe_emb_PD, gallery_emb_MD, gallery_code, comparison,
                _rules_to_compare(rule, count_I > 1), progress=progress)  # fmt: skip
    probes = _Probes(code[is_mated], own_P[is_mated], own_P[~is_mated])
    by_rule = [
        _RuleScores.of(name, _rows(best, is_mated), _rows(best, ~is_mated))
        for name, best in best_by_rule.items()
    ]
    size = (len(names), len(gallery_code))
    return _fit(by_rule, probes, target_fpir, size, seed, replicates)


@dataclass(frozen=True, eq=False)
class _Probes:
    """Identity codes of the mated probes, `code` (G,), and identities for the bootstrap.

    `mated_own` (G,) and `stranger_own` (S,) number the identities of both kinds from 0.
    """

    code: Ints
    mated_own: Ints
    stranger_own: Ints


@dataclass(frozen=True, eq=False)
class _RuleScores:
    """Best identities of the mated probes by one rule, and best distances of strangers (S,)."""

    rule: str
    mated: BestIdentities
    stranger: Floats

    @classmethod
    def of(cls, rule: str, mated: BestIdentities, stranger: BestIdentities) -> _RuleScores:
        return cls(rule, mated, stranger.distance.astype(np.float64))

    def identified(self, code_G: Ints, threshold: float) -> NDArray[np.bool_]:
        """Whether each mated probe's best identity is right and within the threshold."""
        within_G = matches(self.mated.distance, threshold)
        return np.asarray((self.mated.code == code_G) & within_G)


def _rows(best: BestIdentities, which_P: NDArray[np.bool_]) -> BestIdentities:
    return BestIdentities(best.code[which_P], best.distance[which_P], best.runner_up[which_P])


def _rules_to_compare(rule: str, has_more: NDArray[np.bool_]) -> tuple[str, ...]:
    if rule != "auto":
        return (rule,)
    return RULES if has_more.any() else RULES[:1]


def _fit(
    scores: list[_RuleScores],
    probes: _Probes,
    target: float,
    size: tuple[int, int],
    seed: int,
    replicates: int,
) -> OpenSetCalibration:
    """Choose the rule, and measure the calibration on its scores."""
    thresholds = [
        finite_threshold(threshold_at_far(score.stranger, target), target) for score in scores
    ]
    by_rule = {}
    if len(probes.code):
        by_rule = {
            score.rule: float(score.identified(probes.code, threshold).mean())
            for score, threshold in zip(scores, thresholds, strict=True)
        }
    place = int(np.argmax(list(by_rule.values()))) if by_rule else 0
    chosen, unadjusted = scores[place], thresholds[place]
    at, limit = _for_new_strangers(chosen, probes, unadjusted, target, seed, replicates)
    threshold = at.value
    assert threshold is not None
    tpir, rank_1 = _estimates(chosen, probes, threshold, seed, replicates)
    right = chosen.mated.code == probes.code
    accepted = matches(chosen.mated.distance, threshold)
    gap = margins(chosen.mated.distance, chosen.mated.runner_up, threshold)
    contested = accepted & np.isfinite(gap)
    stranger_S = np.sort(chosen.stranger)
    return OpenSetCalibration(
        rule=chosen.rule,
        target_fpir=float(target),
        threshold=threshold,
        low=at.low,
        high=at.high,
        margin=_smallest_margin(gap[contested], ~right[contested]),
        num_identities=size[0],
        num_templates=size[1],
        num_mated=len(probes.code),
        num_strangers=len(stranger_S),
        tpir=tpir,
        rank_1=rank_1,
        by_rule=by_rule,
        strangers=tuple(stranger_S[kept_ranks(len(stranger_S))].tolist()),
        curve=_curve(chosen, probes, right, seed),
        unadjusted=unadjusted,
        fpir_limit=limit,
    )


def _for_new_strangers(
    score: _RuleScores,
    probes: _Probes,
    unadjusted: float,
    target: float,
    seed: int,
    replicates: int,
) -> tuple[Estimate, float | None]:
    """The threshold for strangers that are new, by a bootstrap over their identities.

    Returns:
        The threshold with its interval, and the FPIR that it keeps on new strangers with a
        confidence of 95 %; None if these are too few for a statement.
    """
    _, own_S = np.unique(probes.stranger_own, return_inverse=True)

    def thresholds(count_I: Ints) -> Floats:
        weight_S = count_I[own_S]
        rates = (target, EXCESS * target)
        # Copies of the one nearest stranger may exceed the target.
        at = np.array([threshold_at_far(score.stranger, rate, weight_S) for rate in rates])
        return np.where(np.isfinite(at), at, math.nan)

    num = int(own_S.max()) + 1
    at_R2 = replicate(thresholds, num, seed=seed, replicates=replicates)
    low, high = interval(at_R2[:, 0] if len(at_R2) else [])
    if low is None or high is None or EXCESS * target >= 1:
        return Estimate(unadjusted, low, high), None
    threshold = min(unadjusted, lowest(at_R2[:, 1]))
    return Estimate(threshold, min(low, threshold), max(high, threshold)), EXCESS * target


def _estimates(
    score: _RuleScores, probes: _Probes, threshold: float, seed: int, replicates: int
) -> tuple[Estimate, Estimate]:
    """`tpir` and `rank_1`; the bootstrap redraws identities and not the gallery."""
    right = score.mated.code == probes.code
    if not len(right):
        return Estimate(None), Estimate(None)
    hit_2G = np.stack([score.identified(probes.code, threshold), right]).astype(np.float64)
    num = int(probes.mated_own.max()) + 1
    tpir, rank_1 = mean_estimates(hit_2G, probes.mated_own, num, seed=seed, replicates=replicates)
    return tpir, rank_1


def _smallest_margin(gap_C: Floats, wrong_C: NDArray[np.bool_]) -> float:
    """Margin (see `OpenSetCalibration`), from probes with two identities within the threshold."""
    if len(gap_C) < FEWEST_CONTESTED or wrong_C.mean() <= CONTESTED_WRONG:
        return 0.0
    order = np.argsort(gap_C)
    gap, first = np.unique(gap_C[order], return_index=True)
    num = len(order) - first
    num_wrong = wrong_C[order][::-1].cumsum()[::-1][first]
    kept = np.flatnonzero((num >= FEWEST_CONTESTED) & (num_wrong <= CONTESTED_WRONG * num))
    return float(gap[kept[0]] if len(kept) else np.nextafter(gap[-1], np.inf))


def _curve(
    score: _RuleScores, probes: _Probes, right_G: NDArray[np.bool_], seed: int
) -> Platt | Isotonic | None:
    """Probability that the best identity is right, if half of the probes are mated.

    The fits give right and wrong answers half of the weight each. So the wrong answers to mated
    probes are repeated or thinned, evenly by distance, to their proportion to strangers when half
    of the probes are mated. Then the odds are turned back to their share.
    """
    if not right_G.any():
        return None
    distance = score.mated.distance.astype(np.float64)
    rank_1 = float(right_G.mean())
    wrong = np.flatnonzero(~right_G)[np.argsort(distance[~right_G], kind="stable")]
    num_wrong = round((1 - rank_1) * len(score.stranger))
    wrong = wrong[(np.arange(num_wrong) * len(wrong)) // max(num_wrong, 1)]
    dist_N = np.concatenate([distance[right_G], distance[wrong], score.stranger])
    own_N = np.concatenate(
        [probes.mated_own[right_G], probes.mated_own[wrong], probes.stranger_own]
    )
    same_N = np.arange(len(dist_N)) < np.count_nonzero(right_G)
    _, own_N = np.unique(own_N, return_inverse=True)
    platt, isotonic = held_out_losses(dist_N, same_N, own_N, own_N, seed)
    odds = rank_1 / (2 - rank_1)
    if platt is not None and isotonic is not None and isotonic < platt:
        return _at_odds(fit_isotonic(dist_N, same_N), odds)
    fitted = fit_platt(dist_N, same_N)
    return replace(fitted, b=fitted.b - math.log(odds))


def _at_odds(curve: Isotonic, odds: float) -> Isotonic:
    """The curve for right answers that are `odds` times as frequent as in the fit."""
    y = np.array(curve.y)
    # The parentheses keep 1 at 1; the minimum undoes rises of one last bit from rounding.
    turned = np.minimum.accumulate(odds * y / (odds * y + (1 - y)))
    return replace(curve, y=tuple(turned.tolist()))
