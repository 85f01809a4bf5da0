"""The verdict of `identify`, from ranked identities: identified, nobody or ambiguous."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from twinlens.gallery.search import RankedIdentity
from twinlens.match.answers import Candidate, IdentifyAnswer
from twinlens.measure.error_rates import matches
from twinlens.measure.open_set_calibration import OpenSetCalibration, margins

__all__ = ["Threshold", "decide"]

NAME_LENGTH = 80
"""Characters of an identity's name that a sentence shows."""

Verdict = Literal["identified", "nobody", "ambiguous"]


@dataclass(frozen=True)
class Threshold:
    """The largest distance that identifies.

    Attributes:
        value: the distance.
        of: "gallery" if calibrated for this gallery, "pairs" if it is the model's for pairs.
        fpir: expected false positive identification rate.
    """

    value: float
    of: Literal["gallery", "pairs"]
    fpir: float


def decide(
    ranked: Sequence[RankedIdentity],
    k: int,
    threshold: Threshold,
    open_set: OpenSetCalibration | None,
) -> IdentifyAnswer:
    """The answer for ranked identities.

    Args:
        ranked: the best identities, best first; at least two, if the gallery has two.
        k: number of candidates in the answer.
        threshold: the largest distance that identifies.
        open_set: the gallery's calibration, for the margin and the probability.
    """
    verdict, reason = _verdict(ranked, threshold.value, open_set)
    if threshold.of == "pairs" and ranked:
        reason += (
            "; the threshold is the model's for pairs, which in a gallery of this size may falsely "
            f"identify up to about {100 * threshold.fpir:.2g} % of strangers: run "
            "`twinlens gallery calibrate`"
        )
    candidates = tuple(
        Candidate(
            entry.identity, entry.distance,
            # Calibrated for the best identity only.
            _probability(entry.distance, open_set) if place == 0 else None, entry.path,
        )
        for place, entry in enumerate(ranked[:k])
    )  # fmt: skip
    answer = IdentifyAnswer(
        verdict=verdict,
        identity=ranked[0].identity if verdict == "identified" else None,
        reason=reason,
        distance=ranked[0].distance if ranked else None,
        margin=ranked[1].distance - ranked[0].distance if len(ranked) > 1 else None,
        threshold=threshold.value,
        threshold_of=threshold.of,
        target_fpir=threshold.fpir,
        probability=candidates[0].probability if candidates else None,
        candidates=candidates,
    )
    doubt = answer.doubt
    return answer if doubt is None else replace(answer, reason=f"{reason}; {doubt}")


def _verdict(
    ranked: Sequence[RankedIdentity], threshold: float, open_set: OpenSetCalibration | None
) -> tuple[Verdict, str]:
    if not ranked:
        return "nobody", "the gallery is empty"
    best, distance = repr(ranked[0].identity[:NAME_LENGTH]), ranked[0].distance
    # By votes the best need not be the nearest.
    votes = open_set is not None and open_set.rule == "vote"
    if not matches(distance, threshold):
        best_by = "best by votes" if votes else "nearest"
        return "nobody", (
            f"the {best_by}, {best}, is at distance {distance:.4f}, beyond the threshold "
            f"{threshold:.4f}"
        )
    if len(ranked) == 1:
        return "identified", f"distance {distance:.4f} is within the threshold {threshold:.4f}"
    second, next_distance = repr(ranked[1].identity[:NAME_LENGTH]), ranked[1].distance
    gap = float(margins([distance], [next_distance], threshold)[0])
    margin = 0.0 if open_set is None else open_set.margin
    if gap < margin or (gap == 0 and not votes):
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
