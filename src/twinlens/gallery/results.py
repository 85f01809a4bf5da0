"""What the commands of galleries found, as words and as plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from twinlens.errors import one_line
from twinlens.measure.open_set_calibration import OpenSetCalibration

__all__ = [
    "ExportResult",
    "GalleryCalibrationResult",
    "IdentityList",
    "RenameResult",
    "Template",
    "TemplateList",
]

WIDEST = 60  # of a name on a line


@dataclass(frozen=True)
class RenameResult:
    """How many templates have another name now."""

    num_templates: int

    def as_json(self) -> dict[str, Any]:
        """The count."""
        return {"num_templates": self.num_templates}

    def as_text(self) -> str:
        """The count."""
        return f"{self.num_templates} templates renamed"


@dataclass(frozen=True)
class ExportResult:
    """How many templates were written, and where."""

    num_templates: int
    path: str

    def as_json(self) -> dict[str, Any]:
        """The count and the file."""
        return {"num_templates": self.num_templates, "path": self.path}

    def as_text(self) -> str:
        """The count and the file."""
        return f"{self.num_templates} templates in {one_line(self.path, None)}"


@dataclass(frozen=True)
class IdentityList:
    """Names, sorted, with the number of their templates."""

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
            return "nobody is enrolled yet: `twinlens gallery enrol GALLERY DATA`"
        return "\n".join(
            f"{count:>8}  {one_line(name, WIDEST)}" for name, count in self.counts.items()
        )


@dataclass(frozen=True)
class Template:
    """A picture as a gallery knows it.

    Attributes:
        identity: whose it is.
        path: where the picture was when it was enrolled.
        time: when that was.
        metadata: what was said of it then.
        hash: of its content.
    """

    identity: str
    path: str
    time: datetime
    metadata: Mapping[str, Any]
    hash: str

    def as_json(self) -> dict[str, Any]:
        """As plain data; the time in ISO 8601."""
        return asdict(self) | {"time": self.time.isoformat()}


@dataclass(frozen=True)
class TemplateList:
    """Templates by identity and path."""

    templates: tuple[Template, ...]

    @classmethod
    def of(cls, rows: pa.Table) -> TemplateList:
        """The rows of a gallery's table."""
        found = [
            Template(**(row | {"metadata": json.loads(row["metadata"])}))
            for row in rows.to_pylist()
        ]
        return cls(tuple(sorted(found, key=lambda one: (one.identity, one.path, one.hash))))

    def as_json(self) -> dict[str, Any]:
        """An object for each template."""
        return {"templates": [one.as_json() for one in self.templates]}

    def as_text(self) -> str:
        """A line for each template."""
        names = [one_line(one.identity, WIDEST) for one in self.templates]
        width = max((len(name) for name in names), default=0)
        lines = []
        for one, name in zip(self.templates, names, strict=True):
            said = json.dumps(one.metadata, ensure_ascii=False) if one.metadata else ""
            when = f"{one.time:%Y-%m-%d %H:%M}"
            line = f"{name:<{width}}  {when}  {one_line(one.path, None)}  {one_line(said, 200)}"
            lines.append(line.rstrip())
        return "\n".join(lines)


@dataclass(frozen=True)
class GalleryCalibrationResult:
    """A gallery's threshold, and what the model's for pairs would do in its place.

    Attributes:
        found: the gallery's calibration.
        pair_threshold: the model's; None where it is not calibrated.
    """

    found: OpenSetCalibration
    pair_threshold: float | None

    def as_json(self) -> dict[str, Any]:
        """The calibration; `pairs` with the model's threshold and the FPIR that it comes to."""
        pairs = None
        if self.pair_threshold is not None:
            fpir = self.found.fpir_of(self.pair_threshold)
            pairs = {"threshold": self.pair_threshold, "fpir": fpir}
        return {**self.found.as_json(), "pairs": pairs}

    def as_text(self) -> str:
        """What was found and what it means."""
        found = self.found
        lines = [
            f"threshold {found.threshold:.4f}{_span(found.low, found.high, '{:.4f}'.format)}:"
            " a picture is somebody at this distance or closer, and at most"
            f" {100 * found.target_fpir:.3g} % of strangers are taken for somebody",
            f"for {found.num_identities} identities with {found.num_templates} templates; from"
            f" {found.num_mated} probes of enrolled people and {found.num_strangers} of strangers",
            *self._recognised(),
        ]
        if found.margin > 0:
            lines.append(
                "ambiguous where the second identity within the threshold is less than"
                f" {found.margin:.4f} farther than the first"
            )
        return "\n".join([*lines, *self._pairs(), self._growth()])

    def _recognised(self) -> list[str]:
        found = self.found
        if found.tpir.value is None:
            return [
                "how many enrolled people are recognised is not known: there is one picture of each"
            ]
        others = [f"{name} {_percent(share)}" for name, share in found.by_rule.items()]
        compared = f" (by rule: {', '.join(others)})" if len(others) > 1 else ""
        return [
            f"recognised at it: {_percent(found.tpir.value)} of the pictures of enrolled people"
            f"{_span(found.tpir.low, found.tpir.high, _percent)},"
            f" by the rule {found.rule}{compared}"
        ]

    def _pairs(self) -> list[str]:
        if self.pair_threshold is None:
            return []
        share = 100 * self.found.fpir_of(self.pair_threshold)
        return [
            f"the model's threshold for pairs, {self.pair_threshold:.4f}, would take"
            f" {share:.3g} % of strangers for somebody: each identity is one more chance"
        ]

    def _growth(self) -> str:
        twice = 100 * self.found.fpir_at_size(2 * self.found.num_identities)
        return (
            f"with twice as many identities expect {twice:.3g} % instead: calibrate again when the"
            " gallery has grown"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _span(low: float | None, high: float | None, shown: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    return f" (95 % interval {shown(low)} to {shown(high)})"
