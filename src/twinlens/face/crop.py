"""Choice of a face of a picture, and its crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from PIL import Image, ImageOps

from twinlens.face.geometry import Box, Face, border_colour, clip, rotated_view, tilt, to_pixels

__all__ = ["Keep", "choose_face", "crop_box", "crop_face"]

Keep = Literal["best", "largest", "all"]


def choose_face(faces: Sequence[Face], keep: Literal["best", "largest"]) -> Face:
    """The face with the highest score ("best"), or with the largest box; the other breaks ties."""
    if keep == "best":
        return max(faces, key=lambda face: (face.score, face.box.area))
    return max(faces, key=lambda face: (face.box.area, face.score))


def crop_face(
    picture: Image.Image,
    face: Face,
    *,
    margin: float = 0.0,
    size: int | None = None,
    align: bool = False,
) -> Image.Image:
    """Crop a face.

    Args:
        picture: picture of mode "L" or "RGB".
        face: face with a box inside the picture.
        margin: margin on each side, as a share of the box, clipped to the picture.
        size: side of a square crop in pixels; None keeps the box. The box grows to a square around
            its centre, shifted into the picture. If the picture is narrower than the square, the
            rest is filled with the median colour of its border.
        align: whether to rotate around the box's centre until the eyes are level. Pixels outside
            the picture repeat its edge.
    Raises:
        ValueError: `align`, and a face without eyes.
    """
    box = crop_box(picture, face, margin=margin, size=size)
    cut = _aligned(picture, box, face) if align else picture.crop(to_pixels(box))
    if size is None:
        return cut
    ground = border_colour(picture)
    return ImageOps.pad(cut, (size, size), Image.Resampling.BICUBIC, color=ground)


def crop_box(
    picture: Image.Image, face: Face, *, margin: float = 0.0, size: int | None = None
) -> Box:
    """The part of the picture that `crop_face` takes, before rotation."""
    box = clip(face.box.grown(margin), picture.size)
    return box if size is None else _square(box, picture.size)


def _square(box: Box, size: tuple[int, int]) -> Box:
    """The square around a box, shifted into the picture, and clipped if it cannot fit."""
    side = max(box.width, box.height)
    sides = []
    for middle, whole in zip(box.centre, size, strict=True):
        start = min(max(middle - side / 2, 0.0), max(whole - side, 0.0))
        sides.append((start, min(start + side, float(whole))))
    (left, right), (top, bottom) = sides
    return Box(left, top, right, bottom)


def _aligned(picture: Image.Image, box: Box, face: Face) -> Image.Image:
    if face.eyes is None:
        raise ValueError("a face without eyes cannot be aligned")
    left, top, right, bottom = to_pixels(box)
    middle = ((left + right) / 2, (top + bottom) / 2)
    return rotated_view(picture, middle, tilt(face.eyes), (right - left, bottom - top))
