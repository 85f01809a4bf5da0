"""Plain statistics of decoded pictures: grey levels, colour, sharpness, edges.

They need no network, so they describe pictures alike whatever a model has learned.

Shapes: N pictures, C channels (1 grey, 3 colour), H x W pixels, S statistics.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import Pixels

__all__ = ["STATISTICS", "picture_statistics"]

BLOCK_BYTES = 2**25
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow converts to grey
PERCENTILES = (2, 10, 25, 50, 75, 90, 98)
SCALES = 3  # sides are halved twice
EDGE = 24.0  # grey levels between neighbours that are an edge
FLAT = 2.0  # and those that are none

Floats = NDArray[np.float32]

STATISTICS: Final[dict[str, tuple[str, str, float]]] = {
    "brightness": ("darker", "brighter", 4.0),
    "contrast": ("lower in contrast", "higher in contrast", 4.0),
    **{f"level {p}": ("darker", "brighter", 6.0) for p in PERCENTILES},
    "saturation": ("paler", "more colourful", 4.0),
    "saturation spread": ("of more even colour", "of more varied colour", 4.0),
    "red": ("less red", "redder", 4.0),
    "blue": ("less blue", "bluer", 4.0),
    **{f"sharpness {s}": ("blurrier", "sharper", 0.1) for s in range(SCALES)},
    "noise": ("smoother", "noisier", 0.1),
    "edges": ("poorer in edges", "richer in edges", 0.02),
    "flat": ("fuller", "emptier", 0.02),
    "direction": ("of more vertical edges", "of more horizontal edges", 0.1),
    "centre": ("darker in the middle", "brighter in the middle", 4.0),
}
"""Words for a low and for a high value, and the difference that is none."""


def picture_statistics(pixels_NCHW: Pixels) -> Floats:
    """The statistics (N, S) of pictures (N, C, H, W), uint8, in the order of `STATISTICS`.

    Levels are those of 8 bits. Sharpness is the logarithm of the mean absolute Laplacian, at the
    picture's size and at halves of it; noise that of its median. Grey pictures have no colour.
    """
    stats_NS = np.empty((len(pixels_NCHW), len(STATISTICS)), np.float32)
    if len(stats_NS):
        step = max(1, BLOCK_BYTES // (16 * pixels_NCHW[0].size))
        for start in range(0, len(stats_NS), step):
            part = slice(start, start + step)
            stats_NS[part] = _of_block(pixels_NCHW[part].astype(np.float32))
    return stats_NS


def _of_block(x_BCHW: Floats) -> Floats:
    is_color = x_BCHW.shape[1] == 3
    grey = np.tensordot(x_BCHW, LUMA, ([1], [0])) if is_color else x_BCHW[:, 0]
    saturation, red, blue = np.zeros((3, *grey.shape), np.float32)
    if is_color:
        saturation = x_BCHW.max(1) - x_BCHW.min(1)
        red, blue = x_BCHW[:, 0] - grey, x_BCHW[:, 2] - grey
    axes = (1, 2)
    right, down = np.abs(np.diff(grey, axis=2)), np.abs(np.diff(grey, axis=1))
    height, width = grey.shape[1:]
    middle = grey[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    sharpness = []
    scaled, noise = grey, None
    for _ in range(SCALES):
        laplacian = _laplacian(scaled)
        sharpness.append(np.log(laplacian.mean(axes) + 1))
        if noise is None:
            noise = np.log(np.median(laplacian, axes) + 1)
        scaled = _halved(scaled)
    assert noise is not None
    columns = [
        grey.mean(axes), grey.std(axes), *np.percentile(grey, PERCENTILES, axes),
        saturation.mean(axes), saturation.std(axes), red.mean(axes), blue.mean(axes),
        *sharpness, noise,
        ((right > EDGE).mean(axes) + (down > EDGE).mean(axes)) / 2,
        ((right < FLAT).mean(axes) + (down < FLAT).mean(axes)) / 2,
        np.log((down.mean(axes) + 1) / (right.mean(axes) + 1)),
        middle.mean(axes) - grey.mean(axes),
    ]  # fmt: skip
    return np.stack(columns, 1).astype(np.float32)


def _laplacian(grey_BHW: Floats) -> Floats:
    """Absolute values of the Laplacian; the picture is continued at its border."""
    wide = np.pad(grey_BHW, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    absolute: Floats = np.abs(around - 4 * grey_BHW)
    return absolute


def _halved(grey_BHW: Floats) -> Floats:
    """Means of 2 x 2 pixels; a side of 1 stays, and an odd last row or column is dropped."""
    for axis in (1, 2):
        even = grey_BHW.shape[axis] // 2 * 2
        if even:
            first, second = (np.take(grey_BHW, np.arange(s, even, 2), axis) for s in (0, 1))
            grey_BHW = (first + second) / 2
    return grey_BHW
