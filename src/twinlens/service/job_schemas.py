"""Schemas of the answers about jobs and picture sets, for OpenAPI; see `schemas`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from twinlens.service.job_folder import Kind, State

__all__ = ["AddedFacts", "AddedList", "GroupList", "IdentityCounts", "JobFacts", "JobList",
           "PictureFacts", "PictureList", "SetList", "SetSummary"]  # fmt: skip


class JobFacts(BaseModel):
    """A job."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "id": "20261126T154533574862-b0ba22", "kind": "train", "state": "running",
        "created": "2026-11-26T15:45:33.574+00:00", "started": "2026-11-26T15:45:34.245+00:00",
        "arguments": {"pictures": "faces", "run": "faces", "recipe": "auto", "seed": 0},
        "by": "local", "progress": {"task": "training", "unit": "steps", "done": 120,
                                    "total": 600, "rate": 4.1, "seconds_left": 117.0},
    }})  # fmt: skip

    id: str
    kind: Kind
    state: State
    created: str = Field(description="ISO 8601")
    started: str | None
    ended: str | None
    arguments: dict[str, Any]
    by: str = Field(description="Name of the key that started it")
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None


class JobList(BaseModel):
    """All jobs, the newest first."""

    jobs: list[JobFacts]


class GroupedPicture(BaseModel):
    """A picture of a group."""

    picture: str
    distance: float | None = Field(description="Mean distance to the others of the group")


class Group(BaseModel):
    """Pictures that seem to show one thing."""

    group: str
    pictures: list[GroupedPicture]


class GroupList(BaseModel):
    """Groups of a clustering, the largest first."""

    groups: list[Group]
    single: list[GroupedPicture] = Field(description="Pictures of no group")


class SetList(BaseModel):
    """Names of the picture sets."""

    sets: list[str]


class AddedFacts(BaseModel):
    """What became of an uploaded picture."""

    state: str = Field(description="stored, duplicate, contradiction or refused")
    name: str
    identity: str | None
    picture: str | None = Field(description="Key of the picture in the set")
    reason: str | None = Field(description="Why it was refused")
    other: str | None = Field(description="The same bytes under another identity")


class AddedList(BaseModel):
    """What became of the uploaded pictures, in their order."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "added": [{"state": "stored", "name": "1.jpg", "identity": "anna",
                   "picture": "anna/1~3f2a9c1b7d04.jpg"}],
        "stored": 1, "duplicate": 0, "contradiction": 0, "refused": 0,
    }})  # fmt: skip

    added: list[AddedFacts]
    stored: int
    duplicate: int
    contradiction: int
    refused: int


class PictureFacts(BaseModel):
    """A picture of a set."""

    picture: str = Field(description="Key of the picture in the set")
    identity: str | None
    name: str


class PictureList(BaseModel):
    """A page of pictures."""

    pictures: list[PictureFacts]
    total: int


class IdentityCounts(BaseModel):
    """Number of pictures of each identity."""

    identities: dict[str, int]
    unsorted: int


class SetSummary(BaseModel):
    """Counts and the inspection of a set."""

    set: str
    pictures: int
    identities: int
    unsorted: int
    inspection: dict[str, Any] | None = Field(description="As of `twinlens inspect --json`")
    refused: list[dict[str, Any]]
