"""Measures of handwriting as document examiners use them: pressure, width, slant, texture.

A backbone without weights, for ink on an even background. The same word by two writers differs
little in shape, and much in how dark, wide, rough and slanted its strokes are. With few writers a
network learns less than these measures contain. Pictures have full resolution, since pressure shows
in single pixels. The head learns the weight of each measure.

Shapes: B pictures, C channels, H x W pixels, K bins, F measures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinlens.config import ModelSettings, PictureSettings

__all__ = ["MEASURE_STD", "Strokes"]

INK = 0.16
"""Least difference of ink from the background, as a share of the range of grey."""

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


class Strokes(nn.Module):
    """Normalised pictures (B, 1 or 3, H, W) to measures of their strokes (B, F).

    The background is the grey level `fill` of the picture's settings. Ink differs from it, darker
    or lighter. A picture without ink has finite measures too.
    """

    def __init__(self, picture: PictureSettings, model: ModelSettings) -> None:
        super().__init__()
        self.mean, self.std = torch.tensor(picture.mean), torch.tensor(picture.std)
        self.background = picture.fill / 255
        self.measure_std = torch.tensor(MEASURE_STD)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The measures (B, F), float32; each picture is measured by itself."""
        mean_C11, std_C11 = self.mean.to(x_BCHW)[:, None, None], self.std.to(x_BCHW)[:, None, None]
        with torch.autocast(x_BCHW.device.type, enabled=False):
            grey_BHW = (x_BCHW * std_C11 + mean_C11).float().mean(1)
            dark_BHW = (grey_BHW - self.background).abs()
            measures_BF = torch.stack([stroke_measures(_boxed(dark_HW)) for dark_HW in dark_BHW])
        return measures_BF / self.measure_std.to(measures_BF)


def stroke_measures(dark_HW: Tensor) -> Tensor:
    """All measures (F,) of one picture, given its differences from the background in [0, 1]."""
    ink_HW = dark_HW > INK
    parts = [
        *_extent(ink_HW),
        *_pressure(dark_HW, ink_HW),
        *_width(ink_HW),
        *_slants(dark_HW),
        *_texture(dark_HW, ink_HW),
    ]
    return torch.cat([part.flatten() for part in parts])


def _boxed(dark_HW: Tensor) -> Tensor:
    """The bounding box of the ink with a margin of two pixels; the whole picture without ink."""
    ink_HW = dark_HW > INK
    rows, columns = ink_HW.any(1).nonzero()[:, 0], ink_HW.any(0).nonzero()[:, 0]
    if len(rows):
        dark_HW = dark_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return F.pad(dark_HW, (2, 2, 2, 2))


def _mean(value_HW: Tensor, ink_HW: Tensor) -> Tensor:
    return (value_HW * ink_HW).sum() / ink_HW.sum().clamp_min(1)


def _moments(value_HW: Tensor, ink_HW: Tensor) -> Tensor:
    """Mean and standard deviation over the ink."""
    mean = _mean(value_HW, ink_HW)
    std = _mean((value_HW - mean).square(), ink_HW).clamp_min(1e-10).sqrt()
    return torch.stack([mean, std])


def _extent(ink_HW: Tensor) -> list[Tensor]:
    """Proportions of the box, its share of ink, and position and slope of the ink in it."""
    height, width = ink_HW.shape
    y_H = torch.linspace(0, 1, height, device=ink_HW.device)[:, None].expand(height, width)
    x_W = torch.linspace(0, 1, width, device=ink_HW.device).expand(height, width)
    y, x = _moments(y_H, ink_HW), _moments(x_W, ink_HW)
    slope = _mean((y_H - y[0]) * (x_W - x[0]), ink_HW) / (y[1] * x[1]).clamp_min(1e-6)
    full = ink_HW.float().mean().clamp_min(1e-6).log()
    return [y.new_tensor(math.log(height / width)), full, y, x, slope]


def _pressure(dark_HW: Tensor, ink_HW: Tensor) -> list[Tensor]:
    """Darkness of the ink: moments, shares of grey levels, and moments inside the strokes."""
    level = ((dark_HW[ink_HW] - INK) * (LEVELS / (DARKEST - INK))).long().clamp(0, LEVELS - 1)
    shares_K = torch.bincount(level, minlength=LEVELS) / max(1, len(level))
    return [_moments(dark_HW, ink_HW), shares_K, _moments(dark_HW, _eroded(ink_HW))]


def _eroded(ink_HW: Tensor) -> Tensor:
    """The ink without its outermost pixels."""
    return F.max_pool2d((~ink_HW).float()[None], 3, 1, 1)[0] < 0.5


def _width(ink_HW: Tensor) -> list[Tensor]:
    """Shares of the ink that remain after one to four erosions by a pixel."""
    total, left, inner_HW = ink_HW.sum().clamp_min(1), [], ink_HW
    for _ in range(4):
        inner_HW = _eroded(inner_HW)
        left.append(inner_HW.sum() / total)
    width = -torch.log((1 - left[0]).clamp_min(1e-3))
    return [torch.stack(left), width]


def _gradient(dark_HW: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's gradient of grey: magnitude per pixel, and direction in half turns, in [0, 1)."""
    across = dark_HW.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernel_K133 = torch.stack([across, across.T])[:, None]
    padded = F.pad(dark_HW[None, None], (1, 1, 1, 1), mode="replicate")
    right_HW, down_HW = F.conv2d(padded, kernel_K133)[0]
    return torch.hypot(right_HW, down_HW), (torch.atan2(down_HW, right_HW) / math.pi) % 1


def _slants(dark_HW: Tensor) -> list[Tensor]:
    """Histograms of edge directions at three sizes, linearly shared by neighbouring bins."""
    parts = []
    for size, bins in ANGLES.items():
        small_HW = F.avg_pool2d(dark_HW[None], size, ceil_mode=True)[0]
        slope_HW, turn_HW = _gradient(small_HW)
        ink_HW = small_HW > INK / size**0.5
        weight, position = slope_HW[ink_HW], turn_HW[ink_HW] * bins
        low, part = position.floor().long(), position.frac()
        count_K = weight.new_zeros(bins).index_add_(0, low % bins, weight * (1 - part))
        count_K.index_add_(0, (low + 1) % bins, weight * part)
        parts.append(count_K / count_K.sum().clamp_min(1e-6))
    return parts


def _texture(dark_HW: Tensor, ink_HW: Tensor) -> list[Tensor]:
    """Sharpness of edges, roughness, and local binary patterns (Ojala 2002) at two distances."""
    slope_HW, _ = _gradient(dark_HW)
    rough = [
        _mean((dark_HW - F.avg_pool2d(dark_HW[None], side, 1, side // 2)[0]).abs(), ink_HW)
        for side in (3, 5)
    ]
    patterns = [_patterns(dark_HW, ink_HW, step) for step in (1, 3)]
    return [_moments(slope_HW, ink_HW), *rough, *patterns]


def _patterns(dark_HW: Tensor, ink_HW: Tensor, step: int) -> Tensor:
    """Shares of ink by the number of darker neighbours of 8; the tenth: non-uniform patterns."""
    height, width = dark_HW.shape
    padded = F.pad(dark_HW, (step,) * 4)
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    neighbour_8HW = torch.stack(
        [padded[i * step : i * step + height, j * step : j * step + width] for i, j in around]
    )
    darker_8HW = neighbour_8HW > dark_HW + 0.02
    changes_HW = (darker_8HW != darker_8HW.roll(1, 0)).sum(0)
    code_HW = torch.where(changes_HW <= 2, darker_8HW.sum(0), 9)
    return torch.bincount(code_HW[ink_HW], minlength=10) / ink_HW.sum().clamp_min(1)
