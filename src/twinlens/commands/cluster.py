"""`twinlens cluster`: who is in these pictures, with no labels.

`cluster` reads pictures and embeds them; `write_clusters` takes embeddings from wherever they come
and does the rest: it groups them, scores the groups where it is known what the pictures show, and
writes the folder.
"""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.clusters.constraints import Constraints, places_of, read_constraints
from twinlens.clusters.knn_graph import NEIGHBOURS
from twinlens.clusters.layout import Placed, place_clusters, write_list
from twinlens.clusters.linkage import Clusters, cluster_embeddings
from twinlens.clusters.page import ClusterPage, write_page
from twinlens.clusters.result import ClusterSet, Cut
from twinlens.commands.selection import is_identity_disjoint, read_data
from twinlens.config import DataSettings
from twinlens.data.decode import open_picture
from twinlens.data.folders import read_unlabelled
from twinlens.data.pixel_cache import DecodedTable, decode_table
from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, ConfigError, GalleryError
from twinlens.face.layout import is_folder
from twinlens.files import check_output_folder, creating_folder, expand_user
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.snapshot import vectors
from twinlens.match.matcher import Matcher
from twinlens.measure.clustering import PartitionScores, score_partition
from twinlens.measure.pairs import Comparison
from twinlens.model.bundle import Bundle
from twinlens.model.encoder import embed_pixels
from twinlens.progress import Progress, console_log

__all__ = ["ClusterSet", "Cut", "Pictures", "cluster", "comparison_of", "write_clusters"]

log = logging.getLogger("twinlens")


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures to group, with their embeddings.

    Attributes:
        source: how the user named them.
        names: as the user knows each.
        files: where each lies; None where they are held in memory (`pixels`).
        embeddings: (N, D), all of one model.
        identities: what each shows; None where nobody says.
        forged: (N,) pictures that only imitate their identity: they are grouped, not scored.
        pixels: (N, H, W[, 3]) uint8, where there are no files.
        max_pixels: larger files are not opened.
        disjoint: none of the identities was trained on; None where that is not known.
    """

    source: str
    names: Sequence[str]
    files: Sequence[str] | None
    embeddings: NDArray[np.float32]
    identities: Sequence[str] | None = None
    forged: NDArray[np.bool_] | None = None
    pixels: NDArray[np.uint8] | None = None
    max_pixels: int = DataSettings().max_pixels
    disjoint: bool | None = None

    def open(self, row: int) -> Image.Image:
        """One of the pictures.

        Raises:
            PictureError: its file cannot be read (any more).
        """
        if self.files is not None:
            return open_picture(self.files[row], max_pixels=self.max_pixels)
        assert self.pixels is not None
        return Image.fromarray(self.pixels[row])


def cluster(
    model: str | Path,
    data: str | Path | ImageTable | None = None,
    *,
    out: str | Path,
    far: float | None = None,
    threshold: float | None = None,
    constraints: str | Path | None = None,
    min_size: int = 2,
    copy: bool = False,
    labelled: bool | None = None,
    neighbours: int | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> ClusterSet:
    """Put pictures that show the same thing together, without being told what there is.

    Args:
        model: a model's folder or a run's; or a gallery, without `data`.
        data: a folder of pictures, whose own folders mean nothing; a manifest, the name of a set,
            or a table (see docs/data.md); all splits.
        out: a folder that is new or empty: a folder for each cluster, `single` for the rest,
            `clusters.csv`, and `clusters.html`, a page to look at.
        far: merge by the threshold of this false accept rate, for which the model must be
            calibrated; by default by the one that it has.
        threshold: merge up to this mean distance instead.
        constraints: a CSV file of pairs that must or cannot be together (see docs/clusters.md).
        min_size: smaller groups get no folder.
        copy: copy the pictures, instead of linking to them.
        labelled: whether DATA says what the pictures show, to score the clusters by; None: a
            folder does not, everything else does (of a gallery, the identities).
        neighbours: how many of its nearest pictures each can be merged by; 32 by default.
        root: where the copy of a named set lies, or what a manifest's paths start from.
        quiet: say only warnings.
    Raises:
        CalibrationError: the model is not calibrated, or not for `far`, and no `threshold`.
        ConfigError: a setting out of its range.
        DataError: nothing to read, `out` in use, or constraints that cannot be met.
        GalleryError: neither a model with `data` nor a gallery.
    """
    neighbours = NEIGHBOURS if neighbours is None else neighbours
    _check(far, threshold, min_size, neighbours)
    with console_log(quiet):
        if data is None:
            return _of_gallery(model, expand_user(out), far, threshold, constraints, min_size, copy,
                               labelled is not False, neighbours, root)  # fmt: skip
        matcher = Matcher.load(model)
        cut = _cut(matcher, far, threshold, neighbours)
        table, is_labelled = _read(matcher.bundle, data, root, labelled)
        folder = table.root if is_folder(data) else None
        out = check_output_folder(expand_user(out), "the clusters", folder)
        file = None if constraints is None else expand_user(constraints)
        given = _constraints(file, table)
        decoded = _decoded(matcher.bundle, table)
        if decoded.broken:
            given = _constraints(file, decoded.table)
        pictures = _embedded(matcher, decoded, is_labelled)
        options = {
            "--out": out, "--threshold": threshold, "--min-size": min_size, "--root": root,
            "--neighbours": neighbours, "--constraints": file, "--copy": copy,
            "--labelled": bool(labelled), "--no-labelled": labelled is False,
        }  # fmt: skip
        return write_clusters(
            pictures, comparison_of(matcher), cut, out, given=given, min_size=min_size, copy=copy,
            broken=len(decoded.broken),
            command="" if isinstance(data, ImageTable) else _command(model, data, options),
        )  # fmt: skip


def write_clusters(
    pictures: Pictures,
    comparison: Comparison,
    cut: Cut,
    out: Path,
    *,
    given: Constraints | None = None,
    min_size: int = 2,
    copy: bool = False,
    broken: int = 0,
    command: str = "",
) -> ClusterSet:
    """Group pictures that are embedded already, and write the folder.

    Args:
        pictures: from a gallery, for example.
        comparison: the model's comparator.
        cut: by what they are merged.
        out: new or empty; see `files.check_output_folder`.
        given: what must and cannot be together.
        min_size: smaller groups get no folder.
        copy: copy the pictures, instead of linking to them.
        broken: how many could not be read, to be said on the page.
        command: what to type to repeat it, for the page.
    Raises:
        DataError: embeddings that are not numbers, or a place that cannot be written.
    """
    given = Constraints() if given is None else given
    found = cluster_embeddings(
        pictures.embeddings, comparison, threshold=cut.distance, neighbours=cut.neighbours,
        must_link=given.must, cannot_link=given.cannot, angular=cut.angular,
        progress=Progress("comparing"), merging=Progress("merging", "merges at most"),
    )  # fmt: skip
    scores = _scores(pictures, found)
    num = int(np.count_nonzero(found.size >= min_size))
    with creating_folder(out, str(out.parent), "name another place") as folder:
        placed = place_clusters(
            folder, pictures.names, pictures.files, pictures.open, found.label, num, copy=copy
        )
        result = _result(pictures, found, out, cut, num, broken, len(given), placed, scores)
        write_list(folder / "clusters.csv", pictures.names, placed, found, num)
        page = ClusterPage(
            out.resolve().name, pictures.source, result.as_json(), scores, pictures.names,
            pictures.identities, pictures.open, found, num, placed.folders, pictures.embeddings,
            comparison, _apart(found, given), command,
        )  # fmt: skip
        write_page(folder / "clusters.html", page)
    return result


# --- before the pictures ------------------------------------------------------------------------


def _check(far: float | None, threshold: float | None, min_size: int, neighbours: int) -> None:
    if far is not None and threshold is not None:
        raise ConfigError("a FAR and a threshold both say where to cut: give one of them")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ConfigError(f"a threshold is a distance of 0 or more, found {threshold:g}")
    for name, value in (("min_size", min_size), ("neighbours", neighbours)):
        if value < 1:
            raise ConfigError(f"{name} is at least 1, found {value}")


def _cut(matcher: Matcher, far: float | None, threshold: float | None, neighbours: int) -> Cut:
    angular = matcher.bundle.encoder.model_settings.comparator == "cosine"
    if threshold is not None:
        return Cut(threshold, None, angular, neighbours)
    known = matcher.require_calibration()
    if far is not None and not math.isclose(far, known.target_far):
        raise CalibrationError(
            f"the model {matcher.path} is calibrated for a FAR of {known.target_far:g}, not "
            f"{far:g}: run `twinlens calibrate {matcher.path} DATA --far {far:g}` on labelled "
            "pictures of things that it was not trained on, or give the distance with --threshold"
        )
    return Cut(known.threshold, known.target_far, angular, neighbours)


def comparison_of(matcher: Matcher) -> Comparison:
    """The model's comparator, without torch where it can be.

    Hundreds of thousands of small matrices are compared, and torch takes twice as long for that.
    """
    plain = matcher.plain
    return matcher.comparison if plain is None else plain


def _read(
    bundle: Bundle, data: str | Path | ImageTable, root: str | Path | None, labelled: bool | None
) -> tuple[ImageTable, bool]:
    """The pictures, and whether they say what they show."""
    if not isinstance(data, ImageTable) and is_folder(data) and not labelled and root is None:
        return read_unlabelled(expand_user(data), source=str(data)), False
    table = read_data(bundle, data, root)
    return table, labelled is not False and table.identities() != [""]


def _constraints(file: Path | None, table: ImageTable) -> Constraints:
    return Constraints() if file is None else read_constraints(file, places_of(table))


def _of_gallery(
    place: str | Path, out: Path, far: float | None, threshold: float | None,
    constraints: str | Path | None, min_size: int, copy: bool, labelled: bool, neighbours: int,
    root: str | Path | None,
) -> ClusterSet:  # fmt: skip
    """The same with the pictures of a gallery, which are embedded already."""
    if root is not None:
        raise ConfigError("--root belongs to DATA, and a gallery knows where its pictures are")
    try:
        gallery = Gallery.open(place)
    except GalleryError as error:
        raise GalleryError(f"{error}; or name the pictures: twinlens cluster MODEL DATA") from error
    cut = _cut(gallery.matcher, far, threshold, neighbours)
    out = check_output_folder(out, "the clusters", None)
    rows = gallery.store.find(columns=["path", "identity", "vector"])
    if not len(rows):
        raise GalleryError(f"the gallery {gallery.place} is empty: enrol pictures first")
    paths = rows["path"].to_pylist()
    pictures = Pictures(
        source=gallery.place,
        names=paths,
        files=paths,
        embeddings=vectors(rows["vector"]),
        identities=rows["identity"].to_pylist() if labelled else None,
        max_pixels=gallery.matcher.max_pixels,
    )
    given = None
    if constraints is not None:
        places = {path: row for row, path in enumerate(paths)}
        given = read_constraints(expand_user(constraints), places)
    return write_clusters(
        pictures, comparison_of(gallery.matcher), cut, out, given=given, min_size=min_size,
        copy=copy,
    )  # fmt: skip


def _decoded(bundle: Bundle, table: ImageTable) -> DecodedTable:
    settings = DataSettings() if bundle.origin is None else bundle.origin.data
    decoded = decode_table(
        table, bundle.encoder.picture, max_pixels=settings.max_pixels,
        max_broken=settings.max_broken, progress=Progress("reading"),
    )  # fmt: skip
    for broken in decoded.broken:
        log.warning("skipped %s: %s", broken.path, broken.reason)
    return decoded


def _embedded(matcher: Matcher, decoded: DecodedTable, labelled: bool) -> Pictures:
    bundle, kept = matcher.bundle, decoded.table
    emb_ND = embed_pixels(bundle.encoder, decoded.pixels, progress=Progress("embedding"))
    return Pictures(
        source=kept.source,
        names=[kept.relative(row) for row in range(len(kept))],
        files=None if kept.pixels is not None else [str(path) for path in kept.path],
        embeddings=emb_ND,
        identities=[str(name) for name in kept.identity] if labelled else None,
        forged=kept.forged,
        pixels=kept.pixels,
        max_pixels=matcher.max_pixels,
        disjoint=is_identity_disjoint(bundle, kept) if labelled else None,
    )


def _command(model: str | Path, data: str | Path, options: Mapping[str, Any]) -> str:
    """What to type to repeat it."""
    words = ["twinlens", "cluster", str(model), str(data)]
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return shlex.join(words)


# --- after the clusters -------------------------------------------------------------------------


def _scores(pictures: Pictures, found: Clusters) -> PartitionScores | None:
    if pictures.identities is None:
        return None
    rows = np.arange(len(found.label))
    if pictures.forged is not None:
        rows = rows[~pictures.forged]
    if not len(rows):
        return None
    return score_partition(found.label[rows], np.array(pictures.identities, dtype=object)[rows])


def _apart(found: Clusters, given: Constraints) -> frozenset[tuple[int, int]]:
    return frozenset((int(found.label[a]), int(found.label[b])) for a, b in given.cannot)


def _result(
    pictures: Pictures, found: Clusters, out: Path, cut: Cut, num: int, broken: int,
    constraints: int, placed: Placed, scores: PartitionScores | None,
) -> ClusterSet:  # fmt: skip
    return ClusterSet(
        out=out,
        pictures=len(found.label),
        clusters=num,
        single=int(found.size[num:].sum()),
        largest=int(found.size.max(initial=0)),
        broken=broken,
        missing=placed.missing,
        cut=cut,
        constraints=constraints,
        files=placed.kind,
        scores=scores,
        disjoint=pictures.disjoint,
    )
