"""Numbers and curves to JSON and back, refused where they cannot be.

What calibrations share when they are written and read. Errors are `KeyError`, `TypeError` and
`ValueError` with a phrase; whoever reads a whole calibration says with `reading` whose it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from twinlens.errors import ModelError
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.probability import Isotonic, Platt

__all__ = [
    "curve_as_json",
    "read_count",
    "read_curve",
    "read_figure",
    "read_number",
    "read_numbers",
    "read_optional",
    "read_share",
    "reading",
]  # fmt: skip


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Say of what is damaged inside that `what` is, and what to do.

    Raises:
        ModelError: something is missing, of the wrong type, or cannot be.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{what} is damaged: {why}; {remedy}") from None


def curve_as_json(curve: Platt | Isotonic) -> dict[str, Any]:
    """`{"kind": "platt", "a", "b"}` or `{"kind": "isotonic", "x", "y"}`."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(curve).items()}
    return {"kind": "platt" if isinstance(curve, Platt) else "isotonic", **values}


def read_curve(values: Any) -> Platt | Isotonic:
    """What `curve_as_json` gave; it may not rise with distance."""
    if values["kind"] == "platt":
        platt = Platt(read_number(values, "a"), read_number(values, "b"))
        if platt.a < 0:
            raise ValueError("its curve rises with distance")
        return platt
    if values["kind"] != "isotonic":
        raise ValueError(f"its curve is of unknown kind {values['kind']!r}")
    x, y = read_numbers(values, "x"), read_numbers(values, "y")
    fits = len(x) == len(y) > 0 and np.all(np.diff(x) > 0) and np.all(np.diff(y) <= 0)
    if not (fits and y[0] <= 1 and y[-1] >= 0):
        raise ValueError("its curve's knots do not ascend, or its values rise or leave [0, 1]")
    return Isotonic(tuple(x), tuple(y))


def read_figure(values: Any) -> Estimate:
    """What `Estimate.as_json` gave."""
    return Estimate(*(read_optional(values, name) for name in ("value", "low", "high")))


def read_number(values: Any, key: str) -> float:
    """A finite number."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, not a finite number")
    return float(value)


def read_optional(values: Any, key: str) -> float | None:
    """A finite number or null."""
    return None if values[key] is None else read_number(values, key)


def read_numbers(values: Any, key: str) -> list[float]:
    """A list of finite numbers."""
    return [read_number({key: value}, key) for value in values[key]]


def read_share(values: Any, key: str) -> float:
    """A number in [0, 1]."""
    value = read_number(values, key)
    if not 0 <= value <= 1:
        raise ValueError(f"{key} is {value}, not between 0 and 1")
    return value


def read_count(values: Any, key: str, least: int = 1) -> int:
    """A whole number, at least `least`."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} is {value!r}, not a count")
    return value
