"""Stored calibrations: strict types, and one error that names every problem."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from twinlens.errors import ModelError, validation_problems

__all__ = ["MAX_COUNT", "STRICT", "Count", "CountOrZero", "as_plain", "read_calibration"]

STRICT = ConfigDict(strict=True, allow_inf_nan=False)

MAX_COUNT = 2**40  # pairs, pictures or identities; products of two are 64-bit numbers
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]

T = TypeVar("T")


def as_plain(calibration: Any) -> dict[str, Any]:
    """The fields of a pydantic dataclass as plain numbers, strings, lists and dictionaries."""
    plain: dict[str, Any] = TypeAdapter(type(calibration)).dump_python(calibration, mode="json")
    return plain


def read_calibration(kind: type[T], values: Any, name: str, remedy: str) -> T:
    """Check parsed JSON against the schema of a calibration.

    Args:
        kind: pydantic dataclass.
        values: what `as_plain` gave, after json has parsed it.
        name: the calibration's name in the error.
        remedy: last sentence of the error.
    Raises:
        ModelError: damaged; names every problem.
    """
    try:
        # Only in JSON mode do strict types let a list become a tuple.
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        raise ModelError(f"{name} is damaged: {validation_problems(error)}. {remedy}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} is damaged: it is no JSON value. {remedy}") from error
