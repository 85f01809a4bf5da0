"""Schemas of bodies and answers, for OpenAPI.

Handlers answer with the `as_json()` of the result classes; tests compare their keys with these
models, which describe and never change them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

__all__ = ["ERRORS", "CalibrationFacts", "EmbedAnswer", "ErrorBody", "IdentifyAnswer", "ModelFacts",
           "ModelList", "SearchAnswer", "VerifyAnswer", "answer_of", "file_of",
           "picture_body"]  # fmt: skip

PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
QUALITY: JsonDict = {"score": 0.87, "sharpness": 0.87, "size": 1.0, "contrast": 1.0}
# Examples have no null, which FastAPI leaves out.
OUTSIDE: JsonDict = {"in_domain": False, "domain_score": 1.31,
           "domain_reason": "darker than 99 % of them"}  # fmt: skip
CANDIDATE: JsonDict = {
    "identity": "anna",
    "distance": 0.2113,
    "probability": 0.97,
    "path": "anna-3.jpg",
}


class ErrorFacts(BaseModel):
    """An error, for programs and for people."""

    code: str = Field(description="Short name, such as `busy`")
    message: str = Field(description="What was found, what is needed, what to do")
    request_id: str = Field(description="The same as in the log of the server")


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorFacts


class Quality(BaseModel):
    """Quality of a picture; each part from 0, the worst, to 1."""

    score: float = Field(description="The least of the parts")
    sharpness: float
    size: float | None = Field(description="1 with at least the pixels of the network's input")
    contrast: float


class Domain(BaseModel):
    """Whether a picture is like the model's calibration pictures; null if unknown."""

    in_domain: bool | None
    domain_score: float | None = Field(description="Above 1 for a picture unlike these")
    domain_reason: str | None = Field(description="How it differs; null in the domain")


class Face(BaseModel):
    """The place of a face in a picture."""

    number: int = Field(description="1 for the leftmost face")
    of: int = Field(description="Number of faces in the picture")
    box: list[float] | None = Field(
        description="Left, top, right and bottom in pixels; null for a cropped face"
    )
    score: float | None


FaceOfAnswer = Annotated[
    Face | None, Field(description="Only from a model of cropped faces, which answers for each")
]


class ComparedFaces(BaseModel):
    """The two faces that were compared: of all pairs of faces the nearest."""

    first: Face
    second: Face
    pairs: int = Field(description="Number of pairs of faces")
    far_bound: float | None = Field(
        description="Largest false accept rate of the nearest of all pairs: pairs * target_far"
    )


class VerifyAnswer(Domain):
    """Whether two pictures show the same thing."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "verdict": "same", "match": True, "distance": 0.3121, "threshold": 0.4853,
        "target_far": 0.01, "probability": 0.9931, "similarity": 0.6879, "prior": 0.5,
        "quality": [QUALITY, QUALITY], **OUTSIDE,
    }})  # fmt: skip

    verdict: Literal["same", "different"]
    match: bool = Field(description="distance <= threshold")
    distance: float = Field(description="Lower is closer")
    threshold: float
    target_far: float = Field(description="False accept rate that the threshold was set for")
    probability: float | None = Field(
        description="Of a genuine pair, at the prior; null if the calibration used no labels"
    )
    similarity: float = Field(description="Cosine similarity, for information")
    prior: float
    quality: list[Quality]
    reason: str | None = Field(
        None, description="Absent unless the verdict is not the more probable answer"
    )
    faces: ComparedFaces | None = Field(
        None, description="Only from a model of cropped faces, which finds them in photographs"
    )


class PictureFailure(BaseModel):
    """A picture that was not answered."""

    picture: str
    error: str


class PictureEmbedding(Domain):
    """The embedding of one picture, or of one face of it."""

    picture: str = Field(description="File name of the upload, or its number")
    embedding: list[float]
    quality: Quality
    face: FaceOfAnswer = None


class EmbedAnswer(BaseModel):
    """Embeddings, in the order of the pictures."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "fingerprint": "0eb66e955bec632f", "dim": 4,
        "embeddings": [
            {"picture": "a.jpg", "embedding": [0.5, -0.5, 0.5, 0.5], "quality": QUALITY,
             **OUTSIDE},
            {"picture": "b.txt", "error": "cannot identify image file"},
        ],
        "num_failed": 1,
    }})  # fmt: skip

    fingerprint: str = Field(description="Only embeddings of equal fingerprints can be compared")
    dim: int
    embeddings: list[PictureEmbedding | PictureFailure]
    num_failed: int


class CandidateFacts(BaseModel):
    """A candidate identity."""

    identity: str
    distance: float
    probability: float | None
    path: str = Field(description="File name of its nearest template")


class Identification(Domain):
    """The answer for one picture, or for one face of it."""

    picture: str
    verdict: Literal["identified", "nobody", "ambiguous"]
    identity: str | None
    reason: str
    distance: float | None
    margin: float | None
    threshold: float
    threshold_of: Literal["gallery", "pairs"]
    target_fpir: float
    probability: float | None
    candidates: list[CandidateFacts]
    quality: Quality | None
    face: FaceOfAnswer = None


class IdentifyAnswer(BaseModel):
    """Identifications, in the order of the pictures."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "answers": [
            {"picture": "door.jpg", "verdict": "identified", "identity": "anna",
             "reason": "distance 0.2113 is within the threshold 0.3852", "distance": 0.2113,
             "margin": 0.31, "threshold": 0.3852, "threshold_of": "gallery", "target_fpir": 0.01,
             "probability": 0.97, "candidates": [CANDIDATE], "quality": QUALITY, **OUTSIDE},
        ],
        "num_failed": 0,
    }})  # fmt: skip

    answers: list[Identification | PictureFailure]
    num_failed: int


class HitFacts(BaseModel):
    """A template near the picture."""

    path: str
    identity: str
    distance: float
    time: str = Field(description="Time of enrolment, ISO 8601")
    metadata: dict[str, Any]
    hash: str = Field(description="Hash of the picture's content, by which templates are deleted")


class OtherHits(BaseModel):
    """Templates near another face."""

    picture: str
    hits: list[HitFacts]
    face: Face


class SearchAnswer(BaseModel):
    """Templates, nearest first."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "picture": "door.jpg",
        "hits": [{"path": "anna-3.jpg", "identity": "anna", "distance": 0.2113,
                  "time": "2026-11-26T15:04:05+00:00", "metadata": {"room": "north"},
                  "hash": "9520f02d7dc82302705487381b1d9e3a"}],
    }})  # fmt: skip

    picture: str
    hits: list[HitFacts]
    face: FaceOfAnswer = None
    others: list[OtherHits] | None = Field(None, description="Of the other faces")


class CalibrationFacts(BaseModel):
    """The calibration of a model."""

    threshold: float
    low: float | None = Field(description="95 % interval of the threshold")
    high: float | None
    target_far: float
    num_genuine: int
    num_impostor: int
    num_identities: int
    curve: dict[str, Any] | None
    log_loss_platt: float | None
    log_loss_isotonic: float | None
    requested_far: float | None
    unadjusted: float | None
    far_limit: float | None
    assumed_share: float | None


class Start(BaseModel):
    """Pretrained weights that a training began with."""

    name: str
    licence: str
    source: str
    trained_on: str
    fingerprint: str | None
    identities: int | None


class ModelFacts(BaseModel):
    """A model."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "name": "faces", "fingerprint": "0eb66e955bec632f", "calibrated": True,
        "threshold": 0.4853, "target_far": 0.01, "dim": 128, "backbone": "tf_efficientnet_lite0",
        "comparator": "cosine", "height": 224, "width": 224, "channels": 3,
        "precision": "float32", "knows_domain": True, "trained_on": "faces",
        "start": {"name": "tf_efficientnet_lite0.in1k", "licence": "apache-2.0",
                  "source": "https://huggingface.co/timm/tf_efficientnet_lite0.in1k",
                  "trained_on": "ImageNet-1k", "fingerprint": "", "identities": 1000},
        "licence": "apache-2.0", "has_report": True, "deletable": True, "num_bytes": 28102331,
        "calibration": {
            "threshold": 0.4853, "low": 0.4521, "high": 0.5104, "target_far": 0.01,
            "num_genuine": 1530, "num_impostor": 12800, "num_identities": 34,
            "curve": {"kind": "platt", "a": 34.6, "b": -13.4}, "log_loss_platt": 0.081,
            "log_loss_isotonic": 0.105, "requested_far": 0.01, "unadjusted": 0.4902,
            "far_limit": 0.015, "assumed_share": 0.05,
        },
    }})  # fmt: skip

    name: str
    fingerprint: str
    calibrated: bool
    threshold: float | None
    target_far: float | None
    dim: int = Field(description="Numbers of an embedding")
    backbone: str
    comparator: str
    height: int = Field(description="Pixels of the network's input")
    width: int
    channels: int = Field(description="1 for grey, 3 for colour")
    precision: str
    knows_domain: bool
    trained_on: str | None = Field(description="Name of the training data, without its folder")
    start: Start | None
    licence: str | None = Field(description="Licence of the pretrained weights, if any")
    has_report: bool
    deletable: bool = Field(description="Whether it is a run of the service's own folder")
    num_bytes: int
    calibration: CalibrationFacts | None


class DamagedModel(BaseModel):
    """A model that cannot be read."""

    name: str
    error: str


class ModelList(BaseModel):
    """The models of the service; the one of the start comes first."""

    models: list[ModelFacts | DamagedModel]


REASONS = {
    401: "no key, or an unknown one", 403: "the key's role does not allow this",
    404: "nothing has that name", 409: "the state of the service does not allow this",
    413: "too many bytes", 422: "a value, a picture or the data is not valid",
    429: "too many requests of this key", 503: "busy, or no answer in time: try again",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": reason} for status, reason in REASONS.items()
}
"""Responses of every route that are errors."""


def answer_of(model: type[BaseModel], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Responses of a route that answers with a model, or with an error."""
    return {status: {"model": model}}


def file_of(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """Responses of a route that answers with a file."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"description": description, "content": content}}


def picture_body(*fields: str, many: bool = False) -> dict[str, Any]:
    """The body of a route that takes pictures: a form, JSON, or one picture as it is.

    Args:
        fields: names of the pictures; one picture as it is needs one field only.
        many: whether a field takes several pictures.
    """
    binary = {"type": "string", "format": "binary"}
    base64 = {"type": "string", "contentEncoding": "base64"}
    one_or_many = {"oneOf": [base64, {"type": "array", "items": base64}]}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": _object(
            fields, {"type": "array", "items": binary} if many else binary
        )},
        "application/json": {
            "schema": _object(fields, one_or_many if many else base64),
            "example": dict.fromkeys(fields, "iVBORw0KGgo..."),
        },
    }  # fmt: skip
    if len(fields) == 1:
        content |= {media_type: {"schema": binary} for media_type in PICTURE_TYPES}
    return {"requestBody": {"required": True, "content": content}}


def _object(fields: tuple[str, ...], value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": dict.fromkeys(fields, value)}
