"""Open-set identification: whom does a gallery name, and whom does it turn away?

Identities are divided at random into enrolled ones and strangers, half and half, several times.
Some pictures of each enrolled identity are its templates; the others are *mated* probes, and all
pictures of strangers are *non-mated* ones. As in NIST's FRVT 1:N (Grother, Ngan & Hanaoka 2019,
NISTIR 8271, section 3) and ISO/IEC 19795-1:2021:

- FPIR(t), false positive identification rate: the share of non-mated probes for which somebody
  is within the threshold t;
- DIR(t), detection and identification rate (Phillips, Grother & Micheals 2011): the share of
  mated probes whose best identity is right and within t. NIST's FNIR at rank 1 is 1 - DIR;
- rank-1: the DIR without a threshold, as if nobody were a stranger.

A DIR at an FPIR takes the largest threshold that keeps to it on the very strangers that it is
judged by; `held_out` takes it from half of the strangers and judges it by the other half.

Everything is a mean over the divisions, and intervals redraw identities, which then count in each
division in the role that they have there. Where the copies of the one nearest stranger are more
than an FPIR allows, a redrawn division cannot resolve that FPIR, and is left out. This module does
not know where thresholds for pairs come from.

Shapes: N pictures, D numbers in an embedding, I identities, G mated probes, S non-mated ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, replicate
from twinlens.measure.error_rates import DetCurve, point_at_far
from twinlens.measure.fusion import check_rule
from twinlens.measure.open_set_split import OpenSetSplit, SplitScores
from twinlens.measure.pairs import Comparison

__all__ = [
    "SIZES",
    "TARGET_FPIRS",
    "IdentificationAtThreshold",
    "IdentificationRates",
    "OpenSetResult",
    "open_set",
]

TARGET_FPIRS = ("0.01", "0.1")
SIZES = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
CURVE_POINTS = 48

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class IdentificationAtThreshold:
    """What a threshold does: mated probes identified, `dir`, and strangers turned away."""

    dir: Estimate
    turned_away: Estimate

    def as_json(self) -> dict[str, Any]:
        """`{"dir", "turned_away"}`."""
        return {"dir": self.dir.as_json(), "turned_away": self.turned_away.as_json()}


@dataclass(frozen=True)
class IdentificationRates:
    """The figures of galleries of `num_enrolled` identities.

    A figure of `dir_at_fpir` has no value where there are fewer non-mated probes than 1 / FPIR.
    `pair_threshold` is what the threshold for pairs does; None where none was given.
    """

    num_enrolled: int
    rank_1: Estimate
    dir_at_fpir: Mapping[str, Estimate]
    pair_threshold: IdentificationAtThreshold | None

    def as_json(self) -> dict[str, Any]:
        """The figures; `pair_threshold` where it is."""
        found = {
            "num_enrolled": self.num_enrolled,
            "rank_1": self.rank_1.as_json(),
            "dir_at_fpir": {at: figure.as_json() for at, figure in self.dir_at_fpir.items()},
        }
        if self.pair_threshold is not None:
            found["pair_threshold"] = self.pair_threshold.as_json()
        return found


@dataclass(frozen=True)
class OpenSetResult:
    """How well galleries of half the identities name the enrolled and turn away strangers.

    Attributes:
        rule: how templates of an identity are fused.
        shot: templates of each enrolled identity.
        draws: divisions into enrolled ones and strangers.
        num_strangers: identities that are strangers in each.
        num_mated: mated probes of all divisions together.
        num_nonmated: non-mated probes of all divisions together.
        threshold: the threshold for pairs; None where none was given.
        whole: the figures of the whole galleries.
        held_out: by the target FPIR, what a threshold does to other strangers than those it was
            chosen by; without a value where half of the strangers cannot resolve the FPIR.
        by_size: the figures of smaller galleries, ascending, and those of the whole ones last.
        curve: pairs of FPIR and DIR, the FPIR ascending to 1.
    """

    rule: str
    shot: int
    draws: int
    num_strangers: int
    num_mated: int
    num_nonmated: int
    threshold: float | None
    whole: IdentificationRates
    held_out: Mapping[str, IdentificationAtThreshold]
    by_size: tuple[IdentificationRates, ...]
    curve: tuple[tuple[float, float], ...]

    def as_json(self) -> dict[str, Any]:
        """The counts, the figures of the whole galleries, and lists `by_size` and `curve`."""
        names = ("rule", "shot", "draws", "num_strangers", "num_mated", "num_nonmated")
        whole = self.whole.as_json()
        if self.threshold is not None:
            whole["pair_threshold"] = {"threshold": self.threshold, **whole["pair_threshold"]}
        return {
            **{name: getattr(self, name) for name in names},
            **whole,
            "held_out": {target: part.as_json() for target, part in self.held_out.items()},
            "by_size": [part.as_json() for part in self.by_size],
            "curve": [{"fpir": fpir, "dir": found} for fpir, found in self.curve],
        }


def open_set(
    emb_ND: NDArray[Any],
    label: ArrayLike,
    comparison: Comparison,
    *,
    shot: int = 1,
    rule: str = "nearest",
    pair_threshold: float | None = None,
    sizes: Sequence[int] | None = None,
    draws: int = 10,
    seed: int = 0,
    replicates: int = REPLICATES,
    progress: Progress | None = None,
) -> OpenSetResult | None:
    """Rank-1, DIR at FPIR and strangers turned away, by the size of the gallery.

    Identities with more than `shot` pictures can be enrolled; half of all are, or as many as there
    are of these. Up to 5,000 probes of each kind are asked about in each division.

    Args:
        emb_ND: embeddings of genuine pictures, shape (N, D).
        label: identities as integers, shape (N,).
        comparison: gives the distances.
        shot: templates of each enrolled identity.
        rule: how they are fused, of `fusion.RULES`.
        pair_threshold: a threshold for pairs, to see what it does to strangers.
        sizes: of smaller galleries, as far as there are so many identities; 5, 10, 20, 50, ... by
            default.
        draws: divisions.
        seed: draws divisions and replicates.
        replicates: how many times the identities are redrawn.
        progress: called with the galleries done and all galleries.
    Returns:
        None where fewer than 2 identities could be enrolled, or fewer than 2 would be strangers.
    Raises:
        ConfigError: no such rule.
        DataError: `shot`, `draws` or a size below 1, or a distance that is not a finite number.
    """
    check_rule(rule)
    if min(shot, draws, *(sizes or ())) < 1:
        raise DataError(f"found {shot} shots, {draws} draws, sizes {sizes}; each is at least 1")
    names, code_N, count_I = np.unique(np.asarray(label), return_inverse=True, return_counts=True)
    num_enrolled = min(len(names) // 2, int(np.count_nonzero(count_I > shot)))
    if num_enrolled < 2 or len(names) - num_enrolled < 2:
        return None
    wanted = sorted({s for s in (SIZES if sizes is None else sizes) if s < num_enrolled})
    wanted.append(num_enrolled)
    divisions = [
        OpenSetSplit.draw(
            code_N, count_I, num_enrolled, shot, np.random.default_rng([seed, number])
        )
        for number in range(draws)
    ]
    emb_ND = np.asarray(emb_ND, dtype=np.float32)
    trials: dict[int, list[SplitScores]] = {size: [] for size in wanted}
    for done, (division, size) in enumerate(itertools.product(divisions, wanted), start=1):
        trials[size].append(division.search(emb_ND, code_N, size, comparison, rule))
        if progress is not None:
            progress(done, draws * len(wanted))
    drawing = _OpenSetBootstrap(len(names), seed, replicates)
    whole = trials[num_enrolled]
    by_size = tuple(drawing.gallery(size, trials[size], pair_threshold) for size in wanted)
    return OpenSetResult(
        rule=rule,
        shot=shot,
        draws=draws,
        num_strangers=len(names) - num_enrolled,
        num_mated=sum(len(trial.right) for trial in whole),
        num_nonmated=sum(len(trial.stranger) for trial in whole),
        threshold=pair_threshold,
        whole=by_size[-1],
        held_out=drawing.held_out(whole),
        by_size=by_size,
        curve=_curve(whole),
    )


@dataclass(frozen=True)
class _OpenSetBootstrap:
    """How the figures' intervals are drawn."""

    num_identities: int
    seed: int
    replicates: int

    def estimates(
        self, statistic: Callable[[Ints], Floats], known: Sequence[bool]
    ) -> list[Estimate]:
        """What `statistic` gives of counts of identities; no value where it is not `known`."""
        values = statistic(np.ones(self.num_identities, dtype=np.int64))
        values = np.where(known, values, np.nan)
        drawn = replicate(
            statistic, self.num_identities, seed=self.seed, replicates=self.replicates
        )
        return estimates(values.tolist(), drawn)

    def gallery(
        self, size: int, trials: Sequence[SplitScores], pair_threshold: float | None
    ) -> IdentificationRates:
        """The figures of galleries of one size."""

        def measured(count_I: Ints) -> Floats:
            return _mean([_read_off(trial, count_I, pair_threshold) for trial in trials])

        fewest = min(len(trial.stranger) for trial in trials)
        resolved = [1 / fewest <= float(target) for target in TARGET_FPIRS]
        given = pair_threshold is not None
        rank_1, *dirs, at, away = self.estimates(measured, [True, *resolved, given, given])
        by_target = dict(zip(TARGET_FPIRS, dirs, strict=True))
        return IdentificationRates(
            size, rank_1, by_target, IdentificationAtThreshold(at, away) if given else None
        )

    def held_out(self, trials: Sequence[SplitScores]) -> dict[str, IdentificationAtThreshold]:
        """What thresholds do to the half of the strangers that they were not chosen by."""

        def measured(count_I: Ints) -> Floats:
            return _mean([_held_out(trial, count_I) for trial in trials])

        fewest = min(len(half.stranger) for trial in trials for half in trial.halves)
        resolved = [1 / fewest <= float(target) for target in TARGET_FPIRS]
        found = self.estimates(measured, np.repeat(resolved, 2).tolist())
        pairs = zip(found[::2], found[1::2], strict=True)
        return dict(
            zip(TARGET_FPIRS, itertools.starmap(IdentificationAtThreshold, pairs), strict=True)
        )


def _read_off(trial: SplitScores, count_I: Ints, pair_threshold: float | None) -> Floats:
    """Rank-1, DIR at each target, and DIR and strangers turned away at the threshold for pairs."""
    curve = trial.curve(count_I)
    if curve is None:
        return np.full(3 + len(TARGET_FPIRS), np.nan)
    thresholds = [_threshold(curve, count_I, target) for target in TARGET_FPIRS]
    dirs = [np.nan if at is None else 1 - curve.at(at)[1] for at in thresholds]
    fpir, missed = (np.nan, np.nan) if pair_threshold is None else curve.at(pair_threshold)
    return np.array([trial.rank_1(count_I), *dirs, 1 - missed, 1 - fpir])


def _held_out(trial: SplitScores, count_I: Ints) -> Floats:
    """For each target, DIR and strangers turned away, of thresholds from the other half."""
    one, other = (half.curve(count_I) for half in trial.halves)
    share = [count_I[half.stranger_own].sum() for half in trial.halves]
    if one is None or other is None:
        return np.full(2 * len(TARGET_FPIRS), np.nan)
    found = []
    for target in TARGET_FPIRS:
        of_one, of_other = (_threshold(curve, count_I, target) for curve in (one, other))
        if of_one is None or of_other is None:
            found += [np.nan, np.nan]
            continue
        fpir, missed = np.array([one.at(of_other), other.at(of_one)]).T
        found += [1 - missed.mean(), 1 - np.average(fpir, weights=share)]
    return np.array(found)


def _threshold(curve: DetCurve, count_I: Ints, target: str) -> float | None:
    """The largest that keeps to the FPIR; None where redrawn copies keep it from being had."""
    point = point_at_far(curve, float(target))
    return None if point == 0 and count_I.max() > 1 else float(curve.threshold[point])


def _mean(values: Sequence[Floats]) -> Floats:
    """The mean over divisions, of those that have a value; NaN where none has."""
    value_AV = np.stack(values)
    known_AV = ~np.isnan(value_AV)
    total_V = np.where(known_AV, value_AV, 0).sum(axis=0)
    count_V = known_AV.sum(axis=0)
    return np.where(count_V > 0, total_V / np.maximum(count_V, 1), np.nan)


def _curve(trials: Sequence[SplitScores]) -> tuple[tuple[float, float], ...]:
    """DIR over FPIR, from one stranger's probe to all of them."""
    fewest = min(len(trial.stranger) for trial in trials)
    curves = [trial.ranked.curve() for trial in trials]
    fpirs = np.geomspace(1 / fewest, 1, CURVE_POINTS).tolist()
    fpirs[-1] = 1.0
    found = [
        float(np.mean([1 - curve.frr[point_at_far(curve, fpir)] for curve in curves]))
        for fpir in fpirs
    ]
    return tuple(zip(fpirs, found, strict=True))
