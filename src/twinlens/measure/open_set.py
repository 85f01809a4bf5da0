"""Open-set identification: whether a gallery identifies its identities and rejects strangers.

Identities are split at random into enrolled ones and strangers, half and half, several times. Some
pictures of each enrolled identity are its templates; the others are *mated* probes, and all
pictures of strangers are *non-mated* ones. As in NIST's FRVT 1:N (Grother, Ngan & Hanaoka 2019,
NISTIR 8271, section 3) and ISO/IEC 19795-1:2021:

- FPIR(t), false positive identification rate: the share of non-mated probes with an identity
  within the threshold t;
- DIR(t), detection and identification rate (Phillips, Grother & Micheals 2011): the share of mated
  probes whose best identity is right and within t. NIST's FNIR at rank 1 is 1 - DIR;
- rank-1: the DIR without a threshold.

A DIR at an FPIR uses the largest threshold that keeps to it on the same strangers. `held_out` takes
the threshold from half of the strangers, and tests it on the other half.

All rates are means over the splits. Intervals redraw identities, which count in each split in their
role there. If copies of the one nearest stranger exceed the FPIR, a redrawn split cannot resolve
it, and is left out.

Shapes: N pictures, D numbers in an embedding, I identities, G mated probes, S non-mated ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.display import Result
from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, replicate
from twinlens.measure.error_rates import DetCurve, point_at_far
from twinlens.measure.fusion import check_rule
from twinlens.measure.open_set_split import OpenSetSplit, SplitScores
from twinlens.measure.pairs import Comparison, OnProgress

__all__ = ["SIZES", "TARGET_FPIRS", "IdentificationAtThreshold", "IdentificationRates",
           "OpenSetResult", "open_set"]  # fmt: skip

TARGET_FPIRS = ("0.01", "0.1")
SIZES = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
CURVE_POINTS = 48

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class IdentificationAtThreshold:
    """Rates at a threshold: mated probes identified, `dir`, and strangers rejected."""

    dir: Estimate
    turned_away: Estimate

    def as_json(self) -> dict[str, Any]:
        """`{"dir", "turned_away"}`."""
        return {"dir": self.dir.as_json(), "turned_away": self.turned_away.as_json()}


@dataclass(frozen=True)
class IdentificationRates:
    """Rates of galleries of `num_enrolled` identities.

    `dir_at_fpir` has no value for fewer non-mated probes than 1 / FPIR. `pair_threshold` holds the
    rates at the threshold for pairs; None without one.
    """

    num_enrolled: int
    rank_1: Estimate
    dir_at_fpir: Mapping[str, Estimate]
    pair_threshold: IdentificationAtThreshold | None

    def as_json(self) -> dict[str, Any]:
        """The rates; without `pair_threshold` if None."""
        pair = self.pair_threshold
        return {
            "num_enrolled": self.num_enrolled,
            "rank_1": self.rank_1.as_json(),
            "dir_at_fpir": {at: rate.as_json() for at, rate in self.dir_at_fpir.items()},
            **({} if pair is None else {"pair_threshold": pair.as_json()}),
        }


@dataclass(frozen=True, repr=False)
class OpenSetResult(Result):
    """Identification rates of galleries of half the identities, with the rest as strangers.

    Attributes:
        rule: fusion rule.
        shot: templates of each enrolled identity.
        draws: number of splits into enrolled ones and strangers.
        num_strangers: identities that are strangers in each split.
        num_mated: mated probes of all splits together.
        num_nonmated: non-mated probes of all splits together.
        threshold: the threshold for pairs; None without one.
        whole: rates of the whole galleries.
        held_out: rates on strangers that did not set the threshold, by target FPIR; without a value
            if half of the strangers cannot resolve the FPIR.
        by_size: rates of smaller galleries, ascending, with the whole ones last.
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
        """Counts, rates of the whole galleries, and the lists `by_size` and `curve`."""
        names = ("rule", "shot", "draws", "num_strangers", "num_mated", "num_nonmated")
        whole = self.whole.as_json()
        if self.threshold is not None:
            whole["pair_threshold"] = {"threshold": self.threshold, **whole["pair_threshold"]}
        return {
            **{name: getattr(self, name) for name in names},
            **whole,
            "held_out": {target: part.as_json() for target, part in self.held_out.items()},
            "by_size": [part.as_json() for part in self.by_size],
            "curve": [{"fpir": fpir, "dir": rate} for fpir, rate in self.curve],
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
    progress: OnProgress | None = None,
) -> OpenSetResult | None:
    """Rank-1, DIR at FPIR and strangers rejected, by gallery size.

    Identities with more than `shot` pictures can be enrolled; half of all identities are, or fewer
    if fewer can be. Each split searches for up to 5,000 probes of each kind.

    Args:
        emb_ND: embeddings of genuine pictures, shape (N, D).
        label: identities as integers, shape (N,).
        comparison: distances between embeddings.
        shot: templates of each enrolled identity.
        rule: fusion rule, of `fusion.RULES`.
        pair_threshold: threshold for pairs, to be measured on strangers.
        sizes: sizes of smaller galleries, if there are so many identities; by default 5, 10, 20,
            50, ...
        draws: number of splits.
        seed: random seed for splits and bootstrap.
        replicates: number of bootstrap replicates.
        progress: called with the number of galleries done and of all galleries.
    Returns:
        None for fewer than 2 identities to enrol, or fewer than 2 strangers.
    Raises:
        ConfigError: unknown rule.
        DataError: `shot`, `draws` or a size below 1, or a distance that is not a finite number.
    """
    check_rule(rule)
    if min(shot, draws, *(sizes or ())) < 1:
        raise DataError(
            f"shot, draws and sizes must each be at least 1, found {shot}, {draws} and {sizes}"
        )
    names, code_N, count_I = np.unique(np.asarray(label), return_inverse=True, return_counts=True)
    num_enrolled = min(len(names) // 2, int(np.count_nonzero(count_I > shot)))
    if num_enrolled < 2 or len(names) - num_enrolled < 2:
        return None
    gallery_sizes = sorted({s for s in (SIZES if sizes is None else sizes) if s < num_enrolled})
    gallery_sizes.append(num_enrolled)
    splits = [
        OpenSetSplit.draw(
            code_N, count_I, num_enrolled, shot, np.random.default_rng([seed, number])
        )
        for number in range(draws)
    ]
    emb_ND = np.asarray(emb_ND, dtype=np.float32)
    scores: dict[int, list[SplitScores]] = {size: [] for size in gallery_sizes}
    for done, (split, size) in enumerate(itertools.product(splits, gallery_sizes), start=1):
        scores[size].append(split.search(emb_ND, code_N, size, comparison, rule))
        if progress is not None:
            progress(done, draws * len(gallery_sizes))
    bootstrap = _OpenSetBootstrap(len(names), seed, replicates)
    whole = scores[num_enrolled]
    by_size = tuple(bootstrap.gallery(size, scores[size], pair_threshold) for size in gallery_sizes)
    return OpenSetResult(
        rule=rule,
        shot=shot,
        draws=draws,
        num_strangers=len(names) - num_enrolled,
        num_mated=sum(len(score.right) for score in whole),
        num_nonmated=sum(len(score.stranger) for score in whole),
        threshold=pair_threshold,
        whole=by_size[-1],
        held_out=bootstrap.held_out(whole),
        by_size=by_size,
        curve=_curve(whole),
    )


@dataclass(frozen=True)
class _OpenSetBootstrap:
    """Settings of the bootstrap."""

    num_identities: int
    seed: int
    replicates: int

    def estimates(
        self, statistic: Callable[[Ints], Floats], known: Sequence[bool]
    ) -> list[Estimate]:
        """Estimates of a statistic of counts of identities; without a value if not `known`."""
        values = statistic(np.ones(self.num_identities, dtype=np.int64))
        values = np.where(known, values, np.nan)
        drawn = replicate(
            statistic, self.num_identities, seed=self.seed, replicates=self.replicates
        )
        return estimates(values.tolist(), drawn)

    def gallery(
        self, size: int, scores: Sequence[SplitScores], pair_threshold: float | None
    ) -> IdentificationRates:
        """Rates of galleries of one size."""

        def rates(count_I: Ints) -> Floats:
            return _mean([_rates(score, count_I, pair_threshold) for score in scores])

        fewest = min(len(score.stranger) for score in scores)
        resolved = [1 / fewest <= float(target) for target in TARGET_FPIRS]
        given = pair_threshold is not None
        rank_1, *dirs, at, away = self.estimates(rates, [True, *resolved, given, given])
        by_target = dict(zip(TARGET_FPIRS, dirs, strict=True))
        return IdentificationRates(
            size, rank_1, by_target, IdentificationAtThreshold(at, away) if given else None
        )

    def held_out(self, scores: Sequence[SplitScores]) -> dict[str, IdentificationAtThreshold]:
        """Rates on the half of the strangers that did not set the threshold."""

        def rates(count_I: Ints) -> Floats:
            return _mean([_held_out(score, count_I) for score in scores])

        fewest = min(len(half.stranger) for score in scores for half in score.halves)
        resolved = [1 / fewest <= float(target) for target in TARGET_FPIRS]
        dir_and_rejected = iter(self.estimates(rates, np.repeat(resolved, 2).tolist()))
        return {
            target: IdentificationAtThreshold(next(dir_and_rejected), next(dir_and_rejected))
            for target in TARGET_FPIRS
        }


def _rates(score: SplitScores, count_I: Ints, pair_threshold: float | None) -> Floats:
    """Rank-1, DIR at each target, and DIR and strangers rejected at the threshold for pairs."""
    curve = score.curve(count_I)
    if curve is None:
        return np.full(3 + len(TARGET_FPIRS), np.nan)
    thresholds = [_threshold(curve, count_I, target) for target in TARGET_FPIRS]
    dirs = [np.nan if at is None else 1 - curve.at(at)[1] for at in thresholds]
    fpir, missed = (np.nan, np.nan) if pair_threshold is None else curve.at(pair_threshold)
    return np.array([score.rank_1(count_I), *dirs, 1 - missed, 1 - fpir])


def _held_out(score: SplitScores, count_I: Ints) -> Floats:
    """DIR and strangers rejected at each target, with thresholds from the other half."""
    one, other = (half.curve(count_I) for half in score.halves)
    share = [count_I[half.stranger_own].sum() for half in score.halves]
    if one is None or other is None:
        return np.full(2 * len(TARGET_FPIRS), np.nan)
    rates = []
    for target in TARGET_FPIRS:
        of_one, of_other = (_threshold(curve, count_I, target) for curve in (one, other))
        if of_one is None or of_other is None:
            rates += [np.nan, np.nan]
            continue
        fpir, missed = np.array([one.at(of_other), other.at(of_one)]).T
        rates += [1 - missed.mean(), 1 - np.average(fpir, weights=share)]
    return np.array(rates)


def _threshold(curve: DetCurve, count_I: Ints, target: str) -> float | None:
    """Largest threshold that keeps to the FPIR; None if redrawn copies leave none."""
    point = point_at_far(curve, float(target))
    return None if point == 0 and count_I.max() > 1 else float(curve.threshold[point])


def _mean(values: Sequence[Floats]) -> Floats:
    """Mean over the splits that have a value; NaN if none has."""
    value_AV = np.stack(values)
    known_AV = ~np.isnan(value_AV)
    total_V = np.where(known_AV, value_AV, 0).sum(axis=0)
    count_V = known_AV.sum(axis=0)
    return np.where(count_V > 0, total_V / np.maximum(count_V, 1), np.nan)


def _curve(scores: Sequence[SplitScores]) -> tuple[tuple[float, float], ...]:
    """DIR at each FPIR, from one non-mated probe to all of them."""
    fewest = min(len(score.stranger) for score in scores)
    curves = [score.pairs.curve() for score in scores]
    fpirs = np.geomspace(1 / fewest, 1, CURVE_POINTS).tolist()
    fpirs[-1] = 1.0
    dirs = [
        float(np.mean([1 - curve.frr[point_at_far(curve, fpir)] for curve in curves]))
        for fpir in fpirs
    ]
    return tuple(zip(fpirs, dirs, strict=True))
