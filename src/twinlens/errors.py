"""What can go wrong, and what the user is told.

Every error that a user can cause is a `TwinlensError`; its message says what was found, what is
needed and what to do. The command line prints the message and exits 2.

    TwinlensError
      ConfigError        settings, recipes, names of parts (a ValueError too)
      DataError          pictures, tables, splits (a ValueError too)
        PictureError     one picture that cannot be read
      ModelError         a model folder that is damaged, newer, or not one (a ValueError too)
      CalibrationError   too few pairs, or a model without calibration (a ValueError too)
      GalleryError       a gallery: not there, damaged, another model's (a ValueError too)
      TrainingError      a run that cannot go on (a RuntimeError too)
      MissingExtraError  an optional dependency is not installed (an ImportError too)
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "CalibrationError",
    "ConfigError",
    "DataError",
    "GalleryError",
    "MissingExtraError",
    "ModelError",
    "PictureError",
    "TrainingError",
    "TwinlensError",
    "one_line",
    "unknown_name",
    "validation_problems",
]


MOST_NAMES = 80  # that a message lists
MOST_LETTERS = 80  # of a name in a message

# What would break a line, move the cursor, or turn the reading direction of all that follows.
UNSEEN = frozenset({"Cc", "Zl", "Zp"})
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class TwinlensError(Exception):
    """The base of every error that twinlens raises on purpose."""


class ConfigError(TwinlensError, ValueError):
    """A setting, a recipe or the name of a part is wrong."""


class DataError(TwinlensError, ValueError):
    """The pictures, or what is said of them, cannot be used."""


class PictureError(DataError):
    """One picture cannot be read; `reason` is a short phrase without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ModelError(TwinlensError, ValueError):
    """A model folder is missing, damaged, or written by a newer twinlens."""


class CalibrationError(TwinlensError, ValueError):
    """A threshold is asked for that the pairs at hand cannot give."""


class GalleryError(TwinlensError, ValueError):
    """A gallery cannot be read or written, or what is asked of it cannot be."""


class TrainingError(TwinlensError, RuntimeError):
    """A training run cannot go on."""


class MissingExtraError(TwinlensError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, found: str = "this needs an optional part") -> None:
        super().__init__(f"{found}: pip install 'twinlens[{extra}]'")


def one_line(text: str, most: int | None = MOST_LETTERS) -> str:
    """A text on one line of a screen: control characters escaped, its middle left out.

    Args:
        text: anything, such as a name that somebody else chose.
        most: the longest it may be, in characters; None for any length.
    """
    shown = "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in UNSEEN or char in TURNING
        else char
        for char in (text if most is None else _ends(text, most))
    )
    return shown if most is None else _ends(shown, most)


def _ends(text: str, most: int) -> str:
    """The text, or its beginning and its end, `most` characters in all."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence about an unknown name: the near ones if there are any, else the choices."""
    choices = sorted(choices)
    # Comparing long names takes long, and they begin differently.
    begins = {choice[:MOST_LETTERS]: choice for choice in reversed(choices)}
    found = difflib.get_close_matches(name[:MOST_LETTERS], begins, n=3, cutoff=0.6)
    near = [one_line(begins[begin]) for begin in found]
    shown = ", ".join(one_line(choice) for choice in choices[:MOST_NAMES])
    rest = f" and {len(choices) - MOST_NAMES} more" if len(choices) > MOST_NAMES else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {shown}{rest}"
    return f"unknown {kind} '{one_line(name)}': {hint}"


def validation_problems(error: ValidationError) -> str:
    """All problems of a file or value that pydantic refused, on one line.

    >>> from pydantic import BaseModel
    >>> class Point(BaseModel):
    ...     x: int
    ...     y: int
    >>> try:
    ...     Point.model_validate({"x": None})
    ... except ValueError as error:
    ...     print(validation_problems(error))
    x: input should be a valid integer, found None; y is missing
    """
    return "; ".join(_problem(entry) for entry in error.errors(include_url=False))


def _problem(entry: Any) -> str:
    path = ".".join(map(str, entry["loc"]))
    if entry["type"] == "missing":
        return f"{path} is missing"
    if entry["type"] == "extra_forbidden":
        return f"{path} is unknown"
    if entry["type"] == "value_error":  # A validator of twinlens: it says what it found.
        found, message = "", entry["msg"].removeprefix("Value error, ")
    else:
        found, message = f", found {one_line(repr(entry['input']))}", entry["msg"]
        message = f"{message[0].lower()}{message[1:]}"
    return f"{path}: {message}{found}" if path else f"{message}{found}"
