"""Measures of handwriting as document examiners use them: pressure, width, slant, texture.

A backbone without weights, for ink on an even background. The same word by two writers differs
little in shape, and much in how dark, wide, rough and slanted its strokes are. With few writers a
network learns less than these measures contain. Pictures have full resolution, since pressure shows
in single pixels. The head learns the weight of each measure.

Shapes: C channels, H x W pixels, I pixels of ink, K bins, F measures.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from twinlens.config import PictureSettings

__all__ = ["MEASURE_STD", "grey_features", "stroke_features"]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

INK = 0.16
"""Least difference of ink from the background, as a share of the range of grey."""

EVEN = np.float32(0.6)
"""Darkness of all ink, for measures without pressure."""

DARKEST = 0.96
LEVELS = 12
ANGLES = {1: 8, 2: 12, 4: 12}
"""Bins of directions, by the factor by which the picture is reduced."""

MEASURE_STD = (
    0.38, 0.41, 0.063, 0.027, 0.053, 0.027, 0.33, 0.06, 0.037, 0.036, 0.042, 0.046, 0.051, 0.066,
    0.043, 0.048, 0.041, 0.03, 0.021, 0.015, 0.014, 0.088, 0.036, 0.17, 0.12, 0.052, 0.02, 0.31,
    0.075, 0.061, 0.087, 0.094, 0.12, 0.041, 0.032, 0.053, 0.062, 0.049, 0.053, 0.067, 0.067,
    0.094, 0.11, 0.04, 0.02, 0.021, 0.03, 0.048, 0.053, 0.044, 0.05, 0.061, 0.069, 0.085, 0.093,
    0.038, 0.022, 0.021, 0.03, 0.045, 0.039, 0.015, 0.019, 0.036, 0.037, 0.018, 0.021, 0.036,
    0.053, 0.015, 0.0053, 0.0038, 0.0017, 0.034, 0.061, 0.062, 0.016, 0.03, 0.08, 0.016, 0.0047,
    0.004, 0.001, 0.065,
)  # fmt: skip
"""Standard deviation of each measure over signatures (ICDAR 2011 SigComp, Dutch, the 35 training
writers). Divided by it, all measures have one range and one learning rate."""


def stroke_features(
    pixels_CHW: NDArray[np.uint8], picture: PictureSettings, pressure: bool = True
) -> Floats:
    """Measures (F,), float32, of a decoded picture, uint8 (1 or 3, H, W).

    The background is the grey level `fill` of the picture's settings. Ink differs from it, darker
    or lighter. A picture without ink has finite measures too. Without `pressure` all ink is equally
    dark, so the measures depend less on pen and scanner.
    """
    return grey_features(pixels_CHW.mean(0, dtype=np.float32) / 255, picture, pressure)


def grey_features(grey_HW: Floats, picture: PictureSettings, pressure: bool = True) -> Floats:
    """`stroke_features` of grey levels in [0, 1], which augmentation leaves between whole levels.

    Returns:
        Measures (F,), float32, divided by their standard deviations.
    """
    dark_HW = np.abs(grey_HW - np.float32(picture.fill / 255))
    if not pressure:
        dark_HW = EVEN * (dark_HW > INK)
    return np.asarray(stroke_measures(_boxed(dark_HW)) / MEASURE_STD, dtype=np.float32)


def stroke_measures(dark_HW: Floats) -> Floats:
    """All measures (F,) of one picture, given its differences from the background in [0, 1]."""
    ink_HW = dark_HW > INK
    parts: list[ArrayLike] = [
        *_extent(ink_HW),
        *_pressure(dark_HW, ink_HW),
        *_width(ink_HW),
        *_slants(dark_HW),
        *_texture(dark_HW, ink_HW),
    ]
    return np.hstack([np.asarray(part) for part in parts]).astype(np.float32)


def _boxed(dark_HW: Floats) -> Floats:
    """The bounding box of the ink with a margin of two pixels; the whole picture without ink."""
    ink_HW = dark_HW > INK
    rows, columns = np.flatnonzero(ink_HW.any(1)), np.flatnonzero(ink_HW.any(0))
    if len(rows):
        dark_HW = dark_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.pad(dark_HW, 2)


def _mean(value_I: NDArray[np.floating]) -> float:
    """The mean over the ink; 0 without ink."""
    return float(value_I.mean(dtype=np.float64)) if len(value_I) else 0.0


def _moments(value_I: NDArray[np.floating]) -> tuple[float, float]:
    """Mean and standard deviation over the ink."""
    mean = _mean(value_I)
    return mean, math.sqrt(max(_mean((value_I - mean) ** 2), 1e-10))


def _extent(ink_HW: Mask) -> list[float]:
    """Proportions of the box, its share of ink, and position and slope of the ink in it."""
    height, width = ink_HW.shape
    row_I, column_I = np.nonzero(ink_HW)
    y_I, x_I = row_I / (height - 1), column_I / (width - 1)
    (y, y_std), (x, x_std) = _moments(y_I), _moments(x_I)
    slope = _mean((y_I - y) * (x_I - x)) / max(y_std * x_std, 1e-6)
    full = math.log(max(ink_HW.mean(), 1e-6))
    return [math.log(height / width), full, y, y_std, x, x_std, slope]


def _pressure(dark_HW: Floats, ink_HW: Mask) -> list[ArrayLike]:
    """Darkness of the ink: moments, shares of grey levels, and moments inside the strokes."""
    dark_I = dark_HW[ink_HW]
    level_I = ((dark_I - INK) * (LEVELS / (DARKEST - INK))).astype(int).clip(0, LEVELS - 1)
    shares_K = np.bincount(level_I, minlength=LEVELS) / max(1, len(level_I))
    return [_moments(dark_I), shares_K, _moments(dark_HW[_eroded(ink_HW)])]


def _eroded(ink_HW: Mask) -> Mask:
    """The ink without its outermost pixels; ink at the edge of the picture stays."""
    return np.asarray(ndimage.binary_erosion(ink_HW, np.ones((3, 3)), border_value=1))


def _width(ink_HW: Mask) -> list[float]:
    """Shares of the ink that remain after one to four erosions by a pixel."""
    total, left, inner_HW = max(1, ink_HW.sum()), [], ink_HW
    for _ in range(4):
        inner_HW = _eroded(inner_HW)
        left.append(inner_HW.sum() / total)
    return [*left, -math.log(max(1 - left[0], 1e-3))]


def _gradient(dark_HW: Floats, ink_HW: Mask) -> tuple[Floats, Floats]:
    """Sobel's gradient at the ink: magnitudes (I,), and directions (I,) as half turns in [0, 1)."""
    right_I, down_I = (
        ndimage.sobel(dark_HW, axis, mode="nearest")[ink_HW] / np.float32(8) for axis in (1, 0)
    )
    return np.hypot(right_I, down_I), (np.arctan2(down_I, right_I) / np.float32(np.pi)) % 1


def _reduced(dark_HW: Floats, size: int) -> Floats:
    """Means of blocks of `size` x `size` pixels; smaller blocks at the lower and right edge."""
    starts = [np.arange(0, length, size) for length in dark_HW.shape]
    sums = np.add.reduceat(np.add.reduceat(dark_HW, starts[0], 0), starts[1], 1)
    heights, widths = (
        np.diff(start, append=length) for start, length in zip(starts, dark_HW.shape, strict=True)
    )
    return np.asarray(sums / np.outer(heights, widths), dtype=np.float32)


def _slants(dark_HW: Floats) -> list[NDArray[np.float64]]:
    """Histograms of edge directions at three sizes, linearly shared by neighbouring bins."""
    parts = []
    for size, bins in ANGLES.items():
        small_HW = _reduced(dark_HW, size)
        slope_I, turn_I = _gradient(small_HW, small_HW > INK / size**0.5)
        position_I = turn_I * bins
        low_I = np.floor(position_I).astype(int)
        part_I = position_I - low_I
        count_K = np.bincount(low_I % bins, slope_I * (1 - part_I), bins)
        count_K += np.bincount((low_I + 1) % bins, slope_I * part_I, bins)
        parts.append(count_K / max(count_K.sum(), 1e-6))
    return parts


def _texture(dark_HW: Floats, ink_HW: Mask) -> list[ArrayLike]:
    """Sharpness of edges, roughness, and local binary patterns (Ojala 2002) at two distances."""
    slope_I, _ = _gradient(dark_HW, ink_HW)
    rough = [
        _mean(np.abs(dark_HW - ndimage.uniform_filter(dark_HW, side, mode="constant"))[ink_HW])
        for side in (3, 5)
    ]
    return [_moments(slope_I), rough, *(_patterns(dark_HW, ink_HW, s) for s in (1, 3))]


def _patterns(dark_HW: Floats, ink_HW: Mask, step: int) -> NDArray[np.float64]:
    """Shares of ink by the number of darker neighbours of 8; the tenth: non-uniform patterns."""
    height, width = dark_HW.shape
    padded = np.pad(dark_HW, step)
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    neighbour_8HW = np.stack(
        [padded[i * step : i * step + height, j * step : j * step + width] for i, j in around]
    )
    darker_8I = (neighbour_8HW > dark_HW + 0.02)[:, ink_HW]
    changes_I = (darker_8I != np.roll(darker_8I, 1, 0)).sum(0)
    code_I = np.where(changes_I <= 2, darker_8I.sum(0), 9)
    return np.bincount(code_I, minlength=10) / max(1, len(code_I))
