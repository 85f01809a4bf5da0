"""The threshold of a gallery: how close is close enough, when anyone may ask?

A threshold for pairs accepts a stranger with some small chance *per comparison*, and a stranger is
compared with everyone in a gallery. So a gallery needs a threshold of its own, at a target false
positive identification rate (FPIR, ISO/IEC 19795-1:2021: the share of probes of people who are not
enrolled for whom somebody is returned). It is measured on the gallery's own templates, each left
out in turn, or on pictures given for it. What becomes of it on disk, and how a gallery is stored,
this module does not know.

Shapes: P probes (of which G mated, S strangers), M templates, D numbers in an embedding, K knots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, replicate
from twinlens.measure.error_rates import matches, threshold_at_far
from twinlens.measure.fusion import RULES, check_rule
from twinlens.measure.open_set_calibration import (
    OpenSetCalibration,
    check_fpir,
    check_num_strangers,
    finite_threshold,
    kept_ranks,
    margins,
)
from twinlens.measure.pairs import Comparison
from twinlens.measure.probability import (
    Isotonic,
    Platt,
    fit_isotonic,
    fit_platt,
    held_out_losses,
)
from twinlens.measure.rank_probes import BestIdentities, balanced_sample, rank_left_out, rank_probes

__all__ = ["calibrate_open_set", "calibrate_open_set_on_probes"]

MOST_PROBES, LET_IN = 2000, 20
"""Probes of each kind; more where so few would not bring that many strangers within the target."""

CONTESTED_WRONG, FEWEST_CONTESTED = 0.1, 10
"""Of answers that had a rival within the threshold so many may be wrong, judged on so many."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]


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
    progress: Progress | None = None,
) -> OpenSetCalibration:
    """Calibrate a gallery on its own templates.

    Each template asked about is a stranger to the gallery without its identity; and, if its
    identity has another template, a mated probe to the gallery without the template itself. Up
    to `most_probes` of each kind are drawn, of as many identities as possible.

    Args:
        emb_MD: templates, shape (M, D).
        code_M: their identities, integers from 0, shape (M,).
        comparison: gives the distances.
        target_fpir: a fraction in (0, 1).
        rule: of `fusion.RULES`, or "auto": the one with the highest `tpir` at the target, the
            first where they are equal; "nearest" where each identity has one template, since
            the rules are one then.
        most_probes: of each kind; by default 2,000, or 20 / `target_fpir` where that is more.
        seed: draws probes, replicates and folds.
        replicates: how many times the identities are redrawn.
        progress: called with the probes done and all probes.
    Raises:
        CalibrationError: fewer strangers than 1 / `target_fpir` (a gallery of one identity has
            none), or so many of them equally close that no threshold keeps to it.
        ConfigError: no such rule.
        DataError: a distance that is not a finite number.
    """
    check_rule(rule, "auto")
    check_fpir(target_fpir)
    if most_probes is None:
        most_probes = max(MOST_PROBES, math.ceil(LET_IN / target_fpir))
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
    found = rank_left_out(row_P, emb_MD, code, comparison, _tried(rule, pair_M), progress=progress)
    is_mated, is_stranger = np.isin(row_P, mated), np.isin(row_P, strangers)
    probes = _Probes(code[row_P][is_mated], own_M[row_P][is_mated], own_M[row_P][is_stranger])
    by_rule = [
        _Answers.of(name, _rows(found[0][name], is_mated), _rows(found[1][name], is_stranger))
        for name in found[0]
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
    progress: Progress | None = None,
) -> OpenSetCalibration:
    """Calibrate a gallery on pictures that are not in it, strangers among them.

    Args:
        probe_emb_PD: embeddings of these pictures, shape (P, D).
        probe_code_P: whom each shows, by the gallery's codes; -1 for a stranger, and a code that
            the gallery does not have is one too; shape (P,).
        gallery_emb_MD: templates, shape (M, D).
        gallery_code_M: their identities, integers from 0, shape (M,).
        comparison: gives the distances.
        target_fpir: a fraction in (0, 1).
        rule: as for `calibrate_open_set`.
        probe_identity_P: who is who among the probes, strangers too, in any terms, shape (P,):
            the bootstrap redraws these. By default each picture of a stranger is one of its own.
        seed: draws replicates and folds.
        replicates: how many times the identities are redrawn.
        progress: called with the probes done and all probes.
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
    found = rank_probes(probe_emb_PD, gallery_emb_MD, gallery_code, comparison,
                _tried(rule, count_I > 1), progress=progress)  # fmt: skip
    probes = _Probes(code[is_mated], own_P[is_mated], own_P[~is_mated])
    by_rule = [
        _Answers.of(name, _rows(asked, is_mated), _rows(asked, ~is_mated))
        for name, asked in found.items()
    ]
    size = (len(names), len(gallery_code))
    return _fit(by_rule, probes, target_fpir, size, seed, replicates)


@dataclass(frozen=True, eq=False)
class _Probes:
    """Whom the mated probes show, `code` (G,), and whose the probes are, for the bootstrap.

    `mated_own` (G,) and `stranger_own` (S,) count the identities of both kinds from 0.
    """

    code: Ints
    mated_own: Ints
    stranger_own: Ints


@dataclass(frozen=True, eq=False)
class _Answers:
    """What one rule answered to mated probes, and strangers' best distances (S,)."""

    rule: str
    mated: BestIdentities
    stranger: Floats

    @classmethod
    def of(cls, rule: str, mated: BestIdentities, stranger: BestIdentities) -> _Answers:
        return cls(rule, mated, stranger.distance.astype(np.float64))

    def identified(self, code_G: Ints, threshold: float) -> NDArray[np.bool_]:
        """Whether each mated probe's best identity is right and within the threshold."""
        within_G = matches(self.mated.distance, threshold)
        return np.asarray((self.mated.code == code_G) & within_G)


def _rows(asked: BestIdentities, which_P: NDArray[np.bool_]) -> BestIdentities:
    return BestIdentities(asked.code[which_P], asked.distance[which_P], asked.runner_up[which_P])


def _tried(rule: str, has_more: NDArray[np.bool_]) -> tuple[str, ...]:
    if rule != "auto":
        return (rule,)
    return RULES if has_more.any() else RULES[:1]


def _fit(
    answers: list[_Answers],
    probes: _Probes,
    target: float,
    size: tuple[int, int],
    seed: int,
    replicates: int,
) -> OpenSetCalibration:
    """Choose the rule, and read everything off its answers."""
    thresholds = [
        finite_threshold(threshold_at_far(answer.stranger, target), target) for answer in answers
    ]
    by_rule = {}
    if len(probes.code):
        by_rule = {
            answer.rule: float(answer.identified(probes.code, threshold).mean())
            for answer, threshold in zip(answers, thresholds, strict=True)
        }
    place = int(np.argmax(list(by_rule.values()))) if by_rule else 0
    chosen, threshold = answers[place], thresholds[place]
    at, tpir, rank_1 = _measured(chosen, probes, threshold, target, seed, replicates)
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
    )


def _measured(
    answer: _Answers,
    probes: _Probes,
    threshold: float,
    target: float,
    seed: int,
    replicates: int,
) -> tuple[Estimate, Estimate, Estimate]:
    """The threshold, `tpir` and `rank_1`; identities are redrawn, and the gallery is not."""
    right = answer.mated.code == probes.code
    distance = answer.mated.distance.astype(np.float64)

    def shares(threshold: float, weight_G: Ints) -> list[float]:
        hit_2G = np.stack([right & matches(distance, threshold), right])
        total = weight_G.sum()
        return list(hit_2G @ weight_G / total) if total else [math.nan, math.nan]

    def redrawn(count_I: Ints) -> Floats:
        weight_G, weight_S = count_I[probes.mated_own], count_I[probes.stranger_own]
        if not weight_S.any():
            return np.full(3, math.nan)
        at = threshold_at_far(answer.stranger, target, weight_S)
        identified, best = shares(at, weight_G)
        # Copies of the one nearest stranger may be more than the target allows.
        return np.array([at, identified, best] if at > -np.inf else [math.nan, math.nan, best])

    num = int(max(probes.stranger_own.max(), probes.mated_own.max(initial=0))) + 1
    values = [threshold, *shares(threshold, np.ones(len(right), dtype=np.int64))]
    found = estimates(values, replicate(redrawn, num, seed=seed, replicates=replicates))
    return found[0], found[1], found[2]


def _smallest_margin(gap_C: Floats, wrong_C: NDArray[np.bool_]) -> float:
    """See `OpenSetCalibration.margin`; of probes with two identities near enough, shape (C,)."""
    if len(gap_C) < FEWEST_CONTESTED or wrong_C.mean() <= CONTESTED_WRONG:
        return 0.0
    order = np.argsort(gap_C)
    gap, first = np.unique(gap_C[order], return_index=True)
    num = len(order) - first
    num_wrong = wrong_C[order][::-1].cumsum()[::-1][first]
    kept = np.flatnonzero((num >= FEWEST_CONTESTED) & (num_wrong <= CONTESTED_WRONG * num))
    return float(gap[kept[0]] if len(kept) else np.nextafter(gap[-1], np.inf))


def _curve(
    answer: _Answers, probes: _Probes, right_G: NDArray[np.bool_], seed: int
) -> Platt | Isotonic | None:
    """The probability that the best identity is right, where half of the askers are enrolled.

    The fits give right and wrong answers half of the weight each. So wrong answers to mated
    probes are repeated or thinned, evenly by distance, until they stand to strangers as they do
    where half of the askers are mated; then the odds are turned back to their share.
    """
    if not right_G.any():
        return None
    distance = answer.mated.distance.astype(np.float64)
    rank_1 = float(right_G.mean())
    wrong = np.flatnonzero(~right_G)[np.argsort(distance[~right_G], kind="stable")]
    num_wrong = round((1 - rank_1) * len(answer.stranger))
    wrong = wrong[(np.arange(num_wrong) * len(wrong)) // max(num_wrong, 1)]
    dist_N = np.concatenate([distance[right_G], distance[wrong], answer.stranger])
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
    """The curve where right answers are `odds` times as frequent as the fit took them to be."""
    y = np.array(curve.y)
    # The parentheses keep 1 at 1, and what rounding raises by a last bit is brought down.
    turned = np.minimum.accumulate(odds * y / (odds * y + (1 - y)))
    return replace(curve, y=tuple(turned.tolist()))
