"""The threshold of a gallery, and what its distances mean: how close is close enough?

`identification` measures it; here is what was measured, and what can be read from it. How a
gallery is stored, this module does not know.

Shapes: P probes, K kept distances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import CalibrationError, DataError
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.error_rates import matches
from twinlens.measure.fusion import RULES
from twinlens.measure.probability import Isotonic, Platt, probability_limits
from twinlens.measure.stored import (
    curve_as_json,
    read_count,
    read_curve,
    read_figure,
    read_number,
    read_numbers,
    read_optional,
    read_share,
    reading,
)

__all__ = [
    "OpenSetCalibration",
    "check_fpir",
    "check_num_strangers",
    "finite_threshold",
    "kept_ranks",
    "margins",
]

KEPT_EXACTLY, KEPT = 256, 512

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class OpenSetCalibration:
    """What the distances of one gallery mean, for the rule that fuses its templates.

    Attributes:
        rule: of `fusion.RULES`.
        target_fpir: the share of strangers that may be taken for somebody.
        threshold: the best identity's distance is at most this, or the answer is nobody.
        low: the lower end of the threshold's 95 % interval; None where it cannot be had.
        high: the upper end.
        margin: below this distance between the best and the runner-up, both within the
            threshold, the answer is ambiguous. Of the mated probes with two identities within the
            threshold, those with such a margin or more (see `margins`) are wrong in at most one
            case of ten; it is the smallest of 0 and the margins seen of which this holds for at
            least ten probes, and just above the largest where it holds for none. 0 where fewer
            than ten have two identities within the threshold: too few to tell.
        num_identities: identities of the gallery.
        num_templates: its templates.
        num_mated: probes whose identity was in the gallery.
        num_strangers: probes whose identity was not.
        tpir: the share of mated probes whose best identity is right and within the threshold.
        rank_1: the share of mated probes whose best identity is right. Both without a value
            where there are no mated probes.
        by_rule: `tpir` of every rule that was tried, each at its own threshold.
        strangers: distances of strangers' best identities, ascending: all of up to 512; else the
            256 smallest, and others that thin out towards the largest.
        curve: from the best identity's distance to the probability that it is right, where
            half of those who ask are enrolled; None where no mated probe was identified rightly.
    """

    rule: str
    target_fpir: float
    threshold: float
    low: float | None
    high: float | None
    margin: float
    num_identities: int
    num_templates: int
    num_mated: int
    num_strangers: int
    tpir: Estimate
    rank_1: Estimate
    by_rule: Mapping[str, float]
    strangers: tuple[float, ...]
    curve: Platt | Isotonic | None

    def threshold_at(self, fpir: float) -> float:
        """The threshold at another target; it never falls as the target grows.

        Exact up to the 256 smallest of the strangers' distances, else a little stricter.

        Raises:
            CalibrationError: fewer strangers than 1 / `fpir`, or too many equally close.
        """
        check_num_strangers(fpir, self.num_strangers)
        allowed = np.count_nonzero(
            np.arange(1, self.num_strangers + 1) / self.num_strangers <= fpir
        )
        rank_K, value_K = kept_ranks(self.num_strangers), np.array(self.strangers)
        # Up to the rank of the next kept one, no stranger is as near as it, nor counted.
        fits = (rank_K[1:] <= allowed) & (value_K[:-1] < value_K[1:])
        found = value_K[np.flatnonzero(fits)[-1]] if fits.any() else -np.inf
        if fpir >= self.target_fpir:
            found = max(found, self.threshold)
        if fpir <= self.target_fpir:
            found = min(found, self.threshold)
        return finite_threshold(float(found), fpir)

    def probability(self, distance: ArrayLike) -> Floats:
        """How likely the best identity, at such a distance, is right; never rises with it.

        Where half of those who ask are enrolled. It stays between 1 / (num_mated + 2) and
        1 - 1 / (num_strangers + 2), as `Calibration.probability` does.

        Raises:
            CalibrationError: there is no curve.
            DataError: a distance is NaN.
        """
        if self.curve is None:
            raise CalibrationError(
                "the gallery was calibrated without identities that have two templates, so it "
                "has a threshold but no probability: enrol more pictures of each and calibrate it"
            )
        dist = np.asarray(distance, dtype=np.float64)
        if np.isnan(dist).any():
            raise DataError("a distance is NaN, so no probability can be given: check the picture")
        return np.clip(self.curve(dist), *probability_limits(self.num_mated, self.num_strangers))

    def fpir_of(self, threshold: float) -> float:
        """The share of the strangers that another threshold takes for somebody.

        Exact up to the 256 smallest of the strangers' distances; beyond, halfway between the
        shares at the kept distances before and after.
        """
        rank_K = kept_ranks(self.num_strangers)
        num_within = int(np.count_nonzero(matches(np.array(self.strangers), threshold)))
        least = int(rank_K[num_within - 1]) + 1 if num_within else 0
        most = int(rank_K[num_within]) if num_within < len(rank_K) else self.num_strangers
        return (least + most) / 2 / self.num_strangers

    def fpir_at_size(self, num_identities: int) -> float:
        """The FPIR to expect of `threshold` once the gallery has so many identities.

        1 - (1 - target)^(n / n_0): each identity is one more chance to be taken for somebody.
        """
        chances = num_identities / self.num_identities
        return -math.expm1(chances * math.log1p(-self.target_fpir))

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; `from_json` gives back an equal calibration."""
        found = asdict(self)
        found["by_rule"] = dict(self.by_rule)
        found["strangers"] = list(self.strangers)
        for name in ("tpir", "rank_1"):
            found[name] = getattr(self, name).as_json()
        found["curve"] = None if self.curve is None else curve_as_json(self.curve)
        return found

    @classmethod
    def from_json(cls, values: Any) -> OpenSetCalibration:
        """Read what `as_json` gave, once json has parsed it.

        Raises:
            ModelError: something is missing, of the wrong type, or cannot be.
        """
        remedy = "run `twinlens gallery calibrate GALLERY` again"
        with reading("the gallery's calibration", remedy):
            return _read(values)


def margins(distance_P: ArrayLike, runner_up_P: ArrayLike, threshold: float) -> Floats:
    """How much farther the runner-up is than the best identity, as `margin` means it.

    Args:
        distance_P: distances of the best identities, any shape.
        runner_up_P: those of the second ones, +inf where there is none, the same shape.
        threshold: a runner-up that it does not accept is none.
    Returns:
        At least 0 (a vote may put the farther one first); +inf without a runner-up.
    """
    best, second = (np.asarray(part, dtype=np.float64) for part in (distance_P, runner_up_P))
    near = matches(second, threshold) & np.isfinite(second)
    gap = np.subtract(second, best, where=near, out=np.full(best.shape, np.inf))
    return np.asarray(np.maximum(gap, 0.0), dtype=np.float64)


def check_fpir(fpir: float) -> None:
    """Refuse a target that is no share.

    Raises:
        CalibrationError: not between 0 and 1.
    """
    if not 0 < fpir < 1:
        raise CalibrationError(f"the target FPIR is {fpir}; it must lie between 0 and 1")


def check_num_strangers(fpir: float, num_strangers: int) -> None:
    """Refuse a target that so many strangers cannot resolve.

    Raises:
        CalibrationError: not between 0 and 1, or fewer strangers than 1 / `fpir`.
    """
    check_fpir(fpir)
    if num_strangers == 0 or 1 / num_strangers > fpir:
        raise CalibrationError(
            f"found {num_strangers} pictures of strangers to ask about; an FPIR of {fpir:g} needs "
            f"at least {math.ceil(1 / fpir)}: ask for a larger FPIR, or enrol more"
        )


def kept_ranks(num: int) -> Ints:
    """Which of `num` ascending distances are kept: the ranks from 0, ascending."""
    if num <= KEPT:
        return np.arange(num)
    step = np.arange(KEPT - KEPT_EXACTLY)
    thinned = KEPT_EXACTLY + (num - 1 - KEPT_EXACTLY) * step**2 // step[-1] ** 2
    return np.unique(np.concatenate([np.arange(KEPT_EXACTLY), thinned]))


def finite_threshold(threshold: float, fpir: float) -> float:
    """The threshold, unless it accepts nothing.

    Raises:
        CalibrationError: it is infinite, since too many strangers are equally close.
    """
    if math.isfinite(threshold):
        return threshold
    raise CalibrationError(
        f"more than {fpir:.3g} of the strangers share the smallest distance, so no threshold keeps "
        "to that FPIR. Two templates that are each other's nearest share it always: ask for a "
        f"larger FPIR, or enrol more than {math.ceil(2 / fpir)} templates. Where more share it, "
        "the embeddings may have collapsed (train again), or the same picture may be enrolled "
        "under several identities (twinlens inspect DATA)"
    )


def _read(values: Any) -> OpenSetCalibration:
    found = OpenSetCalibration(
        rule=values["rule"],
        target_fpir=read_share(values, "target_fpir"),
        threshold=read_number(values, "threshold"),
        low=read_optional(values, "low"),
        high=read_optional(values, "high"),
        margin=read_number(values, "margin"),
        num_identities=read_count(values, "num_identities"),
        num_templates=read_count(values, "num_templates"),
        num_mated=read_count(values, "num_mated", least=0),
        num_strangers=read_count(values, "num_strangers"),
        tpir=read_figure(values["tpir"]),
        rank_1=read_figure(values["rank_1"]),
        by_rule={name: read_share(values["by_rule"], name) for name in values["by_rule"]},
        strangers=tuple(read_numbers(values, "strangers")),
        curve=None if values["curve"] is None else read_curve(values["curve"]),
    )
    for rule in (found.rule, *found.by_rule):
        if rule not in RULES:
            raise ValueError(f"its rule is {rule!r}")
    if not 0 < found.target_fpir < 1 or found.margin < 0:
        raise ValueError("its target is not between 0 and 1, or its margin is below 0")
    if len(found.strangers) != len(kept_ranks(found.num_strangers)):
        raise ValueError(
            f"it has {len(found.strangers)} distances of {found.num_strangers} strangers"
        )
    if np.any(np.diff(found.strangers) < 0):
        raise ValueError("its strangers' distances do not ascend")
    return found
