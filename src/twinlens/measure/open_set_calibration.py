"""Calibration of a gallery: its threshold at a target FPIR, its margin, and a probability.

`open_set_threshold` measures it; this module reads it.

Shapes: P probes, K kept distances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from twinlens.errors import CalibrationError, DataError
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.error_rates import larger_rate, matches
from twinlens.measure.fusion import check_rule
from twinlens.measure.probability import Curve, probability_limits
from twinlens.measure.stored import MAX_COUNT, STRICT, Count, as_plain, read_calibration

__all__ = ["OpenSetCalibration", "check_fpir", "check_num_strangers", "finite_threshold",
           "kept_ranks", "margins"]  # fmt: skip

KEPT_EXACTLY, KEPT = 256, 512

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _known_rule(rule: str) -> str:
    check_rule(rule)
    return rule


Rule = Annotated[str, AfterValidator(_known_rule)]


@dataclass(frozen=True, config=STRICT)
class OpenSetCalibration:
    """The threshold of one gallery, for the rule that fuses its templates.

    Attributes:
        rule: one of `fusion.RULES`.
        target_fpir: target false positive identification rate.
        threshold: a probe is identified if its best identity is at or below this distance. It
            keeps `target_fpir` on the probes and, with a confidence of 95 %, `fpir_limit` on new
            strangers.
        low: lower end of the 95 % interval of the distance at which new strangers have the target
            FPIR; None if too few identities.
        high: upper end.
        margin: with two identities within the threshold, the answer is ambiguous if they are less
            than this apart (see `margins`). Of the mated probes with two such identities, those at
            this margin or above are wrong in at most one case of ten. It is the smallest of 0 and
            the measured margins for which that holds on at least ten probes, and just above the
            largest if it holds for none. 0 if fewer than ten probes have two such identities.
        num_identities: identities in the gallery.
        num_templates: templates in the gallery.
        num_mated: probes whose identity was in the gallery.
        num_strangers: probes whose identity was not.
        tpir: share of mated probes whose best identity is right and within the threshold; without
            a value if there are no mated probes.
        rank_1: share of mated probes whose best identity is right; likewise.
        by_rule: `tpir` of every rule that was compared, each at its own threshold.
        strangers: distances of strangers' best identities, ascending: all of up to 512; else the
            256 smallest, and a sample that thins out towards the largest.
        curve: probability that the best identity is right, if half of the probes are mated; None if
            no mated probe was identified rightly.
        unadjusted: largest distance that keeps the target on the probes; None in earlier versions.
        fpir_limit: 1.5 times the target; None if too few strangers for a statement on new ones.
    """

    rule: Rule
    target_fpir: Annotated[float, Field(gt=0, lt=1)]
    threshold: float
    low: float | None
    high: float | None
    margin: Annotated[float, Field(ge=0)]
    num_identities: Count
    num_templates: Count
    num_mated: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    num_strangers: Count
    tpir: Estimate
    rank_1: Estimate
    by_rule: Mapping[Rule, Annotated[float, Field(ge=0, le=1)]]
    strangers: tuple[float, ...]
    curve: Curve | None
    unadjusted: float | None = None
    fpir_limit: float | None = None

    @model_validator(mode="after")
    def _strangers_fit_their_number(self) -> Self:
        num = len(kept_ranks(self.num_strangers))
        if len(self.strangers) != num:
            raise ValueError(
                f"strangers: found {len(self.strangers)} distances; {self.num_strangers} strangers "
                f"need {num}"
            )
        if np.any(np.diff(self.strangers) < 0):
            raise ValueError("strangers: the distances must ascend")
        return self

    def threshold_at(self, fpir: float) -> float:
        """The threshold at another target FPIR; it never falls as the target grows.

        Exact up to the 256 smallest of the strangers' distances; beyond, a little stricter.

        Raises:
            CalibrationError: fewer strangers than 1 / `fpir`, or too many equally close.
        """
        check_num_strangers(fpir, self.num_strangers)
        allowed = np.count_nonzero(
            np.arange(1, self.num_strangers + 1) / self.num_strangers <= fpir
        )
        rank_K, value_K = kept_ranks(self.num_strangers), np.array(self.strangers)
        # At most as many strangers as the rank of the next kept one lie at or below a kept one.
        fits = (rank_K[1:] <= allowed) & (value_K[:-1] < value_K[1:])
        threshold = value_K[np.flatnonzero(fits)[-1]] if fits.any() else -np.inf
        if fpir >= self.target_fpir:
            threshold = max(threshold, self.threshold)
        if fpir <= self.target_fpir:
            threshold = min(threshold, self.threshold)
        return finite_threshold(float(threshold), fpir)

    def probability(self, distance: ArrayLike) -> Floats:
        """Probability that the best identity, at such a distance, is right.

        It holds if half of the probes are mated. It never rises with distance, and stays between
        1 / (num_mated + 2) and 1 - 1 / (num_strangers + 2) (`probability_limits`).

        Raises:
            CalibrationError: no curve.
            DataError: a distance is NaN.
        """
        if self.curve is None:
            raise CalibrationError(
                "the gallery has a threshold but no probability, since no identity had two "
                "templates: enrol more pictures of each, then run twinlens gallery calibrate"
            )
        dist = np.asarray(distance, dtype=np.float64)
        if np.isnan(dist).any():
            raise DataError("found a distance that is NaN; a probability needs numbers")
        return np.clip(self.curve(dist), *probability_limits(self.num_mated, self.num_strangers))

    def fpir_of(self, threshold: float) -> float:
        """FPIR of another threshold: the share of strangers that it identifies.

        Exact up to the 256 smallest of the strangers' distances; beyond, halfway between the
        shares at the neighbouring kept distances.
        """
        rank_K = kept_ranks(self.num_strangers)
        num_within = int(np.count_nonzero(matches(np.array(self.strangers), threshold)))
        least = int(rank_K[num_within - 1]) + 1 if num_within else 0
        most = int(rank_K[num_within]) if num_within < len(rank_K) else self.num_strangers
        return (least + most) / 2 / self.num_strangers

    def fpir_at_size(self, num_identities: int) -> float:
        """Expected FPIR of `threshold` once the gallery has so many identities.

        1 - (1 - target)^(n / n_0): each identity is one more chance of a false match.
        """
        chances = num_identities / self.num_identities
        return -math.expm1(chances * math.log1p(-self.target_fpir))

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; `from_json` gives back an equal calibration."""
        return as_plain(self)

    @classmethod
    def from_json(cls, values: Any) -> OpenSetCalibration:
        """Read what `as_json` gave, after json has parsed it.

        Raises:
            ModelError: damaged; names every problem.
        """
        remedy = "Calibrate it again: twinlens gallery calibrate GALLERY"
        return read_calibration(cls, values, "the gallery's calibration", remedy)


def margins(distance_P: ArrayLike, runner_up_P: ArrayLike, threshold: float) -> Floats:
    """Distance from the best identity to the runner-up within the threshold.

    >>> margins([0.2, 0.2], [0.5, 0.9], threshold=0.6).tolist()
    [0.3, inf]

    Args:
        distance_P: distances of the best identities, any shape.
        runner_up_P: distances of the second ones, +inf if missing, the same shape.
        threshold: runners-up beyond it do not count.
    Returns:
        At least 0 (a vote may put the farther one first); +inf without a runner-up.
    """
    best, second = (np.asarray(part, dtype=np.float64) for part in (distance_P, runner_up_P))
    near = matches(second, threshold) & np.isfinite(second)
    gap = np.subtract(second, best, where=near, out=np.full(best.shape, np.inf))
    return np.asarray(np.maximum(gap, 0.0), dtype=np.float64)


def check_fpir(fpir: float) -> None:
    """Check a target FPIR.

    Raises:
        CalibrationError: not in (0, 1).
    """
    if not 0 < fpir < 1:
        raise CalibrationError(f"the target FPIR must be in (0, 1), found {fpir}")


def check_num_strangers(fpir: float, num_strangers: int) -> None:
    """Check that so many strangers resolve a target FPIR.

    Raises:
        CalibrationError: not in (0, 1), or fewer strangers than 1 / `fpir`.
    """
    check_fpir(fpir)
    if num_strangers == 0 or 1 / num_strangers > fpir:
        raise CalibrationError(
            f"found {num_strangers} non-mated probes; an FPIR of {fpir:g} needs at least "
            f"{math.ceil(1 / fpir)}: set a larger FPIR{larger_rate(num_strangers)}, or enrol more"
        )


def kept_ranks(num: int) -> Ints:
    """Ranks, from 0 and ascending, of those of `num` ascending distances that are kept."""
    if num <= KEPT:
        return np.arange(num)
    step = np.arange(KEPT - KEPT_EXACTLY)
    thinned = KEPT_EXACTLY + (num - 1 - KEPT_EXACTLY) * step**2 // step[-1] ** 2
    return np.unique(np.concatenate([np.arange(KEPT_EXACTLY), thinned]))


def finite_threshold(threshold: float, fpir: float) -> float:
    """Check that a threshold accepts something, and return it.

    Raises:
        CalibrationError: infinite, since too many strangers are equally close.
    """
    if math.isfinite(threshold):
        return threshold
    raise CalibrationError(
        f"found that even the strictest threshold takes more than {100 * fpir:.3g} % of strangers "
        "for somebody enrolled: so many templates share the smallest distance to another identity, "
        "as two that are each other's nearest always do. Enrol more than "
        f"{math.ceil(2 / fpir)} templates, or set a larger FPIR. If there are as many already, the "
        "embeddings have collapsed (train again), or the same picture is enrolled under "
        "several identities (twinlens inspect DATA)"
    )
