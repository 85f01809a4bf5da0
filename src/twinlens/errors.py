"""The errors that twinlens raises, and the text of their messages.

Every error that a user can cause is a `TwinlensError`; its message says what was found, what is
needed and what to do. The command line prints the message and exits 2.

    TwinlensError
      ConfigError        settings, recipes, component names (a ValueError too)
      DataError          pictures, tables, splits (a ValueError too)
        PictureError     one picture that cannot be read
      ModelError         a model folder that is missing, damaged or newer (a ValueError too)
      CalibrationError   too few pairs, or a model without calibration (a ValueError too)
      GalleryError       a gallery that is missing, damaged or another model's (a ValueError too)
        NotEnrolledError no such identity, template or correction
      TrainingError      a training run that cannot continue (a RuntimeError too)
      MissingExtraError  an optional dependency is not installed (an ImportError too)
"""

from __future__ import annotations

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "EXTRAS",
    "CalibrationError",
    "ConfigError",
    "DataError",
    "GalleryError",
    "MissingExtraError",
    "ModelError",
    "NotEnrolledError",
    "PictureError",
    "TrainingError",
    "TwinlensError",
    "first_line",
    "message_lines",
    "naming_extras",
    "one_line",
    "short_repr",
    "unknown_name",
    "validation_problems",
]


EXTRAS: Mapping[str, str] = {
    "torch": "train", "torchvision": "train", "timm": "train", "onnxscript": "train",
    "onnx": "export", "openvino": "openvino", "cv2": "faces", "pillow_heif": "heif",
    "pillow_jxl": "heif", "pytorch_metric_learning": "losses", "tensorboard": "tensorboard",
    "fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve",
    "pandas": "notebook", "python_multipart": "serve", "huggingface_hub": "hub",
    "mlflow": "mlflow", "ray": "scale", "wandb": "wandb",
}  # fmt: skip
"""Imported package -> the extra of twinlens that installs it."""

MAX_NAMES = 20  # names that a message lists
MAX_LENGTH = 80  # characters of a name in a message
MAX_PROBLEMS = 20  # of one file or value

# Characters that break a line, move the cursor, or change the direction of the following text.
CONTROL_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
BIDI_CONTROLS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


class TwinlensError(Exception):
    """Base class of the errors that a user can cause; another process can send them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[Exception], args: tuple[Any, ...], values: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)  # Some are initialised by other arguments.
    error.__dict__.update(values)
    return error


class ConfigError(TwinlensError, ValueError):
    """A wrong setting, recipe or component name."""


class DataError(TwinlensError, ValueError):
    """Unusable pictures, tables or splits."""


class PictureError(DataError):
    """A picture that cannot be read; `reason` is a short phrase without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ModelError(TwinlensError, ValueError):
    """A model folder that is missing, damaged, or written by a newer twinlens."""


class CalibrationError(TwinlensError, ValueError):
    """Too few pairs for a threshold, or a model without calibration."""


class GalleryError(TwinlensError, ValueError):
    """A gallery that cannot be read, written or searched as requested."""


class NotEnrolledError(GalleryError):
    """A gallery without the identity, template or correction that was named."""


class TrainingError(TwinlensError, RuntimeError):
    """A training run that cannot continue."""


class MissingExtraError(TwinlensError, ImportError):
    """A missing optional dependency."""

    def __init__(self, extra: str, reason: str = "an optional dependency is missing") -> None:
        super().__init__(f"{reason}: pip install 'twinlens[{extra}]'")


@contextmanager
def naming_extras(purpose: str = "this") -> Iterator[None]:
    """Turn the failed import of an extra's package into `MissingExtraError`.

    >>> with naming_extras("the download"):
    ...     raise ModuleNotFoundError(name="torchvision.datasets")
    Traceback (most recent call last):
    twinlens.errors.MissingExtraError: the download needs torchvision: pip install 'twinlens[train]'

    Args:
        purpose: subject of the message.
    Raises:
        MissingExtraError: the package is one of `EXTRAS`. Other errors are passed on.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingExtraError(EXTRAS[package], f"{purpose} needs {package}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type if the message is empty.

    >>> first_line(OSError("no network\\nmore lines")), first_line(OSError())
    ('no network', 'OSError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def message_lines(text: str) -> str:
    r"""A message for people: a name in it begins no line.

    Further lines of twinlens's messages begin with two blanks; any other line break is escaped.

    >>> print(message_lines("invalid rows:\n  line 3: no path"))
    invalid rows:
      line 3: no path
    >>> print(message_lines("cannot read a\nb.png"))
    cannot read a\nb.png
    """
    return re.sub(r"\r?\n(?!  )|\r", lambda match: one_line(match[0]), text)


def one_line(text: str, max_length: int | None = MAX_LENGTH) -> str:
    r"""The text on one line: control characters escaped, the middle of a long text left out.

    Args:
        text: any text, such as a name from a user's file.
        max_length: characters that are kept; None for all.

    >>> print(one_line("a\nb"), one_line("abcdefghijk", 10))
    a\nb abcdef…ijk
    """
    shown = "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in CONTROL_CATEGORIES or char in BIDI_CONTROLS
        else char
        for char in (text if max_length is None else _ends(text, max_length))
    )
    return shown if max_length is None else _ends(shown, max_length)


def _ends(text: str, max_length: int) -> str:
    """The text, or its beginning and end, `max_length` characters in all."""
    if len(text) <= max_length:
        return text
    tail = (max_length - 1) // 3
    return f"{text[: max_length - 1 - tail]}…{text[len(text) - tail :]}"


def short_repr(value: Any) -> str:
    """The `repr` of any value on one short line; long and deep ones are cut.

    >>> short_repr([[1, 2]] * 1000)
    '[[1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2], ...]'
    """
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = shorten.maxlong = 10 * MAX_LENGTH  # one_line cuts.
    try:
        return one_line(shorten.repr(value))
    except ValueError:  # Python writes no number of thousands of digits.
        return f"a very large {type(value).__name__}"


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """The message for an unknown name: similar names if there are any, else the choices.

    >>> unknown_name("loss", "tripled", ["contrastive", "triplet"])
    "unknown loss 'tripled': did you mean triplet?"
    """
    choices = sorted(choices)
    # Only the first characters: comparing long names is slow.
    by_prefix = {choice[:MAX_LENGTH]: choice for choice in reversed(choices)}
    prefixes = difflib.get_close_matches(name[:MAX_LENGTH], by_prefix, n=3, cutoff=0.6)
    similar = [one_line(by_prefix[prefix]) for prefix in prefixes]
    shown = ", ".join(one_line(choice) for choice in choices[:MAX_NAMES])
    rest = f" and {len(choices) - MAX_NAMES} more" if len(choices) > MAX_NAMES else ""
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"choose from {shown}{rest}"
    return f"unknown {kind} '{one_line(name)}': {hint}"


def validation_problems(error: ValidationError) -> str:
    """The problems of a file or value that pydantic refused, up to 20, on one line.

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
    entries = error.errors(include_url=False)
    more = len(entries) - MAX_PROBLEMS
    shown = "; ".join(_problem(entry) for entry in entries[:MAX_PROBLEMS])
    return f"{shown}; and {more} more" if more > 0 else shown


def _problem(entry: Any) -> str:
    path = one_line(".".join(map(str, entry["loc"])))
    if entry["type"] == "missing":
        return f"{path} is missing"
    if entry["type"] == "extra_forbidden":
        return f"{path} is unknown"
    message = one_line(entry["msg"].removeprefix("Value error, "), 4 * MAX_LENGTH)
    if entry["type"] != "value_error":  # A validator of twinlens already names the value.
        message = f"{message[0].lower()}{message[1:]}, found {short_repr(entry['input'])}"
    return f"{path}: {message}" if path else message
