"""Results of gallery operations, as text and as plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from twinlens.data.quality import PictureQuality
from twinlens.display import Result
from twinlens.errors import DataError, one_line
from twinlens.gallery.schema import read_metadata
from twinlens.measure.open_set_calibration import OpenSetCalibration

__all__ = ["EnrolResult", "EraseReceipt", "ExportResult", "GalleryCalibrationResult",
           "IdentityList", "OptimizeResult", "RebuildResult", "RenameResult", "SkippedPicture",
           "Template", "TemplateList"]  # fmt: skip

MAX_WIDTH = 60  # of a name on a line

NOT_ERASED = (
    "not erased, since it lies outside of the gallery: the pictures themselves; pages and sheets "
    "that show them (reports, clusters, --show); exports and files of `twinlens embed`; copies, "
    "backups and snapshots; names in the audit log of `twinlens serve`. A model that was trained "
    "on them stays as it is: train again without them, then `twinlens gallery rebuild`"
)


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that was left out."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{one_line(self.path, None)}: {self.reason}"


@dataclass(frozen=True)
class EnrolResult:
    """Counts of an enrolment or an import.

    Attributes:
        num_new: templates added.
        num_known: pictures that were enrolled before, under the same identity.
        skipped: pictures that were left out.
        num_identities: distinct identities of the new and the known pictures.
        num_failed: those of `skipped` that are unreadable or below the minimum of quality (failure
            to enrol, ISO/IEC 19795-1).
        quality: quality of the new pictures, by path; empty for embeddings.
        hashes: hashes of the new and the known pictures, by path; empty for embeddings.
    """

    num_new: int
    num_known: int
    skipped: tuple[SkippedPicture, ...]
    num_identities: int
    num_failed: int = 0
    quality: Mapping[str, PictureQuality] = field(default_factory=dict, repr=False)
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def low_quality(self) -> dict[str, PictureQuality]:
        """The enrolled pictures of low quality, by path."""
        return {path: quality for path, quality in self.quality.items() if quality.is_low}

    def warnings(self) -> list[str]:
        """A line for each skipped picture, and for each that was enrolled in low quality."""
        low = [f"{one_line(path, None)}: enrolled in low {quality.as_text()}"
               for path, quality in self.low_quality.items()]  # fmt: skip
        return [*(f"skipped {picture}" for picture in self.skipped), *low]

    def require_some(self) -> None:
        """Refuse a result in which every picture was skipped.

        Raises:
            DataError: nothing was enrolled.
        """
        if self.skipped and not self.num_new + self.num_known:
            reason = f"all {len(self.skipped)} pictures were skipped, see the warnings above"
            reason = reason if len(self.skipped) > 1 else str(self.skipped[0])
            raise DataError(f"nothing was enrolled: {reason}")

    def as_json(self) -> dict[str, Any]:
        """Counts and skipped pictures."""
        return {
            "num_new": self.num_new,
            "num_known": self.num_known,
            "num_identities": self.num_identities,
            "num_failed": self.num_failed,
            "skipped": [asdict(picture) for picture in self.skipped],
            "quality": self._quality(),
        }

    def _quality(self) -> dict[str, Any] | None:
        """The median, and the pictures of low quality; None without new pictures."""
        if not self.quality:
            return None
        scores = [quality.score for quality in self.quality.values()]
        low = [{"path": path} | part.as_json() for path, part in self.low_quality.items()]
        return {"median": float(np.median(scores)), "low": low}

    def as_text(self) -> str:
        """The counts in one line."""
        failed = f" ({self.num_failed} failed to enrol)" if self.num_failed else ""
        return (
            f"{self.num_new} new, {self.num_known} known, {len(self.skipped)} skipped{failed}; "
            f"{self.num_identities} {'identity' if self.num_identities == 1 else 'identities'}"
        )


@dataclass(frozen=True)
class EraseReceipt:
    """Counts of an erasure, without names.

    Attributes:
        num_identities: erased identities; 0 if each has further templates.
        num_templates: erased templates.
        num_thumbnails: erased thumbnails.
        num_versions: removed older versions of the gallery.
        num_bytes: size of the removed files.
        num_left: templates of other identities, which remain.
        time: end of the erasure, ISO 8601.
        seconds: duration.
    """

    num_identities: int
    num_templates: int
    num_thumbnails: int
    num_versions: int
    num_bytes: int
    num_left: int
    time: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_text(self) -> str:
        """The counts, and what may still show the identity."""
        identities = "identity" if self.num_identities == 1 else "identities"
        return (
            f"erased {self.num_identities} {identities}: {self.num_templates} templates, "
            f"{self.num_thumbnails} thumbnails; "
            f"removed {self.num_versions} older versions ({self.num_bytes / 1e6:.1f} MB); "
            f"{self.num_left} templates of others remain ({self.time}, {self.seconds:.1f} s)\n"
            f"{NOT_ERASED}"
        )


@dataclass(frozen=True)
class RenameResult:
    """The number of renamed templates."""

    num_templates: int

    def as_json(self) -> dict[str, Any]:
        """The count."""
        return {"num_templates": self.num_templates}

    def as_text(self) -> str:
        """The count."""
        return f"{self.num_templates} templates renamed"


@dataclass(frozen=True)
class ExportResult:
    """The number of exported templates, and the file."""

    num_templates: int
    path: str

    def as_json(self) -> dict[str, Any]:
        """The count and the file."""
        return {"num_templates": self.num_templates, "path": self.path}

    def as_text(self) -> str:
        """The count and the file."""
        return f"{self.num_templates} templates in {one_line(self.path, None)}"


@dataclass(frozen=True)
class OptimizeResult:
    """Search speed and recall after an optimization.

    Attributes:
        num_templates: M.
        search: "exact" (in memory), "index", or "scan" (from disk: too many for memory, no index).
        partitions: of the index.
        nprobes: partitions searched, the fewest that reach the target recall.
        recall: fraction of the true 10 nearest templates that a search finds; 1 without index.
        milliseconds: median time of an identification, without embedding the picture.
        num_versions: removed older versions of the gallery.
        num_bytes: size of the removed files.
        seconds: duration.
    """

    num_templates: int
    search: str
    partitions: int
    nprobes: int | None
    recall: float
    milliseconds: float | None
    num_versions: int
    num_bytes: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_text(self) -> str:
        """Kind of search, time, and what was removed."""
        search = "exact search in memory"
        if self.search == "scan":
            search = "no index, and too many for memory: each search reads all from disk, slowly"
        elif self.search == "index":
            search = (
                f"an index of {self.partitions} partitions, of which {self.nprobes} are searched; "
                f"it finds {100 * self.recall:.1f} % of the true 10 nearest"
            )
        time = "" if self.milliseconds is None else f", {self.milliseconds:.1f} ms a search"
        return (
            f"{self.num_templates} templates: {search}{time}; removed {self.num_versions} older "
            f"versions ({self.num_bytes / 1e6:.1f} MB) in {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class RebuildResult:
    """Counts of a rebuild with another model.

    Attributes:
        num_templates: templates embedded again.
        missing: dropped templates.
        fingerprint: fingerprint of the new model.
    """

    num_templates: int
    missing: tuple[SkippedPicture, ...]
    fingerprint: str

    def warnings(self) -> list[str]:
        """A line for each dropped template."""
        return [f"dropped {picture}" for picture in self.missing]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "num_templates": self.num_templates,
            "missing": [asdict(picture) for picture in self.missing],
            "fingerprint": self.fingerprint,
        }

    def as_text(self) -> str:
        """The counts, and the next step."""
        return (
            f"{self.num_templates} templates embedded by the model {self.fingerprint}, "
            f"{len(self.missing)} dropped; calibrate again with `twinlens gallery calibrate`"
        )


@dataclass(frozen=True, repr=False)
class IdentityList(Result):
    """Names, sorted, with the number of their templates."""

    ROWS = "identities"

    counts: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """An object for each identity."""
        return {
            "identities": [
                {"identity": name, "num_templates": count} for name, count in self.counts.items()
            ]
        }

    def as_text(self) -> str:
        """A line for each identity."""
        if not self.counts:
            return "no identities yet: enrol some with `twinlens gallery enrol GALLERY DATA`"
        return "\n".join(
            f"{count:>8}  {one_line(name, MAX_WIDTH)}" for name, count in self.counts.items()
        )


@dataclass(frozen=True)
class Template:
    """An enrolled picture.

    Attributes:
        identity: its name.
        path: file of the picture at enrolment.
        time: time of enrolment.
        metadata: metadata given at enrolment.
        hash: hash of the picture's content.
        has_thumbnail: whether the gallery keeps a small picture of it.
    """

    identity: str
    path: str
    time: datetime
    metadata: Mapping[str, Any]
    hash: str
    has_thumbnail: bool

    def as_json(self) -> dict[str, Any]:
        """Plain data; the time in ISO 8601."""
        return asdict(self) | {"time": self.time.isoformat()}


@dataclass(frozen=True, repr=False)
class TemplateList(Result):
    """Templates, sorted by identity and path, or a part of them.

    Attributes:
        templates: the templates.
        total: number of templates of which they are a part.
    """

    ROWS = "templates"

    templates: tuple[Template, ...]
    total: int

    @classmethod
    def of(cls, rows: pa.Table, total: int, offset: int = 0) -> TemplateList:
        """From rows of a gallery's table, less the first `offset` in order."""
        templates = [
            Template(**(row | {"metadata": read_metadata(row["metadata"])}))
            for row in rows.to_pylist()
        ]
        templates.sort(key=lambda row: (row.identity, row.path, row.hash))
        return cls(tuple(templates[offset:]), total)

    def as_json(self) -> dict[str, Any]:
        """An object for each template."""
        return {"templates": [template.as_json() for template in self.templates]}

    def as_text(self) -> str:
        """A line for each template."""
        names = [one_line(template.identity, MAX_WIDTH) for template in self.templates]
        width = max((len(name) for name in names), default=0)
        lines = []
        for template, name in zip(self.templates, names, strict=True):
            metadata = template.metadata
            text = json.dumps(metadata, ensure_ascii=False) if metadata else ""
            time, path = f"{template.time:%Y-%m-%d %H:%M}", one_line(template.path, None)
            lines.append(f"{name:<{width}}  {time}  {path}  {one_line(text, 200)}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True)
class GalleryCalibrationResult:
    """A gallery's calibration beside the model's threshold for pairs.

    Attributes:
        calibration: the gallery's calibration.
        pair_threshold: the model's threshold; None if the model is not calibrated.
    """

    calibration: OpenSetCalibration
    pair_threshold: float | None

    def as_json(self) -> dict[str, Any]:
        """The calibration; `pairs` holds the model's threshold and its FPIR in this gallery."""
        pairs = None
        if self.pair_threshold is not None:
            fpir = self.calibration.fpir_of(self.pair_threshold)
            pairs = {"threshold": self.pair_threshold, "fpir": fpir}
        return {**self.calibration.as_json(), "pairs": pairs}

    def as_text(self) -> str:
        """Threshold, probes, TPIR, and the FPIR of a larger gallery."""
        own = self.calibration
        interval = _interval(own.low, own.high, "{:.4f}".format)
        lines = [
            f"threshold {own.threshold:.4f}{interval}: pictures are identified at or below this"
            f" distance, and at most {100 * own.target_fpir:.3g} % of strangers are falsely"
            f" identified (FPIR){self._limit()}",
            f"for {own.num_identities} identities with {own.num_templates} templates; from"
            f" {own.num_mated} mated probes (of enrolled identities) and {own.num_strangers}"
            " non-mated ones (of strangers)",
            self._tpir(),
        ]
        if own.margin > 0:
            lines.append(
                "ambiguous if the second identity within the threshold is less than"
                f" {own.margin:.4f} farther than the first"
            )
        if self.pair_threshold is not None:
            lines.append(
                f"the model's threshold for pairs, {self.pair_threshold:.4f}, would falsely"
                f" identify {100 * own.fpir_of(self.pair_threshold):.3g} % of strangers: each"
                " identity is one more chance of a false match"
            )
        fpir = 100 * own.fpir_at_size(2 * own.num_identities)
        lines.append(
            f"with twice as many identities expect an FPIR of {fpir:.3g} %: calibrate again when"
            " the gallery has grown"
        )
        return "\n".join(lines)

    def _limit(self) -> str:
        limit = self.calibration.fpir_limit
        return (
            "" if limit is None else f"; of new strangers {100 * limit:.3g} %, with 95 % confidence"
        )

    def _tpir(self) -> str:
        own = self.calibration
        if own.tpir.value is None:
            return "TPIR unknown: each identity has one picture only, enrol more of each"
        rules = [f"{name} {_percent(share)}" for name, share in own.by_rule.items()]
        compared = f" (by rule: {', '.join(rules)})" if len(rules) > 1 else ""
        interval = _interval(own.tpir.low, own.tpir.high, _percent)
        return (
            f"TPIR {_percent(own.tpir.value)}{interval}: mated probes that are identified"
            f" correctly, by the rule {own.rule}{compared}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(low: float | None, high: float | None, shown: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    return f" (95 % interval {shown(low)} to {shown(high)})"
