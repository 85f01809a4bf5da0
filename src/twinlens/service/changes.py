"""Changes of galleries: a method of `Gallery`, and a line of the audit log.

Routes and pages make every change here. Each returns once the change is on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from twinlens.errors import ConfigError
from twinlens.gallery.feedback_results import FeedbackResult
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.results import (
    EnrolResult,
    EraseReceipt,
    GalleryCalibrationResult,
    OptimizeResult,
    RenameResult,
)
from twinlens.gallery.sources import digest
from twinlens.service.security import Caller
from twinlens.service.state import ServiceState

__all__ = ["Kind", "Pictures", "calibrate", "correct", "create", "delete", "enrol", "erase",
           "erase_templates", "optimize", "rename", "undo"]  # fmt: skip

Kind = Literal["is", "is-not", "same", "different"]
Pictures = Sequence[tuple[str, bytes]]
"""Names and contents of picture files."""


def create(service: ServiceState, caller: Caller, name: str, model: str | None) -> Gallery:
    """Create a gallery; see `Galleries.create`."""
    gallery = service.galleries.create(name, model)
    service.audit.write("create", caller, gallery=name, fingerprint=gallery.fingerprint)
    return gallery


def delete(service: ServiceState, caller: Caller, name: str) -> None:
    """Delete a gallery; see `Galleries.delete`."""
    num = len(service.galleries.get(name))
    service.galleries.delete(name)
    service.audit.write("delete", caller, gallery=name, num_templates=num)


def enrol(
    service: ServiceState,
    caller: Caller,
    name: str | None,
    identity: str,
    pictures: Pictures,
    *,
    metadata: Mapping[str, Any] | None = None,
    keep_thumbnails: bool = False,
    min_quality: float | None = None,
    as_is: bool = False,
) -> EnrolResult:
    """Enrol pictures; see `Gallery.enrol_files`."""
    name = service.galleries.name_of(name)
    result = service.galleries.use(
        name,
        lambda gallery: gallery.enrol_files(
            identity, pictures, metadata=metadata, keep_thumbnails=keep_thumbnails,
            min_quality=min_quality, as_is=as_is,
        ),
    )  # fmt: skip
    service.audit.write(
        "enrol", caller, gallery=name, identity=identity, num_new=result.num_new,
        num_known=result.num_known, num_skipped=len(result.skipped),
        hashes=sorted(set(result.hashes.values())),
    )  # fmt: skip
    return result


def erase(service: ServiceState, caller: Caller, name: str | None, identity: str) -> EraseReceipt:
    """Erase an identity; see `Gallery.erase`."""
    name = service.galleries.name_of(name)
    receipt = service.galleries.use(name, lambda gallery: gallery.erase(identity))
    service.audit.write("erase", caller, gallery=name, identity=identity, **receipt.as_json())
    return receipt


def erase_templates(
    service: ServiceState, caller: Caller, name: str | None, hashes: Sequence[str]
) -> EraseReceipt:
    """Erase single templates; see `Gallery.erase_templates`."""
    name = service.galleries.name_of(name)
    receipt = service.galleries.use(name, lambda gallery: gallery.erase_templates(hashes))
    service.audit.write(
        "erase_templates", caller, gallery=name, hashes=list(hashes), **receipt.as_json()
    )
    return receipt


def rename(
    service: ServiceState, caller: Caller, name: str | None, old: str, new: str, *, merge: bool
) -> RenameResult:
    """Rename an identity; see `Gallery.rename`."""
    name = service.galleries.name_of(name)
    num = service.galleries.use(name, lambda gallery: gallery.rename(old, new, merge=merge))
    service.audit.write(
        "rename", caller, gallery=name, identity=old, new=new, merge=merge, num_templates=num
    )
    return RenameResult(num)


def correct(
    service: ServiceState,
    caller: Caller,
    name: str | None,
    kind: Kind,
    pictures: Pictures,
    identity: str | None = None,
) -> FeedbackResult:
    """Store a correction; see `Gallery.feedback`.

    Raises:
        ConfigError: an identity with "same" or "different", or none with "is" or "is-not".
    """
    if (kind in ("is", "is-not")) == (identity is None):
        raise ConfigError(
            f"a correction '{kind}' needs {'an' if identity is None else 'no'} identity"
        )
    name = service.galleries.name_of(name)

    def work(gallery: Gallery) -> FeedbackResult:
        if kind == "is":
            return gallery.feedback(pictures, is_=identity)
        if kind == "is-not":
            return gallery.feedback(pictures, is_not=identity)
        if kind == "same":
            return gallery.feedback(same=pictures)
        return gallery.feedback(different=pictures)

    result = service.galleries.use(name, work)
    service.audit.write(
        "correct", caller, gallery=name, kind=kind, identity=identity, num_new=result.num_new,
        hashes=[digest(content) for _, content in pictures],
    )  # fmt: skip
    return result


def undo(service: ServiceState, caller: Caller, name: str | None, number: int) -> FeedbackResult:
    """Take a correction back; see `Gallery.undo_feedback`."""
    name = service.galleries.name_of(name)
    result = service.galleries.use(name, lambda gallery: gallery.undo_feedback(number))
    service.audit.write("undo", caller, gallery=name, number=number)
    return result


def calibrate(
    service: ServiceState, caller: Caller, name: str | None, *, fpir: float, rule: str, seed: int
) -> GalleryCalibrationResult:
    """Calibrate on the gallery's own templates; see `Gallery.calibrate`."""
    name = service.galleries.name_of(name)

    def work(gallery: Gallery) -> GalleryCalibrationResult:
        calibration = gallery.calibrate(fpir=fpir, rule=rule, seed=seed)
        pairs = gallery.state().pairs
        return GalleryCalibrationResult(calibration, None if pairs is None else pairs.threshold)

    result = service.galleries.use(name, work)
    service.audit.write(
        "calibrate", caller, gallery=name, threshold=result.calibration.threshold,
        target_fpir=result.calibration.target_fpir,
    )  # fmt: skip
    return result


def optimize(service: ServiceState, caller: Caller, name: str | None) -> OptimizeResult:
    """Compact files, and build an index if needed; see `Gallery.optimize`."""
    name = service.galleries.name_of(name)
    result = service.galleries.use(name, lambda gallery: gallery.optimize())
    service.audit.write("optimize", caller, gallery=name, num_templates=result.num_templates)
    return result
