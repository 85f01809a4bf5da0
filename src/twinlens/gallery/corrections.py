"""Corrections of answers, as a gallery's settings store them.

A correction names pictures by their hashes. Those that are templates lie in the table. The
embeddings of the others lie here, so that one commit holds all that a correction adds.

Shapes: D dimensions.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = ["MAX_FEEDBACK", "Adaptation", "Correction", "ErrorChange", "Feedback", "Kind",
           "StoredMetric", "StrayPicture", "packed", "renamed", "unpacked", "with_feedback",
           "without"]  # fmt: skip

MAX_FEEDBACK = 2 << 20
"""Characters that the stored embeddings of corrections may take."""

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

Kind = Literal["is", "is-not", "same", "different"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Hash = Annotated[str, Field(max_length=200)]


def packed(array: NDArray[np.float32]) -> str:
    """Numbers of 32 bits as text."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()


def unpacked(text: str) -> NDArray[np.float32]:
    """The numbers behind `packed`, in one dimension.

    Raises:
        ValueError: other text, or numbers that are not finite.
    """
    try:
        array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    except binascii.Error as error:
        raise ValueError(f"not in base 64: {error}") from error
    if not len(array) or not np.isfinite(array).all():
        raise ValueError("no finite numbers")
    return array.astype(np.float32)


def _is_packed(text: str) -> str:
    unpacked(text)
    return text


Packed = Annotated[str, Field(max_length=MAX_FEEDBACK), AfterValidator(_is_packed)]


class Correction(BaseModel):
    """A correction of an answer.

    `pictures` holds one hash for "is" and "is-not", two for "same" and "different". `before` is the
    identity that the picture was enrolled as, null if it was not.
    """

    model_config = STRICT

    number: Annotated[int, Field(ge=1, le=2**53)]
    time: Annotated[str, Field(max_length=200)]
    kind: Kind
    pictures: Annotated[list[Hash], Field(min_length=1, max_length=2)]
    identity: str | None
    before: str | None


class StrayPicture(BaseModel):
    """File and embedding (D,) of a corrected picture that is no template; no pixels."""

    model_config = STRICT

    path: str
    vector: Packed


class StoredMetric(BaseModel):
    """A `metric.Metric` as stored."""

    model_config = STRICT

    directions: Packed
    damping: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    scale: float = Field(gt=0, le=1e6)

    @model_validator(mode="after")
    def _a_damping_for_each_direction(self) -> StoredMetric:
        if len(unpacked(self.directions)) % len(self.damping):
            raise ValueError("directions: their numbers do not divide by those of damping")
        return self


class ErrorChange(BaseModel):
    """An error rate before and after, and the gain `before - after` with its 95 % interval."""

    model_config = STRICT

    before: Share
    after: Share
    low: float | None
    high: float | None

    @property
    def gain(self) -> float:
        """Positive if the error fell."""
        return self.before - self.after

    @property
    def is_clear(self) -> bool:
        """Whether the error fell by more than the standard error, a quarter of the interval."""
        return self.low is not None and self.high is not None and self.gain > (
            self.high - self.low
        ) / 4  # fmt: skip


class Adaptation(BaseModel):
    """Effect of the corrections on held-out answers, and on the threshold.

    `rank_1` and `missed` compare the gallery without the corrected pictures to the one in force, by
    enrolled pictures that were not corrected; `metric_rank_1` and `metric_missed` compare without
    and with the metric.
    """

    model_config = STRICT

    num_answers: Count
    rank_1: ErrorChange | None
    missed: ErrorChange | None
    metric_rank_1: ErrorChange | None
    metric_missed: ErrorChange | None
    metric_applied: bool
    reason: str
    rule_before: str | None
    rule_after: str | None
    threshold_before: float | None
    threshold_after: float | None
    bounded: bool
    target_fpir: Share | None
    fpir: Share | None


class Feedback(BaseModel):
    """All corrections of a gallery and what was fitted to them.

    `stale` is set while the fit lacks a change. `open_set`, a calibration with the corrections,
    takes the place of the gallery's own.
    """

    model_config = STRICT

    corrections: list[Correction]
    pictures: dict[str, StrayPicture]
    stale: bool
    metric: StoredMetric | None
    open_set: dict[str, Any] | None
    adaptation: Adaptation | None

    @model_validator(mode="after")
    def _pictures_are_of_corrections(self) -> Feedback:
        if set(self.pictures) - {name for one in self.corrections for name in one.pictures}:
            raise ValueError("pictures: some belong to no correction")
        return self


def with_feedback(settings: Mapping[str, Any], feedback: Feedback | None) -> dict[str, Any]:
    """A gallery's settings with other corrections, as stored.

    Embeddings that no correction refers to are left out. Without a correction nothing is left.
    """
    rest = {name: value for name, value in settings.items() if name != "feedback"}
    if feedback is None or not feedback.corrections:
        return rest
    kept = {name for one in feedback.corrections for name in one.pictures}
    pictures = {name: one for name, one in feedback.pictures.items() if name in kept}
    return rest | {"feedback": feedback.model_copy(update={"pictures": pictures}).model_dump()}


def renamed(feedback: Feedback, old: str, new: str) -> Feedback:
    """The corrections with another name for an identity."""
    kept = [
        one.model_copy(
            update={
                "identity": new if one.identity == old else one.identity,
                "before": new if one.before == old else one.before,
            }
        )
        for one in feedback.corrections
    ]
    return feedback.model_copy(update={"corrections": kept})


def without(
    feedback: Feedback, hashes: Collection[str] = (), identity: str | None = None
) -> Feedback:
    """The corrections less those of some pictures or of an identity; nothing fitted remains."""
    gone = set(hashes)
    kept = [
        one if one.before is None or one.before != identity
        else one.model_copy(update={"before": None})
        for one in feedback.corrections
        if not gone & set(one.pictures) and (identity is None or one.identity != identity)
    ]  # fmt: skip
    return Feedback(
        corrections=kept,
        pictures={
            name: picture
            for name, picture in feedback.pictures.items()
            if any(name in one.pictures for one in kept)
        },
        stale=True, metric=None, open_set=None, adaptation=None,
    )  # fmt: skip
