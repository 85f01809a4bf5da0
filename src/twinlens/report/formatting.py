"""Formatting of numbers and counts, and reading of figures in the JSON of `evaluate`.

There a figure is `{"value", "low", "high"}`, null if undefined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from twinlens.measure.estimate import percent

__all__ = ["bounds", "cell", "count_of", "dig", "number", "one_in", "percent", "rate", "span"]


def number(value: float) -> str:
    """A distance with three or so significant digits, never in scientific notation."""
    if not math.isfinite(value) or value == 0:
        return str(value) if value else "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def rate(target: str) -> str:
    """A target rate, by its JSON key, in percent: "0.01" is 1 %."""
    return f"{100 * float(target):g}\N{NO-BREAK SPACE}%"


def span(low: float | None, high: float | None) -> str:
    """An interval of shares; "" if a bound is missing."""
    if low is None or high is None:
        return ""
    return f"{percent(low, '')}\N{EN DASH}{percent(high)}"


def one_in(far: float) -> str:
    """A rate as a count: 0.01 is "1 in 100", 0.025 "1 in 40", 0.03 "3 in 100"."""
    share = Fraction(far).limit_denominator(1_000_000)
    if share.numerator != 1 and 10**6 % share.denominator == 0:
        base = 10 ** max(2, math.ceil(math.log10(share.denominator)))
        return f"{share * base} in {base:,}" if (share * base).denominator == 1 else percent(far)
    return f"{share.numerator:,} in {share.denominator:,}"


def count_of(count: int, noun: str) -> str:
    """A count with its noun, singular or plural: "1 picture", "3,000 identities"."""
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else many}"


def dig(values: Any, *keys: str) -> Any:
    """The value at `keys` in nested mappings; None if any is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def bounds(entry: Any) -> tuple[float | None, float | None, float | None]:
    """Value, low and high of a figure, of a plain number, or of None."""
    if isinstance(entry, Mapping):
        return entry.get("value"), entry.get("low"), entry.get("high")
    return (None if entry is None else float(entry)), None, None


def cell(entry: Any) -> tuple[str, str]:
    """A figure and its interval as texts of a table; "" without an interval."""
    value, low, high = bounds(entry)
    if value is None:
        return "\N{EN DASH}", ""
    if low is None or high is None:
        return percent(value), ""
    return percent(value), f"{percent(low, '')}\N{EN DASH}{percent(high, '')}"
