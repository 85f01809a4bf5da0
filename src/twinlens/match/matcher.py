"""Matcher: a trained model that embeds pictures and verifies pairs of them.

Shapes: N pictures, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.config import DataSettings, ModelSettings, PictureSettings
from twinlens.data.decode import PictureSource, open_picture, plain_picture, read_sized, to_array
from twinlens.data.picture_value import array_of, read_value
from twinlens.data.pixels import Pixels
from twinlens.data.quality import PictureQuality, check_minimum, quality_parts
from twinlens.errors import CalibrationError, DataError, ModelError, PictureError, naming_extras
from twinlens.face.faces_of import CroppedFace, FacePlace, faces_of, places_text
from twinlens.face.geometry import Box
from twinlens.face.marks import is_marked, mark, open_marked
from twinlens.match.answers import ComparedFaces, VerifyAnswer
from twinlens.match.run_page import RunPage
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison
from twinlens.measure.domain import Domain, DomainCheck, DomainSummary
from twinlens.measure.error_rates import matches
from twinlens.measure.pairs import Comparison
from twinlens.measure.picture_statistics import picture_statistics
from twinlens.measure.probability import check_prior
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
from twinlens.model.training_record import find_record

if TYPE_CHECKING:
    import torch

    from twinlens.match.explain import Explanation
    from twinlens.model.openvino_runtime import OpenvinoEncoder

__all__ = ["AcquiredPicture", "Matcher", "Model", "Picture", "named_pictures", "open_encoder"]

MOST_COMPARED = 1000  # pictures of a data set, with the domain
AT_ONCE = 256  # pairs or pictures whose pixels are in memory at the same time

Picture: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | NDArray[Any] | torch.Tensor"
"""A path, the bytes of a file, a file opened as bytes, a Pillow picture, an array (H, W[, C]) or
(C, H, W), or a tensor ([C, ]H, W).

Arrays and tensors are uint8, bool, or floats in [0, 1].
"""

Model: TypeAlias = "str | Path | Matcher"
"""The folder of a model or of a run, or a loaded model, such as `train` and `load` return."""


class AcquiredPicture(NamedTuple):
    """A picture as it is compared.

    Attributes:
        embedding: shape (D,).
        quality: quality of the picture.
        domain: whether it is like the model's calibration pictures; None if unknown.
    """

    embedding: NDArray[np.float32]
    quality: PictureQuality
    domain: DomainCheck | None


class Matcher:
    """A loaded model; its graphs are opened at the first picture.

    Attributes:
        stored: the model's folder and description.
        fingerprint: 16 hex digits; embeddings of different fingerprints cannot be compared.
        calibration: threshold and probabilities of pairs; None in an uncalibrated model, which
            cannot verify.
        domain: description of the calibration pictures; None if unknown.
        max_pixels: largest height x width that is decoded.
        face: crop of the faces that the model compares, which it then finds in whole photographs;
            None for a model of other pictures.

    >>> import twinlens
    >>> matcher = twinlens.load("runs/digits")  # doctest: +SKIP
    >>> matcher.verify("a.png", "b.png").verdict  # doctest: +SKIP
    'same'
    """

    def __init__(
        self, stored: StoredModel, device: str = "auto", threads: int | None = None
    ) -> None:
        self.stored = stored
        description = stored.description
        self.fingerprint = description.fingerprint
        self.calibration = (
            None
            if description.calibration is None
            else Calibration.from_json(description.calibration)
        )
        self.domain = None if description.domain is None else Domain.from_json(description.domain)
        self.max_pixels = self.data_settings.max_pixels
        self.face = description.face
        self._encoder = open_encoder(stored, device, threads)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", *, threads: int | None = None) -> Matcher:
        """Load a model folder, or the one inside a run folder.

        A model of an older format gets its graphs now, once, which needs torch.

        Args:
            path: the folder.
            device: "auto" (CUDA if ONNX Runtime has it, else the CPU), "cpu", "cuda", "cuda:1",
                "coreml", "openvino" or "directml".
            threads: threads of an embedding on a CPU; all cores by default. One is best where
                several pictures are embedded at the same time.
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
        return cls(stored, device, threads)

    @classmethod
    def of(cls, model: Model, device: str = "auto") -> Matcher:
        """A loaded model: the given one, or the one in a folder.

        Args:
            model: folder of a model or of a run, or a loaded model.
            device: as in `load`; a loaded model stays on its own with "auto".
        Raises:
            ModelError: no model, or an object of another type.
        """
        if isinstance(model, Matcher):
            return model if device == "auto" else cls(model.stored, device)
        if not isinstance(model, str | Path):
            raise ModelError(
                "a model is the folder of a model or of a run, or what twinlens.train and "
                f"twinlens.load return; found {type(model).__name__}"
            )
        return cls.load(model, device)

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

        Args:
            pictures: one, a sequence, or an array or tensor of N pictures, of four dimensions.
        Raises:
            PictureError: a file that cannot be read.
            ModelError: embeddings that are not finite.
        """
        if self._resizes:
            each = [self.embed_decoded(self._decode(picture)) for picture in _as_list(pictures)]
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

    def embed_decoded(self, pixels_CHW: NDArray[np.uint8]) -> NDArray[np.float32]:
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
        a, b, _ = self.nearest_faces(a, b)
        both = self._embed_both(self._decode(a), self._decode(b))
        return float(self.comparison.pairwise(*both)[0])

    def verify(
        self, a: Picture, b: Picture, *, prior: float = 0.5, min_quality: float | None = None
    ) -> VerifyAnswer:
        """Verify whether two pictures show the same thing, by the model's calibrated threshold.

        A model of cropped faces compares the nearest two faces of the pictures.

        Args:
            a: first picture.
            b: second picture.
            prior: probability of a genuine pair before the comparison, for the probability of the
                answer; no effect on the verdict.
            min_quality: least quality of each picture, in [0, 1]; None for no such gate.
        Raises:
            CalibrationError: the model is not calibrated.
            ConfigError: a prior outside (0, 1), or a minimum outside [0, 1].
            PictureError: a file that cannot be read, or a quality below the minimum (failure to
                acquire).
        """
        check_prior(prior)
        a, b, faces = self.nearest_faces(a, b)
        if self.calibration is None:
            known = (
                f"the distance of these pictures is {self.distance(a, b):.4f}, lower is closer. "
            )
            raise self._no_threshold(f"{known}For a verdict ")
        (first, quality_a), (second, quality_b) = (self.acquire(p, min_quality) for p in (a, b))
        emb_a, emb_b = self._embed_both(first, second)
        return replace(
            self.verify_embeddings(emb_a[0], emb_b[0], prior=prior),
            quality=(quality_a, quality_b),
            domain=self._check_both((emb_a, emb_b), (first, second)),
            faces=faces,
        )

    def verify_many(
        self,
        pairs: Iterable[tuple[Picture, Picture]],
        *,
        prior: float = 0.5,
        min_quality: float | None = None,
    ) -> list[VerifyAnswer]:
        """Verify many pairs; a file that is in several of them is embedded once.

        Pictures are embedded together, so distances may differ from those of `verify` by rounding.

        Args:
            pairs: pairs of pictures, such as `zip(table["a"], table["b"])`.
            prior: as in `verify`.
            min_quality: as in `verify`.
        Returns:
            The answers, in the order of the pairs.
        Raises:
            CalibrationError: as in `verify`.
            ConfigError: as in `verify`.
            DataError: an item that is not a pair.
            PictureError: as in `verify`; it names the first such picture.

        >>> model.verify_many([("a.jpg", "b.jpg"), ("a.jpg", "c.jpg")])  # doctest: +SKIP
        """
        self.require_calibration()  # Before the work.
        check_prior(prior)
        if self.face is not None:
            return [
                self.verify(a, b, prior=prior, min_quality=min_quality)
                for a, b in _each_pair(pairs)
            ]
        answers, rest = list[VerifyAnswer](), _each_pair(pairs)
        known: dict[str | int, AcquiredPicture] = {}
        seen: dict[bytes, NDArray[np.float32]] = {}
        while chunk := [*islice(rest, AT_ONCE)]:
            new = {_key(picture): picture for pair in chunk for picture in pair}
            new = {key: picture for key, picture in new.items() if key not in known}
            acquired = self.acquire_all([*new.values()], min_quality, seen=seen)
            known |= zip(new, acquired, strict=True)
            for a, b in chunk:
                first, second = known[_key(a)], known[_key(b)]
                answer = self.verify_embeddings(first.embedding, second.embedding, prior=prior)
                domain = None
                if first.domain is not None and second.domain is not None:
                    domain = first.domain, second.domain
                quality = first.quality, second.quality
                answers.append(replace(answer, quality=quality, domain=domain))
            # The pictures of other keys may be gone, and their keys used again.
            known = {key: each for key, each in known.items() if isinstance(key, str)}
        return answers

    def verify_embeddings(
        self, emb_a_D: NDArray[np.float32], emb_b_D: NDArray[np.float32], *, prior: float = 0.5
    ) -> VerifyAnswer:
        """As `verify`, for two embeddings by this model, without quality and domain.

        Args:
            emb_a_D: first embedding, shape (D,).
            emb_b_D: second embedding, shape (D,).
            prior: as in `verify`.
        Raises:
            CalibrationError: the model is not calibrated.
            ConfigError: a prior outside (0, 1).
        """
        calibration = self.require_calibration()
        check_prior(prior)
        distance = float(self.comparison.pairwise(emb_a_D[None], emb_b_D[None])[0])
        match = bool(matches(distance, calibration.threshold))
        return VerifyAnswer(
            verdict="same" if match else "different",
            match=match,
            distance=distance,
            threshold=calibration.threshold,
            target_far=calibration.target_far,
            probability=(
                None
                if calibration.curve is None
                else float(calibration.probability(distance, prior))
            ),
            similarity=_cosine(emb_a_D, emb_b_D),
            prior=prior,
        )

    def check_domain(
        self, emb_ND: NDArray[np.float32], pixels_NCHW: NDArray[np.uint8]
    ) -> list[DomainCheck] | None:
        """Whether each of N pictures is like the calibration pictures; None if unknown.

        Args:
            emb_ND: their embeddings.
            pixels_NCHW: the decoded pictures; of any size, and one, if the graph resizes.
        """
        if self.domain is None:
            return None
        if self._resizes:
            pixels_NCHW = to_array(np.moveaxis(pixels_NCHW[0], 0, -1), self.picture)[None]
        return self.domain.check(emb_ND, picture_statistics(pixels_NCHW))

    def domain_scores(
        self, emb_ND: NDArray[np.float32], pixels_NCHW: NDArray[np.uint8]
    ) -> list[float | None]:
        """The domain score of each of N decoded pictures; None if unknown."""
        if self.domain is None:
            return [None] * len(emb_ND)
        scores: list[float | None] = []
        scores += self.domain.scores(emb_ND, picture_statistics(pixels_NCHW)).tolist()
        return scores

    def summarize_domain(
        self, emb_ND: NDArray[np.float32], pixels_NCHW: Pixels
    ) -> DomainSummary | None:
        """Whether a data set of N pictures is like the calibration pictures; None if unknown.

        Of many pictures some that are evenly spaced are compared.
        """
        if self.domain is None or not len(emb_ND):
            return None
        most = min(len(emb_ND), MOST_COMPARED)
        rows = np.linspace(0, len(emb_ND) - 1, most).round().astype(np.int64)
        return self.domain.summary(emb_ND[rows], picture_statistics(pixels_NCHW[rows]))

    def _check_both(
        self,
        emb_2: tuple[NDArray[np.float32], NDArray[np.float32]],
        pixels_2: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    ) -> tuple[DomainCheck, DomainCheck] | None:
        if self.domain is None:
            return None
        checks = [self.check_domain(emb_1D, pixels_CHW[None]) or []
                  for emb_1D, pixels_CHW in zip(emb_2, pixels_2, strict=True)]  # fmt: skip
        (first,), (second,) = checks
        return first, second

    def require_calibration(self) -> Calibration:
        """The calibration.

        Raises:
            CalibrationError: the model is not calibrated; the message says how to calibrate it.
        """
        if self.calibration is None:
            raise self._no_threshold()
        return self.calibration

    def _no_threshold(self, known: str = "") -> CalibrationError:
        """The error of an uncalibrated model; `known` is what can be said without a threshold."""
        return CalibrationError(
            f"the model {self.path} is not calibrated, so it has no threshold: "
            f"{known}{self.calibration_advice}"
        )

    @property
    def calibration_advice(self) -> str:
        """The command that gives the model a threshold, in words."""
        if self._resizes:  # It takes no whole data sets.
            return "export its model again, with labelled pictures: --data DATA"
        advice = (
            f"run `twinlens calibrate {self.path} DATA` on labelled pictures of identities that it "
            "was not trained on"
        )
        if self.origin is None:
            return advice
        return (
            f"{advice}; or, if there are none, `twinlens calibrate {self.path} "
            f"{self.origin.source} --on all`, which uses those of the training too and then "
            "accepts more impostors than it states"
        )

    def _embed_both(
        self, first: NDArray[np.uint8], second: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The embeddings of two decoded pictures, shape (1, D) each."""
        emb_a = self.embed_decoded(first)
        return emb_a, emb_a if np.array_equal(first, second) else self.embed_decoded(second)

    def explain(self, a: Picture, b: Picture, *, seed: int = 0) -> Explanation:
        """Which parts of two pictures make them alike or unlike; takes some 600 embeddings.

        Args:
            a: first picture.
            b: second picture.
            seed: random seed of the random orders, which the maps are compared with.
        Raises:
            CalibrationError: the model is not calibrated.
            ModelError: an export that resizes pictures itself.
            PictureError: a file that cannot be read.
        """
        from twinlens.match.explain import explain_pair, nearest_thumbnails

        calibration = self.require_calibration()
        first, second = self.pixels([a, b])
        record, neighbours = find_record(self.path, self.origin), None
        if record is not None:
            neighbours = partial(nearest_thumbnails, self.embed_pixels, self.comparison, record)
        return explain_pair(
            self.embed_pixels, self.comparison, first, second, calibration.threshold,
            neighbours=neighbours, seed=seed,
        )  # fmt: skip

    def acquire_all(
        self,
        pictures: Sequence[Picture],
        min_quality: float | None = None,
        *,
        seen: dict[bytes, NDArray[np.float32]] | None = None,
    ) -> list[AcquiredPicture]:
        """Pictures decoded, rated and embedded together; equal ones have one embedding.

        Args:
            pictures: pictures in any form.
            min_quality: as in `acquire`.
            seen: embeddings by a hash of the pixels, which are used and added to.
        Raises:
            ConfigError: as in `acquire`.
            PictureError: as in `acquire`; it names the first such picture.
        """
        seen = {} if seen is None else seen
        decoded = [self.acquire(picture, min_quality) for picture in pictures]
        keys = [hashlib.blake2b(pixels.data, digest_size=16).digest() for pixels, _ in decoded]
        new = {key: pixels for key, (pixels, _) in zip(keys, decoded, strict=True)
               if key not in seen}  # fmt: skip
        if self._resizes:  # One at a time: their sizes differ.
            seen |= {key: self.embed_decoded(pixels)[0] for key, pixels in new.items()}
        elif new:
            seen |= zip(new, self.embed_pixels(np.stack([*new.values()])), strict=True)
        acquired = []
        for key, (pixels, quality) in zip(keys, decoded, strict=True):
            domain = self.check_domain(seen[key][None], pixels[None])
            acquired.append(
                AcquiredPicture(seen[key], quality, None if domain is None else domain[0])
            )
        return acquired

    def acquire(
        self, picture: Picture, min_quality: float | None = None
    ) -> tuple[NDArray[np.uint8], PictureQuality]:
        """A picture decoded for the network, (C, H, W), and its quality.

        Args:
            picture: a picture in any form.
            min_quality: least quality, in [0, 1]; None for no such gate.
        Raises:
            ConfigError: a minimum outside [0, 1].
            PictureError: a file that cannot be read, or a quality below the minimum (failure to
                acquire).
        """
        check_minimum(min_quality)
        pixels_CHW, num_pixels = self.read(picture)
        resized_CHW = pixels_CHW
        if self._resizes:
            resized_CHW = to_array(np.moveaxis(pixels_CHW, 0, -1), self.picture)
        parts_13 = quality_parts(resized_CHW[None], self.picture, np.array([num_pixels]))
        quality = PictureQuality.of_parts(parts_13[0])
        if (reason := quality.reason_below(min_quality)) is not None:
            raise PictureError(_name(picture), reason)
        return pixels_CHW, quality

    def as_is(self) -> Matcher:
        """This model without the search for faces: it takes pictures as they are."""
        plain = copy(self)
        plain.face = None
        return plain

    def faces(self, picture: Picture) -> list[CroppedFace]:
        """The faces of a picture from left to right, cropped as those that the model compares.

        Each `picture` of them can be embedded, verified, enrolled or identified.

        Args:
            picture: a photograph; or a cropped face, which stays as it is.
        Raises:
            ModelError: a model of other pictures.
            PictureError: a file that cannot be read, or a picture without a face.
            DataError: the detector's model file is missing.
            MissingExtraError: OpenCV below version 5 is not installed.
        """
        if self.face is None:
            raise ModelError(f"the model {self.path} was not trained on cropped faces")
        if isinstance(picture, Image.Image):
            opened = picture if is_marked(picture) else plain_picture(picture, None)
        else:
            opened = open_marked(_source(picture), max_pixels=self.max_pixels)
        faces = faces_of(opened, self.face)
        if not faces:
            raise PictureError(
                _name(picture),
                "no face was found in it; as_is (--as-is) takes a picture that is cropped to one",
            )
        return faces

    def faces_or_whole(
        self, picture: Picture, *, as_is: bool = False
    ) -> list[tuple[Picture, FacePlace | None]]:
        """The faces of a picture and their places; for a model of other pictures the picture.

        Args:
            picture: a picture in any form.
            as_is: take it as a cropped face, whatever it shows.
        Raises:
            PictureError: as in `faces`.
        """
        if self.face is None:
            return [(picture, None)]
        if as_is:
            whole = self.open(picture).copy()
            return [(mark(whole, self.face, Box(0, 0, whole.width, whole.height)), None)]
        return [(face.picture, face.place) for face in self.faces(picture)]

    def only_face(self, picture: Picture) -> Picture:
        """The one face of a picture, cropped; for a model of other pictures the picture itself.

        Raises:
            PictureError: as in `faces`, and several faces.
        """
        if self.face is None:
            return picture
        faces = self.faces(picture)
        if len(faces) > 1:
            places = places_text("it", [face.place for face in faces])
            raise PictureError(
                _name(picture),
                f"{places}: crop one, by `twinlens faces` or `Matcher.faces`",
            )
        return faces[0].picture

    def nearest_faces(
        self, a: Picture, b: Picture
    ) -> tuple[Picture, Picture, ComparedFaces | None]:
        """The two faces to compare: of several pairs the nearest; other pictures unchanged.

        Raises:
            PictureError: as in `faces`.
        """
        if self.face is None:
            return a, b, None
        sides = self.faces(a), self.faces(b)
        row, column = 0, 0
        if len(sides[0]) * len(sides[1]) > 1:
            embs = [self.embed([face.picture for face in faces]) for faces in sides]
            distances = self.comparison.matrix(embs[0], embs[1])
            row, column = divmod(int(np.argmin(distances)), len(sides[1]))
        first, second = sides[0][row], sides[1][column]
        far = None if self.calibration is None else self.calibration.target_far
        places = ComparedFaces(first.place, second.place, far)
        return first.picture, second.picture, places

    def open(self, picture: Picture, *, target: tuple[int, int] | None = None) -> Image.Image:
        """A picture as it is drawn: upright, in its own size and colours.

        Args:
            picture: a picture in any form.
            target: (height, width) that it will be shrunk to; a JPEG may then be decoded smaller.

        Raises:
            PictureError: a file that cannot be read.
            DataError: an object that is no picture.
        """
        if isinstance(picture, Image.Image):
            return picture
        return open_picture(_source(picture), max_pixels=self.max_pixels, target=target)

    def compare(
        self,
        a: Picture,
        b: Picture,
        *,
        prior: float = 0.5,
        min_quality: float | None = None,
    ) -> Image.Image:
        """Draw two pictures with the verdict, as `twinlens.compare`; a notebook shows it.

        Args:
            a: as in `verify`.
            b: as there.
            prior: as there.
            min_quality: as there.
        Returns:
            An RGB picture.
        Raises:
            CalibrationError: the model is not calibrated.
            PictureError: as in `verify`.
        """
        import twinlens  # The drawing belongs to a later room.

        return twinlens.compare(self, a, b, prior=prior, min_quality=min_quality)

    def push_to_hub(self, repo: str, *, token: str | None = None, private: bool = False) -> str:
        """Publish the model at the Hugging Face Hub, as `twinlens.push_to_hub`.

        Args:
            repo: "name/model".
            token: access token; by default HF_TOKEN or that of `hf auth login`.
            private: whether a new repository is private.
        Returns:
            The address of this state, "hf://name/model@commit".
        Raises:
            ModelError: an export without weights, or an upload that failed.
        """
        import twinlens  # Publishing belongs to a later room.

        return twinlens.push_to_hub(self, repo, token=token, private=private)

    def report(self) -> RunPage:
        """The page of the run that the model lies in; a notebook shows it inline.

        Raises:
            ModelError: a model without a run around it, such as a copy or an export.
        """
        return RunPage.of_model(self.path)

    def _decode(self, picture: Picture) -> NDArray[np.uint8]:
        return self.read(picture)[0]

    def read(self, picture: Picture) -> tuple[NDArray[np.uint8], int]:
        """A picture for the network, (C, H, W), and the number of pixels of its source or face.

        Raises:
            PictureError: as in `only_face`.
        """
        spec, resize = self.picture, not self._resizes
        picture = self.only_face(picture)
        if isinstance(picture, Image.Image):
            return to_array(picture, spec, resize=resize), picture.width * picture.height
        return read_sized(_source(picture), spec, max_pixels=self.max_pixels, resize=resize)


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
    if getattr(pictures, "ndim", 0) == 4:
        pictures = list(cast("Sequence[Picture]", pictures))
    if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes):
        pictures = [pictures]
    if not pictures:
        raise DataError("no pictures were given: pass at least one")
    return pictures


def named_pictures(pictures: Picture | Sequence[Picture]) -> list[tuple[str, Picture]]:
    """Pictures with names: that of a file is its path, others are "picture 1", by their place.

    Raises:
        DataError: no pictures.
    """
    return [
        (str(picture) if isinstance(picture, str | Path) else f"picture {number}", picture)
        for number, picture in enumerate(_as_list(pictures), 1)
    ]


def _source(picture: Picture) -> PictureSource:
    """A picture, other than a Pillow one, as `open_picture` takes it."""
    if _is_tensor(picture):
        array = array_of(picture)
        return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    return read_value(picture)


def _name(picture: Picture) -> str:
    return str(picture) if isinstance(picture, str | Path) else "<picture>"


def _each_pair(pairs: Iterable[tuple[Picture, Picture]]) -> Iterator[tuple[Picture, Picture]]:
    for number, pair in enumerate(pairs, 1):
        try:
            a, b = pair
        except (TypeError, ValueError):
            raise DataError(
                f"item {number} is no pair of pictures, found {type(pair).__name__}: pass a list "
                'of (a, b), or zip(table["a"], table["b"])'
            ) from None
        yield a, b


def _key(picture: Picture) -> str | int:
    """A key that equal paths share; that of another object holds as long as the object lives."""
    return str(picture) if isinstance(picture, str | Path) else id(picture)


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
