"""Estimates: figures with a 95 % interval, which compute as floats and print as percent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

__all__ = ["Estimate", "NumberEstimate", "percent"]


@dataclass(frozen=True, eq=False)
class Estimate(float):
    """An estimate of a share with its 95 % interval; NaN for what the data do not support.

    It is a float: it compares, formats and computes as `value`. Printed, it is in percent. Two
    estimates are equal if their intervals are, too.

    Attributes:
        value: the estimate; None for what the data do not support.
        low: lower end of the interval; None without one.
        high: upper end.

    >>> eer = Estimate(0.041, 0.03, 0.052)
    >>> print(eer, eer < 0.05, f"{eer:.2%}", 1 - eer)
    4.1 % (3.0 to 5.2 %) True 4.10% 0.959
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def __new__(  # noqa: D102
        cls, value: float | None, low: float | None = None, high: float | None = None
    ) -> Self:
        return super().__new__(cls, math.nan if value is None else value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Estimate):
            return (self.value, self.low, self.high) == (other.value, other.low, other.high)
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other  # As of floats, it would ignore intervals.

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        if self.value is None:
            return "undefined: too little data"
        if self.low is None or self.high is None:
            return self._text(self.value)
        low = self._text(self.low).removesuffix(" %")
        return f"{self._text(self.value)} ({low} to {self._text(self.high)})"

    @staticmethod
    def _text(value: float) -> str:
        return percent(value, " %")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # The last line of a notebook's cell.

    def as_json(self) -> dict[str, float | None]:
        """`{"value", "low", "high"}`; infinity, which JSON lacks, is null."""
        return {
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = core_schema.nullable_schema(
            core_schema.float_schema(strict=True, allow_inf_nan=False)
        )
        fields = {
            name: core_schema.typed_dict_field(number, required=name == "value")
            for name in cls.__dataclass_fields__
        }
        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_after_validator_function(
                lambda values: cls(**values), core_schema.typed_dict_schema(fields)
            ),
            python_schema=core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.as_json),
        )


class NumberEstimate(Estimate):
    """An estimate that is no share, such as a distance or bits; it prints as a number.

    >>> print(NumberEstimate(0.41, 0.38, 0.45))
    0.4100 (0.3800 to 0.4500)
    """

    @classmethod
    def of(cls, estimate: Estimate) -> NumberEstimate:
        """The same figure, as a number."""
        return cls(estimate.value, estimate.low, estimate.high)

    @staticmethod
    def _text(value: float) -> str:
        return f"{value:.4f}"


def percent(value: float, sign: str = "\N{NO-BREAK SPACE}%") -> str:
    """A share in percent: 3.2 %, 0.31 %, 100 %; never rounded to 0 or 100 when it is not."""
    share = round(100 * value, 9) + 0.0  # No negative zero.
    near = round(min(abs(share), abs(100 - share)), 9)
    places = 0 if near == 0 else 1 if near >= 0.95 else min(4, 1 - math.floor(math.log10(near)))
    return f"{share:.{places}f}{sign}"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
