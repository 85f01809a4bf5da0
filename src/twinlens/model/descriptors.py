"""Classical descriptors of pictures, as networks without weights.

They are what a network has to beat, and they complement one: colours and edges that it overlooks.

Shapes: B pictures, C channels, H x W pixels, F features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings

__all__ = ["DESCRIPTORS", "Gradients", "Histogram", "Pixels", "Resize"]

SIDE = 16  # pixels of each side of `pixels`
CELLS, ORIENTATIONS = 8, 9  # of `gradients`, as Dalal 2005
COLOR_LEVELS, GREY_LEVELS = 6, 16  # of `histogram`, for each channel
SIDE_COUNTED = 48  # pixels of each side that are counted


class Resize(nn.Module):
    """Pictures (B, C, H, W) of one size to another, each pixel a mean weighted by a triangle.

    Two matrix products, which give torch and ONNX Runtime the same numbers; the filter is that of
    Pillow's BILINEAR without rounding.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        super().__init__()
        # Not stored: they follow from the sizes.
        self.register_buffer("rows", _triangles(old[0], new[0]), persistent=False)
        self.register_buffer("columns", _triangles(old[1], new[1]).T, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The pictures in the new size, float."""
        resized: Tensor = self.rows @ x_BCHW @ self.columns
        return resized


def _triangles(old: int, new: int) -> Tensor:
    """The weights (new, old) of old pixels in new ones along one side."""
    ratio = old / new
    width = max(1.0, ratio)
    # On "meta", where layouts are computed, there are no numbers; floats of Python need a device.
    center = (torch.arange(new, device="cpu", dtype=torch.float64) + 0.5) * ratio
    place = torch.arange(old, device="cpu", dtype=torch.float64) + 0.5
    weight = (1 - (place - center[:, None]).abs() / width).clamp_min(0)
    return (weight / weight.sum(1, keepdim=True)).float()


class Pixels(nn.Module):
    """The picture itself at 16 x 16, without its mean and contrast."""

    def __init__(self, picture: PictureSettings, model: ModelSettings) -> None:
        super().__init__()
        self.resize = Resize(picture.size, (SIDE, SIDE))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, C x 256)."""
        small_BF = self.resize(x_BCHW).flatten(1)
        small_BF = small_BF - small_BF.mean(1, keepdim=True)
        features: Tensor = small_BF / (small_BF.square().mean(1, keepdim=True) + 1e-4).sqrt()
        return features


class Histogram(nn.Module):
    """The joint histogram of colour, or that of grey levels.

    A pixel counts for the two nearest levels of a channel (as in Swain 1991, but interpolated).
    Square roots make Euclidean distances those of Hellinger (Arandjelovic 2012).
    """

    levels: Tensor

    def __init__(self, picture: PictureSettings, model: ModelSettings) -> None:
        super().__init__()
        num = COLOR_LEVELS if picture.channels == 3 else GREY_LEVELS
        self.resize = Resize(picture.size, (SIDE_COUNTED, SIDE_COUNTED))
        levels = torch.arange(num, device="cpu", dtype=torch.float32)
        self.register_buffer("levels", levels, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, levels^C) of pictures in [0, 1]."""
        level_BCP = self.resize(x_BCHW).flatten(2) * (len(self.levels) - 1)
        share_BCLP = F.relu(1 - (level_BCP[:, :, None] - self.levels[:, None]).abs())
        joint = share_BCLP[:, 0]
        for channel in range(1, share_BCLP.shape[1]):
            joint = (joint[:, :, None] * share_BCLP[:, channel, None]).flatten(1, 2)
        # Where a root is steep, rounding would differ between torch and ONNX Runtime.
        features: Tensor = (joint.mean(2) + 1e-4).sqrt()
        return features


class Gradients(nn.Module):
    """Histograms of oriented gradients (Dalal 2005) in 8 x 8 cells, normalised in each cell.

    A gradient counts for the orientations near it by its projection on them, which needs no angle.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, picture: PictureSettings, model: ModelSettings) -> None:
        super().__init__()
        self.resize = Resize(picture.size, (64, 64))
        angle = torch.arange(ORIENTATIONS, device="cpu") * (math.pi / ORIENTATIONS)
        self.register_buffer("cosine", angle.cos().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("sine", angle.sin().view(1, -1, 1, 1), persistent=False)
        self.pool = nn.AvgPool2d(64 // CELLS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, 576) of pictures in [0, 1]."""
        grey = F.pad(self.resize(x_BCHW).mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        right = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
        down = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
        # ONNX Runtime takes an addend of 1e-8 for none.
        length = (right.square() + down.square() + 1e-6).sqrt()
        projection = (right * self.cosine + down * self.sine).abs()
        near = F.relu(projection - math.cos(math.pi / ORIENTATIONS) * length)
        cells = self.pool(near)
        norm = (cells.square().sum(1, keepdim=True) + 1e-5).sqrt()
        features: Tensor = (cells / norm + 1e-3).sqrt().flatten(1)
        return features


DESCRIPTORS = {"pixels": Pixels, "histogram": Histogram, "gradients": Gradients}
