"""One picture -> the faces in it -> one face, cut out.

A detector (see `detectors`) is shown copies of the picture at sizes that it is good at; what it
finds is mapped back and clipped to the picture. This module knows one picture at a time: no
folders, no reports.

Boxes and points are in pixels of the upright picture, from its left upper corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = [
    "Box",
    "Detector",
    "Face",
    "Keep",
    "Point",
    "choose_face",
    "cut_face",
    "find_faces",
    "look_closer",
    "within",
]

Point = tuple[float, float]
Keep = Literal["best", "largest"]

LEAST_SIDE = 160
"""Smaller pictures are enlarged to this: of AT&T's 400 at 23 x 28, YuNet finds 73, and then all."""
CLOSE_SIDE = 240
CLOSE_MARGIN = 0.6
CLOSE_LOOKS = 4
LEVEL = math.radians(2)
LEAST_INSIDE = 0.5  # Of a face's box; what lies mostly in the padding is no face.
SAME_FACE = 0.5  # Share of the smaller box that two findings of one face have in common.


@dataclass(frozen=True)
class Box:
    """A rectangle; `right` and `bottom` are the first that do not belong to it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Pixels across."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Pixels down."""
        return self.bottom - self.top

    @property
    def area(self) -> float:
        """Square pixels; 0 for a box that is inside out."""
        return max(0.0, self.width) * max(0.0, self.height)

    @property
    def centre(self) -> Point:
        """The middle."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def grown(self, margin: float) -> Box:
        """With `margin` times its width on the left and right, its height above and below."""
        x, y = margin * self.width, margin * self.height
        return Box(self.left - x, self.top - y, self.right + x, self.bottom + y)

    def moved(self, x: float, y: float, scale: float = 1.0) -> Box:
        """Every corner multiplied by `scale`, then shifted."""
        left, top, right, bottom = (
            side * scale for side in (self.left, self.top, self.right, self.bottom)
        )
        return Box(left + x, top + y, right + x, bottom + y)


@dataclass(frozen=True)
class Face:
    """A detected face.

    Attributes:
        box: bounding box.
        score: higher is surer. For YuNet a confidence in [0, 1]; for the Haar cascade the weight of
            its last stage, which is unbounded and no probability.
        eyes: the person's right eye (left in an upright picture) and left eye; None if the detector
            finds no eyes.
    """

    box: Box
    score: float
    eyes: tuple[Point, Point] | None = None


class Detector(Protocol):
    """A face detector."""

    sides: tuple[int, ...]
    """Lengths of the longer side at which a large picture is searched."""

    def detect(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """The faces in a picture (H, W, 3), RGB, in any order."""
        ...


def find_faces(picture: Image.Image, detector: Detector, *, pad: float = 0.0) -> list[Face]:
    """The faces in a picture, best score first.

    A picture whose longer side exceeds the last of the detector's `sides` is searched at each of
    those sizes, since a network misses faces of a few pixels and of a thousand. A smaller picture
    is searched at its own size and the sizes below it; below 160 pixels it is enlarged to that. Of
    two detections that share more than half of the smaller box, the higher score stays.

    Args:
        picture: upright "L" or "RGB" picture.
        detector: face detector.
        pad: border in the median colour of the picture's edge, as a share of its longer side. Helps
            with pictures that are cropped to the face.
    Returns:
        Faces with boxes clipped to the picture; the eyes may lie outside of it.
    """
    band = round(pad * max(picture.size))
    ground = _padded(picture, band) if band else picture
    detections = [
        face
        for scale in _scales(max(ground.size), detector.sides)
        for face in _look(ground, detector, scale, band)
    ]
    inside = [face for face in (_clipped(face, picture.size) for face in detections) if face]
    return _without_repeats(inside)


def look_closer(picture: Image.Image, face: Face, detector: Detector) -> Face:
    """Refine the eyes of a face for alignment.

    YuNet reports a tilted face below some 200 pixels as level, with errors of 20 degrees and more.
    The face alone is therefore searched at 240 pixels, rotated by the previous angle, until that
    changes by less than 2 degrees, at most four times.
    """
    longest = max(face.box.width, face.box.height)
    scale = CLOSE_SIDE / longest
    left, top, right, bottom = _whole(within(face.box.grown(CLOSE_MARGIN), picture.size))
    size = tuple(max(1, round(side * scale)) for side in (right - left, bottom - top))
    near = picture.convert("RGB").resize(
        (size[0], size[1]), Image.Resampling.BICUBIC, (left, top, right, bottom), reducing_gap=3.0
    )
    scale_2 = np.array(near.size) / (right - left, bottom - top)
    corner_2 = np.array([left, top])
    middle_2 = (np.array(face.box.centre) - corner_2) * scale_2
    side = round(CLOSE_SIDE * (1 + 2 * CLOSE_MARGIN))
    angle, eyes = 0.0, face.eyes
    for _ in range(CLOSE_LOOKS):
        view = _turned(near, (middle_2[0], middle_2[1]), angle, (side, side))
        seen = _in_the_middle(detector.detect(np.asarray(view)), side)
        if seen is None:
            break
        turn_22 = _turn(angle)
        (ax, ay), (bx, by) = (
            (middle_2 + turn_22 @ (np.array(eye) - side / 2)) / scale_2 + corner_2 for eye in seen
        )
        eyes = ((float(ax), float(ay)), (float(bx), float(by)))
        angle += _tilt(seen)
        if abs(_tilt(seen)) < LEVEL:
            break
    return Face(face.box, face.score, eyes)


def choose_face(faces: Sequence[Face], keep: Keep) -> Face:
    """The face with the highest score ("best"), or with the largest box; the other breaks ties."""
    if keep == "best":
        return max(faces, key=lambda face: (face.score, face.box.area))
    return max(faces, key=lambda face: (face.box.area, face.score))


def cut_face(
    picture: Image.Image,
    face: Face,
    *,
    margin: float = 0.0,
    size: int | None = None,
    align: bool = False,
) -> Image.Image:
    """The part of a picture that shows a face.

    Args:
        picture: "L" or "RGB".
        face: with a box inside the picture.
        margin: what is added on each side, as a share of the box, as far as the picture goes.
        size: None keeps the pixels as they are. Else the box is first made a square around its
            centre, pushed into the picture, and brought to `size` x `size`; where the picture is
            too narrow for that square, the rest is filled with the median colour of its border.
        align: turn the picture around the box's centre until the eyes are level. What lies
            outside of it then repeats its edge.
    Raises:
        ValueError: `align`, and a face without eyes.
    """
    box = within(face.box.grown(margin), picture.size)
    if size is not None:
        box = _square(box, picture.size)
    cut = _levelled(picture, box, face) if align else picture.crop(_whole(box))
    if size is None:
        return cut
    ground = _border_colour(picture)
    return ImageOps.pad(cut, (size, size), Image.Resampling.BICUBIC, color=ground)


def within(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box that lies in a picture of (width, height)."""
    width, height = size
    return Box(
        min(max(box.left, 0.0), width),
        min(max(box.top, 0.0), height),
        min(max(box.right, 0.0), width),
        min(max(box.bottom, 0.0), height),
    )


# --- finding ------------------------------------------------------------------------------------


def _scales(longest: int, sides: Sequence[int]) -> list[float]:
    """How much a picture is shrunk or enlarged for each look at it."""
    if longest < LEAST_SIDE:
        return [LEAST_SIDE / longest]
    return sorted({min(side, longest) / longest for side in sides})


def _look(ground: Image.Image, detector: Detector, scale: float, band: int) -> Iterable[Face]:
    width, height = (max(1, round(side * scale)) for side in ground.size)
    copy = ground
    if scale != 1:
        copy = ground.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    for face in detector.detect(np.asarray(copy.convert("RGB"))):
        yield _mapped(face, 1 / scale, -band)


def _mapped(face: Face, scale: float, shift: float) -> Face:
    eyes = face.eyes
    if eyes is not None:
        (ax, ay), (bx, by) = eyes
        eyes = (
            (ax * scale + shift, ay * scale + shift),
            (bx * scale + shift, by * scale + shift),
        )
    return Face(face.box.moved(shift, shift, scale), face.score, eyes)


def _clipped(face: Face, size: tuple[int, int]) -> Face | None:
    box = within(face.box, size)
    if box.area < 1 or box.area < LEAST_INSIDE * face.box.area:
        return None
    return Face(box, face.score, face.eyes)


def _without_repeats(faces: list[Face]) -> list[Face]:
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.score, -face.box.area)):
        if all(_shared(face.box, other.box) <= SAME_FACE for other in kept):
            kept.append(face)
    return kept


def _shared(a: Box, b: Box) -> float:
    """The common part of two boxes as a share of the smaller."""
    common = Box(
        max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)
    )
    return common.area / min(a.area, b.area)


def _padded(picture: Image.Image, band: int) -> Image.Image:
    # Repeating or mirroring the edge instead gives lower scores, and mirrored faces.
    return ImageOps.expand(picture, band, _border_colour(picture))


def _border_colour(picture: Image.Image) -> int | tuple[int, ...]:
    """The median level of the outermost pixels, for each channel."""
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    level = np.median(border, axis=0).astype(int)
    return int(level) if level.ndim == 0 else tuple(level.tolist())


def _in_the_middle(faces: Iterable[Face], side: int) -> tuple[Point, Point] | None:
    """The eyes of the face that is nearest to the middle of a square."""
    middle = (side / 2, side / 2)
    nearest = min(faces, key=lambda face: math.dist(face.box.centre, middle), default=None)
    return None if nearest is None else nearest.eyes


# --- cutting ------------------------------------------------------------------------------------


def _whole(box: Box) -> tuple[int, int, int, int]:
    """The box in whole pixels, at least one each way."""
    left, top = math.floor(box.left + 0.5), math.floor(box.top + 0.5)
    return (
        left,
        top,
        max(left + 1, math.floor(box.right + 0.5)),
        max(top + 1, math.floor(box.bottom + 0.5)),
    )


def _square(box: Box, size: tuple[int, int]) -> Box:
    """The square around a box, pushed into the picture; where it cannot fit, all there is."""
    side = max(box.width, box.height)
    sides = []
    for middle, whole in zip(box.centre, size, strict=True):
        start = min(max(middle - side / 2, 0.0), max(whole - side, 0.0))
        sides.append((start, min(start + side, float(whole))))
    (left, right), (top, bottom) = sides
    return Box(left, top, right, bottom)


def _levelled(picture: Image.Image, box: Box, face: Face) -> Image.Image:
    if face.eyes is None:
        raise ValueError("a face without eyes cannot be aligned")
    left, top, right, bottom = _whole(box)
    middle = ((left + right) / 2, (top + bottom) / 2)
    return _turned(picture, middle, _tilt(face.eyes), (right - left, bottom - top))


def _tilt(eyes: tuple[Point, Point]) -> float:
    """The angle from the first eye to the second, clockwise as it is seen, in radians."""
    (ax, ay), (bx, by) = eyes
    return math.atan2(by - ay, bx - ax)


def _turn(angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _turned(
    picture: Image.Image, middle: Point, angle: float, size: tuple[int, int]
) -> Image.Image:
    """What lies around `middle`, turned back by `angle`: p = middle + turn (q - size / 2)."""
    import cv2

    turn_22, half_2 = _turn(angle), np.array(size) / 2
    # cv2 counts from the middle of the first pixel.
    shift_2 = np.array(middle) - 0.5 + turn_22 @ (0.5 - half_2)
    turned = cv2.warpAffine(
        np.asarray(picture), np.column_stack([turn_22, shift_2]), size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return Image.fromarray(turned)
