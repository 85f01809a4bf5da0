"""Result of `twinlens cluster`, as JSON and as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.clusters.method import Cut, Trial
from twinlens.display import Result
from twinlens.measure.clustering import ClusteringScores
from twinlens.report.formatting import count_of

__all__ = ["ClusterResult"]


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
        cut: method, and where it stops.
        constraints: number of must-link and cannot-link pairs.
        files: "links", "copies", or "pictures" (written from memory).
        scores: scores against known identities; None if unlabelled.
        disjoint: whether no identity was trained on; None if unknown.
        trials: what was compared on labelled pictures, if anything was.
        new: number of pictures that were not in the clustering that they join; None without one.
        joined: number of these in a cluster that existed; None without one.
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
    trials: Sequence[Trial] = ()
    new: int | None = None
    joined: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        values: dict[str, Any] = {"out": str(self.out)}
        for name in ("pictures", "clusters", "single", "largest", "broken", "missing"):
            values[name] = getattr(self, name)
        if self.new is not None:
            values |= {"new": self.new, "joined": self.joined}
        values |= {
            "method": self.cut.method,
            "threshold": self.cut.distance,
            "target_far": self.cut.target_far,
            "constraints": self.constraints,
            "files": self.files,
            "report": str(self.out / "clusters.html"),
            "list": str(self.out / "clusters.csv"),
        }
        if self.trials:
            values["validation"] = [trial.as_json() for trial in self.trials]
        if self.scores is not None:
            values["scores"] = self.scores.as_json() | {"identity_disjoint": self.disjoint}
        return values

    def as_text(self) -> str:
        """Lines to read."""
        lines = [
            f"{count_of(self.clusters, 'cluster')} of {count_of(self.pictures, 'picture')} in "
            f"{self.out}",
            f"  the largest cluster has {count_of(self.largest, 'picture')}; "
            f"{self.single:,} in no cluster",
            f"  {self.cut.as_text()}"
            + (", the best on the labelled pictures" if self.trials else ""),
        ]
        if self.new is not None:
            lines.append(
                f"  {count_of(self.new, 'new picture')}, {self.joined:,} of them in clusters that "
                "existed"
            )
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
