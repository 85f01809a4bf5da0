"""Detection of faces in one picture, at several sizes.

A detector (see `detectors`) searches copies of the picture at sizes that suit it. Its faces are
mapped back and clipped to the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from twinlens.face.geometry import (
    Box,
    Eyes,
    Face,
    border_colour,
    clip,
    rotated_view,
    rotation_matrix,
    tilt,
    to_pixels,
)

__all__ = ["Detector", "detect_faces", "refine_eyes"]

LEAST_SIDE = 160
"""Smaller pictures are enlarged to this: of AT&T's 400 faces at 23 x 28, YuNet detects only 73
without, and all with it."""
CLOSE_SIDE = 240
CLOSE_MARGIN = 0.6
MOST_ROTATIONS = 4
LEVEL = math.radians(2)
LEAST_INSIDE = 0.5  # of a face's box; a box that is mostly in the border is no face
SAME_FACE = 0.5  # share of the smaller box that two detections of one face have in common


class Detector(Protocol):
    """A face detector."""

    sides: tuple[int, ...]
    """Lengths of the longer side at which a large picture is searched."""

    def detect(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """The faces in a picture (H, W, 3), RGB, in any order."""
        ...


def detect_faces(picture: Image.Image, detector: Detector, *, pad: float = 0.0) -> list[Face]:
    """Detect the faces in a picture, best score first.

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
        for face in _detect_at(ground, detector, scale, band)
    ]
    inside = [face for face in (_clipped(face, picture.size) for face in detections) if face]
    return _without_repeats(inside)


def refine_eyes(picture: Image.Image, face: Face, detector: Detector) -> Face:
    """Refine the eyes of a face for alignment.

    YuNet reports a tilted face below some 200 pixels as level, with errors of 20 degrees and more.
    The face alone is therefore searched at 240 pixels, rotated by the previous angle, until that
    changes by less than 2 degrees, at most four times.
    """
    longest = max(face.box.width, face.box.height)
    scale = CLOSE_SIDE / longest
    left, top, right, bottom = to_pixels(clip(face.box.grown(CLOSE_MARGIN), picture.size))
    size = tuple(max(1, round(side * scale)) for side in (right - left, bottom - top))
    near = picture.convert("RGB").resize(
        (size[0], size[1]), Image.Resampling.BICUBIC, (left, top, right, bottom), reducing_gap=3.0
    )
    scale_2 = np.array(near.size) / (right - left, bottom - top)
    corner_2 = np.array([left, top])
    middle_2 = (np.array(face.box.centre) - corner_2) * scale_2
    side = round(CLOSE_SIDE * (1 + 2 * CLOSE_MARGIN))
    angle, eyes = 0.0, face.eyes
    for _ in range(MOST_ROTATIONS):
        view = rotated_view(near, (middle_2[0], middle_2[1]), angle, (side, side))
        seen = _central_eyes(detector.detect(np.asarray(view)), side)
        if seen is None:
            break
        turn_22 = rotation_matrix(angle)
        (ax, ay), (bx, by) = (
            (middle_2 + turn_22 @ (np.array(eye) - side / 2)) / scale_2 + corner_2 for eye in seen
        )
        eyes = ((float(ax), float(ay)), (float(bx), float(by)))
        angle += tilt(seen)
        if abs(tilt(seen)) < LEVEL:
            break
    return replace(face, eyes=eyes)


def _scales(longest: int, sides: Sequence[int]) -> list[float]:
    """The scale of each copy of the picture to search."""
    if longest < LEAST_SIDE:
        return [LEAST_SIDE / longest]
    return sorted({min(side, longest) / longest for side in sides})


def _detect_at(ground: Image.Image, detector: Detector, scale: float, band: int) -> Iterable[Face]:
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
    return replace(face, box=face.box.moved(shift, shift, scale), eyes=eyes)


def _clipped(face: Face, size: tuple[int, int]) -> Face | None:
    box = clip(face.box, size)
    if box.area < 1 or box.area < LEAST_INSIDE * face.box.area:
        return None
    return replace(face, box=box)


def _without_repeats(faces: list[Face]) -> list[Face]:
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.score, -face.box.area)):
        if all(_overlap(face.box, other.box) <= SAME_FACE for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Box, b: Box) -> float:
    """The common part of two boxes as a share of the smaller."""
    common = Box(
        max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)
    )
    return common.area / min(a.area, b.area)


def _padded(picture: Image.Image, band: int) -> Image.Image:
    # Repeating or mirroring the edge instead gives lower scores, and mirrored faces.
    return ImageOps.expand(picture, band, border_colour(picture))


def _central_eyes(faces: Iterable[Face], side: int) -> Eyes | None:
    """The eyes of the face that is nearest to the middle of a square."""
    middle = (side / 2, side / 2)
    nearest = min(faces, key=lambda face: math.dist(face.box.centre, middle), default=None)
    return None if nearest is None else nearest.eyes
