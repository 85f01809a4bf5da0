"""Frozen answers that explain themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from twinlens.errors import one_line

__all__ = ["Candidate", "Hit", "IdentifyAnswer", "VerifyAnswer"]


@dataclass(frozen=True)
class VerifyAnswer:
    """Whether two pictures show the same thing.

    Attributes:
        verdict: "same" where `match`, else "different".
        match: `distance <= threshold`.
        distance: of the two embeddings; lower is closer.
        threshold: of the model's calibration.
        target_far: the share of impostor pairs that the threshold was chosen to accept.
        probability: that they are the same, at even odds, fitted on the calibration pairs.
        similarity: the cosine of the embeddings, in [-1, 1], to read; it decides nothing.
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
            f"{self.threshold:.4f}, set to accept {far} of different pairs; "
            f"probability of the same {self.probability:.1%} (at even odds); "
            f"cosine similarity {self.similarity:.2f}"
        )


@dataclass(frozen=True)
class Candidate:
    """An identity of a gallery that a picture may show.

    Attributes:
        identity: its name.
        distance: by the gallery's rule for the templates of an identity; lower is closer.
        probability: of the best one, that it is right, where half of those who ask are enrolled;
            None of the others, and where the gallery is not calibrated.
        path: of its nearest template.
    """

    identity: str
    distance: float
    probability: float | None
    path: str


@dataclass(frozen=True)
class IdentifyAnswer:
    """Who a picture shows: one of a gallery's identities, nobody of them, or it cannot be said.

    Attributes:
        verdict: "identified"; "nobody", where no identity lies within the threshold; "ambiguous",
            where two do and are about equally near.
        identity: None unless the verdict is "identified".
        reason: why, in one sentence.
        distance: of the best candidate; None in an empty gallery.
        margin: how much farther the second one is, less than 0 where votes put a farther one
            first; None where there is none.
        threshold: the largest distance that is somebody.
        threshold_of: "gallery", found by calibrating this gallery; or "pairs", that of the model,
            which accepts more strangers the more identities there are.
        target_fpir: the share of strangers that are to be taken for somebody; with a threshold of
            pairs, about the most that it may come to with so many templates.
        probability: of the best candidate.
        candidates: the best identities, best first, whatever the verdict.
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
        return asdict(self) | {"candidates": [asdict(one) for one in self.candidates]}

    def explain(self) -> str:
        """The verdict and its reason, in one sentence."""
        name = one_line(self.identity) if self.identity is not None else self.verdict
        return f"{name}: {self.reason}"


@dataclass(frozen=True)
class Hit:
    """A template that a search found.

    Attributes:
        path: where the picture was when it was enrolled.
        identity: whose it is.
        distance: lower is closer.
        time: when it was enrolled.
        metadata: what was said of it then.
        hash: of its content.
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
