"""What `twinlens cluster` has found, as data and in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.clusters.knn_graph import NEIGHBOURS
from twinlens.measure.clustering import ClusteringScores
from twinlens.report.wording import count_of

__all__ = ["ClusterSet", "Cut"]


@dataclass(frozen=True)
class Cut:
    """Up to which mean distance groups are merged, and why.

    Attributes:
        distance: of the model's comparator.
        target_far: of the calibrated threshold that it is; None where the user named it.
        angular: the comparator looks at angles (cosine).
        neighbours: how many of its nearest pictures each can be merged by.
    """

    distance: float
    target_far: float | None
    angular: bool
    neighbours: int = NEIGHBOURS


@dataclass(frozen=True)
class ClusterSet:
    """What has been found and written.

    Attributes:
        out: the folder.
        pictures: how many were grouped.
        clusters: groups of `min_size` pictures or more, with a folder each.
        single: pictures in smaller groups, most of them alone.
        largest: pictures in the largest group.
        broken: pictures that cannot be read, and are nowhere.
        missing: pictures whose file is gone, and which could not be linked or copied.
        cut: what they were merged by.
        constraints: pairs that were given.
        files: "links", "copies", or "pictures" that were held in memory and were written.
        scores: where it is known what the pictures show.
        disjoint: none of the identities was trained on; None where that is not known.
    """

    out: Path
    pictures: int
    clusters: int
    single: int
    largest: int
    broken: int
    missing: int
    cut: Cut
    constraints: int
    files: str
    scores: ClusteringScores | None
    disjoint: bool | None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        found: dict[str, Any] = {"out": str(self.out)}
        for name in ("pictures", "clusters", "single", "largest", "broken", "missing"):
            found[name] = getattr(self, name)
        found |= {
            "threshold": self.cut.distance,
            "target_far": self.cut.target_far,
            "constraints": self.constraints,
            "files": self.files,
            "report": str(self.out / "clusters.html"),
            "list": str(self.out / "clusters.csv"),
        }
        if self.scores is not None:
            found["scores"] = self.scores.as_json() | {"identity_disjoint": self.disjoint}
        return found

    def as_text(self) -> str:
        """Lines to read."""
        far = self.cut.target_far
        why = "as given" if far is None else f"the model's threshold at a FAR of {far:g}"
        lines = [
            f"{count_of(self.clusters, 'cluster')} of {count_of(self.pictures, 'picture')} in "
            f"{self.out}",
            f"  the largest group has {self.largest:,}; {self.single:,} are in no cluster",
            f"  merged up to a mean distance of {self.cut.distance:.4f}, {why}",
        ]
        if self.scores is not None:
            lines += _in_words(self.scores, self.disjoint)
        return "\n".join([*lines, f"  look at them: {self.out / 'clusters.html'}"])


def _in_words(scores: ClusteringScores, disjoint: bool | None) -> list[str]:
    rows = {
        "purity": scores.purity,
        "NMI": scores.nmi,
        "B-cubed precision": scores.precision,
        "B-cubed recall": scores.recall,
        "B-cubed F": scores.f,
    }
    lines = [
        f"  against what {scores.num_pictures:,} pictures show: {scores.num_clusters:,} groups for "
        f"{scores.num_identities:,} identities, those of one picture included"
    ]
    if disjoint is False:
        lines.append("  (some of these identities were trained on, so this flatters the model)")
    for name, figure in rows.items():
        spread = "" if figure.low is None else f"  ({figure.low:.4f} to {figure.high:.4f})"
        lines.append(f"    {name:18} {figure.value:.4f}{spread}")
    return lines
