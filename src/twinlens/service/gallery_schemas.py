"""Schemas of the answers about galleries, for OpenAPI; see `schemas`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AuditEntries", "CorrectionFacts", "CorrectionList", "DamagedGallery", "EnrolAnswer",
           "FeedbackAnswer", "GalleryCalibrated", "GalleryFacts", "GalleryList", "IdentityPage",
           "OptimizeAnswer", "Receipt", "Renamed", "TemplateFacts", "TemplatePage"]  # fmt: skip

HASH = "9f2c5e3b7a8d41060e1f2a3b4c5d6e7f"
TEMPLATE: dict[str, Any] = {
    "identity": "anna", "path": "anna-1.jpg", "time": "2026-03-01T09:30:00+00:00",
    "metadata": {"room": "north"}, "hash": HASH, "has_thumbnail": False,
}  # fmt: skip


class GalleryFacts(BaseModel):
    """A gallery in numbers."""

    name: str
    place: str = Field(description="Name of its folder")
    deletable: bool = Field(description="Whether it lies in the service's own folder")
    created: str
    fingerprint: str = Field(description="Of its model")
    comparator: str
    dim: int
    num_templates: int
    num_identities: int
    num_thumbnails: int
    num_bytes: int = Field(description="On disk, without the model")
    rule: str = Field(description="Fusion of the templates of an identity")
    threshold: float | None = Field(description="Largest distance that identifies")
    threshold_of: Literal["gallery", "pairs"] | None
    expected_fpir: float | None
    calibrated_for: int | None = Field(description="Number of identities at calibration")
    search: Literal["exact", "index", "scan"]
    partitions: int
    nprobes: int | None
    recall: float | None
    num_unindexed: int
    num_deletions: int = Field(description="Interrupted erasures, which `optimize` completes")
    num_corrections: int
    metric_applied: bool
    num_parts: int = Field(description="Galleries that it consists of, if it is sharded, else 1")


class DamagedGallery(BaseModel):
    """A gallery that cannot be read."""

    name: str
    error: str


class GalleryList(BaseModel):
    """The galleries of the service; those of the start come first."""

    galleries: list[GalleryFacts | DamagedGallery]


class IdentityFacts(BaseModel):
    """An enrolled identity."""

    identity: str
    num_templates: int


class IdentityPage(BaseModel):
    """Identities by name, and how many there are."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "identities": [{"identity": "anna", "num_templates": 3}], "total": 1,
    }})  # fmt: skip

    identities: list[IdentityFacts]
    total: int = Field(description="Of all pages")


class Renamed(BaseModel):
    """The result of a renaming."""

    num_templates: int


class Receipt(BaseModel):
    """Counts of an erasure, without names."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "num_identities": 1, "num_templates": 3, "num_thumbnails": 0, "num_versions": 4,
        "num_bytes": 23456, "num_left": 120, "time": "2026-03-01T09:31:00+00:00", "seconds": 0.2,
    }})  # fmt: skip

    num_identities: int
    num_templates: int
    num_thumbnails: int
    num_versions: int = Field(description="Removed older versions of the gallery")
    num_bytes: int = Field(description="Size of the removed files")
    num_left: int = Field(description="Templates that remain")
    time: str
    seconds: float


class SkippedFacts(BaseModel):
    """A picture that was left out."""

    path: str
    reason: str


class PictureFate(BaseModel):
    """The fate of one picture of a request."""

    picture: str = Field(description="Its name, with a number if several have that name")
    status: Literal["new", "known", "skipped"]
    hash: str | None = Field(description="Of its template; null if it was skipped")
    quality: float | None = Field(description="Of a new picture, from 0 to 1")
    reason: str | None = Field(description="Why it was skipped")


class EnrolAnswer(BaseModel):
    """Counts of an enrolment, and each picture's fate."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "num_new": 1, "num_known": 0, "num_identities": 1, "num_failed": 1,
        "skipped": [{"path": "b.txt", "reason": "not a picture of a known format"}],
        "quality": {"median": 0.87, "low": []},
        "pictures": [
            {"picture": "a.jpg", "status": "new", "hash": HASH, "quality": 0.87, "reason": None},
            {"picture": "b.txt", "status": "skipped", "hash": None, "quality": None,
             "reason": "not a picture of a known format"},
        ],
        "warnings": [],
    }})  # fmt: skip

    num_new: int
    num_known: int
    num_identities: int
    num_failed: int
    skipped: list[SkippedFacts]
    quality: dict[str, Any] | None
    pictures: list[PictureFate]
    warnings: list[str] = Field(description="Advice on the gallery, such as to calibrate again")


class TemplateFacts(BaseModel):
    """A template."""

    identity: str
    path: str = Field(description="File name at enrolment")
    time: str
    metadata: dict[str, Any]
    hash: str
    has_thumbnail: bool


class TemplatePage(BaseModel):
    """Templates by identity and file name, and how many there are."""

    model_config = ConfigDict(json_schema_extra={"example": {"templates": [TEMPLATE], "total": 1}})

    templates: list[TemplateFacts]
    total: int = Field(description="Of all pages")


class CorrectionFacts(BaseModel):
    """A correction."""

    number: int
    kind: Literal["is", "is-not", "same", "different"]
    pictures: list[str]
    identity: str | None
    time: str


class CorrectionList(BaseModel):
    """The corrections by number, and what they changed."""

    corrections: list[CorrectionFacts]
    adaptation: dict[str, Any] | None


class FeedbackAnswer(BaseModel):
    """Counts of corrections, and what they changed."""

    num_new: int
    num_undone: int
    num_corrections: int
    skipped: list[SkippedFacts]
    adaptation: dict[str, Any] | None


class OptimizeAnswer(BaseModel):
    """Search speed and recall after an optimization."""

    num_templates: int
    search: Literal["exact", "index", "scan"]
    partitions: int
    nprobes: int | None
    recall: float
    milliseconds: float | None
    num_versions: int
    num_bytes: int
    seconds: float


class GalleryCalibrated(BaseModel):
    """A gallery's calibration; further keys as of `twinlens gallery calibrate --json`."""

    model_config = ConfigDict(extra="allow")

    threshold: float
    target_fpir: float
    rule: str
    pairs: dict[str, Any] | None


class AuditEntry(BaseModel):
    """A change of a gallery; further keys by its action."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {
        "time": "2026-03-01T09:30:00.000+00:00", "action": "enrol", "key": "door",
        "gallery": "people", "identity": "anna", "num_new": 1, "num_known": 0, "num_skipped": 0,
        "hashes": [HASH],
    }})  # fmt: skip

    time: str
    action: str
    key: str


class AuditEntries(BaseModel):
    """Changes, the newest first."""

    entries: list[AuditEntry]
