"""`twinlens gallery`: make one, enrol, erase, rename, list, calibrate, and keep it in order.

Each function opens the gallery, does one thing, and says what it did. `gallery.gallery.Gallery` is
the same for programs that keep it open. What embeds nothing loads no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line
from twinlens.files import check_output_file
from twinlens.gallery.enrol import Enrolled
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.index import Optimized
from twinlens.gallery.maintain import GalleryInfo, Receipt
from twinlens.gallery.migrate import Rebuilt
from twinlens.gallery.results import Calibrated, Exported, Identities, Renamed, Templates
from twinlens.gallery.store import quoted
from twinlens.progress import Progress, console_log

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = [
    "calibrate",
    "create",
    "enrol",
    "enrol_files",
    "erase",
    "export",
    "import_file",
    "info",
    "list_identities",
    "list_templates",
    "optimize",
    "rebuild",
    "rename",
]

log = logging.getLogger("twinlens")

GROWN = 1.5  # times the identities that it was calibrated for: worth a word
LISTED = ("identity", "path", "time", "metadata", "hash")


def create(place: str | Path, model: str | Path | Matcher) -> Gallery:
    """Make a new, empty gallery, which takes a copy of the model along.

    Args:
        place: a folder that is not there or is empty, or an object store's address.
        model: a model's folder or a run's, or a loaded one.
    Raises:
        ModelError: no model.
        GalleryError: something is there already, or it cannot be written.
    """
    return Gallery.create(place, model)


def enrol(
    place: str | Path,
    data: str | Path | ImageTable,
    *,
    root: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    keep_thumbnails: bool = False,
    quiet: bool = False,
) -> Enrolled:
    """Enrol labelled pictures; those that are enrolled already are known, and stay.

    Args:
        place: a gallery.
        data: a folder of class folders, a manifest, the name of a set, or a table.
        root: where the copy of a named set lies.
        metadata: said of every picture, beside what a manifest's further columns say.
        keep_thumbnails: store a small picture of each as well.
        quiet: say only warnings, which name each picture that was skipped.
    Raises:
        GalleryError: no gallery, or it cannot be written.
        DataError: nothing is there, or nothing of it could be read.
    """
    with console_log(quiet):
        gallery = Gallery.open(place)
        found = gallery.enrol(
            data, root=root, metadata=metadata, keep_thumbnails=keep_thumbnails,
            progress=Progress("enrolling"),
        )  # fmt: skip
        return _told(gallery, found)


def enrol_files(
    place: str | Path,
    identity: str,
    files: str | Path | Sequence[str | Path],
    *,
    metadata: Mapping[str, Any] | None = None,
    keep_thumbnails: bool = False,
    quiet: bool = False,
) -> Enrolled:
    """Enrol picture files that all show one identity, or a single one; the rest is as for `enrol`.

    Raises:
        GalleryError: no gallery, an empty name, or it cannot be written.
        DataError: none of the files could be read.
    """
    with console_log(quiet):
        gallery = Gallery.open(place)
        found = gallery.enrol_files(
            identity, files, metadata=metadata, keep_thumbnails=keep_thumbnails,
            progress=Progress("enrolling"),
        )  # fmt: skip
        return _told(gallery, found)


def _told(gallery: Gallery, found: Enrolled) -> Enrolled:
    """Name what was skipped, and say when the threshold has become one of a smaller gallery."""
    for skipped in found.skipped:
        log.warning("skipped %s: %s", one_line(skipped.path, None), skipped.reason)
    if found.skipped and not found.num_new + found.num_known:
        raise DataError(
            f"nothing was enrolled: all {len(found.skipped)} pictures were skipped, as said above"
            if len(found.skipped) > 1
            else f"nothing was enrolled: {found.skipped[0].path}: {found.skipped[0].reason}"
        )
    calibration = gallery.state().open_set
    if calibration is not None and found.num_new:
        num = len(gallery.identities())
        if num >= GROWN * calibration.num_identities:
            log.warning(
                "calibrated for %d identities, the gallery has %d now, and may take %.2g %% of"
                " strangers for somebody instead of %.2g %%: run `twinlens gallery calibrate %s`",
                calibration.num_identities, num, 100 * calibration.fpir_at_size(num),
                100 * calibration.target_fpir, gallery.place,
            )  # fmt: skip
    if found.num_new and gallery.wants_index():
        log.info("the gallery has outgrown its index: building one")
        log.info(gallery.optimize(progress=Progress("optimizing", "steps")).as_text())
    return found


def erase(place: str | Path, identity: str) -> Receipt:
    """Erase an identity, so that no file of the gallery holds anything of it.

    The pictures that it was made of, exports and backups are not the gallery's, and stay.

    Raises:
        GalleryError: no gallery, no such identity, or it cannot be written.
    """
    return Gallery.open(place).erase(identity)


def rename(place: str | Path, old: str, new: str, *, merge: bool = False) -> Renamed:
    """Give an identity another name.

    Args:
        place: a gallery.
        old: the name now.
        new: the name from now on.
        merge: whether there may be a `new` already, whose templates these then join.
    Raises:
        GalleryError: no gallery, no `old`, a `new` already, or an empty name.
    """
    return Renamed(Gallery.open(place).rename(old, new, merge=merge))


def list_identities(place: str | Path) -> Identities:
    """The identities, sorted by name, with the number of their templates.

    Raises:
        GalleryError: no gallery.
    """
    return Identities(Gallery.open(place).identities())


def list_templates(place: str | Path, identity: str | None = None) -> Templates:
    """The templates of one identity, or of all, by identity and path.

    Raises:
        GalleryError: no gallery, or no such identity.
    """
    gallery = Gallery.open(place)
    where = None
    if identity is not None:
        gallery.require(identity)
        where = f"identity = {quoted(identity)}"
    return Templates.of(gallery.store.find(where, columns=LISTED))


def info(place: str | Path) -> GalleryInfo:
    """What is in a gallery, of which model, and how large it is.

    Raises:
        GalleryError: no gallery.
    """
    return Gallery.open(place).info()


def optimize(
    place: str | Path,
    *,
    partitions: int | None = None,
    target_recall: float = 0.95,
    quiet: bool = False,
) -> Optimized:
    """Write small files together, clear old ones, and build an index where it is faster.

    Args:
        place: a gallery.
        partitions: of the index; 0 for none; by default as many as suit the size.
        target_recall: the share of the true nearest 10 that the index must find.
        quiet: say only warnings.
    Raises:
        GalleryError: no gallery, or it cannot be written.
    """
    with console_log(quiet):
        return Gallery.open(place).optimize(
            partitions=partitions,
            target_recall=target_recall,
            progress=Progress("optimizing", "steps"),
        )


def calibrate(
    place: str | Path,
    data: str | Path | ImageTable | None = None,
    *,
    fpir: float = 0.01,
    rule: str = "auto",
    root: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Calibrated:
    """Find the threshold at which few strangers are taken for somebody, and store it.

    It is for the gallery as large as it is now: the more identities, the more chances to be
    taken for one of them.

    Args:
        place: a gallery.
        data: labelled pictures of enrolled people and of strangers, which are asked about; by
            default the gallery's own templates, each left out in turn.
        fpir: the share of strangers that may be taken for somebody.
        rule: how the templates of an identity are fused: "nearest", "mean", "vote", or "auto",
            whichever recognises most people at that rate.
        root: where the copy of a named set lies.
        seed: draws probes and replicates.
        quiet: say only warnings.
    Raises:
        GalleryError: no gallery, or nobody in it.
        CalibrationError: too few strangers for that rate.
        ConfigError: an unknown rule, or a seed below 0.
    """
    with console_log(quiet):
        gallery = Gallery.open(place)
        _warn_of_trained(gallery)
        found = gallery.calibrate(
            data, fpir=fpir, rule=rule, root=root, seed=seed,
            progress=Progress("calibrating", "probes"),
        )  # fmt: skip
        pairs = gallery.state().pairs
        return Calibrated(found, None if pairs is None else pairs.threshold)


def _warn_of_trained(gallery: Gallery) -> None:
    """Say when enrolled identities were learned from: their pictures lie closer than others'."""
    from twinlens.model.stored import hash_identities

    origin = gallery.matcher.bundle.origin
    if origin is None:
        return
    trained = set(origin.identities)
    names = gallery.identities()
    num = sum(not trained.isdisjoint(hash_identities([name])) for name in names)
    if num:
        log.warning(
            "%d of %d identities have the names of some that the model was trained on, so strangers"
            " may be taken for somebody more often than is measured here: calibrate on pictures of"
            " others, `twinlens gallery calibrate %s DATA`", num, len(names), gallery.place,
        )  # fmt: skip


def export(place: str | Path, path: str | Path) -> Exported:
    """Write all templates to a Parquet file, from which `import_file` makes them again.

    Raises:
        GalleryError: no gallery.
        DataError: there cannot be such a file.
    """
    check_output_file(path)
    return Exported(Gallery.open(place).export(path), str(path))


def import_file(place: str | Path, path: str | Path, *, quiet: bool = False) -> Enrolled:
    """Enrol the templates of a file that `export` or `twinlens embed` wrote.

    Raises:
        GalleryError: no gallery, no such file, or another model's.
    """
    with console_log(quiet):
        gallery = Gallery.open(place)
        found = gallery.import_file(path, progress=Progress("importing", "templates"))
        return _told(gallery, found)


def rebuild(
    place: str | Path,
    model: str | Path | Matcher,
    *,
    drop_missing: bool = False,
    quiet: bool = False,
) -> Rebuilt:
    """Embed all pictures anew, from where they were enrolled, with another model.

    Args:
        place: a gallery, which keeps all else that it knows of each template.
        model: the new model.
        drop_missing: whether templates whose picture is gone may be left out.
        quiet: say only warnings, which name each picture that was left out.
    Raises:
        GalleryError: no gallery, or pictures are gone and `drop_missing` is not set; it is as
            it was before.
        ModelError: no model.
    """
    with console_log(quiet):
        found = Gallery.open(place).rebuild(
            model, drop_missing=drop_missing, progress=Progress("embedding")
        )
        for missing in found.missing:
            log.warning("dropped %s: %s", one_line(missing.path, None), missing.reason)
        return found
