"""Records of a run that its report shows: choices of "auto", and the history. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from twinlens.measure.bootstrap import Estimate

__all__ = ["CandidateRow", "Choice", "HistoryRow", "LearningPoint"]

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Choice:
    """A setting chosen from the data, with the reason."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class CandidateRow:
    """A candidate on held-out pictures.

    Attributes:
        name: what it is.
        eer: equal error rate of their pairs.
        recall: share whose nearest other picture shows the same identity.
        folds: number of folds that it was tried on.
        seconds: time that it took.
        weight: share in the chosen model; 1 for that itself.
        loss: its EER less that of the chosen model, on the same pictures.
    """

    name: str
    eer: float
    recall: float
    folds: int
    seconds: float
    weight: float = 0.0
    loss: Estimate | None = None


@dataclass(frozen=True)
class LearningPoint:
    """The EER on held-out pictures of a model that learned from so many identities."""

    num_identities: int
    eer: float


@dataclass(frozen=True)
class HistoryRow:
    """A line of `history.csv`; `metric` is None between validations, `event` usually empty."""

    step: Annotated[int, Field(ge=0, le=10**12)]
    epoch: NonNegative
    seconds: NonNegative
    loss: float  # NaN without a step
    rate: NonNegative
    metric: Annotated[NonNegative | None, BeforeValidator(lambda text: text or None)] = None
    event: str = ""
