"""Schemas of the answers in CompreFace's form, for OpenAPI; see `schemas`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Deleted", "Face", "FacePage", "Recognized", "Subject", "Subjects", "Updated",
           "Verified", "VerifiedFaces"]  # fmt: skip

IMAGE_ID = "9f2c5e3b-7a8d-4106-0e1f-2a3b4c5d6e7f"
BOX: dict[str, Any] = {"probability": 1.0, "x_min": 0, "y_min": 0, "x_max": 640, "y_max": 480}


class Subject(BaseModel):
    """A subject."""

    subject: str = Field(min_length=1, max_length=1000)


class Subjects(BaseModel):
    """All subjects."""

    subjects: list[str]


class Updated(BaseModel):
    """Whether a subject was renamed."""

    updated: bool


class Deleted(BaseModel):
    """A count."""

    deleted: int


class Face(BaseModel):
    """An enrolled picture."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"image_id": IMAGE_ID, "subject": "anna"}}
    )

    image_id: str = Field(description="The template's hash, written as a UUID")
    subject: str


class FacePage(BaseModel):
    """A page of enrolled pictures."""

    faces: list[Face]
    page_number: int
    page_size: int
    total_pages: int
    total_elements: int


class Box(BaseModel):
    """The whole picture."""

    probability: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class Similar(BaseModel):
    """A subject and how similar it is; 0.5 lies at the threshold."""

    subject: str
    similarity: float


class _Seen(BaseModel):
    box: Box
    embedding: list[float] | None = Field(None, description="With `face_plugins=calculator`")
    execution_time: dict[str, float] | None = Field(None, description="With `status=true`")


class RecognizedFace(_Seen):
    """The answer for a picture."""

    subjects: list[Similar]


class Recognized(BaseModel):
    """The answer of a recognition; one result, for the whole picture."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "result": [{"box": BOX, "subjects": [{"subject": "anna", "similarity": 0.6973}]}],
    }})  # fmt: skip

    result: list[RecognizedFace]
    plugins_versions: dict[str, str] | None = Field(None, description="With `status=true`")


class VerifiedFace(_Seen):
    """The comparison with a picture."""

    similarity: float


class VerifiedFaces(BaseModel):
    """The answer of a comparison with an enrolled picture."""

    result: list[VerifiedFace]
    plugins_versions: dict[str, str] | None = Field(None, description="With `status=true`")


class VerifiedPair(BaseModel):
    """The comparison of two pictures."""

    source_image_face: _Seen
    face_matches: list[VerifiedFace]
    plugins_versions: dict[str, str] | None = Field(None, description="With `status=true`")


class Verified(BaseModel):
    """The answer of a verification."""

    model_config = ConfigDict(json_schema_extra={"example": {"result": [{
        "source_image_face": {"box": BOX}, "face_matches": [{"box": BOX, "similarity": 0.6973}],
    }]}})  # fmt: skip

    result: list[VerifiedPair]
