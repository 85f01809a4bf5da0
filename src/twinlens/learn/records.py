"""Records of a run that its report shows: choices of "auto", and the history. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = ["Choice", "HistoryRow"]

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Choice:
    """A setting chosen from the data, with the reason."""

    key: str
    value: Any
    why: str


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
