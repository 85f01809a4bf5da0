"""Face detectors of OpenCV below version 5, and the model file of YuNet.

OpenCV 5 lacks the cascades and their classifier. OpenCV is imported only when a detector is made.
Pictures on disk play no part here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.data.download import cache_folder, download_once
from twinlens.errors import ConfigError, DataError, MissingExtraError, unknown_name
from twinlens.face.detection import Detector
from twinlens.face.geometry import Box, Face, frontality
from twinlens.parsing import read_content

__all__ = ["DETECTORS", "DetectorChoice", "Haar", "YuNet", "cached_yunet", "choose_detector",
           "one_thread", "opencv", "yunet_file"]  # fmt: skip

log = logging.getLogger("twinlens")

DETECTORS = ("auto", "yunet", "haar")

YUNET_NAME = "face_detection_yunet_2026may.onnx"
YUNET_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/"
    f"26cc381e4d2594bb9f47a26eb8fd96c94a13660d/models/face_detection_yunet/{YUNET_NAME}"
)
"""OpenCV Zoo, MIT; Wu, Peng and Yu, YuNet: A Tiny Millisecond-level Face Detector, 2023."""
YUNET_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
YUNET_FOLDER = f"yunet-{YUNET_SHA256[:16]}"
MAX_BYTES = 16 * 2**20  # of YuNet's model; it has 0.2 MB

LEAST_INPUT = 64
"""Smaller pictures are padded: with a side of up to 32 pixels, OpenCV 4.14 detects other faces on
each call. OpenCV itself pads to a multiple of 32, with black."""

CASCADE = "haarcascade_frontalface_default.xml"


@dataclass(frozen=True)
class DetectorChoice:
    """Name of a detector and the model file of YuNet; can be pickled."""

    name: str
    model: Path | None = None

    @property
    def has_confidence(self) -> bool:
        """Whether scores are confidences in [0, 1], and eyes are detected."""
        return self.name == "yunet"

    def make(self, floor: float) -> Detector:
        """The detector itself.

        Args:
            floor: least confidence of a reported face; without effect on Haar.
        Raises:
            DataError: a model file that is unreadable or not YuNet.
            MissingExtraError: no OpenCV, or version 5.
        """
        if self.model is None:
            return Haar()
        return YuNet(self.model, floor)


def choose_detector(name: str, model: Path | None = None) -> DetectorChoice:
    """The detector for a name.

    "auto" is YuNet if its model file is given, cached or downloadable; else the Haar cascade of
    OpenCV, with a warning that gives the reason.

    Raises:
        ConfigError: an unknown name, or a model for the cascade.
        DataError: "yunet" without a model file.
        MissingExtraError: no OpenCV, or version 5.
    """
    if name not in DETECTORS:
        advice = "; a model's file is given by --model" if name.endswith(".onnx") else ""
        raise ConfigError(unknown_name("detector", name, DETECTORS) + advice)
    opencv()
    if name == "haar":
        if model is not None:
            raise ConfigError(
                f"the Haar cascade takes no model file, found {model}: leave out --model, or set "
                "--detector yunet"
            )
        return DetectorChoice("haar")
    if model is not None:
        return DetectorChoice("yunet", model)
    try:
        return DetectorChoice("yunet", cached_yunet() or yunet_file())
    except DataError as error:
        if name == "yunet":
            raise
        log.warning("using the Haar cascade, which misses more faces than YuNet: %s", error)
        return DetectorChoice("haar")


def yunet_file(url: str = YUNET_URL, sha256: str = YUNET_SHA256) -> Path:
    """The model file of YuNet in the cache, downloaded once and checked by its SHA-256.

    Raises:
        DataError: the download failed, or its checksum differs; nothing is kept.
    """

    def fill(folder: Path) -> None:
        try:
            with urllib.request.urlopen(url) as answer:
                content: bytes = answer.read(MAX_BYTES)
        except urllib.error.HTTPError as error:
            error.close()  # The error holds an open connection.
            raise
        actual = hashlib.sha256(content).hexdigest()
        if actual != sha256:
            raise RuntimeError(
                f"the download has {len(content):,} bytes and SHA-256 {actual}, expected {sha256}"
            )
        (folder / YUNET_NAME).write_bytes(content)

    hint = (
        f"put a copy of {YUNET_NAME} into a folder that TWINLENS_WEIGHTS names; `twinlens faces` "
        "takes it by --model, or --detector haar"
    )
    return download_once(f"yunet-{sha256[:16]}", [url], fill, hint) / YUNET_NAME


def cached_yunet() -> Path | None:
    """The model file of YuNet on this machine: in the cache, or in the folder TWINLENS_WEIGHTS."""
    folder = os.environ.get("TWINLENS_WEIGHTS")
    folders = [cache_folder() / "downloads" / YUNET_FOLDER, *([Path(folder)] if folder else [])]
    files = (place / YUNET_NAME for place in folders)
    return next((file for file in files if file.is_file()), None)


def opencv() -> Any:
    """The module cv2.

    Raises:
        MissingExtraError: it is not installed, cannot be loaded, or is version 5 or later.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError("faces") from error
    except ImportError as error:
        line = " ".join(str(error).split())
        raise MissingExtraError("faces", f"OpenCV cannot be loaded ({line})") from error
    version = getattr(cv2, "__version__", "0")
    if int(version.split(".")[0]) >= 5:
        raise MissingExtraError(
            "faces", f"OpenCV {version} is installed, and a version below 5 is needed"
        )
    return cv2


@contextmanager
def one_thread() -> Iterator[None]:
    """Context in which OpenCV uses one thread, since several processes share the cores."""
    cv2 = opencv()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class YuNet:
    """The network YuNet: faces of about 10 to 300 pixels, with a confidence and the eyes."""

    # At 640 a face that fills the picture is sometimes missed, at 1024 mostly.
    sides: tuple[int, ...] = (320, 640)

    def __init__(self, model: Path, floor: float) -> None:
        cv2 = opencv()
        try:
            content = np.frombuffer(read_content(model, MAX_BYTES), np.uint8)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"cannot read the model {model}: {reason}") from error
        try:
            self._net = cv2.FaceDetectorYN.create(
                "onnx", content, np.empty(0, np.uint8), (32, 32), floor, 0.3, 5000
            )
            # Another network fails only here.
            self.detect(np.zeros((LEAST_INPUT, LEAST_INPUT, 3), np.uint8))
        except (cv2.error, IndexError) as error:
            raise DataError(
                f"{model} is not a YuNet model that OpenCV can read: give {YUNET_NAME} of the "
                "OpenCV Zoo, or set --detector haar"
            ) from error

    def detect(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """The faces in a picture (H, W, 3), RGB."""
        missing = [max(0, LEAST_INPUT - side) for side in pixels.shape[:2]]
        bgr = np.pad(pixels[:, :, ::-1], ((0, missing[0]), (0, missing[1]), (0, 0)))
        self._net.setInputSize((bgr.shape[1], bgr.shape[0]))
        rows = self._net.detect(np.ascontiguousarray(bgr))[1]
        return [] if rows is None else [_face_of(row.tolist()) for row in rows]


def _face_of(row: list[float]) -> Face:
    """A face of YuNet's output: left, top, width, height, eyes, nose, mouth, confidence."""
    left, top, width, height, ax, ay, bx, by, *nose = row[:10]
    eyes = ((ax, ay), (bx, by))
    box = Box(left, top, left + width, top + height)
    return Face(box, row[14], eyes, frontality(eyes, (nose[0], nose[1])))


class Haar:
    """The cascade of Viola and Jones for frontal faces; its score is a weight, not a confidence."""

    sides: tuple[int, ...] = (640,)  # The cascade itself searches all sizes of faces.

    def __init__(self) -> None:
        cv2 = opencv()
        self._cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / CASCADE))
        if self._cascade.empty():
            raise DataError(f"this OpenCV lacks {CASCADE}: pip install 'opencv-python-headless<5'")

    def detect(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """The faces in a picture (H, W, 3), RGB."""
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        boxes, _, weights = self._cascade.detectMultiScale3(
            grey, scaleFactor=1.1, minNeighbors=5, outputRejectLevels=True
        )
        return [
            Face(Box(*map(float, (x, y, x + width, y + height))), float(weight))
            for (x, y, width, height), weight in zip(boxes, weights, strict=True)
        ]
