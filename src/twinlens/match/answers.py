"""Frozen answers that explain themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["VerifyAnswer"]


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
