"""Results of cropping faces: of each photograph, and of all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from twinlens.face.geometry import Face

__all__ = ["FacesResult", "Outcome", "PhotographResult"]

Outcome = Literal["single", "several", "low_score", "without", "broken"]


@dataclass(frozen=True)
class PhotographResult:
    """Result of one photograph.

    Attributes:
        outcome: one face, several, only faces below the score, none, or an unreadable file.
        faces: all faces, doubtful ones included, best first.
        kept: the cropped faces, from left to right; at most one unless all are kept.
        num_sure: number of faces with a sufficient score.
        reason: why the file is unreadable.
    """

    outcome: Outcome
    faces: tuple[Face, ...] = ()
    kept: tuple[Face, ...] = ()
    num_sure: int = 0
    reason: str = ""


@dataclass(frozen=True)
class FacesResult:
    """Counts of all photographs; `pictures` is the sum of the five outcomes.

    Attributes:
        out: the folder.
        detector: "yunet" or "haar".
        pictures: number of photographs.
        faces: number of written faces: one for each photograph in `single` and `several`, or all.
        single: photographs with one face.
        several: photographs with more.
        low_score: photographs with faces below the score only.
        without: photographs without a face.
        broken: unreadable photographs.
        identities: number of identities; 0 for unsorted photographs, as are the next two.
        identities_with_a_face: identities with at least one written face.
        identities_with_two: identities with at least two, as genuine pairs need.
    """

    out: Path
    detector: str
    pictures: int
    faces: int
    single: int
    several: int
    low_score: int
    without: int
    broken: int
    identities: int
    identities_with_a_face: int
    identities_with_two: int

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        values = asdict(self)
        values["out"] = str(self.out)
        return values | {
            "report": str(self.out / "faces.html"),
            "list": str(self.out / "faces.csv"),
            "failure_to_acquire": self.failure_to_acquire,
            "failure_to_enrol": self.failure_to_enrol,
        }

    @property
    def failure_to_acquire(self) -> float:
        """FTA (ISO/IEC 19795-1): the share of photographs without a written face."""
        return 1 - (self.single + self.several) / self.pictures

    @property
    def failure_to_enrol(self) -> float | None:
        """FTE (ISO/IEC 19795-1): the share of identities without a face; None if unsorted."""
        return 1 - self.identities_with_a_face / self.identities if self.identities else None

    def as_text(self) -> str:
        """Lines to read."""
        of = f" of {self.identities_with_a_face:,} identities" if self.identities else ""
        fta = f"  failure to acquire (FTA) {100 * self.failure_to_acquire:.1f} % of the pictures"
        lines = [
            f"{self.faces:,} faces{of} in {self.out}",
            f"  of {self.pictures:,} pictures: {self.single:,} with one face, "
            f"{self.several:,} with several, {self.low_score:,} below the score, "
            f"{self.without:,} without a face, {self.broken:,} broken",
        ]
        if self.failure_to_enrol is None:
            lines.append(fta)
        else:
            lines += [
                f"{fta}, failure to enrol (FTE) {100 * self.failure_to_enrol:.1f} % of the "
                "identities",
                f"  {self.identities_with_two:,} of {self.identities:,} identities have two faces "
                "or more",
            ]
        return "\n".join([*lines, f"  page of the doubtful ones: {self.out / 'faces.html'}"])
