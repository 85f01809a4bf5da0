"""Answers of verification, identification and search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from twinlens.errors import one_line

__all__ = ["Candidate", "Hit", "IdentifyAnswer", "VerifyAnswer"]


@dataclass(frozen=True)
class VerifyAnswer:
    """The answer to whether two pictures show the same thing.

    Attributes:
        verdict: "same" if `match`, else "different".
        match: `distance <= threshold`.
        distance: distance of the two embeddings; lower is closer.
        threshold: threshold of the model's calibration.
        target_far: false accept rate that the threshold was set for.
        probability: probability of a genuine pair at even odds, fitted on the calibration pairs.
        similarity: cosine similarity of the embeddings, in [-1, 1]; for information only.
    """

    verdict: Literal["same", "different"]
    match: bool
    distance: float
    threshold: float
    target_far: float
    probability: float
    similarity: float

    def as_json(self) -> dict[str, Any]:
        """The answer as plain data."""
        return asdict(self)

    def explain(self) -> str:
        """The verdict and its reason, in one sentence."""
        side = "within" if self.match else "beyond"
        far = f"{100 * self.target_far:.3g} %"
        return (
            f"{self.verdict}: distance {self.distance:.4f} is {side} the threshold "
            f"{self.threshold:.4f}, set to accept {far} of impostor pairs; "
            f"probability of a genuine pair {self.probability:.1%} (at even odds); "
            f"cosine similarity {self.similarity:.2f}"
        )


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


@dataclass(frozen=True)
class IdentifyAnswer:
    """The answer of an open-set identification.

    Attributes:
        verdict: "identified"; "nobody" if no identity is within the threshold; "ambiguous" if two
            are, at about the same distance.
        identity: None unless the verdict is "identified".
        reason: reason of the verdict, one sentence.
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

    def as_json(self) -> dict[str, Any]:
        """The answer as plain data."""
        return asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}

    def explain(self) -> str:
        """The verdict and its reason, in one sentence."""
        name = one_line(self.identity) if self.identity is not None else self.verdict
        return f"{name}: {self.reason}"


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
