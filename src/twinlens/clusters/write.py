"""Cluster embeddings of any source, score the clusters, and write the folder and the page.

Shapes: N pictures, D dimensions, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.clusters.constraints import Constraints
from twinlens.clusters.layout import Placement, place_clusters, write_list
from twinlens.clusters.linkage import Clustering, cluster_embeddings
from twinlens.clusters.page import ClusterPage, write_page
from twinlens.clusters.result import ClusterResult, Cut
from twinlens.config import DataSettings
from twinlens.data.cluster_names import CLUSTER_LIST, write_names
from twinlens.data.decode import open_picture
from twinlens.data.table import ImageTable
from twinlens.files import creating_folder
from twinlens.measure.clustering import ClusteringScores, score_clustering
from twinlens.measure.pairs import Comparison
from twinlens.progress import Progress

__all__ = ["EmbeddedPictures", "write_clusters"]


@dataclass(frozen=True, eq=False)
class EmbeddedPictures:
    """N pictures with their embeddings.

    Attributes:
        source: name of the data as the user gave it.
        names: N names as the user knows the pictures.
        files: N paths; None if the pictures are in memory (`table`).
        embeddings: embeddings of one model, (N, D).
        identities: N known identities; None if unlabelled.
        forged: (N,) forgeries, which are clustered but not scored.
        table: the pictures, if there are no files.
        max_pixels: limit of pixels of a file to open.
        disjoint: whether no identity was trained on; None if unknown.
    """

    source: str
    names: Sequence[str]
    files: Sequence[str] | None
    embeddings: NDArray[np.float32]
    identities: Sequence[str] | None = None
    forged: NDArray[np.bool_] | None = None
    table: ImageTable | None = None
    max_pixels: int = DataSettings().max_pixels
    disjoint: bool | None = None

    def open(self, row: int) -> Image.Image:
        """The picture of a row.

        Raises:
            PictureError: its file cannot be read.
        """
        if self.table is not None:
            return open_picture(self.table.picture(row), max_pixels=self.max_pixels)
        assert self.files is not None
        return open_picture(self.files[row], max_pixels=self.max_pixels)


def write_clusters(
    pictures: EmbeddedPictures,
    comparison: Comparison,
    cut: Cut,
    out: Path,
    *,
    constraints: Constraints | None = None,
    min_size: int = 2,
    copy: bool = False,
    broken: int = 0,
    command: str = "",
) -> ClusterResult:
    """Cluster embedded pictures and write the folder.

    Args:
        pictures: pictures with embeddings, such as those of a gallery.
        comparison: comparator of the model.
        cut: cut of the linkage.
        out: new or empty folder; see `files.check_output_folder`.
        constraints: must-link and cannot-link pairs.
        min_size: least number of pictures of a cluster with a folder.
        copy: whether to copy the pictures instead of linking them.
        broken: number of unreadable pictures, for the page.
        command: command line that repeats it, for the page.
    Raises:
        DataError: NaN embeddings, or a folder that cannot be written.
    """
    constraints = Constraints() if constraints is None else constraints
    clustering = cluster_embeddings(
        pictures.embeddings, comparison, threshold=cut.distance, neighbours=cut.neighbours,
        must_link=constraints.must, cannot_link=constraints.cannot, angular=cut.angular,
        progress=Progress("comparing"), merging=Progress("merging", "merges at most"),
    )  # fmt: skip
    scores = _scores(pictures, clustering)
    num = int(np.count_nonzero(clustering.size >= min_size))
    with creating_folder(out, str(out.parent), "name another place") as folder:
        placement = place_clusters(
            folder, pictures.names, pictures.files, pictures.open, clustering.label, num, copy=copy
        )
        result = _result(
            pictures, clustering, out, cut, num, broken, len(constraints), placement, scores
        )
        write_list(folder / CLUSTER_LIST, pictures.names, placement, clustering, num)
        sizes = clustering.size[:num].tolist()
        write_names(folder, list(zip(placement.folders[:num], sizes, strict=True)))
        page = ClusterPage(
            out.resolve().name, pictures.source, result.as_json(), scores, pictures.names,
            pictures.identities, pictures.open, clustering, num, placement.folders,
            pictures.embeddings, comparison, _cannot_link_labels(clustering, constraints), command,
        )  # fmt: skip
        write_page(folder / "clusters.html", page)
    return result


def _scores(pictures: EmbeddedPictures, clustering: Clustering) -> ClusteringScores | None:
    if pictures.identities is None:
        return None
    rows = np.arange(len(clustering.label))
    if pictures.forged is not None:
        rows = rows[~pictures.forged]
    if not len(rows):
        return None
    return score_clustering(
        clustering.label[rows], np.array(pictures.identities, dtype=object)[rows]
    )


def _cannot_link_labels(
    clustering: Clustering, constraints: Constraints
) -> frozenset[tuple[int, int]]:
    return frozenset(
        (int(clustering.label[a]), int(clustering.label[b])) for a, b in constraints.cannot
    )


def _result(
    pictures: EmbeddedPictures, clustering: Clustering, out: Path, cut: Cut, num: int, broken: int,
    constraints: int, placement: Placement, scores: ClusteringScores | None,
) -> ClusterResult:  # fmt: skip
    return ClusterResult(
        out=out,
        pictures=len(clustering.label),
        clusters=num,
        single=int(clustering.size[num:].sum()),
        largest=int(clustering.size.max(initial=0)),
        broken=broken,
        missing=placement.missing,
        cut=cut,
        constraints=constraints,
        files=placement.kind,
        scores=scores,
        disjoint=pictures.disjoint,
    )
