"""The table of candidates and the learning curve over identities, as words and numbers."""

from __future__ import annotations

from collections.abc import Sequence

from twinlens.learn.records import CandidateRow, LearningPoint
from twinlens.report.formatting import percent

__all__ = ["candidate_cells", "curve_note"]

MUCH = 0.95  # of the EER: below, more identities help

Cell = tuple[str, str]
"""A value, and its interval or nothing."""


def candidate_cells(row: CandidateRow) -> tuple[str, list[Cell]]:
    """The name of a candidate, and the cells of its line."""
    loss = ("", "")
    if row.loss is not None and row.loss.value is not None:
        low, high = row.loss.low, row.loss.high
        bounds = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        loss = (f"{100 * row.loss.value:+.1f}", bounds)
    return row.name, [
        (percent(row.weight) if row.weight else "", ""),
        (percent(row.eer), ""),
        loss,
        (percent(row.recall), ""),
        (f"{row.seconds:,.0f}" if row.seconds else "", ""),
    ]


def curve_note(curve: Sequence[LearningPoint]) -> str:
    """What more identities would probably gain, in a sentence or two."""
    if len(curve) < 2:
        return ""
    before, last = curve[-2], curve[-1]
    text = (
        f"The best features, with their map fitted to fewer identities: {percent(before.eer)} with "
        f"{before.num_identities}, {percent(last.eer)} with {last.num_identities}. "
    )
    if last.eer < MUCH * before.eer:
        return f"{text}The curve still falls: more identities would help."
    return f"{text}The curve is flat: more identities would help little, more pictures may."
