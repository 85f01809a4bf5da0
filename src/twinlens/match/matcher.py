"""Matcher: a trained model that embeds pictures and answers "are these two the same?".

Shapes: N pictures, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from twinlens.config import DataSettings
from twinlens.data.decode import read_array, to_array
from twinlens.errors import CalibrationError, DataError
from twinlens.match.answers import VerifyAnswer
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import PLAIN, PlainComparison
from twinlens.measure.metrics import matches
from twinlens.model.bundle import Bundle, load_bundle
from twinlens.model.comparators import NumpyComparison, Sigmoid
from twinlens.model.encoder import embed_pixels

__all__ = ["Matcher", "Picture"]

Picture = str | Path | Image.Image | NDArray[Any] | torch.Tensor
"""A path, a Pillow picture, an array (H, W[, C]), or a tensor (C, H, W) or (H, W).

Arrays and tensors are uint8, bool, or floats in [0, 1].
"""


class Matcher:
    """A model that has been loaded.

    Attributes:
        path: the model's folder.
        fingerprint: 16 hex digits; embeddings of models with different ones never meet.
        calibration: None where the model has none, and then it refuses to say yes or no.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.path = bundle.path
        self.fingerprint = bundle.fingerprint
        self.calibration = (
            None if bundle.calibration is None else Calibration.from_json(bundle.calibration)
        )
        self.comparison = NumpyComparison(bundle.comparator)
        self.max_pixels = (bundle.origin.data if bundle.origin else DataSettings()).max_pixels

    @classmethod
    def load(cls, path: str | Path) -> Matcher:
        """Load a model folder, or the run folder around one.

        Raises:
            ModelError: no model, a damaged one, or one of a newer format.
        """
        return cls(load_bundle(path))

    def __repr__(self) -> str:
        state = "uncalibrated" if self.calibration is None else "calibrated"
        return f"Matcher({str(self.path)!r}, {state}, fingerprint {self.fingerprint})"

    @cached_property
    def plain(self) -> PlainComparison | None:
        """The comparator without torch; None for a learned one that has to have it."""
        comparator = self.bundle.comparator
        name = self.bundle.encoder.model_settings.comparator
        if name not in PLAIN:
            return None
        if isinstance(comparator, Sigmoid):
            return PlainComparison(name, float(comparator.log_scale.detach().exp()))
        return PlainComparison(name)

    def pixels(self, pictures: Picture | Sequence[Picture]) -> NDArray[np.uint8]:
        """Pictures as the network takes them, uint8, shape (N, C, H, W).

        Raises:
            PictureError: a file that cannot be read.
            DataError: none, or something that is no picture.
        """
        if isinstance(pictures, np.ndarray) and pictures.dtype.kind in "OU":
            pictures = list(pictures.ravel())  # Paths, such as a table's.
        if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes):
            pictures = [pictures]
        if not pictures:
            raise DataError("no pictures were given: pass at least one")
        return np.stack([self._decode(picture) for picture in pictures])

    def embed(
        self, pictures: Picture | Sequence[Picture], *, batch_size: int | None = None
    ) -> NDArray[np.float32]:
        """Embeddings, shape (N, D), of pictures given in any of the ways of `Picture`."""
        return embed_pixels(self.bundle.encoder, self.pixels(pictures), batch_size=batch_size)

    def distance(self, a: Picture, b: Picture) -> float:
        """The distance of two pictures, lower is closer; exactly 0 for a picture and itself."""
        return float(self.comparison.pairwise(*self._embed_both(a, b))[0])

    def verify(self, a: Picture, b: Picture) -> VerifyAnswer:
        """Whether two pictures show the same thing, by the model's calibrated threshold.

        Raises:
            CalibrationError: the model is not calibrated.
            PictureError: a file that cannot be read.
        """
        calibration = self.require_calibration()
        emb_a, emb_b = self._embed_both(a, b)
        distance = float(self.comparison.pairwise(emb_a, emb_b)[0])
        match = bool(matches(distance, calibration.threshold))
        return VerifyAnswer(
            verdict="same" if match else "different",
            match=match,
            distance=distance,
            threshold=calibration.threshold,
            target_far=calibration.target_far,
            probability=float(calibration.probability(distance)),
            similarity=_cosine(emb_a[0], emb_b[0]),
        )

    def require_calibration(self) -> Calibration:
        """The calibration.

        Raises:
            CalibrationError: there is none; the message says how to make one.
        """
        if self.calibration is None:
            raise CalibrationError(
                f"the model {self.path} is not calibrated, so no distance means yes or no yet: "
                f"run `twinlens calibrate {self.path} DATA` on labelled pictures of things that "
                "it was not trained on"
            )
        return self.calibration

    def _embed_both(
        self, a: Picture, b: Picture
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The embeddings of two pictures, shape (1, D) each."""
        # Each distinct picture is embedded once and alone: a network's last bits may depend on a
        # picture's place in its batch, and a picture is no distance from itself.
        first, second = self.pixels([a])[0], self.pixels([b])[0]
        emb_a = embed_pixels(self.bundle.encoder, first[None])
        same = np.array_equal(first, second)
        return emb_a, emb_a if same else embed_pixels(self.bundle.encoder, second[None])

    def _decode(self, picture: Picture) -> NDArray[np.uint8]:
        spec = self.bundle.encoder.picture
        if isinstance(picture, str | Path):
            return read_array(picture, spec, max_pixels=self.max_pixels)
        if isinstance(picture, torch.Tensor):
            picture = picture.detach().cpu()
            # numpy has no bfloat16.
            array = (picture.float() if picture.is_floating_point() else picture).numpy()
            return to_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, spec)
        if isinstance(picture, Image.Image | np.ndarray):
            return to_array(picture, spec)
        raise DataError(
            "a picture is a path, a Pillow picture, an array (H, W[, C]) or a tensor (C, H, W), "
            f"found {type(picture).__name__}"
        )


def _cosine(a_D: NDArray[np.float32], b_D: NDArray[np.float32]) -> float:
    """The cosine of the angle between two embeddings, in [-1, 1]; 0 where one is all zeros."""
    a, b = a_D.astype(np.float64), b_D.astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    # Rounded to what the embeddings hold, so that equal ones have 1 exactly.
    return float(np.float32(a @ b / length)) if length > 0 else 0.0
