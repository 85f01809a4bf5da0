"""Somebody, nobody, or two who are about equally near: from ranked identities to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from twinlens.gallery.search import RankedIdentity
from twinlens.match.answers import Candidate, IdentifyAnswer
from twinlens.measure.error_rates import matches
from twinlens.measure.open_set_calibration import OpenSetCalibration, margins

__all__ = ["Threshold", "decide"]

SHOWN = 80
"""Characters of an identity's name that a sentence shows."""

Verdict = Literal["identified", "nobody", "ambiguous"]


@dataclass(frozen=True)
class Threshold:
    """The largest distance that is somebody.

    Attributes:
        value: the distance.
        of: "gallery" where it was found for this gallery, "pairs" where it is the model's.
        fpir: the share of strangers that it is expected to take for somebody.
    """

    value: float
    of: Literal["gallery", "pairs"]
    fpir: float


def decide(
    near: Sequence[RankedIdentity],
    k: int,
    threshold: Threshold,
    open_set: OpenSetCalibration | None,
) -> IdentifyAnswer:
    """The answer for ranked identities, best first: at least two of them where there are two.

    Args:
        near: the best identities.
        k: how many the answer lists.
        threshold: beyond it is nobody.
        open_set: the gallery's calibration, for the margin and the probability.
    """
    verdict, reason = _verdict(near, threshold.value, open_set)
    if threshold.of == "pairs":
        reason += (
            "; the threshold is the model's for pairs, by which a gallery of this size may take up "
            f"to {threshold.fpir:.0%} of strangers for somebody: run `twinlens gallery calibrate`"
        )
    candidates = tuple(
        Candidate(
            one.identity, one.distance,
            # Of the best only: that is what was measured.
            _probability(one.distance, open_set) if place == 0 else None, one.path,
        )
        for place, one in enumerate(near[:k])
    )  # fmt: skip
    return IdentifyAnswer(
        verdict=verdict,
        identity=near[0].identity if verdict == "identified" else None,
        reason=reason,
        distance=near[0].distance if near else None,
        margin=near[1].distance - near[0].distance if len(near) > 1 else None,
        threshold=threshold.value,
        threshold_of=threshold.of,
        target_fpir=threshold.fpir,
        probability=candidates[0].probability if candidates else None,
        candidates=candidates,
    )


def _verdict(
    near: Sequence[RankedIdentity], threshold: float, open_set: OpenSetCalibration | None
) -> tuple[Verdict, str]:
    if not near:
        return "nobody", "the gallery is empty"
    best, distance = repr(near[0].identity[:SHOWN]), near[0].distance
    # Where votes decide, the best need not be the nearest.
    votes = open_set is not None and open_set.rule == "vote"
    if not matches(distance, threshold):
        which = "best by votes" if votes else "nearest"
        return "nobody", (
            f"the {which}, {best}, is at distance {distance:.4f}, beyond the threshold "
            f"{threshold:.4f}"
        )
    if len(near) == 1:
        return "identified", f"distance {distance:.4f} is within the threshold {threshold:.4f}"
    second, next_distance = repr(near[1].identity[:SHOWN]), near[1].distance
    gap = float(margins([distance], [next_distance], threshold)[0])
    least = 0.0 if open_set is None else open_set.margin
    if gap < least or (gap == 0 and not votes):
        return "ambiguous", (
            f"{best} at distance {distance:.4f} and {second} at {next_distance:.4f} are both "
            f"within the threshold {threshold:.4f} and about equally near"
        )
    return "identified", (
        f"distance {distance:.4f} is within the threshold {threshold:.4f}; the next, {second}, is "
        f"at {next_distance:.4f}"
    )


def _probability(distance: float, open_set: OpenSetCalibration | None) -> float | None:
    if open_set is None or open_set.curve is None or not np.isfinite(distance):
        return None
    return float(open_set.probability(distance))
