"""Plain statistics of decoded pictures: grey levels, edges at several sizes, colour.

They need no network, so they describe pictures alike whatever a model has learned.

Shapes: N pictures, C channels (1 grey, 3 colour), H x W pixels, S statistics.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import Pixels

__all__ = ["STATISTICS", "picture_statistics"]

AT_ONCE = 2**21  # pixels
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow converts to grey
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
SCALES = 4  # the picture's size, halved three times
SMALLEST = 4  # side that is not halved
FLAT = 2.0  # grey levels along and across, together, that are no edge

Floats = NDArray[np.float32]

_PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom",
           "bottom right")  # fmt: skip
_COARSE = ("poorer in coarse structure", "richer in coarse structure")
_EDGES: Final[dict[str, tuple[str, str, float]]] = {
    "sharpness": ("blurrier", "sharper", 0.1),
    "peaks": ("more evenly textured", "emptier between edges", 0.1),
    "noise": ("smoother", "noisier", 0.1),
    "across": ("poorer in vertical edges", "richer in vertical edges", 0.1),
    "down": ("poorer in horizontal edges", "richer in horizontal edges", 0.1),
    "falling": ("poorer in slanted edges", "richer in slanted edges", 0.1),
    "rising": ("poorer in slanted edges", "richer in slanted edges", 0.1),
    "flat": ("poorer in even areas", "richer in even areas", 0.03),
}
STATISTICS: Final[dict[str, tuple[str, str, float]]] = {
    "brightness": ("darker", "brighter", 1.0),
    "contrast": ("lower in contrast", "higher in contrast", 0.05),
    **{f"level {p}": ("darker", "brighter", 1.0) for p in PERCENTILES},
    **{p: (f"darker at the {p}", f"brighter at the {p}", 2.0) for p in _PLACES},
    **{
        f"{name} {scale}": (*(_COARSE if scale and name != "flat" else words), floor)
        for scale in range(SCALES)
        for name, (*words, floor) in _EDGES.items()
    },
    "saturation": ("less colourful", "more colourful", 0.1),
    "saturation spread": ("more even in colour", "less even in colour", 0.1),
    "saturation 95": ("less colourful", "more colourful", 0.1),
    "warmth": ("bluer", "redder", 1.0),
    "green": ("more purple", "greener", 1.0),
    "warmth spread": ("more even in colour", "less even in colour", 0.1),
    "green spread": ("more even in colour", "less even in colour", 0.1),
    "warmth edges": ("blurrier in colour", "sharper in colour", 0.1),
    "green edges": ("blurrier in colour", "sharper in colour", 0.1),
}
"""Words for a low and for a high value, and a deviation that is none. Grey pictures lack the last
nine, those of colour.
"""


def picture_statistics(pixels_NCHW: Pixels) -> Floats:
    """The statistics (N, S) of N > 0 uint8 pictures (N, C, H, W), in the order of `STATISTICS`.

    Levels are those of 8 bits, at nine places relative to the mean. Contrast, edges, noise and
    saturation are logarithms, since their ratios matter: sharpness is the mean of the absolute
    Laplacian, noise its median, and "peaks" the ratio of its mean square to the square of its mean.
    """
    num = len(pixels_NCHW)
    _, height, width = pixels_NCHW[0].shape
    step = max(1, AT_ONCE // (height * width))
    starts = range(0, num, step)
    blocks = [_of_block(pixels_NCHW[s : s + step].astype(np.float32)) for s in starts]
    return np.concatenate(blocks)


def _of_block(x_BCHW: Floats) -> Floats:
    is_color = x_BCHW.shape[1] == 3
    grey = np.tensordot(x_BCHW, LUMA, ([1], [0])) if is_color else x_BCHW[:, 0]
    columns = [grey.mean((1, 2)), np.log1p(grey.std((1, 2)))]
    columns += list(np.percentile(grey, PERCENTILES, (1, 2)))
    columns += list((_thirds(grey) - columns[0][:, None]).T)
    scaled = grey
    for _ in range(SCALES):
        columns += _edges(scaled)
        if min(scaled.shape[1:]) >= 2 * SMALLEST:
            scaled = _halved(scaled)
    if is_color:
        columns += _colour(x_BCHW)
    return np.stack(columns, 1).astype(np.float32)


def _thirds(grey_BHW: Floats) -> Floats:
    """Mean levels of 3 x 3 parts, (B, 9)."""
    for axis in (1, 2):
        side = grey_BHW.shape[axis]
        start_3 = np.arange(3) * side // 3
        shape = (1, 3, 1) if axis == 1 else (1, 1, 3)
        count_3 = np.diff(start_3, append=side).clip(1).reshape(shape)
        grey_BHW = np.add.reduceat(grey_BHW, start_3, axis) / count_3
    return grey_BHW.reshape(len(grey_BHW), 9)


def _edges(grey_BHW: Floats) -> list[Floats]:
    laplacian = _laplacian(grey_BHW)
    mean = laplacian.mean((1, 2))
    wide = np.pad(grey_BHW, ((0, 0), (0, 1), (0, 1)), mode="edge")
    across = wide[:, :-1, 1:] - grey_BHW
    down = wide[:, 1:, :-1] - grey_BHW
    slanted = [(across + sign * down) / np.float32(1.4) for sign in (1, -1)]
    return [
        np.log1p(mean),
        np.log((laplacian**2).mean((1, 2)) / (mean**2 + 1e-3) + 0.1),
        np.log1p(np.median(laplacian, (1, 2))),
        *(np.log1p(np.abs(edge).mean((1, 2))) for edge in (across, down, *slanted)),
        (np.abs(across) + np.abs(down) < FLAT).mean((1, 2)),
    ]


def _colour(x_BCHW: Floats) -> list[Floats]:
    saturation = x_BCHW.max(1) - x_BCHW.min(1)
    warmth: Floats = x_BCHW[:, 0] - x_BCHW[:, 2]
    green: Floats = x_BCHW[:, 1] - (x_BCHW[:, 0] + x_BCHW[:, 2]) / np.float32(2)
    return [
        *(np.log1p(v) for v in (saturation.mean((1, 2)), saturation.std((1, 2)))),
        np.log1p(np.percentile(saturation, 95, (1, 2))),
        *(axis.mean((1, 2)) for axis in (warmth, green)),
        *(np.log1p(axis.std((1, 2))) for axis in (warmth, green)),
        *(np.log1p(_laplacian(axis).mean((1, 2))) for axis in (warmth, green)),
    ]


def _laplacian(grey_BHW: Floats) -> Floats:
    """Absolute values of the Laplacian; the picture is continued at its border."""
    wide = np.pad(grey_BHW, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    absolute: Floats = np.abs(around - 4 * grey_BHW)
    return absolute


def _halved(grey_BHW: Floats) -> Floats:
    """Means of 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = (side // 2 * 2 for side in grey_BHW.shape[1:])
    even = grey_BHW[:, :height, :width]
    mean: Floats = (
        even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
    ) / np.float32(4)
    return mean
