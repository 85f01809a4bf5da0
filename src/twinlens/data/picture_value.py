"""A picture as Python code holds it -> the path of a file, its bytes, or uint8 pixels.

Nothing is imported for it: other libraries' objects are known by what they offer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.data.arrays import picture_array
from twinlens.data.decode import plain_picture
from twinlens.data.picture_file import open_file
from twinlens.data.remote import refuse_address
from twinlens.errors import DataError

__all__ = ["PictureValue", "array_of", "is_picture", "picture_value", "read_bytes",
           "read_value"]  # fmt: skip

PictureValue: TypeAlias = str | bytes | NDArray[np.uint8]
"""The path of a picture, the bytes of its file, or its pixels (H, W), (H, W, 3) or (H, W, 4)."""

KINDS = "a path, bytes, an open file, a Pillow picture, an array or a tensor"


def picture_value(value: Any) -> Any:
    """A picture in the form that a table keeps.

    Args:
        value: a path, the bytes of a file, an open file, a Pillow picture, an array or a tensor as
            of `picture_array`, `{"bytes", "path"}` as of Hugging Face, or a function without
            arguments that returns one of these. The function is kept, and called when needed.
    Returns:
        A `PictureValue`, or the function.
    Raises:
        DataError: something else, or an array of another shape, type or range.
        PictureError: a Pillow picture whose file is broken.
    """
    if isinstance(value, bytes) or (isinstance(value, np.ndarray) and _is_plain(value)):
        return value
    if isinstance(value, str | os.PathLike):
        refuse_address(os.fspath(value))
        return os.path.expanduser(os.fspath(value))  # noqa: PTH111
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        return np.asarray(plain_picture(value))
    if isinstance(value, Mapping) and {"bytes", "path"} >= value.keys() and value:
        content = value.get("bytes")
        return picture_value(value["path"] if content is None else content)
    if hasattr(value, "read"):
        return read_content(value)
    if hasattr(value, "__array__"):
        return picture_array(array_of(value))
    if callable(value):
        return value
    raise DataError(f"a picture is {KINDS}, found {type(value).__name__}")


def picture_of_row(value: Any, row: int) -> Any:
    """`picture_value` with the number of the row in its error."""
    try:
        return picture_value(value)
    except DataError as error:
        raise DataError(f"picture {row}: {error}") from error


def read_value(value: Any) -> PictureValue:
    """A picture, after a function that returns it is called.

    Raises:
        DataError: as in `picture_value`.
    """
    kept = picture_value(value)
    while not isinstance(kept, str | bytes | np.ndarray):
        kept = picture_value(kept())
    return kept


def is_picture(value: Any) -> bool:
    """Whether a value may be a picture, and is no pair of one and its identity."""
    known = (str, os.PathLike, bytes, bytearray, Image.Image, Mapping)
    return isinstance(value, known) or hasattr(value, "read") or hasattr(value, "__array__")


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        PictureError: as in `open_file`.
    """
    with open_file(path) as stream:
        return stream.read()


def read_content(stream: Any) -> bytes:
    """The bytes of an open file, from its beginning if it can be rewound.

    Raises:
        DataError: a file of text.
    """
    if hasattr(stream, "seek") and getattr(stream, "seekable", lambda: True)():
        stream.seek(0)
    content = stream.read()
    if not isinstance(content, bytes):
        raise DataError(
            f"a picture file must be opened as bytes, open(path, 'rb'), found one that gives "
            f"{type(content).__name__}"
        )
    return content


def _is_plain(array: NDArray[Any]) -> bool:
    shape = array.shape
    is_color = len(shape) == 3 and shape[2] in (3, 4)
    return array.dtype == np.uint8 and 0 not in shape and (len(shape) == 2 or is_color)


def array_of(value: Any) -> NDArray[Any]:
    """An array or a tensor as an array."""
    if hasattr(value, "detach"):  # A tensor, perhaps on another device, or bfloat16.
        value = value.detach().cpu()
        return np.asarray(value.float() if value.is_floating_point() else value)
    return np.asarray(value)
