"""Answers of verification, identification and search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from twinlens.data.quality import PictureQuality
from twinlens.display import Result
from twinlens.errors import DataError, PictureError, one_line
from twinlens.face.faces_of import FacePlace
from twinlens.measure.domain import DomainCheck

if TYPE_CHECKING:
    from twinlens.match.explain import Explanation

__all__ = ["Candidate", "ComparedFaces", "Hit", "IdentifyAnswer", "VerifyAnswer",
           "require_acquired"]  # fmt: skip


@dataclass(frozen=True)
class ComparedFaces:
    """The two faces that were compared: of all pairs of faces the one of the smallest distance.

    Attributes:
        first: place of the face in the first picture.
        second: place of the face in the second picture.
        target_far: false accept rate of one pair; None without calibration.
    """

    first: FacePlace
    second: FacePlace
    target_far: float | None

    @property
    def pairs(self) -> int:
        """Number of pairs, of which the nearest was taken."""
        return self.first.of * self.second.of

    @property
    def far_bound(self) -> float | None:
        """Largest false accept rate of the nearest of all pairs (union bound)."""
        return None if self.target_far is None else min(1.0, self.pairs * self.target_far)

    def as_json(self) -> dict[str, Any]:
        """Plain data: `first` and `second` with number, of, box and score; `pairs`, `far_bound`."""
        return {
            "first": asdict(self.first), "second": asdict(self.second),
            "pairs": self.pairs, "far_bound": self.far_bound,
        }  # fmt: skip

    def as_lines(self) -> list[str]:
        """The faces, and the false accept rate of the nearest of several pairs."""
        lines = [
            f"the {name} picture shows {place.of} faces; compared: {place.as_text()}"
            if place.of > 1
            else f"the {name} picture: {place.as_text()}"
            for name, place in (("first", self.first), ("second", self.second))
            if place.box is not None
        ]
        if self.pairs > 1 and self.target_far is not None and self.far_bound is not None:
            lines.append(
                f"the nearest of {self.pairs} pairs of faces: {100 * self.target_far:.3g} % is the "
                "false accept rate of one pair, and that of the nearest of all is up to "
                f"{100 * self.far_bound:.3g} %"
            )
        return lines


@dataclass(frozen=True, repr=False)
class VerifyAnswer(Result):
    """The answer to whether two pictures show the same thing.

    Attributes:
        verdict: "same" if `match`, else "different".
        match: `distance <= threshold`.
        distance: distance of the two embeddings; lower is closer.
        threshold: threshold of the model's calibration.
        target_far: false accept rate that the threshold was set for.
        probability: probability of a genuine pair at `prior`, by the model's calibration; None if
            it used no labels.
        similarity: cosine similarity of the embeddings, in [-1, 1]; for information only.
        prior: probability of a genuine pair before the comparison; 0.5 is even odds.
        quality: quality of each picture.
        domain: whether each picture is like the calibration pictures; None if unknown.
        explanation: parts that make them alike or unlike; None unless requested.
        faces: the compared faces; None for a model of other pictures.
    """

    verdict: Literal["same", "different"]
    match: bool
    distance: float
    threshold: float
    target_far: float
    probability: float | None
    similarity: float
    prior: float = 0.5
    quality: tuple[PictureQuality, PictureQuality] | None = field(default=None, repr=False)
    domain: tuple[DomainCheck, DomainCheck] | None = field(default=None, repr=False)
    explanation: Explanation | None = None
    faces: ComparedFaces | None = None

    @property
    def reason(self) -> str | None:
        """Why the verdict is not the more probable answer; None if it is.

        The verdict keeps the target FAR at any prior; the probability weighs both errors at one.
        """
        if self.probability is None or self.match == (self.probability >= 0.5):
            return None
        at_prior = "at even odds" if self.prior == 0.5 else f"at a prior of {self.prior:.3g}"
        far = f"{100 * self.target_far:.3g} %"
        if self.match:
            return (
                f"different is more probable ({100 * (1 - self.probability):.1f} % {at_prior}), "
                f"but this distance is within the threshold for a FAR of {far}"
            )
        return (
            f"the same is more probable ({100 * self.probability:.1f} % {at_prior}), but a "
            f"threshold at this distance could accept more than {far} of impostor pairs"
        )

    def as_json(self) -> dict[str, Any]:
        """The answer as plain data; `reason`, `faces` and `explanation` only if there is one."""
        qualities = None if self.quality is None else [asdict(part) for part in self.quality]
        reason = {} if self.reason is None else {"reason": self.reason}
        values = asdict(replace(self, explanation=None)) | {"quality": qualities}
        values |= DomainCheck.as_json(self.domain) | reason
        for name in ("domain", "explanation", "faces"):
            values.pop(name)
        if self.faces is not None:
            values["faces"] = self.faces.as_json()
        return values | (
            {} if self.explanation is None else {"explanation": self.explanation.as_json()}
        )

    def as_text(self) -> str:
        """As `explain`."""
        return self.explain()

    def explain(self) -> str:
        """The verdict and its grounds; a second line for a `reason`."""
        side = "within" if self.match else "beyond"
        far = f"{100 * self.target_far:.3g} %"
        odds = "even odds" if self.prior == 0.5 else f"prior {self.prior:.3g}"
        probability = ""
        if self.probability is not None:
            percent = f"{100 * self.probability:.1f} %"
            probability = f"probability of a genuine pair {percent} (at {odds}); "
        line = (
            f"{self.verdict}: distance {self.distance:.4f} is {side} the threshold "
            f"{self.threshold:.4f}, set to accept {far} of impostor pairs; {probability}"
            f"cosine similarity {self.similarity:.2f}"
        )
        lines = [line] if self.reason is None else [line, f"reason: {self.reason}"]
        lines += [] if self.faces is None else self.faces.as_lines()
        for name, quality in zip(("first", "second"), self.quality or (), strict=False):
            if quality.is_low:
                lines.append(f"the {name} picture has a low {quality.as_text()}")
        for name, check in zip(("first", "second"), self.domain or (), strict=False):
            if not check.in_domain:
                lines.append(check.as_text(f"the {name} picture"))
        if self.explanation is not None:
            lines.append(f"explanation: {self.explanation.background()}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Candidate:
    """A candidate identity of a gallery.

    Attributes:
        identity: name of the identity.
        distance: distance by the gallery's rule for the templates of an identity; lower is closer.
        probability: probability that the best candidate is right if half of all probes are mated;
            None for the others, and in a gallery without calibration.
        path: picture of its nearest template.
    """

    identity: str
    distance: float
    probability: float | None
    path: str


@dataclass(frozen=True, repr=False)
class IdentifyAnswer(Result):
    """The answer of an open-set identification.

    Attributes:
        verdict: "identified"; "nobody" if no identity is within the threshold; "ambiguous" if two
            are, at about the same distance.
        identity: None unless the verdict is "identified".
        reason: reason of the verdict, one sentence, with `doubt` if there is one.
        distance: distance of the best candidate; None in an empty gallery.
        margin: distance of the second candidate minus that of the best; negative if votes rank a
            farther one first; None without a second one.
        threshold: largest distance that is identified.
        threshold_of: "gallery" if this gallery is calibrated; "pairs" for the model's threshold,
            with which FPIR grows with the number of identities.
        target_fpir: false positive identification rate of the threshold; with a threshold of pairs
            about its upper bound for this number of templates.
        probability: probability of the best candidate.
        candidates: best identities, best first, with every verdict.
        quality: quality of the picture; None for an embedding.
        domain: whether the picture is like the model's calibration pictures; None if unknown.
        face: place of the face that the answer is about; None for a model of other pictures.
    """

    verdict: Literal["identified", "nobody", "ambiguous"]
    identity: str | None
    reason: str
    distance: float | None
    margin: float | None
    threshold: float
    threshold_of: Literal["gallery", "pairs"]
    target_fpir: float
    probability: float | None
    candidates: tuple[Candidate, ...]
    quality: PictureQuality | None = None
    domain: DomainCheck | None = None
    face: FacePlace | None = None

    @property
    def doubt(self) -> str | None:
        """Why the verdict is not the more probable answer; None if it is, or is "ambiguous".

        The verdict keeps the target FPIR; the probability weighs both errors.
        """
        right = self.probability
        if right is None or self.threshold_of != "gallery" or self.verdict == "ambiguous":
            return None
        if (self.verdict == "identified") == (right >= 0.5):
            return None
        fpir = f"{100 * self.target_fpir:.3g} %"
        if self.verdict == "identified":
            return (
                f"nobody is more probable ({100 * (1 - right):.1f} % if half of all probes are "
                f"enrolled), but this distance is within the threshold for an FPIR of {fpir}"
            )
        best = repr(self.candidates[0].identity[:80])
        return (
            f"{best} is more probable ({100 * right:.1f} % if half of all probes are enrolled), "
            f"but a threshold at this distance could identify more than {fpir} of strangers"
        )

    def as_json(self) -> dict[str, Any]:
        """The answer as plain data; `face` only if there is one."""
        values = asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}
        values |= DomainCheck.as_json(None if self.domain is None else [self.domain])
        values.pop("domain")
        if self.face is None:
            values.pop("face")
        return values

    def as_text(self) -> str:
        """As `explain`."""
        return self.explain()

    def explain(self) -> str:
        """The verdict and its reason, in one sentence."""
        name = one_line(self.identity) if self.identity is not None else self.verdict
        low = self.quality is not None and self.quality.is_low
        quality = f"; low {self.quality.as_text()}" if low and self.quality is not None else ""
        outside = self.domain is not None and not self.domain.in_domain
        domain = f"; {self.domain.as_text('it')}" if outside and self.domain is not None else ""
        return f"{name}: {self.reason}{quality}{domain}"


@dataclass(frozen=True)
class Hit:
    """A template in the result of a search.

    Attributes:
        path: path of the picture when it was enrolled.
        identity: identity of the template.
        distance: distance from the probe; lower is closer.
        time: time of enrolment.
        metadata: metadata given at enrolment.
        hash: hash of the picture's content.
    """

    path: str
    identity: str
    distance: float
    time: datetime
    metadata: Mapping[str, Any]
    hash: str

    def as_json(self) -> dict[str, Any]:
        """The hit as plain data; the time in ISO 8601."""
        return asdict(self) | {"time": self.time.isoformat()}


def require_acquired(pictures: Sequence[tuple[str, str | None]]) -> None:
    """Refuse answers in which no picture could be acquired.

    Args:
        pictures: name of each, and the reason why it was not acquired; None if it was.
    Raises:
        PictureError: the only picture was not.
        DataError: none of several was.
    """
    errors = [(name, reason) for name, reason in pictures if reason is not None]
    if len(errors) < len(pictures):
        return
    (name, reason), *others = errors
    if not others:
        raise PictureError(name, reason)
    raise DataError(
        f"none of the {len(pictures)} pictures can be read; the first: "
        f"{one_line(name, None)}: {reason}"
    )
