"""`twinlens cluster`: cluster unlabelled pictures, or the templates of a gallery."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinlens.clusters.constraints import Constraints, read_constraints, rows_by_name
from twinlens.clusters.knn_graph import NEIGHBOURS
from twinlens.clusters.result import ClusterResult, Cut
from twinlens.clusters.write import EmbeddedPictures, write_clusters
from twinlens.commands.selection import read_data, warn_of_photographs
from twinlens.commands.training_overlap import known_pictures
from twinlens.data.adapters import Data
from twinlens.data.folders import is_folder, read_unlabelled
from twinlens.data.pixel_cache import decode_table
from twinlens.data.pixels import DecodedTable
from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, ConfigError, GalleryError
from twinlens.face.layout import same_photograph
from twinlens.files import check_output_folder, expand_user
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.snapshot import vectors
from twinlens.match.matcher import Matcher, Model
from twinlens.model.training_record import find_record
from twinlens.progress import Progress, console_log

__all__ = ["cluster"]

log = logging.getLogger("twinlens")


def cluster(
    model: Model | Gallery,
    data: Data | None = None,
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
    device: str = "auto",
    quiet: bool = False,
) -> ClusterResult:
    """Cluster pictures so that each cluster shows one thing.

    Args:
        model: model folder or run folder, or a loaded model; or a gallery, without `data`.
        data: folder of pictures, whose subfolders mean nothing; manifest, named set or table (see
            docs/data.md); all splits. Faces of one photograph, by the `faces.csv` of
            `twinlens.faces`, are kept apart.
        out: new or empty folder. It receives a folder for each cluster, `single` for the rest,
            `clusters.csv`, `names.csv` and the page `clusters.html`. Named clusters, by their
            folders or in `names.csv`, are class folders.
        far: false accept rate of the threshold to merge by, for which the model must be
            calibrated; the calibrated one by default.
        threshold: mean distance up to which to merge, in place of a calibrated threshold.
        constraints: CSV file of must-link and cannot-link pairs (see docs/clusters.md).
        min_size: least number of pictures of a cluster with a folder.
        copy: whether to copy the pictures instead of linking them.
        labelled: whether DATA carries labels, by which the clusters are scored. By default a folder
            does not, and everything else does, a gallery included.
        neighbours: nearest pictures by which each picture can be merged; 32 by default.
        root: folder of a named set's copy, or of a manifest's relative paths.
        device: device of the embeddings, as in `twinlens.load`.
        quiet: whether to log only warnings.
    Raises:
        CalibrationError: the model is not calibrated, or not for `far`, and no `threshold`.
        ConfigError: a setting out of its range.
        DataError: nothing to read, `out` in use, or contradictory constraints.
        GalleryError: neither a model with `data` nor a gallery.

    Example:
        >>> import twinlens
        >>> twinlens.cluster("runs/faces", "photos", out="people").clusters  # doctest: +SKIP
        12
    """
    neighbours = NEIGHBOURS if neighbours is None else neighbours
    _check(far, threshold, min_size, neighbours)
    with console_log(quiet):
        if data is None:
            return _of_gallery(model, expand_user(out), far, threshold, constraints, min_size, copy,
                               labelled is not False, neighbours, root)  # fmt: skip
        if isinstance(model, Gallery):
            raise ConfigError("a gallery is clustered without DATA: leave it out, or give a model")
        matcher = Matcher.of(model, device)
        cut = _cut(matcher, far, threshold, neighbours)
        table, is_labelled = _read(matcher, data, root, labelled)
        warn_of_photographs(matcher, table)
        folder = table.root if is_folder(data) else None
        out = check_output_folder(expand_user(out), "the clusters", folder)
        file = None if constraints is None else expand_user(constraints)
        pairs = _constraints(file, table)
        decoded = _decoded(matcher, table)
        if decoded.broken:
            pairs = _constraints(file, decoded.table)
        pictures = _embedded(matcher, decoded, is_labelled)
        options = {
            "--out": out, "--threshold": threshold, "--min-size": min_size, "--root": root,
            "--neighbours": neighbours, "--constraints": file, "--copy": copy,
            "--labelled": bool(labelled), "--no-labelled": labelled is False,
        }  # fmt: skip
        return write_clusters(
            pictures, matcher.comparison, cut, out, constraints=pairs, min_size=min_size,
            copy=copy, broken=len(decoded.broken),
            command=_command(model, data, options) if isinstance(data, str | Path) else "",
        )  # fmt: skip


def _check(far: float | None, threshold: float | None, min_size: int, neighbours: int) -> None:
    if far is not None and threshold is not None:
        raise ConfigError("far and threshold both set the cut: give one of them")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ConfigError(f"threshold must be a distance of 0 or more, found {threshold:g}")
    for name, value in (("min_size", min_size), ("neighbours", neighbours)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, found {value}")


def _cut(matcher: Matcher, far: float | None, threshold: float | None, neighbours: int) -> Cut:
    angular = matcher.settings.comparator == "cosine"
    if threshold is not None:
        return Cut(threshold, None, angular, neighbours)
    known = matcher.require_calibration()
    if far is not None and not math.isclose(far, known.target_far):
        raise CalibrationError(
            f"the model {matcher.path} is calibrated for a FAR of {known.target_far:g}, not "
            f"{far:g}: run `twinlens calibrate {matcher.path} DATA --far {far:g}` on labelled "
            "pictures of identities that it was not trained on, or set a distance with --threshold"
        )
    return Cut(known.threshold, known.target_far, angular, neighbours)


def _read(
    matcher: Matcher, data: str | Path | ImageTable, root: str | Path | None, labelled: bool | None
) -> tuple[ImageTable, bool]:
    """The pictures, and whether they are labelled."""
    if not isinstance(data, ImageTable) and is_folder(data) and not labelled and root is None:
        return read_unlabelled(expand_user(data), source=str(data)), False
    table = read_data(matcher, data, root)
    return table, labelled is not False and table.identities() != [""]


def _constraints(file: Path | None, table: ImageTable) -> Constraints:
    given = Constraints() if file is None else read_constraints(file, rows_by_name(table))
    return given.kept_apart(same_photograph(table))


def _of_gallery(
    place: Model | Gallery, out: Path, far: float | None, threshold: float | None,
    constraints: str | Path | None, min_size: int, copy: bool, labelled: bool, neighbours: int,
    root: str | Path | None,
) -> ClusterResult:  # fmt: skip
    """Cluster the templates of a gallery."""
    if root is not None:
        raise ConfigError(
            "--root belongs to DATA: leave it out with a gallery, which stores its paths"
        )
    if isinstance(place, Matcher):
        raise ConfigError("a model clusters pictures: give DATA, or name a gallery instead")
    try:
        gallery = place if isinstance(place, Gallery) else Gallery.open(place)
    except GalleryError as error:
        raise GalleryError(f"{error}; or name the pictures: twinlens cluster MODEL DATA") from error
    cut = _cut(gallery.matcher, far, threshold, neighbours)
    out = check_output_folder(out, "the clusters", None)
    rows = gallery.store.find(columns=["path", "identity", "vector"])
    if not len(rows):
        raise GalleryError(f"the gallery {gallery.place} is empty: enrol pictures first")
    paths = rows["path"].to_pylist()
    pictures = EmbeddedPictures(
        source=gallery.place,
        names=paths,
        files=paths,
        embeddings=vectors(rows["vector"]),
        identities=rows["identity"].to_pylist() if labelled else None,
        max_pixels=gallery.matcher.max_pixels,
    )
    pairs = None
    if constraints is not None:
        rows = {path: row for row, path in enumerate(paths)}
        pairs = read_constraints(expand_user(constraints), rows)
    return write_clusters(
        pictures, gallery.matcher.comparison, cut, out, constraints=pairs, min_size=min_size,
        copy=copy,
    )  # fmt: skip


def _decoded(matcher: Matcher, table: ImageTable) -> DecodedTable:
    settings = matcher.data_settings
    decoded = decode_table(
        table, matcher.picture, max_pixels=settings.max_pixels,
        max_broken=settings.max_broken, progress=Progress("reading"),
    )  # fmt: skip
    for broken in decoded.broken:
        log.warning("skipped %s: %s", broken.path, broken.reason)
    return decoded


def _embedded(matcher: Matcher, decoded: DecodedTable, labelled: bool) -> EmbeddedPictures:
    kept = decoded.table
    emb_ND = matcher.embed_pixels(decoded.pixels, progress=Progress("embedding"))
    disjoint = None
    if labelled:
        record = find_record(matcher.path, matcher.origin)
        known = known_pictures(matcher, record, kept, decoded.pixels)
        disjoint = known.overlap("train").identity_disjoint
    return EmbeddedPictures(
        source=kept.source,
        names=[kept.relative(row) for row in range(len(kept))],
        files=None if kept.pixels is not None else [str(path) for path in kept.path],
        embeddings=emb_ND,
        identities=[str(name) for name in kept.identity] if labelled else None,
        forged=kept.forged,
        table=kept,
        max_pixels=matcher.max_pixels,
        disjoint=disjoint,
    )


def _command(model: Model, data: str | Path, options: Mapping[str, Any]) -> str:
    """The command line that repeats it."""
    folder = model.path if isinstance(model, Matcher) else model
    words = ["twinlens", "cluster", str(folder), str(data)]
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return shlex.join(words)
