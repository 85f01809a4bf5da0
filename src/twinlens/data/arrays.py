"""Arrays of pictures, as they come from other libraries, as uint8 pixels with channels last.

Shapes: N pictures, H height, W width, C channels (1 grey, 3 colour, 4 colour with transparency).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError

__all__ = ["picture_array", "pictures_array", "unit_to_bytes"]

CHANNELS = (1, 3, 4)
# Resizing may push floats slightly out of [0, 1].
FLOAT_TOLERANCE = 1e-3
AT_ONCE = 256


def picture_array(values: ArrayLike) -> NDArray[np.uint8]:
    """One picture as uint8.

    Args:
        values: shape (H, W), (H, W, C) or (C, H, W); uint8, bool, or floats in [0, 1]. Channels
            are first only if the last dimension cannot be channels.
    Returns:
        Shape (H, W), (H, W, 3) or (H, W, 4).
    Raises:
        DataError: another shape, type or range.

    >>> picture_array(np.ones((3, 20, 30), np.float32)).shape
    (20, 30, 3)
    """
    array = np.asarray(values)
    if array.ndim not in (2, 3):
        raise DataError(
            f"a picture array needs shape (H, W) or (H, W, 1 | 3 | 4), found {array.shape}"
        )
    return _to_bytes(_channels_last(array, 2))


def pictures_array(values: ArrayLike) -> NDArray[np.uint8]:
    """Pictures of one size as uint8.

    Args:
        values: shape (N, H, W), (N, H, W, C) or (N, C, H, W), otherwise as for `picture_array`.
    Returns:
        Shape (N, H, W), (N, H, W, 3) or (N, H, W, 4).
    Raises:
        DataError: another shape, type or range.
    """
    array = np.asarray(values)
    if array.ndim not in (3, 4):
        raise DataError(
            "an array of pictures needs shape (N, H, W), (N, H, W, 1 | 3 | 4) or "
            f"(N, 1 | 3 | 4, H, W), found {array.shape}"
        )
    array = _channels_last(array, 3)
    if array.dtype == np.uint8:
        return array
    pixels = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), AT_ONCE):  # Floats of all at once would need much memory.
        pixels[start : start + AT_ONCE] = _to_bytes(array[start : start + AT_ONCE])
    return pixels


def unit_to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats in [0, 1], others clipped, as 0 to 255."""
    rounded: NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return rounded


def _channels_last(array: NDArray[Any], plain: int) -> NDArray[Any]:
    """An array without channels if they are 1, else with them last.

    Args:
        array: any number of pictures.
        plain: number of dimensions without channels.
    """
    if 0 in array.shape[plain - 2 :]:
        raise DataError(f"a picture array needs pixels, found {array.shape}")
    if array.ndim == plain:
        return array
    first, last = array.shape[plain - 2], array.shape[-1]
    if last not in CHANNELS:
        if first not in CHANNELS:
            raise DataError(
                "a picture array has 1, 3 or 4 channels, (H, W, C) or (C, H, W), found "
                f"{array.shape}; several grey pictures need shape (N, H, W, 1)"
            )
        array = np.moveaxis(array, plain - 2, -1)
    return array[..., 0] if array.shape[-1] == 1 else array


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind != "f":
        raise DataError(
            f"a picture array needs uint8, bool, or floats in [0, 1], found {array.dtype}: convert "
            "it, such as `array.astype(np.uint8)` for values from 0 to 255"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= -FLOAT_TOLERANCE and high <= 1 + FLOAT_TOLERANCE):  # also true of NaN
        values = "NaN" if np.isnan(low) else f"{low:g} to {high:g}"
        raise DataError(
            f"a picture array of floats needs values in [0, 1], found {values}: divide by the "
            "largest value, leave out a normalisation, or pass uint8"
        )
    return unit_to_bytes(array)
