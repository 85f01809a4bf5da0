"""`twinlens cluster`: cluster unlabelled pictures, or the templates of a gallery."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.clusters.constraints import Constraints, read_constraints, rows_by_name
from twinlens.clusters.existing import ExistingClusters, read_existing
from twinlens.clusters.knn_graph import NEIGHBOURS
from twinlens.clusters.method import HDBSCAN, LEAST, MANY, METHODS, Cut, Trial, best_cut
from twinlens.clusters.result import ClusterResult
from twinlens.clusters.write import EmbeddedPictures, write_clusters
from twinlens.commands.selection import read_data, select_pictures, warn_of_photographs
from twinlens.commands.training_overlap import known_pictures
from twinlens.data.adapters import Data
from twinlens.data.folders import is_folder, read_unlabelled
from twinlens.data.pixel_cache import decode_table
from twinlens.data.pixels import DecodedTable
from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, ConfigError, DataError, GalleryError, unknown_name
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
    method: str | None = None,
    validation: Data | None = None,
    onto: str | Path | None = None,
    constraints: str | Path | None = None,
    min_size: int | None = None,
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
        method: "linkage" (average linkage up to a distance) or "hdbscan" (by density, from
            `min_size` pictures on). By default the better one on `validation`, else linkage up to
            20,000 pictures, and HDBSCAN for more.
        validation: labelled pictures of identities that the model was not trained on, with about as
            many pictures of each as `data` has. The method, and its distance or `min_size`, are
            those with the highest B-cubed F on them.
        onto: folder of an earlier clustering. Pictures of `data` that are not in it join its
            clusters, or form new ones. Its clusters, their names and moved pictures stay.
        constraints: CSV file of must-link and cannot-link pairs (see docs/clusters.md).
        min_size: least number of pictures of a cluster with a folder: 2 by default, 5 for HDBSCAN.
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
    wish = _Wish(
        far, threshold, method, validation, min_size,
        NEIGHBOURS if neighbours is None else neighbours, root,
    )  # fmt: skip
    wish.check()
    with console_log(quiet):
        if data is None:
            return _of_gallery(model, expand_user(out), wish, onto, constraints, copy,
                               labelled is not False)  # fmt: skip
        if isinstance(model, Gallery):
            raise ConfigError("a gallery is clustered without DATA: leave it out, or give a model")
        matcher = Matcher.of(model, device)
        earlier = _earlier(onto, matcher)
        table, is_labelled = _read(matcher, data, root, labelled)
        warn_of_photographs(matcher, table)
        if earlier is not None:
            table = _only_new(table, earlier)
        folder = table.root if is_folder(data) else None
        out = check_output_folder(expand_user(out), "the clusters", folder)
        file = None if constraints is None else expand_user(constraints)
        pairs = _constraints(file, table, earlier)
        cut, trials = wish.method_of(matcher, len(table), earlier)
        decoded = _decoded(matcher, table)
        if decoded.broken:
            pairs = _constraints(file, decoded.table, earlier)
        pictures = _embedded(matcher, decoded, is_labelled)
        options = {
            "--out": out, "--threshold": threshold, "--method": method, "--onto": onto,
            "--validation": validation if isinstance(validation, str | Path) else None,
            "--min-size": min_size, "--root": root, "--neighbours": neighbours,
            "--constraints": file, "--copy": copy,
            "--labelled": bool(labelled), "--no-labelled": labelled is False,
        }  # fmt: skip
        return write_clusters(
            pictures if earlier is None else pictures.after(earlier), matcher.comparison, cut, out,
            constraints=pairs, min_size=wish.least_of(cut), copy=copy, broken=len(decoded.broken),
            command=_command(model, data, options) if isinstance(data, str | Path) else "",
            fingerprint=matcher.fingerprint, onto=earlier, trials=trials,
        )  # fmt: skip


@dataclass(frozen=True)
class _Wish:
    """Arguments of `cluster` that set the method."""

    far: float | None
    threshold: float | None
    method: str | None
    validation: Data | None
    min_size: int | None
    neighbours: int
    root: str | Path | None

    def check(self) -> None:
        """Check each argument, and those that exclude each other."""
        threshold = self.threshold
        if self.far is not None and threshold is not None:
            raise ConfigError("far and threshold both set the cut: give one of them")
        if threshold is not None and not 0 <= threshold < math.inf:
            raise ConfigError(f"threshold must be a distance of 0 or more, found {threshold:g}")
        for name, value in (("min_size", self.min_size), ("neighbours", self.neighbours)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        if self.method not in (None, *METHODS):
            raise ConfigError(unknown_name("method", str(self.method), METHODS))
        is_set = threshold is not None or self.far is not None
        if (is_set and self.method == HDBSCAN) or (
            threshold is not None and self.validation is not None
        ):
            raise ConfigError(
                "threshold and far set where linkage stops: leave them out with HDBSCAN, which has "
                "none, and threshold with validation, which chooses it"
            )

    def least_of(self, cut: Cut) -> int:
        """Least number of pictures of a cluster with a folder."""
        return self.min_size or cut.least or 2

    def method_of(
        self, matcher: Matcher, num: int, earlier: ExistingClusters | None
    ) -> tuple[Cut, list[Trial]]:
        """The method for `num` pictures, and what was compared to choose it."""
        angular = matcher.settings.comparator == "cosine"
        plain = Cut(None, None, angular, self.neighbours)
        if earlier is not None:
            if self.method == HDBSCAN or self.validation is not None:
                raise ConfigError(
                    "new pictures join clusters by linkage: leave out --method hdbscan and "
                    "--validation with --onto"
                )
            known = earlier.distance
            if known is not None and self.threshold is None and self.far is None:
                return replace(plain, distance=known, target_far=earlier.target_far), []
        if self.validation is not None:
            return self._validated(matcher, plain)
        is_open = self.method is None and self.threshold is None and self.far is None
        if self.method == HDBSCAN or (is_open and earlier is None and num > MANY):
            if self.method is None:
                log.info("HDBSCAN groups more than %d pictures, unless --method is given", MANY)
            least = LEAST if self.min_size is None else max(2, self.min_size)
            return replace(plain, least=least), []
        return _linkage_cut(matcher, plain, self.far, self.threshold), []

    def _validated(self, matcher: Matcher, plain: Cut) -> tuple[Cut, list[Trial]]:
        start = plain
        if self.method != HDBSCAN:
            start = _linkage_cut(matcher, plain, self.far, None)
        assert self.validation is not None
        chosen = select_pictures(matcher, self.validation, split="auto", prefer="val")
        genuine = np.flatnonzero(~chosen.table.forged)
        emb_ND = matcher.embed_pixels(chosen.pixels, progress=Progress("embedding"))[genuine]
        label_N = chosen.table.labels()[genuine]
        cut, trials = best_cut(
            start, emb_ND, matcher.comparison, label_N, self.method, self.min_size
        )
        for trial in trials:
            log.info("  B-cubed F %.3f on labelled pictures: %s", trial.f, trial.cut.as_text())
        return cut, trials


def _linkage_cut(matcher: Matcher, plain: Cut, far: float | None, threshold: float | None) -> Cut:
    if threshold is not None:
        return replace(plain, distance=threshold)
    known = matcher.require_calibration()
    if far is not None and not math.isclose(far, known.target_far):
        raise CalibrationError(
            f"the model {matcher.path} is calibrated for a FAR of {known.target_far:g}, not "
            f"{far:g}: run `twinlens calibrate {matcher.path} DATA --far {far:g}` on labelled "
            "pictures of identities that it was not trained on, or set a distance with --threshold"
        )
    return replace(plain, distance=known.threshold, target_far=known.target_far)


def _earlier(onto: str | Path | None, matcher: Matcher) -> ExistingClusters | None:
    return None if onto is None else read_existing(expand_user(onto), matcher.fingerprint)


def _only_new(table: ImageTable, earlier: ExistingClusters) -> ImageTable:
    """The pictures that are not in an earlier clustering."""
    if table.pixels is not None:
        raise ConfigError("pictures join clusters by their files, and these have none")
    files = set(earlier.files)
    is_new = np.array([os.path.abspath(str(path)) not in files for path in table.path])  # noqa: PTH100
    if not is_new.any():
        raise DataError(f"all {len(table)} pictures of {table.source} are in {earlier.place}")
    return table.select(is_new)


def _read(
    matcher: Matcher, data: str | Path | ImageTable, root: str | Path | None, labelled: bool | None
) -> tuple[ImageTable, bool]:
    """The pictures, and whether they are labelled."""
    if not isinstance(data, ImageTable) and is_folder(data) and not labelled and root is None:
        return read_unlabelled(expand_user(data), source=str(data)), False
    table = read_data(matcher, data, root)
    return table, labelled is not False and table.identities() != [""]


def _constraints(
    file: Path | None, table: ImageTable, earlier: ExistingClusters | None
) -> Constraints:
    """The pairs of a file, and faces of one photograph; earlier pictures are the first rows."""
    rows: dict[str, int] = {}
    label_N = np.full(len(table), -1)
    if earlier is not None:
        rows |= {name: row for row, name in enumerate(earlier.files)}
        rows |= {name: row for row, name in enumerate(earlier.names)}
        label_N = np.append(earlier.label, label_N)
    first = len(label_N) - len(table)
    rows = {name: first + row for name, row in rows_by_name(table).items()} | rows
    given = Constraints() if file is None else read_constraints(file, rows)
    return given.kept_apart([(first + a, first + b) for a, b in same_photograph(table)], label_N)


def _of_gallery(
    place: Model | Gallery, out: Path, wish: _Wish, onto: str | Path | None,
    constraints: str | Path | None, copy: bool, labelled: bool,
) -> ClusterResult:  # fmt: skip
    """Cluster the templates of a gallery."""
    if wish.root is not None:
        raise ConfigError(
            "--root belongs to DATA: leave it out with a gallery, which stores its paths"
        )
    if isinstance(place, Matcher):
        raise ConfigError("a model clusters pictures: give DATA, or name a gallery instead")
    try:
        gallery = place if isinstance(place, Gallery) else Gallery.open(place)
    except GalleryError as error:
        raise GalleryError(f"{error}; or name the pictures: twinlens cluster MODEL DATA") from error
    matcher = gallery.matcher
    earlier = _earlier(onto, matcher)
    out = check_output_folder(out, "the clusters", None)
    rows = gallery.store.find(columns=["path", "identity", "vector"])
    if not len(rows):
        raise GalleryError(f"the gallery {gallery.place} is empty: enrol pictures first")
    if earlier is not None:
        files = set(earlier.files)
        rows = rows.filter([path not in files for path in rows["path"].to_pylist()])
        if not len(rows):
            raise DataError(f"all pictures of {gallery.place} are in {earlier.place}")
    cut, trials = wish.method_of(matcher, len(rows), earlier)
    paths = rows["path"].to_pylist()
    pictures = EmbeddedPictures(
        source=gallery.place,
        names=paths,
        files=paths,
        embeddings=vectors(rows["vector"]),
        identities=rows["identity"].to_pylist() if labelled else None,
        max_pixels=matcher.max_pixels,
    )
    pictures = pictures if earlier is None else pictures.after(earlier)
    pairs = None
    if constraints is not None:
        number = {path: row for row, path in enumerate(pictures.names)}
        pairs = read_constraints(expand_user(constraints), number)
    return write_clusters(
        pictures, matcher.comparison, cut, out, constraints=pairs, min_size=wish.least_of(cut),
        copy=copy, fingerprint=matcher.fingerprint, onto=earlier, trials=trials,
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
