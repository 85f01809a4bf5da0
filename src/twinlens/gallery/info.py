"""A gallery in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from twinlens.display import Result
from twinlens.errors import CalibrationError, one_line
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.index import measured_index

__all__ = ["GalleryInfo", "describe"]


@dataclass(frozen=True, repr=False)
class GalleryInfo(Result):
    """A gallery in numbers.

    Attributes:
        place: folder or address.
        created: time of creation, ISO 8601.
        fingerprint: fingerprint of the model.
        comparator: comparator of the model.
        dim: D.
        num_templates: M.
        num_identities: identities with templates.
        num_thumbnails: templates with a thumbnail.
        num_bytes: bytes on disk, without the model.
        rule: fusion rule for the templates of an identity.
        threshold: largest distance that identifies; None without calibration.
        threshold_of: "gallery", "pairs" (the model's), or None.
        expected_fpir: expected FPIR of the threshold at the gallery's present size; for a threshold
            for pairs, about its upper bound.
        calibrated_for: number of identities at calibration, or None.
        search: "exact" in memory, "index", or "scan", which is slow until `optimize`.
        partitions: partitions of the index, 0 without one.
        nprobes: partitions that a search reads.
        recall: share of the true 10 nearest that a search finds, measured by `optimize`.
        num_unindexed: templates younger than the index, compared one by one.
        num_deletions: interrupted erasures; `optimize` completes them.
        num_corrections: corrections by `Gallery.feedback`.
        metric_applied: whether the metric from corrections is applied.
        num_parts: galleries that it consists of, if it is sharded, else 1.
    """

    place: str
    created: str
    fingerprint: str
    comparator: str
    dim: int
    num_templates: int
    num_identities: int
    num_thumbnails: int
    num_bytes: int
    rule: str
    threshold: float | None
    threshold_of: str | None
    expected_fpir: float | None
    calibrated_for: int | None
    search: str
    partitions: int
    nprobes: int | None
    recall: float | None
    num_unindexed: int
    num_deletions: int
    num_corrections: int
    metric_applied: bool
    num_parts: int = 1

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_text(self) -> str:
        """A line for each fact."""
        lines = {
            "gallery": one_line(self.place, None),
            "holds": f"{self.num_templates} templates of {self.num_identities} identities, "
            f"{self.num_thumbnails} with a thumbnail, {self.num_bytes / 1e6:.1f} MB",
            **({"parts": f"{self.num_parts} galleries"} if self.num_parts > 1 else {}),
            "model": f"{self.fingerprint}, {self.dim} dimensions, {self.comparator}",
            "created": self.created,
            "threshold": self._threshold_words(),
            "templates of an identity": self.rule,
            "search": self._search_words(),
        }
        if self.num_corrections:
            applied = "applied" if self.metric_applied else "not applied"
            lines["corrections"] = f"{self.num_corrections}, metric {applied}"
        if self.num_deletions:
            lines["interrupted"] = "an erasure: `twinlens gallery optimize` completes it"
        return "\n".join(f"{name:26} {words}" for name, words in lines.items())

    def _threshold_words(self) -> str:
        if self.threshold is None or self.expected_fpir is None:
            return "none: run `twinlens gallery calibrate`"
        fpir = f"about {100 * self.expected_fpir:.2g} % of strangers (FPIR)"
        if not self.num_templates:
            return f"{self.threshold:.4f}, but no identity is enrolled yet"
        if self.threshold_of == "pairs":
            return (
                f"{self.threshold:.4f}, falsely identifies up to {fpir}; it is the model's "
                "threshold for pairs: run `twinlens gallery calibrate`"
            )
        return (
            f"{self.threshold:.4f}, falsely identifies {fpir}; calibrated for "
            f"{self.calibrated_for} identities"
        )

    def _search_words(self) -> str:
        if self.search == "exact":
            return "exact, in memory"
        if self.search == "scan":
            return "all templates from disk, slow: run `twinlens gallery optimize`"
        return (
            f"index of {self.partitions} partitions, {self.nprobes} searched, recall "
            f"{self.recall:.3f}; {self.num_unindexed} templates are younger than it"
        )


def describe(core: GalleryCore) -> GalleryInfo:
    """A gallery in numbers."""
    state, store = core.state(), core.store
    settings, index = state.settings, measured_index(core)
    names = len(core.identities())
    try:
        threshold = core.threshold()
    except CalibrationError:
        threshold = None
    expected = None if threshold is None else threshold.fpir
    if state.open_set is not None:
        expected = state.open_set.fpir_at_size(names)
    feedback = settings.feedback
    if feedback is not None and (adaptation := feedback.adaptation) and adaptation.bounded:
        expected = adaptation.fpir  # Measured at the threshold that corrections may reach.
    search = "index" if index else "exact" if core.is_in_memory(state) else "scan"
    return GalleryInfo(
        place=core.place,
        created=settings.created,
        fingerprint=core.fingerprint,
        comparator=settings.comparator,
        dim=core.dim,
        num_templates=state.num_templates,
        num_identities=names,
        num_thumbnails=store.count("thumbnail IS NOT NULL"),
        num_bytes=store.num_bytes(),
        rule=state.rule,
        threshold=None if threshold is None else threshold.value,
        threshold_of=None if threshold is None else threshold.of,
        expected_fpir=expected,
        calibrated_for=None if state.open_set is None else state.open_set.num_identities,
        search=search,
        partitions=0 if index is None else index.partitions,
        nprobes=None if index is None else index.nprobes,
        recall=None if index is None else index.recall,
        num_unindexed=store.num_unindexed() or 0,
        num_deletions=settings.deletions - settings.purged,
        num_corrections=0 if feedback is None else len(feedback.corrections),
        metric_applied=state.metric is not None,
    )
