"""What can go wrong, and what the user is told.

Every error that a user can cause is a `TwinlensError`; its message says what was found, what is
needed and what to do. The command line prints the message and exits 2.

    TwinlensError
      ConfigError        settings, recipes, names of parts (a ValueError too)
      DataError          pictures, tables, splits (a ValueError too)
        PictureError     one picture that cannot be read
      ModelError         a model folder that is damaged, newer, or not one (a ValueError too)
      CalibrationError   too few pairs, or a model without calibration (a ValueError too)
      TrainingError      a run that cannot go on (a RuntimeError too)
      MissingExtraError  an optional dependency is not installed (an ImportError too)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CalibrationError",
    "ConfigError",
    "DataError",
    "MissingExtraError",
    "ModelError",
    "PictureError",
    "TrainingError",
    "TwinlensError",
    "unknown_name",
]


MOST_NAMES = 80  # that a message lists


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


class TrainingError(TwinlensError, RuntimeError):
    """A training run cannot go on."""


class MissingExtraError(TwinlensError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, found: str = "this needs an optional part") -> None:
        super().__init__(f"{found}: pip install 'twinlens[{extra}]'")


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence about an unknown name: the near ones if there are any, else the choices."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    shown = ", ".join(choices[:MOST_NAMES])
    rest = f" and {len(choices) - MOST_NAMES} more" if len(choices) > MOST_NAMES else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {shown}{rest}"
    return f"unknown {kind} '{name}': {hint}"
