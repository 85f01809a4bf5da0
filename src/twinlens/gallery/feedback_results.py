"""Results of corrections, as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twinlens.errors import DataError, one_line
from twinlens.gallery.corrections import Adaptation, ErrorChange
from twinlens.gallery.results import MAX_WIDTH, SkippedPicture
from twinlens.gallery.settings import GalleryState

__all__ = ["CorrectionList", "FeedbackResult", "ListedCorrection"]

WORDS = {"is": "is", "is-not": "is not", "same": "same as", "different": "different from"}


@dataclass(frozen=True)
class FeedbackResult:
    """Counts of corrections, and what they changed.

    Attributes:
        num_new: corrections that were stored now.
        num_undone: corrections that were taken back now.
        num_corrections: corrections of the gallery.
        skipped: pictures that were left out.
        adaptation: effect of all corrections; None without any.
    """

    num_new: int
    num_undone: int
    num_corrections: int
    skipped: tuple[SkippedPicture, ...]
    adaptation: Adaptation | None

    @classmethod
    def of(
        cls,
        state: GalleryState,
        *,
        num_new: int = 0,
        num_undone: int = 0,
        skipped: Sequence[SkippedPicture] = (),
    ) -> FeedbackResult:
        """With the counts and the adaptation of a gallery's newest version."""
        feedback = state.settings.feedback
        num = 0 if feedback is None else len(feedback.corrections)
        adaptation = None if feedback is None else feedback.adaptation
        return cls(num_new, num_undone, num, tuple(skipped), adaptation)

    def warnings(self) -> list[str]:
        """A line for each skipped picture."""
        return [f"skipped {picture}" for picture in self.skipped]

    def require_some(self) -> None:
        """Refuse a result in which every correction was skipped.

        Raises:
            DataError: nothing was stored.
        """
        if self.skipped and not self.num_new:
            raise DataError(f"nothing was corrected: {self.skipped[0]}")

    def as_json(self) -> dict[str, Any]:
        """Counts, skipped pictures and the adaptation."""
        return {
            "num_new": self.num_new,
            "num_undone": self.num_undone,
            "num_corrections": self.num_corrections,
            "skipped": [asdict(picture) for picture in self.skipped],
            "adaptation": _plain(self.adaptation),
        }

    def as_text(self) -> str:
        """The counts, the gain on held-out answers, the metric and the threshold."""
        done = f"{self.num_new} new" if not self.num_undone else f"{self.num_undone} taken back"
        counts = f"corrections: {done}, {self.num_corrections} in all"
        return "\n".join([counts, *_lines(self.adaptation)])


@dataclass(frozen=True)
class ListedCorrection:
    """A correction with the files of its pictures, or their hashes if they have no file."""

    number: int
    kind: str
    pictures: tuple[str, ...]
    identity: str | None
    time: str


@dataclass(frozen=True)
class CorrectionList:
    """The corrections of a gallery, by number."""

    corrections: tuple[ListedCorrection, ...]
    adaptation: Adaptation | None

    def as_json(self) -> dict[str, Any]:
        """An object for each correction, and the adaptation."""
        return {
            "corrections": [asdict(one) for one in self.corrections],
            "adaptation": _plain(self.adaptation),
        }

    def as_text(self) -> str:
        """A line for each correction, and what they changed."""
        if not self.corrections:
            return (
                "no corrections: give one with `twinlens gallery feedback GALLERY PICTURE --is ID`"
            )
        lines = []
        for one in self.corrections:
            first, *rest = [one_line(name, None) for name in one.pictures]
            other = rest[0] if rest else one_line(str(one.identity), MAX_WIDTH)
            lines.append(f"{one.number:>5}  {one.time[:16]}  {first} {WORDS[one.kind]} {other}")
        return "\n".join([*lines, *_lines(self.adaptation)])


def _plain(adaptation: Adaptation | None) -> dict[str, Any] | None:
    if adaptation is None:
        return None
    plain = adaptation.model_dump()
    for name, change in plain.items():
        if isinstance(change, dict):
            change["gain"] = getattr(adaptation, name).gain
    return plain


def _lines(adaptation: Adaptation | None) -> list[str]:
    if adaptation is None:
        return []
    own = adaptation
    if own.rank_1 is None or own.missed is None:
        held_out = ["held-out answers of pictures that were not corrected: too few to measure"]
    else:
        held_out = [
            f"{own.num_answers} enrolled pictures that were not corrected, each identified without "
            "itself:",
            *_changes(own, own.rank_1, own.missed),
        ]
    applied = "applied" if own.metric_applied else "not applied"
    lines = [*held_out, f"metric {applied}: {own.reason}"]
    if own.metric_rank_1 is None or own.metric_missed is None:
        lines = [own.reason]
    else:
        lines += _changes(own, own.metric_rank_1, own.metric_missed)
    if own.rule_after != own.rule_before:
        lines.append(
            f"templates of an identity are fused by {own.rule_after}: {own.rule_before} before"
        )
    if own.threshold_before is not None and own.threshold_after is not None:
        lines.append(_threshold(own))
    return lines


def _changes(own: Adaptation, rank_1: ErrorChange, missed: ErrorChange) -> list[str]:
    fpir = 100 * (own.target_fpir or 0)
    return [
        f"  wrong identity first: {_change(rank_1)}",
        f"  not identified at an FPIR of {fpir:.3g} %: {_change(missed)}",
    ]


def _change(change: ErrorChange) -> str:
    text = (
        f"{100 * change.before:.1f} % -> {100 * change.after:.1f} %, gain "
        f"{100 * change.gain:.1f} points"
    )
    if change.low is None or change.high is None:
        return text
    return f"{text} (95 % interval {100 * change.low:.1f} to {100 * change.high:.1f})"


def _threshold(own: Adaptation) -> str:
    text = f"threshold {own.threshold_before:.4f} -> {own.threshold_after:.4f}"
    if own.fpir is None:
        return text
    text += f", calibrated again with the corrections: an FPIR of {100 * own.fpir:.3g} %"
    if own.bounded:
        text += "; this is the largest change by corrections: run `twinlens gallery calibrate`"
    return text
