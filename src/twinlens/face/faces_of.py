"""The faces of one picture, cropped as the pictures of a model were.

A picture that is a crop already stays as it is: one that `twinlens faces` marked, or one that a
crop of its only face would hardly change.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from twinlens.config import FaceSettings
from twinlens.errors import DataError
from twinlens.face.crop import crop_box, crop_face
from twinlens.face.detection import Detector, detect_faces, refine_eyes
from twinlens.face.detectors import DetectorChoice, choose_detector
from twinlens.face.geometry import Box, Face
from twinlens.face.marks import is_marked, mark

__all__ = ["CroppedFace", "cut_face", "faces_of", "number_faces", "sure_faces"]

FLOOR = 0.3  # Below this confidence a detection is not even doubtful.
IS_CROP = 0.7  # share of a picture that its crop would keep; a photograph loses more
SECOND_PAD = 0.25  # Faces that fill a picture are only detected with a border.

_lock = threading.Lock()  # Detectors of OpenCV serve one thread at a time.


@dataclass(frozen=True, eq=False)
class CroppedFace:
    """A face of a picture.

    Attributes:
        picture: the crop, marked as such; the whole picture if that is a crop already.
        box: its place in the picture, margin excluded; None for a whole picture.
        number: 1 for the leftmost face.
        of: number of faces in the picture.
        score: confidence of the detector; None for a whole picture.
    """

    picture: Image.Image
    box: Box | None = None
    number: int = 1
    of: int = 1
    score: float | None = None

    def as_json(self) -> dict[str, Any]:
        """`number`, `of`, `box` (left, top, right, bottom in pixels; or null) and `score`."""
        return {
            "number": self.number,
            "of": self.of,
            "box": None if self.box is None else self.box.as_json(),
            "score": self.score,
        }

    def as_text(self) -> str:
        """Number and place: "face 1 at 40,25"."""
        if self.box is None:
            return "the whole picture"
        return f"face {self.number} at {self.box.left:.0f},{self.box.top:.0f}"


def faces_of(picture: Image.Image, settings: FaceSettings) -> list[CroppedFace]:
    """Find, crop and align the faces of a picture, from left to right.

    A picture in which none is found is searched again with a border.

    Args:
        picture: upright "L" or "RGB" picture; `marks.open_marked` keeps the mark of a crop.
        settings: crop settings of a model or a data set.
    Returns:
        One `CroppedFace` per face; none if the picture shows no face.
    Raises:
        DataError: the detector's model file is missing.
        MissingExtraError: OpenCV below version 5 is not installed.
    """
    if is_marked(picture):
        return [CroppedFace(picture)]
    choice = _choice(settings.detector)
    with _lock:
        detector = _detector(choice, min(FLOOR, settings.score))
        for pad in dict.fromkeys((settings.pad, max(settings.pad, SECOND_PAD))):
            detections = detect_faces(picture, detector, pad=pad)
            if faces := number_faces(sure_faces(detections, choice, settings.score)):
                break
        if len(faces) == 1 and _is_crop(picture, faces[0], settings):
            return [CroppedFace(picture)]
        crops = [cut_face(picture, face, settings, detector) for face in faces]
    return [
        CroppedFace(crop, face.box, number, len(faces), face.score)
        for number, (crop, face) in enumerate(zip(crops, faces, strict=True), 1)
    ]


def sure_faces(detections: list[Face], choice: DetectorChoice, score: float) -> list[Face]:
    """The detections with a sufficient score."""
    return [face for face in detections if face.score >= score or not choice.has_confidence]


def number_faces(faces: list[Face]) -> list[Face]:
    """The faces in the order of their numbers: from left to right."""
    return sorted(faces, key=lambda face: (face.box.left, face.box.top))


def cut_face(
    picture: Image.Image, face: Face, settings: FaceSettings, detector: Detector
) -> Image.Image:
    """The marked crop of a face."""
    near = refine_eyes(picture, face, detector) if settings.align else face
    crop = crop_face(
        picture, near, margin=settings.margin, size=settings.size, align=settings.align
    )
    return mark(crop, settings, face.box)


def _is_crop(picture: Image.Image, face: Face, settings: FaceSettings) -> bool:
    box = crop_box(picture, face, margin=settings.margin, size=settings.size)
    return box.area >= IS_CROP * picture.width * picture.height


@lru_cache
def _choice(name: str) -> DetectorChoice:
    try:
        return choose_detector(name)
    except DataError as error:
        raise DataError(f"{error}; or take pictures as they are with --as-is") from error


@lru_cache
def _detector(choice: DetectorChoice, floor: float) -> Detector:
    return choice.make(floor)
