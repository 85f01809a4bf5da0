"""Result of `twinlens cluster`, as JSON and as lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.clusters.knn_graph import NEIGHBOURS
from twinlens.display import Result
from twinlens.measure.clustering import ClusteringScores
from twinlens.report.formatting import count_of

__all__ = ["ClusterResult", "Cut"]


@dataclass(frozen=True)
class Cut:
    """Cut of the linkage.

    Attributes:
        distance: largest mean distance of a merge, by the model's comparator.
        target_far: FAR of the calibrated threshold that it is; None if the user set it.
        angular: whether the comparator compares angles (cosine).
        neighbours: nearest pictures by which each picture can be merged.
    """

    distance: float
    target_far: float | None
    angular: bool
    neighbours: int = NEIGHBOURS


@dataclass(frozen=True, repr=False)
class ClusterResult(Result):
    """Counts and scores of a written clustering.

    Attributes:
        out: the folder.
        pictures: number of clustered pictures.
        clusters: number of clusters of `min_size` pictures or more, with a folder each.
        single: number of pictures in smaller clusters, most of them singletons.
        largest: number of pictures in the largest cluster.
        broken: number of unreadable pictures, which are left out.
        missing: number of pictures whose file is missing, which are not linked or copied.
        cut: cut of the linkage.
        constraints: number of must-link and cannot-link pairs.
        files: "links", "copies", or "pictures" (written from memory).
        scores: scores against known identities; None if unlabelled.
        disjoint: whether no identity was trained on; None if unknown.
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
        values: dict[str, Any] = {"out": str(self.out)}
        for name in ("pictures", "clusters", "single", "largest", "broken", "missing"):
            values[name] = getattr(self, name)
        values |= {
            "threshold": self.cut.distance,
            "target_far": self.cut.target_far,
            "constraints": self.constraints,
            "files": self.files,
            "report": str(self.out / "clusters.html"),
            "list": str(self.out / "clusters.csv"),
        }
        if self.scores is not None:
            values["scores"] = self.scores.as_json() | {"identity_disjoint": self.disjoint}
        return values

    def as_text(self) -> str:
        """Lines to read."""
        far = self.cut.target_far
        why = (
            "set by --threshold"
            if far is None
            else f"the model's threshold at a FAR of {100 * far:g} %"
        )
        lines = [
            f"{count_of(self.clusters, 'cluster')} of {count_of(self.pictures, 'picture')} in "
            f"{self.out}",
            f"  the largest cluster has {count_of(self.largest, 'picture')}; "
            f"{self.single:,} in no cluster",
            f"  clusters merged up to a mean distance of {self.cut.distance:.4f}, {why}",
        ]
        if self.scores is not None:
            lines += _score_lines(self.scores, self.disjoint)
        return "\n".join([*lines, f"  page: {self.out / 'clusters.html'}"])


def _score_lines(scores: ClusteringScores, disjoint: bool | None) -> list[str]:
    rows = {
        "purity": scores.purity,
        "NMI": scores.nmi,
        "B-cubed precision": scores.precision,
        "B-cubed recall": scores.recall,
        "B-cubed F": scores.f,
    }
    lines = [
        f"  scores on {scores.num_pictures:,} labelled pictures: {scores.num_clusters:,} clusters "
        f"for {scores.num_identities:,} identities, singletons included"
    ]
    if disjoint is False:
        lines.append("  (optimistic: some of these identities were trained on)")
    elif disjoint is None:
        lines.append("  (unknown whether some of these identities were trained on)")
    for name, figure in rows.items():
        lines.append(f"    {name:18} {figure}")
    return lines
