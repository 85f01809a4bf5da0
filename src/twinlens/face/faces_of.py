"""The faces of one picture, cropped as the pictures of a model were.

A picture that is a crop already stays as it is: one that `twinlens faces` marked, or one that a
crop of its only face would hardly change.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from twinlens.config import FaceSettings
from twinlens.errors import DataError
from twinlens.face.crop import crop_box, crop_face
from twinlens.face.detection import Detector, detect_faces, refine_eyes
from twinlens.face.detectors import DetectorChoice, choose_detector
from twinlens.face.geometry import Face
from twinlens.face.marks import is_marked, mark

__all__ = ["FLOOR", "CroppedFace", "FacePlace", "cut_face", "faces_of", "number_faces",
           "places_text", "sure_faces"]  # fmt: skip

FLOOR = 0.3  # Below this confidence a detection is not even doubtful.
IS_CROP = 0.7  # share of a picture that its crop would keep; a photograph loses more
SECOND_PAD = 0.25  # Faces that fill a picture are only detected with a border.

_lock = threading.Lock()  # Detectors of OpenCV serve one thread at a time.


@dataclass(frozen=True)
class FacePlace:
    """The place of a face in a picture.

    Attributes:
        number: 1 for the leftmost face.
        of: number of faces in the picture.
        box: left, top, right and bottom in pixels of the upright picture, margin excluded; None for
            a picture that is a cropped face already.
        score: confidence of the detector; None for a cropped face.
    """

    number: int = 1
    of: int = 1
    box: tuple[float, float, float, float] | None = None
    score: float | None = None

    def as_text(self) -> str:
        """Number and place: "face 1 at 40,25"."""
        if self.box is None:
            return "a cropped face"
        return f"face {self.number} at {self.box[0]:.0f},{self.box[1]:.0f}"


@dataclass(frozen=True, eq=False)
class CroppedFace:
    """A face of a picture.

    Attributes:
        picture: the crop, marked as such; the picture itself if that is a crop already.
        place: its place in the picture.
    """

    picture: Image.Image
    place: FacePlace = FacePlace()


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
            return [CroppedFace(mark(picture.copy(), settings, faces[0].box))]
        crops = [cut_face(picture, face, settings, detector) for face in faces]
    return [
        CroppedFace(crop, FacePlace(number, len(faces), face.box.corners, round(face.score, 4)))
        for number, (crop, face) in enumerate(zip(crops, faces, strict=True), 1)
    ]


def places_text(name: str, places: Sequence[FacePlace]) -> str:
    """The faces of a picture: "2 faces in party.jpg: face 1 at 40,25; face 2 at 90,31".

    >>> places_text("crop.png", [FacePlace()])
    'crop.png is a cropped face'
    """
    if len(places) == 1 and places[0].box is None:
        return f"{name} is a cropped face"
    faces = f"{len(places)} face{'s' if len(places) > 1 else ''}"
    return f"{faces} in {name}: {'; '.join(place.as_text() for place in places)}"


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
