"""Matcher: a trained model that embeds pictures and verifies pairs of them.

Shapes: N pictures, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.config import DataSettings, ModelSettings, PictureSettings
from twinlens.data.decode import read_array, to_array
from twinlens.data.pixels import Pixels
from twinlens.errors import CalibrationError, DataError, ModelError, naming_extras
from twinlens.match.answers import VerifyAnswer
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison
from twinlens.measure.error_rates import matches
from twinlens.measure.pairs import Comparison
from twinlens.model.runtime import GraphComparison, OnnxEncoder
from twinlens.model.stored import (
    COMPARATOR_GRAPH,
    LEARNED_COMPARATORS,
    OPENVINO_FILES,
    Origin,
    StoredModel,
    damaged_model,
    read_stored_model,
)

if TYPE_CHECKING:
    import torch

    from twinlens.model.openvino_runtime import OpenvinoEncoder

__all__ = ["Matcher", "Picture", "open_encoder"]

Picture: TypeAlias = "str | Path | Image.Image | NDArray[Any] | torch.Tensor"
"""A path, a Pillow picture, an array (H, W[, C]), or a tensor (C, H, W) or (H, W).

Arrays and tensors are uint8, bool, or floats in [0, 1].
"""


class Matcher:
    """A loaded model; its graphs are opened at the first picture.

    Attributes:
        stored: the model's folder and description.
        fingerprint: 16 hex digits; embeddings of different fingerprints cannot be compared.
        calibration: threshold and probabilities of pairs; None in an uncalibrated model, which
            cannot verify.
        max_pixels: largest height x width that is decoded.

    >>> import twinlens
    >>> matcher = twinlens.load("runs/digits")  # doctest: +SKIP
    >>> matcher.verify("a.png", "b.png").verdict  # doctest: +SKIP
    'same'
    """

    def __init__(self, stored: StoredModel, device: str = "auto") -> None:
        self.stored = stored
        description = stored.description
        self.fingerprint = description.fingerprint
        self.calibration = (
            None
            if description.calibration is None
            else Calibration.from_json(description.calibration)
        )
        self.max_pixels = self.data_settings.max_pixels
        self._encoder = open_encoder(stored, device)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Matcher:
        """Load a model folder, or the one inside a run folder.

        A model of an older format gets its graphs now, once, which needs torch.

        Args:
            path: the folder.
            device: "auto" (CUDA if ONNX Runtime has it, else the CPU), "cpu", "cuda", "cuda:1",
                "coreml", "openvino" or "directml".
        Raises:
            ModelError: no model, a damaged one, or one of a newer format.
            ConfigError: no such device.
            MissingExtraError: a model of an older format, without torch.
        """
        stored = read_stored_model(path)
        if not stored.description.graphs:
            with naming_extras(f"the model {stored.path}, of an older format,"):
                from twinlens.model.networks import complete_model

            stored = complete_model(stored)
        return cls(stored, device)

    def __repr__(self) -> str:
        state = "uncalibrated" if self.calibration is None else "calibrated"
        return f"Matcher({str(self.path)!r}, {state}, fingerprint {self.fingerprint})"

    @property
    def path(self) -> Path:
        """The model's folder."""
        return self.stored.path

    @property
    def settings(self) -> ModelSettings:
        """Settings of the network."""
        return self.stored.description.model

    @property
    def picture(self) -> PictureSettings:
        """Settings of the network's pictures."""
        return self.stored.description.picture

    @property
    def origin(self) -> Origin | None:
        """The training data, if known."""
        return self.stored.description.origin

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes embeddings."""
        return self._encoder.on_cpu

    @property
    def data_settings(self) -> DataSettings:
        """The data settings of the training, or the defaults."""
        return DataSettings() if self.origin is None else self.origin.data

    def require_outside_resize(self) -> None:
        """Check that the model takes pictures that twinlens resized, as whole data sets are.

        Raises:
            ModelError: an export that resizes pictures inside its graph, one at a time.
        """
        if self._resizes:
            raise ModelError(
                f"the export {self.path} resizes pictures itself, one at a time, and this needs "
                "many at once: use the model that it was exported from, or export that with "
                "--resize outside"
            )

    @property
    def _resizes(self) -> bool:
        """Whether the graph takes pictures of any size."""
        return self.stored.description.resize == "inside"

    @cached_property
    def comparison(self) -> Comparison:
        """The comparator for arrays of embeddings.

        Raises:
            ModelError: the graph of a learned comparator is damaged.
        """
        name = self.settings.comparator
        if name not in LEARNED_COMPARATORS:
            return EuclideanComparison(name)
        graph = GraphComparison(self.stored)
        if name not in EUCLIDEAN_COMPARATORS:
            return graph
        # A factor of the Euclidean distance, which numpy applies faster.
        unit_1D = np.eye(1, self.settings.embedding, dtype=np.float32)
        scale = float(graph.pairwise(np.zeros_like(unit_1D), unit_1D)[0])
        if not 0 < scale < np.inf:
            raise damaged_model(self.path, f"{COMPARATOR_GRAPH} gives no usable number")
        return EuclideanComparison(name, scale)

    def pixels(self, pictures: Picture | Sequence[Picture]) -> NDArray[np.uint8]:
        """Pictures decoded for the network, uint8, shape (N, C, H, W).

        Raises:
            PictureError: a file that cannot be read.
            DataError: no pictures, or an object of another type.
            ModelError: an export that takes pictures of any size.
        """
        self.require_outside_resize()
        return np.stack([self._decode(picture) for picture in _as_list(pictures)])

    def embed(self, pictures: Picture | Sequence[Picture]) -> NDArray[np.float32]:
        """Embeddings, shape (N, D), of pictures in any form of `Picture`.

        Raises:
            PictureError: a file that cannot be read.
            ModelError: embeddings that are not finite.
        """
        if self._resizes:
            each = [self._embed_one(self._decode(picture)) for picture in _as_list(pictures)]
            return np.concatenate(each)
        return self.embed_pixels(self.pixels(pictures))

    def embed_pixels(
        self, pixels_NCHW: Pixels, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embeddings, shape (N, D), of decoded pictures (N, C, H, W).

        Args:
            pixels_NCHW: uint8 pictures of the model's size, in memory or memory-mapped.
            progress: called with (done, N) after each small batch.
        Raises:
            ModelError: embeddings that are not finite, or a damaged graph.
        """
        self.require_outside_resize()
        return self._finite(self._encoder.embed(pixels_NCHW, progress))

    def _embed_one(self, pixels_CHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The embedding (1, D) of a decoded picture, of any size if the graph resizes."""
        return self._finite(self._encoder.embed(pixels_CHW[None]))

    def _finite(self, emb_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(emb_ND).all():
            raise ModelError(
                f"the model {self.path} gives embeddings with NaN or infinite numbers, so its "
                "weights are damaged: copy its folder again, or train again"
            )
        return emb_ND

    def distance(self, a: Picture, b: Picture) -> float:
        """The distance of two pictures; lower is closer, exactly 0 for equal pictures."""
        return float(self.comparison.pairwise(*self._embed_both(a, b))[0])

    def verify(self, a: Picture, b: Picture) -> VerifyAnswer:
        """Verify whether two pictures show the same thing, by the model's calibrated threshold.

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
            CalibrationError: the model is not calibrated; the message says how to calibrate it.
        """
        if self.calibration is None:
            remedy = (
                f"run `twinlens calibrate {self.path} DATA` on labelled pictures of identities "
                "that it was not trained on"
            )
            if self._resizes:  # It takes no whole data sets.
                remedy = "export its model again, with labelled pictures: --data DATA"
            raise CalibrationError(
                f"the model {self.path} is not calibrated, so it has no threshold: {remedy}"
            )
        return self.calibration

    def _embed_both(
        self, a: Picture, b: Picture
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The embeddings of two pictures, shape (1, D) each."""
        first, second = self._decode(a), self._decode(b)
        emb_a = self._embed_one(first)
        return emb_a, emb_a if np.array_equal(first, second) else self._embed_one(second)

    def _decode(self, picture: Picture) -> NDArray[np.uint8]:
        spec, resize = self.picture, not self._resizes
        if isinstance(picture, str | Path):
            return read_array(picture, spec, max_pixels=self.max_pixels, resize=resize)
        if _is_tensor(picture):
            picture = picture.detach().cpu()
            # NumPy has no bfloat16.
            array = (picture.float() if picture.is_floating_point() else picture).numpy()
            array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
            return to_array(array, spec, resize=resize)
        if isinstance(picture, Image.Image | np.ndarray):
            return to_array(picture, spec, resize=resize)
        raise DataError(
            "a picture is a path, a Pillow picture, an array (H, W[, C]) or a tensor (C, H, W), "
            f"found {type(picture).__name__}"
        )


def open_encoder(
    stored: StoredModel, device: str = "auto", threads: int | None = None
) -> OnnxEncoder | OpenvinoEncoder:
    """The encoder of a model, on OpenVINO if it was exported for it, else on ONNX Runtime."""
    if OPENVINO_FILES[0] not in stored.description.graphs:
        return OnnxEncoder(stored, device, threads)
    from twinlens.model.openvino_runtime import OpenvinoEncoder

    return OpenvinoEncoder(stored, device, threads)


def _as_list(pictures: Picture | Sequence[Picture]) -> Sequence[Picture]:
    if isinstance(pictures, np.ndarray) and pictures.dtype.kind in "OU":
        pictures = list(pictures.ravel())  # Paths of a table.
    if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes):
        pictures = [pictures]
    if not pictures:
        raise DataError("no pictures were given: pass at least one")
    return pictures


def _is_tensor(picture: Any) -> TypeGuard[torch.Tensor]:
    """Whether a picture is a tensor; without loading torch, since then it cannot be one."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(picture, kind)


def _cosine(a_D: NDArray[np.float32], b_D: NDArray[np.float32]) -> float:
    """The cosine similarity of two embeddings, in [-1, 1]; 0 if one is all zeros."""
    a, b = a_D.astype(np.float64), b_D.astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    # Rounded to float32, so that equal embeddings have exactly 1.
    return float(np.float32(a @ b / length)) if length > 0 else 0.0
