"""Cluster embeddings of any source, score the clusters, and write the folder and the page.

Shapes: N pictures, D dimensions, H x W pixels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.clusters.constraints import Constraints
from twinlens.clusters.existing import ExistingClusters, write_embeddings
from twinlens.clusters.layout import SINGLE, Placement, place_clusters, write_list
from twinlens.clusters.linkage import Clustering
from twinlens.clusters.method import Cut, Trial, cluster_by
from twinlens.clusters.page import ClusterPage, write_page
from twinlens.clusters.result import ClusterResult
from twinlens.config import DataSettings
from twinlens.data.cluster_names import CLUSTER_LIST, write_names
from twinlens.data.decode import open_picture
from twinlens.data.table import ImageTable
from twinlens.files import creating_folder
from twinlens.measure.clustering import ClusteringScores, score_clustering
from twinlens.measure.pairs import Comparison

__all__ = ["EmbeddedPictures", "write_clusters"]

Ints = NDArray[np.int64]


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
        existing: (N,) existing cluster of each picture, -1 for a picture of none; None if all are
            new.
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
    existing: Ints | None = None

    def after(self, earlier: ExistingClusters) -> EmbeddedPictures:
        """The pictures of an earlier clustering, and these."""
        assert self.files is not None
        num, known = len(earlier.names), set(earlier.names)
        names = [file if name in known else name
                 for name, file in zip(self.names, self.files, strict=True)]  # fmt: skip
        return replace(
            self,
            names=[*earlier.names, *names],
            files=[*earlier.files, *self.files],
            embeddings=np.concatenate([earlier.embeddings, self.embeddings]),
            identities=None if self.identities is None else [*[""] * num, *self.identities],
            forged=None if self.forged is None else np.append(np.zeros(num, bool), self.forged),
            table=None,
            existing=np.append(earlier.label, np.full(len(names), -1)),
        )

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
    fingerprint: str = "",
    onto: ExistingClusters | None = None,
    trials: Sequence[Trial] = (),
) -> ClusterResult:
    """Cluster embedded pictures and write the folder.

    Args:
        pictures: pictures with embeddings, such as those of a gallery.
        comparison: comparator of the model.
        cut: method, and where it stops.
        out: new or empty folder; see `files.check_output_folder`.
        constraints: must-link and cannot-link pairs.
        min_size: least number of pictures of a cluster with a folder.
        copy: whether to copy the pictures instead of linking them.
        broken: number of unreadable pictures, for the page.
        command: command line that repeats it, for the page.
        fingerprint: fingerprint of the model.
        onto: clustering that the pictures join, whose own are the first ones of `pictures`.
        trials: what was compared to choose `cut`.
    Raises:
        DataError: NaN embeddings, or a folder that cannot be written.
    """
    constraints = Constraints() if constraints is None else constraints
    num_new = None if onto is None else len(pictures.names) - len(onto.names)
    clustering = cluster_by(
        cut, pictures.embeddings, comparison, constraints, existing=pictures.existing,
        num_new=num_new,
    )  # fmt: skip
    clustering, folders, joined = _with_folders(clustering, pictures.existing, onto, min_size)
    scores = _scores(pictures, clustering)
    num = len(folders) - 1
    with creating_folder(out, str(out.parent), "name another place") as folder:
        placement = place_clusters(
            folder, pictures.names, pictures.files, pictures.open, clustering.label, folders,
            copy=copy,
        )  # fmt: skip
        result = _result(
            pictures, clustering, out, cut, num, broken, len(constraints), placement, scores,
            trials, num_new, joined,
        )  # fmt: skip
        write_list(folder / CLUSTER_LIST, pictures.names, placement, clustering, num)
        sizes = clustering.size[:num].tolist()
        names = {} if onto is None else onto.cluster_names
        write_names(folder, list(zip(folders[:num], sizes, strict=True)), names)
        write_embeddings(
            folder, pictures.names, pictures.files, placement.files, pictures.embeddings, cut,
            fingerprint,
        )  # fmt: skip
        page = ClusterPage(
            out.resolve().name, pictures.source, result.as_json(), scores, pictures.names,
            pictures.identities, pictures.open, clustering, num, folders,
            pictures.embeddings, comparison, cut, _cannot_link_labels(clustering, constraints),
            command,
        )  # fmt: skip
        write_page(folder / "clusters.html", page)
    return result


def _with_folders(
    clustering: Clustering, existing: Ints | None, onto: ExistingClusters | None, min_size: int
) -> tuple[Clustering, tuple[str, ...], int | None]:
    """The clusters with a folder of their own first, all names of folders, and how many joined."""
    owner_C = np.full(len(clustering.size), -1)
    if existing is not None:
        row = np.flatnonzero(existing >= 0)
        # If constraints merge clusters, the name of the largest stays.
        row = row[np.argsort(np.bincount(existing[row])[existing[row]], kind="stable")]
        owner_C[clustering.label[row]] = existing[row]
    order_C = np.argsort((clustering.size < min_size) & (owner_C < 0), kind="stable")
    num = int(np.count_nonzero((clustering.size >= min_size) | (owner_C >= 0)))
    known = [] if onto is None else list(onto.folders)
    numbers = [int(name[8:]) for name in known if re.fullmatch(r"cluster-\d+", name)]
    fresh = itertools.count(1 + max(numbers, default=0))
    digits = max(3, len(str(num)))
    folders = [
        known[owner] if owner >= 0 else f"cluster-{next(fresh):0{digits}}"
        for owner in owner_C[order_C[:num]].tolist()
    ]
    joined = None
    if onto is not None:
        joined = int(np.count_nonzero(owner_C[clustering.label[len(onto.names) :]] >= 0))
    label_N = np.argsort(order_C)[clustering.label]
    ordered = Clustering(label_N, clustering.size[order_C], clustering.doubt)
    return ordered, (*folders, SINGLE), joined


def _scores(pictures: EmbeddedPictures, clustering: Clustering) -> ClusteringScores | None:
    if pictures.identities is None:
        return None
    identities = np.array(pictures.identities, dtype=object)
    rows = np.flatnonzero(identities != "")  # Those of an existing clustering are unknown.
    if pictures.forged is not None:
        rows = rows[~pictures.forged]
    if not len(rows):
        return None
    return score_clustering(clustering.label[rows], identities[rows])


def _cannot_link_labels(
    clustering: Clustering, constraints: Constraints
) -> frozenset[tuple[int, int]]:
    return frozenset(
        (int(clustering.label[a]), int(clustering.label[b])) for a, b in constraints.cannot
    )


def _result(
    pictures: EmbeddedPictures, clustering: Clustering, out: Path, cut: Cut, num: int, broken: int,
    constraints: int, placement: Placement, scores: ClusteringScores | None,
    trials: Sequence[Trial], num_new: int | None, joined: int | None,
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
        trials=tuple(trials),
        new=num_new,
        joined=joined,
    )
