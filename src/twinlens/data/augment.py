"""Random views of a whole batch, drawn from a generator that is passed in.

All geometry (turn, shift, size, shear, flip) is one resampling of the batch, so a picture is
blurred once and not once for each. This module knows pixels only: no labels, no files; what kind
of view suits which pictures is for recipes to say.

Shapes: B pictures, C channels, H rows, W columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from twinlens.config import AugmentSettings

__all__ = ["augment", "mirror", "quarter_turns"]

# One column of random numbers a picture for each of these, whether it is in use or not: so
# turning one view on leaves what the others draw as it was.
_DRAWN = ("rotate", "right", "down", "scale", "shear", "flip", "brightness", "contrast")


@torch.no_grad()
def augment(
    x_BCHW: Tensor, settings: AugmentSettings, generator: torch.Generator, fill: float
) -> Tensor:
    """Another view of each picture, each drawn by itself.

    A picture is cropped first: `crop` of its height and of its width is left out, the window that
    remains lies anywhere and is enlarged to the full size (as when a picture of 130 pixels is cut
    to 105 at random: 1 - 105 / 130). Then it is sheared, scaled, turned and shifted about its
    centre, in this order:
      - `shear`: columns slant by an angle up to +-`shear` degrees;
      - `scale`: by a factor in [1 / (1 + scale), 1 + scale], log-uniform;
      - `rotate`: by up to +-`rotate` degrees; proportions are kept where H differs from W;
      - `translate`: by up to +-`translate` of the height and of the width;
      - `flip`: mirrored left to right for half of the pictures;
    then its grey levels change: `contrast` stretches them about the picture's mean by a factor in
    1 +- `contrast`, `brightness` adds up to +-`brightness`, and the result is clamped to [0, 1].
    All are uniform but the scale.

    Args:
        x_BCHW: pictures, floating, in [0, 1].
        settings: how far each goes; with all at zero `x_BCHW` itself is returned.
        generator: on the CPU, so that a seed gives the same views on any device.
        fill: the grey level of what comes in from outside, in [0, 1].

    Returns:
        New pictures of the same shape, or `x_BCHW` itself where there is nothing to do.
    """
    turns = max(settings.rotate, settings.translate, settings.scale, settings.shear) > 0
    warps = turns or settings.crop > 0
    shades = max(settings.brightness, settings.contrast) > 0
    if not (warps or shades or settings.flip) or len(x_BCHW) == 0:
        return x_BCHW
    drawn = torch.rand((len(x_BCHW), len(_DRAWN)), generator=generator) * 2 - 1
    unit = dict(zip(_DRAWN, drawn.to(x_BCHW.device, x_BCHW.dtype).unbind(1), strict=True))
    if warps:
        view_B23 = _views(x_BCHW, settings, unit)
        if settings.crop:  # Drawn after the others, so that those stay as they were.
            place_B2 = torch.rand((len(x_BCHW), 2), generator=generator) * 2 - 1
            view_B23 = _cropped(view_B23, settings.crop, place_B2.to(view_B23))
        x_BCHW = _warp(x_BCHW, view_B23, fill)
    elif settings.flip:
        x_BCHW = mirror(x_BCHW, unit["flip"] < 0)
    if shades:
        x_BCHW = _shade(x_BCHW, settings, unit)
    return x_BCHW


@torch.no_grad()
def quarter_turns(x_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Each picture turned anticlockwise by its number of quarter turns, without resampling.

    Args:
        x_BCHW: pictures of any type; square ones where any number of turns is odd.
        turns_B: 0, 1, 2 or 3 for each picture.

    Returns:
        New pictures, or `x_BCHW` itself where none turns.
    """
    if not bool(turns_B.any()):
        return x_BCHW
    assert x_BCHW.shape[2] == x_BCHW.shape[3] or not bool((turns_B % 2).any())
    turned = torch.empty_like(x_BCHW)
    for turns in range(4):
        which = (turns_B == turns).nonzero()[:, 0].to(x_BCHW.device)
        if len(which):
            turned[which] = x_BCHW[which].rot90(turns, (2, 3))
    return turned


@torch.no_grad()
def mirror(x_BCHW: Tensor, mirrored_B: Tensor) -> Tensor:
    """The pictures, of any type, those of `mirrored_B` (B,) mirrored left to right."""
    which_B111 = mirrored_B.to(x_BCHW.device)[:, None, None, None]
    return torch.where(which_B111, x_BCHW.flip(3), x_BCHW)


def _cropped(view_B23: Tensor, crop: float, place_B2: Tensor) -> Tensor:
    """The view of a window in place of the whole; `place_B2` in [-1, 1] is where it lies."""
    window_B23 = view_B23 * (1 - crop)
    window_B23[:, :, 2] += crop * place_B2
    return window_B23


def _views(x_BCHW: Tensor, settings: AugmentSettings, unit: dict[str, Tensor]) -> Tensor:
    """Where a view's points lie in the picture, (B, 2, 3), in units of half the picture.

    The view is made by out = shift + turn(scale * shear(in)) in pixels with y down; sampling
    needs its inverse, in = unshear(unturn(out - shift)) / scale.
    """
    height, width = x_BCHW.shape[2:]
    angle_B = unit["rotate"] * math.radians(settings.rotate)
    slant_B = torch.tan(unit["shear"] * math.radians(settings.shear))
    scale_B = torch.exp(unit["scale"] * math.log1p(settings.scale))
    cos_B, sin_B = angle_B.cos() / scale_B, angle_B.sin() / scale_B
    # Unturned: (cos x - sin y, sin x + cos y); unsheared: x less slant times y.
    xx_B, xy_B = cos_B - slant_B * sin_B, -sin_B - slant_B * cos_B
    yx_B, yy_B = sin_B, cos_B
    if settings.flip:
        mirror_B = torch.where(unit["flip"] < 0, -1.0, 1.0).to(xx_B.dtype)
        xx_B, xy_B = xx_B * mirror_B, xy_B * mirror_B
    xy_B, yx_B = xy_B * (height / width), yx_B * (width / height)
    right_B = 2 * settings.translate * unit["right"]
    down_B = 2 * settings.translate * unit["down"]
    x_B, y_B = -(xx_B * right_B + xy_B * down_B), -(yx_B * right_B + yy_B * down_B)
    return torch.stack([xx_B, xy_B, x_B, yx_B, yy_B, y_B], dim=1).view(-1, 2, 3)


def _warp(x_BCHW: Tensor, view_B23: Tensor, fill: float) -> Tensor:
    # Sampled less the fill, what lies outside (zero) comes in as the fill, soft edges included.
    inside_BCHW = x_BCHW - fill if fill else x_BCHW
    view_BCHW = F.grid_sample(inside_BCHW, _grid(x_BCHW, view_B23), align_corners=False)
    return view_BCHW.add_(fill) if fill else view_BCHW


def _grid(x_BCHW: Tensor, view_B23: Tensor) -> Tensor:
    # affine_grid is a matrix product, slower and in bfloat16 under autocast: off by pixels.
    height, width = x_BCHW.shape[2:]
    x_W = (2 * torch.arange(width, device=x_BCHW.device, dtype=x_BCHW.dtype) + 1) / width - 1
    y_H = (2 * torch.arange(height, device=x_BCHW.device, dtype=x_BCHW.dtype) + 1) / height - 1
    by_row_B2H1 = (view_B23[:, :, 1:2] * y_H + view_B23[:, :, 2:])[:, :, :, None]
    by_column_B21W = (view_B23[:, :, 0:1] * x_W)[:, :, None, :]
    return (by_row_B2H1 + by_column_B21W).permute(0, 2, 3, 1)


def _shade(x_BCHW: Tensor, settings: AugmentSettings, unit: dict[str, Tensor]) -> Tensor:
    factor_B = 1 + unit["contrast"] * settings.contrast
    mean_B = x_BCHW.mean(dim=(1, 2, 3))
    added_B = (1 - factor_B) * mean_B + unit["brightness"] * settings.brightness
    shaded = torch.addcmul(added_B[:, None, None, None], x_BCHW, factor_B[:, None, None, None])
    return shaded.clamp_(0, 1)
