"""`clusters.html`: clusters, largest first, the most doubtful pictures of each first.

Below them are pairs of clusters that could be one, each with the line that joins them in a file of
constraints. The page uses the report's style sheet, and is one file that loads nothing.

Shapes: N pictures, D dimensions, C clusters, S shown clusters.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.clusters.linkage import Clustering, between_clusters
from twinlens.clusters.method import Cut
from twinlens.data.csv_file import csv_cell
from twinlens.errors import PictureError
from twinlens.measure.clustering import ClusteringScores
from twinlens.measure.pairs import Comparison
from twinlens.report.embedding_map import thumbnail_uri
from twinlens.report.formatting import count_of, number, percent, span
from twinlens.report.templates import page_template, style_sheet

__all__ = ["ClusterPage", "render_page", "write_page"]

MOST_CLUSTERS = 60
MOST_EACH = 12  # pictures of a cluster
MOST_DOUBTFUL = 9  # of these, where a cluster has more; the others are the surest
MOST_PICTURES = 480  # of all clusters together: about 2 MB
MOST_SINGLE = 24
MOST_PAIRS = 8
EACH_OF_PAIR = 4
SIDE = 128  # pixels of a picture on the page
NONE = "\N{EN DASH}"


@dataclass(frozen=True, eq=False)
class ClusterPage:
    """Contents of the page.

    Attributes:
        title: name of the new folder.
        source: name of the data as the user gave it.
        counts: `ClusterResult.as_json()`.
        scores: scores against known identities; None if unlabelled.
        names: N names as the user knows the pictures.
        identities: N known identities; None if unlabelled.
        opened: callable from a row to its picture.
        clustering: the clusters.
        num: number of clusters with a folder, by label.
        folders: folder names of the clusters, then of the rest.
        embeddings: embeddings, (N, D).
        comparison: comparator of the embeddings.
        cut: method, and where it stops.
        cannot_link: pairs of labels that constraints keep apart.
        command: command line that repeats it.
    """

    title: str
    source: str
    counts: Mapping[str, Any]
    scores: ClusteringScores | None
    names: Sequence[str]
    identities: Sequence[str] | None
    opened: Callable[[int], Image.Image]
    clustering: Clustering
    num: int
    folders: Sequence[str]
    embeddings: NDArray[np.float32]
    comparison: Comparison
    cut: Cut
    cannot_link: frozenset[tuple[int, int]]
    command: str


def write_page(file: Path, page: ClusterPage) -> None:
    """Write the page."""
    file.write_text(render_page(page), encoding="utf-8", errors="backslashreplace")


def render_page(page: ClusterPage) -> str:
    """Render the page as HTML; user text is escaped."""
    shown = list(_clusters(page))
    single = np.flatnonzero(page.clustering.label >= page.num)
    return page_template("clusters.html.j2").render(
        page=page,
        style=style_sheet(),
        lead=_lead(page),
        key=_key_numbers(page.counts),
        cautions=list(_cautions(page)),
        scores=list(_score_rows(page.scores)),
        clusters=shown,
        more=page.num - len(shown),
        near=list(_near_pairs(page, len(shown))),
        single=[_tile(page, int(row), "") for row in single[:MOST_SINGLE]],
        num_single=len(single),
        cut=None if page.cut.distance is None else number(page.cut.distance),
    )


# --- in words -----------------------------------------------------------------------------------


def _lead(page: ClusterPage) -> str:
    counts = page.counts
    were = "was" if counts["pictures"] == 1 else "were"
    belong = "belongs" if counts["single"] == 1 else "belong"
    return (
        f"{count_of(counts['pictures'], 'picture')} {were} grouped into "
        f"{count_of(counts['clusters'], 'cluster')}"
        + (f"; {counts['single']:,} {belong} to none" if counts["single"] else "")
        + f". {_method(page)}."
    )


def _method(page: ClusterPage) -> str:
    if page.cut.distance is None:
        return f"HDBSCAN chose them by density, from {page.cut.least} pictures on"
    far = page.cut.target_far
    return (
        "Clusters were merged while the mean distance between their pictures was at most "
        f"{number(page.cut.distance)}"
        + (f", the model's threshold at a false accept rate of {percent(far)}" if far else "")
    )


def _key_numbers(counts: Mapping[str, Any]) -> list[dict[str, str]]:
    whole = max(1, counts["pictures"])
    placed = counts["pictures"] - counts["single"]
    mean = placed / counts["clusters"] if counts["clusters"] else 0
    return [
        {
            "name": "Clusters",
            "value": f"{counts['clusters']:,}",
            "note": f"{mean:.1f} pictures each on average",
        },
        {
            "name": "Largest",
            "value": f"{counts['largest']:,}",
            "note": f"{percent(counts['largest'] / whole)} of all",
        },
        {
            "name": "In no cluster",
            "value": f"{counts['single']:,}",
            "note": f"{percent(counts['single'] / whole)} of all",
        },
    ]


def _cautions(page: ClusterPage) -> Iterator[str]:
    counts = page.counts
    if counts["broken"]:
        yield f"{count_of(counts['broken'], 'picture')} could not be read and were left out."
    if counts["missing"]:
        missing = count_of(counts["missing"], "picture")
        yield f"The files of {missing} are missing: see clusters.csv."
    if counts["largest"] > 20 and counts["largest"] > counts["pictures"] / 2:
        yield (
            "More than half of all pictures are in one cluster. Unless they do show one thing, "
            + (
                "the cut is too high for this number of pictures: set a smaller distance with "
                "--threshold."
                if page.cut.least is None
                else "the model does not tell them apart: take --method linkage with a small "
                "--threshold."
            )
        )
    if page.scores is not None and counts["scores"]["identity_disjoint"] is False:
        yield (
            "The model was trained on some of these identities, so the scores are optimistic for "
            "unseen ones."
        )


def _score_rows(scores: ClusteringScores | None) -> Iterator[tuple[str, str, str, str]]:
    """Name, value, interval, meaning."""
    if scores is None:
        return
    for name, figure, meaning in (
        (
            "Purity",
            scores.purity,
            "pictures of their cluster's majority identity",
        ),
        (
            "B-cubed precision",
            scores.precision,
            "share of its cluster with a picture's identity",
        ),
        ("B-cubed recall", scores.recall, "share of its identity in a picture's cluster"),
        ("B-cubed F", scores.f, "harmonic mean of precision and recall"),
        ("NMI", scores.nmi, "normalised mutual information; no interval, since it is not a mean"),
    ):
        value = NONE if figure.value is None else percent(figure.value)
        yield name, value, span(figure.low, figure.high) or NONE, meaning


# --- in pictures --------------------------------------------------------------------------------


def _clusters(page: ClusterPage) -> Iterator[dict[str, Any]]:
    left = MOST_PICTURES
    for label in range(min(page.num, MOST_CLUSTERS)):
        rows = _doubtful_first(page.clustering, label)
        if len(rows) > MOST_EACH:
            rows = [*rows[:MOST_DOUBTFUL], *rows[MOST_DOUBTFUL - MOST_EACH :]]
        if left < len(rows):
            return
        left -= len(rows)
        alone = page.clustering.size[label] == 1
        notes = ["" if alone else number(float(page.clustering.doubt[row])) for row in rows]
        yield {
            "name": page.folders[label],
            "size": int(page.clustering.size[label]),
            "some": int(page.clustering.size[label]) > len(rows),
            "shows": _identities(page, label),
            "pictures": [_tile(page, row, note) for row, note in zip(rows, notes, strict=True)],
        }


def _doubtful_first(clustering: Clustering, label: int) -> list[int]:
    rows = np.flatnonzero(clustering.label == label)
    order = np.argsort(-clustering.doubt[rows], kind="stable")
    return [int(row) for row in rows[order]]


def _identities(page: ClusterPage, label: int) -> str:
    """Identities of a cluster, most frequent first; "" if unlabelled."""
    if page.identities is None:
        return ""
    rows = np.flatnonzero(page.clustering.label == label).tolist()
    common = Counter(page.identities[row] for row in rows).most_common()
    parts = [f"{name} ({count:,})" for name, count in common[:5]]
    return ", ".join(parts) + (f" and {len(common) - 5} more" if len(common) > 5 else "")


def _near_pairs(page: ClusterPage, num: int) -> Iterator[dict[str, Any]]:
    """The shown clusters with the smallest mean distances to each other."""
    dist_SS = between_clusters(page.embeddings, page.comparison, page.clustering.label, num)
    for a, b in page.cannot_link:
        if max(a, b) < num:
            dist_SS[a, b] = dist_SS[b, a] = np.inf
    first, second = np.triu_indices(num, k=1)
    order = np.argsort(dist_SS[first, second], kind="stable")[:MOST_PAIRS]
    order = order[np.isfinite(dist_SS[first[order], second[order]])]
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        sides = [_doubtful_first(page.clustering, label)[::-1] for label in (a, b)]
        yield {
            "names": (page.folders[a], page.folders[b]),
            "distance": number(float(dist_SS[a, b])),
            "sides": [[_tile(page, row, "") for row in rows[:EACH_OF_PAIR]] for rows in sides],
            "line": _csv_line(page.names[sides[0][0]], page.names[sides[1][0]], "must"),
        }


def _csv_line(*cells: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(map(csv_cell, cells))
    return text.getvalue()


def _tile(page: ClusterPage, row: int, note: str) -> dict[str, str]:
    """A picture with its captions; `uri` is "" if it can no longer be read."""
    try:
        uri = thumbnail_uri(page.opened(row), SIDE)
    except PictureError:
        uri = ""
    identity = "" if page.identities is None else page.identities[row]
    return {"uri": uri, "name": page.names[row], "identity": identity, "note": note}
