"""Boxes and eyes of faces, and rotated views of a picture.

Boxes and points are in pixels of the upright picture, from its upper left corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Box", "Eyes", "Face", "Point", "border_colour", "clip", "frontality", "rotated_view",
           "rotation_matrix", "tilt", "to_pixels"]  # fmt: skip

Point = tuple[float, float]
Eyes = tuple[Point, Point]


@dataclass(frozen=True)
class Box:
    """A rectangle; `right` and `bottom` are exclusive."""

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

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, to a tenth of a pixel."""
        return round(self.left, 1), round(self.top, 1), round(self.right, 1), round(self.bottom, 1)

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
        frontal: 1 for a face from the front, 0 for a profile, see `frontality`; None if the
            detector finds no nose.
    """

    box: Box
    score: float
    eyes: Eyes | None = None
    frontal: float | None = None


def clip(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box that lies in a picture of (width, height)."""
    width, height = size
    return Box(
        min(max(box.left, 0.0), width),
        min(max(box.top, 0.0), height),
        min(max(box.right, 0.0), width),
        min(max(box.bottom, 0.0), height),
    )


def to_pixels(box: Box) -> tuple[int, int, int, int]:
    """The box in whole pixels, at least one each way."""
    left, top = math.floor(box.left + 0.5), math.floor(box.top + 0.5)
    return (
        left,
        top,
        max(left + 1, math.floor(box.right + 0.5)),
        max(top + 1, math.floor(box.bottom + 0.5)),
    )


def tilt(eyes: Eyes) -> float:
    """The angle from the first eye to the second in radians, clockwise as seen."""
    (ax, ay), (bx, by) = eyes
    return math.atan2(by - ay, bx - ax)


def frontality(eyes: Eyes, nose: Point) -> float:
    """How far a face looks into the camera: its pose as a part of its quality.

    The tip of the nose is projected onto the line of the eyes: 1 midway between them, 0 at an eye
    or beyond. Neither the tilt nor the size of the face counts.
    """
    start, along = np.array(eyes[0]), np.subtract(eyes[1], eyes[0])
    length = float(along @ along)
    if length == 0:
        return 0.0
    place = float((np.array(nose) - start) @ along) / length
    return max(0.0, 1 - abs(2 * place - 1))


def rotation_matrix(angle: float) -> NDArray[np.float64]:
    """The rotation by an angle in radians, clockwise as seen, (2, 2)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def rotated_view(
    picture: Image.Image, middle: Point, angle: float, size: tuple[int, int]
) -> Image.Image:
    """The part around `middle`, rotated back by `angle`: p = middle + turn (q - size / 2)."""
    import cv2

    turn_22, half_2 = rotation_matrix(angle), np.array(size) / 2
    # The origin of cv2 is the centre of the first pixel.
    shift_2 = np.array(middle) - 0.5 + turn_22 @ (0.5 - half_2)
    turned = cv2.warpAffine(
        np.asarray(picture), np.column_stack([turn_22, shift_2]), size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return Image.fromarray(turned)


def border_colour(picture: Image.Image) -> int | tuple[int, ...]:
    """The median level of the outermost pixels, for each channel."""
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    level = np.median(border, axis=0).astype(int)
    return int(level) if level.ndim == 0 else tuple(level.tolist())
