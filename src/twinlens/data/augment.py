"""Random views of a whole batch, drawn from a given generator.

All geometric changes (crop, rotation, shift, scale, shear, flip) are one resampling of the batch,
so a picture is blurred once. Recipes choose the views that suit the pictures.

Shapes: B pictures, C channels, H rows, W columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from twinlens.config import AugmentSettings

__all__ = ["augment", "mirror", "quarter_turns"]

# One random number per picture for each of these, used or not: enabling one change leaves the
# random numbers of the others unchanged.
_DRAWN = ("rotate", "right", "down", "scale", "shear", "flip", "brightness", "contrast")


@torch.no_grad()
def augment(
    x_BCHW: Tensor,
    settings: AugmentSettings,
    generator: torch.Generator,
    fill: float,
    place: tuple[Tensor, int] | None = None,
) -> Tensor:
    """A random view of each picture, drawn independently.

    A picture is cropped first: `crop` of its height and width is removed, and a window at a random
    position is enlarged to the full size (a random window of 105 of 130 pixels is a `crop` of
    1 - 105 / 130). Then it is sheared, scaled, rotated and shifted about its centre, in this order:
      - `shear`: columns slant by an angle of up to +-`shear` degrees;
      - `scale`: by a factor in [1 / (1 + scale), 1 + scale], log-uniform;
      - `rotate`: by up to +-`rotate` degrees; proportions are kept if H differs from W;
      - `translate`: by up to +-`translate` of the height and width, in whole pixels unless another
        change resamples the picture anyway: fractions blur it;
      - `flip`: mirrored left to right with probability 1/2.
    Then its grey levels change: `contrast` scales them about the mean of the picture by a factor
    in 1 +- `contrast`, `brightness` adds up to +-`brightness`, and the result is clamped to [0, 1].
    All distributions but that of the scale are uniform.

    Args:
        x_BCHW: pictures, floating point, in [0, 1].
        settings: ranges of the changes.
        generator: generator on the CPU, so that a seed gives the same views on any device.
        fill: grey level outside of the picture, in [0, 1].
        place: positions (B,) of the pictures in a larger batch, and its size. Their views are those
            that the whole batch would give them.

    Returns:
        New pictures of the same shape, or `x_BCHW` itself if all ranges are zero.
    """
    moves = max(settings.rotate, settings.translate, settings.scale, settings.shear) > 0
    warps = moves or settings.crop > 0
    shades = max(settings.brightness, settings.contrast) > 0
    if not (warps or shades or settings.flip) or len(x_BCHW) == 0:
        return x_BCHW
    position_B, num = (slice(None), len(x_BCHW)) if place is None else place
    drawn = torch.rand((num, len(_DRAWN)), generator=generator)[position_B] * 2 - 1
    unit = dict(zip(_DRAWN, drawn.to(x_BCHW.device, x_BCHW.dtype).unbind(1), strict=True))
    if warps:
        view_B23 = _views(x_BCHW, settings, unit)
        if settings.crop:  # Drawn last, so that the other numbers stay unchanged.
            window_B2 = torch.rand((num, 2), generator=generator)[position_B] * 2 - 1
            view_B23 = _cropped(view_B23, settings.crop, window_B2.to(view_B23))
        x_BCHW = _warp(x_BCHW, view_B23, fill)
    elif settings.flip:
        x_BCHW = mirror(x_BCHW, unit["flip"] < 0)
    if shades:
        x_BCHW = _shade(x_BCHW, settings, unit)
    return x_BCHW


@torch.no_grad()
def quarter_turns(x_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Rotate each picture anticlockwise by its number of quarter turns, without resampling.

    Args:
        x_BCHW: pictures of any dtype; square if any number of turns is odd.
        turns_B: 0, 1, 2 or 3 for each picture.

    Returns:
        New pictures, or `x_BCHW` itself if all turns are 0.
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
    """Mirror the pictures selected by the mask `mirrored_B` left to right; any dtype."""
    which_B111 = mirrored_B.to(x_BCHW.device)[:, None, None, None]
    return torch.where(which_B111, x_BCHW.flip(3), x_BCHW)


def _cropped(view_B23: Tensor, crop: float, position_B2: Tensor) -> Tensor:
    """The view of a window instead of the whole picture; `position_B2` is in [-1, 1]."""
    window_B23 = view_B23 * (1 - crop)
    window_B23[:, :, 2] += crop * position_B2
    return window_B23


def _views(x_BCHW: Tensor, settings: AugmentSettings, unit: dict[str, Tensor]) -> Tensor:
    """Affine maps from a view to its picture, (B, 2, 3), in units of half the picture.

    The view is out = shift + rotate(scale * shear(in)) in pixels with y down. Sampling needs the
    inverse, in = unshear(unrotate(out - shift)) / scale.
    """
    height, width = x_BCHW.shape[2:]
    angle_B = unit["rotate"] * math.radians(settings.rotate)
    slant_B = torch.tan(unit["shear"] * math.radians(settings.shear))
    scale_B = torch.exp(unit["scale"] * math.log1p(settings.scale))
    cos_B, sin_B = angle_B.cos() / scale_B, angle_B.sin() / scale_B
    # Unrotate: (cos x - sin y, sin x + cos y); unshear: x - slant * y.
    xx_B, xy_B = cos_B - slant_B * sin_B, -sin_B - slant_B * cos_B
    yx_B, yy_B = sin_B, cos_B
    if settings.flip:
        mirror_B = torch.where(unit["flip"] < 0, -1.0, 1.0).to(xx_B.dtype)
        xx_B, xy_B = xx_B * mirror_B, xy_B * mirror_B
    xy_B, yx_B = xy_B * (height / width), yx_B * (width / height)
    right_B = 2 * settings.translate * unit["right"]
    down_B = 2 * settings.translate * unit["down"]
    if max(settings.rotate, settings.scale, settings.shear, settings.crop) == 0:
        right_B = (right_B * (width / 2)).round() / (width / 2)
        down_B = (down_B * (height / 2)).round() / (height / 2)
    x_B, y_B = -(xx_B * right_B + xy_B * down_B), -(yx_B * right_B + yy_B * down_B)
    return torch.stack([xx_B, xy_B, x_B, yx_B, yy_B, y_B], dim=1).view(-1, 2, 3)


def _warp(x_BCHW: Tensor, view_B23: Tensor, fill: float) -> Tensor:
    # With the fill subtracted, the zeros outside become the fill, at blended edges too.
    inside_BCHW = x_BCHW - fill if fill else x_BCHW
    view_BCHW = F.grid_sample(inside_BCHW, _grid(x_BCHW, view_B23), align_corners=False)
    return view_BCHW.add_(fill) if fill else view_BCHW


def _grid(x_BCHW: Tensor, view_B23: Tensor) -> Tensor:
    # affine_grid is a matrix product: slower, and wrong by pixels in bfloat16 under autocast.
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
