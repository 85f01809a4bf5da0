"""Matcher: a trained model that embeds pictures and verifies pairs of them.

`load` builds the networks with torch at once, `lazy` when they are needed.

Shapes: N pictures, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.config import DataSettings
from twinlens.data.decode import read_array, to_array
from twinlens.errors import CalibrationError, DataError, ModelError
from twinlens.match.answers import VerifyAnswer
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison, as_euclidean
from twinlens.measure.error_rates import matches
from twinlens.measure.pairs import Comparison
from twinlens.model.numpy_encoder import NumpyEncoder, load_numpy_encoder, sigmoid_scale
from twinlens.model.stored import ModelDescription, StoredModel, read_stored_model

if TYPE_CHECKING:
    import torch

    from twinlens.model.bundle import Bundle

__all__ = ["Matcher", "Picture"]

MAX_NUMPY_PICTURES = 16
"""Pictures at once up to which a lazy matcher uses `model.numpy_encoder` instead of torch."""

Picture: TypeAlias = "str | Path | Image.Image | NDArray[Any] | torch.Tensor"
"""A path, a Pillow picture, an array (H, W[, C]), or a tensor (C, H, W) or (H, W).

Arrays and tensors are uint8, bool, or floats in [0, 1].
"""


class Matcher:
    """A loaded model.

    Attributes:
        path: the model's folder.
        fingerprint: 16 hex digits; embeddings of different fingerprints cannot be compared.
        calibration: threshold and probabilities of pairs; None in an uncalibrated model, which
            cannot verify.

    >>> import twinlens
    >>> matcher = twinlens.load("runs/digits")  # doctest: +SKIP
    >>> matcher.verify("a.png", "b.png").verdict  # doctest: +SKIP
    'same'
    """

    def __init__(self, model: Bundle | StoredModel) -> None:
        self._source = model
        if isinstance(model, StoredModel):
            facts: Bundle | ModelDescription = model.description
            self._network, self._picture = model.description.model, model.description.picture
        else:
            facts = model
            self._network, self._picture = model.encoder.model_settings, model.encoder.picture
        self.path = model.path
        self.fingerprint = facts.fingerprint
        self.calibration = (
            None if facts.calibration is None else Calibration.from_json(facts.calibration)
        )
        self.max_pixels = (facts.origin.data if facts.origin else DataSettings()).max_pixels

    @classmethod
    def load(cls, path: str | Path) -> Matcher:
        """Load a model folder, or the one inside a run folder.

        Raises:
            ModelError: no model, a damaged one, or one of a newer format.
        """
        from twinlens.model.bundle import load_bundle

        return cls(load_bundle(path))

    @classmethod
    def lazy(cls, path: str | Path) -> Matcher:
        """As `load`, but build the networks when they are needed.

        Up to 16 pictures are embedded without torch if the network is not timm's and the comparator
        not "network". Their distances differ from those of `load` in the last bits (up to 1e-5).

        Raises:
            ModelError: no model, a damaged one, or one of a newer format. Weights of another
                network are noticed when it is built.
        """
        return cls(read_stored_model(path))

    def __repr__(self) -> str:
        state = "uncalibrated" if self.calibration is None else "calibrated"
        return f"Matcher({str(self.path)!r}, {state}, fingerprint {self.fingerprint})"

    @cached_property
    def bundle(self) -> Bundle:
        """The networks, with torch.

        Raises:
            ModelError: the weights belong to another network.
        """
        if not isinstance(self._source, StoredModel):
            return self._source
        from twinlens.model.bundle import build_bundle

        return build_bundle(self._source)

    @cached_property
    def euclidean_comparison(self) -> EuclideanComparison | None:
        """The comparator without torch; None for the comparator "network"."""
        name = self._network.comparator
        if name not in EUCLIDEAN_COMPARATORS:
            return None
        if name != "sigmoid":
            return EuclideanComparison(name)
        if isinstance(self._source, StoredModel):
            return EuclideanComparison(name, sigmoid_scale(self._source))
        from twinlens.model.comparators import TorchComparison

        return as_euclidean(TorchComparison(self.bundle.comparator))

    @cached_property
    def comparison(self) -> Comparison:
        """The comparator for arrays of embeddings; without torch in a lazy matcher, if possible.

        Raises:
            ModelError: the weights belong to another network.
        """
        if isinstance(self._source, StoredModel) and self.euclidean_comparison is not None:
            return self.euclidean_comparison
        from twinlens.model.comparators import TorchComparison

        return TorchComparison(self.bundle.comparator)

    def pixels(self, pictures: Picture | Sequence[Picture]) -> NDArray[np.uint8]:
        """Pictures decoded for the network, uint8, shape (N, C, H, W).

        Raises:
            PictureError: a file that cannot be read.
            DataError: no pictures, or an object of another type.
        """
        if isinstance(pictures, np.ndarray) and pictures.dtype.kind in "OU":
            pictures = list(pictures.ravel())  # Paths of a table.
        if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes):
            pictures = [pictures]
        if not pictures:
            raise DataError("no pictures were given: pass at least one")
        return np.stack([self._decode(picture) for picture in pictures])

    def embed(
        self, pictures: Picture | Sequence[Picture], *, batch_size: int | None = None
    ) -> NDArray[np.float32]:
        """Embeddings, shape (N, D), of pictures in any form of `Picture`.

        Raises:
            PictureError: a file that cannot be read.
            ModelError: embeddings that are not finite.
        """
        return self._embed(self.pixels(pictures), batch_size)

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
            raise CalibrationError(
                f"the model {self.path} is not calibrated, so it has no threshold: run `twinlens "
                f"calibrate {self.path} DATA` on labelled pictures of identities that it was not "
                "trained on"
            )
        return self.calibration

    def _embed_both(
        self, a: Picture, b: Picture
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The embeddings of two pictures, shape (1, D) each."""
        # Each distinct picture is embedded once and alone: the last bits of an embedding may depend
        # on the batch, and equal pictures must have distance 0.
        first, second = self.pixels([a])[0], self.pixels([b])[0]
        emb_a = self._embed(first[None])
        same = np.array_equal(first, second)
        return emb_a, emb_a if same else self._embed(second[None])

    def _embed(
        self, pixels_NCHW: NDArray[np.uint8], batch_size: int | None = None
    ) -> NDArray[np.float32]:
        if len(pixels_NCHW) <= MAX_NUMPY_PICTURES and self._numpy_encoder is not None:
            emb_ND = self._numpy_encoder.embed(pixels_NCHW)
        else:
            from twinlens.model.encoder import embed_pixels

            emb_ND = embed_pixels(self.bundle.encoder, pixels_NCHW, batch_size=batch_size)
        if not np.isfinite(emb_ND).all():
            raise ModelError(
                f"the model {self.path} gives embeddings with NaN or infinite numbers, so its "
                "weights are damaged: copy its folder again, or train again"
            )
        return emb_ND

    @cached_property
    def _numpy_encoder(self) -> NumpyEncoder | None:
        """The encoder without torch of a lazy matcher, if its network has one."""
        return load_numpy_encoder(self._source) if isinstance(self._source, StoredModel) else None

    def _decode(self, picture: Picture) -> NDArray[np.uint8]:
        spec = self._picture
        if isinstance(picture, str | Path):
            return read_array(picture, spec, max_pixels=self.max_pixels)
        if _is_tensor(picture):
            picture = picture.detach().cpu()
            # NumPy has no bfloat16.
            array = (picture.float() if picture.is_floating_point() else picture).numpy()
            return to_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, spec)
        if isinstance(picture, Image.Image | np.ndarray):
            return to_array(picture, spec)
        raise DataError(
            "a picture is a path, a Pillow picture, an array (H, W[, C]) or a tensor (C, H, W), "
            f"found {type(picture).__name__}"
        )


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
