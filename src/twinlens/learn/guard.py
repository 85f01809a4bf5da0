"""Detection of a failing run, and the remedy.

Siamese training fails in silence in two ways. The loss becomes NaN or infinite. Or the network
collapses: every picture gets the same embedding, and a margin loss stays at its margin (Schroff
2015, section 3.2; Hermans 2017, section 3). The guard only returns the remedy; the loop applies it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from twinlens.config import LossSettings

__all__ = ["Guard", "GuardState", "Intervention", "relative_std"]

# A batch is collapsed if the relative standard deviation of its embeddings is below the first
# value, or below the second while a margin loss is within AT_MARGIN of its value at distance 0.
COLLAPSED_STD = 0.01
NEARLY_COLLAPSED_STD, AT_MARGIN = 0.1, 0.02
# Collapsed batches in a row: a single odd one is no collapse.
PATIENCE = 5
# An untrained network may begin like this. Within the first steps only a network that has lost
# this share of its first standard deviation has collapsed.
SLOW_START, LOST = 100, 0.5
MAX_INTERVENTIONS = 3


@dataclass(frozen=True)
class Intervention:
    """The remedy: the last good weights, a lower learning rate, and easier negatives."""

    reason: str
    mining: str
    rate_factor: float


class GuardState(BaseModel):
    """The state of a guard, stored in checkpoints under the aliases.

    Attributes:
        interventions: number of interventions so far.
        rate_factor: product of their learning rate factors.
        checks: steps checked since the start or the last intervention.
        suspicious: collapsed batches in a row.
        first_std: relative standard deviation at the first of these checks.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, strict=True, allow_inf_nan=False
    )

    interventions: int = Field(0, alias="answers", ge=0)
    rate_factor: float = Field(1.0, gt=0, le=1)
    checks: int = Field(0, alias="looks", ge=0)
    suspicious: int = Field(0, ge=0)
    first_std: float = Field(0.0, alias="first_spread", ge=0)


@torch.no_grad()
def relative_std(emb_BD: Tensor) -> float:
    """Standard deviation of the embeddings (B, D) around their mean, relative to their RMS length.

    >>> relative_std(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    0.0
    >>> relative_std(torch.tensor([[1.0], [-1.0]]))
    1.0
    """
    emb_BD = emb_BD.float()
    centred = (emb_BD - emb_BD.mean(0)).square().sum(1).mean().sqrt()
    length = emb_BD.square().sum(1).mean().sqrt()
    return float(centred / length.clamp_min(1e-12))


class Guard:
    """Checks of each step's loss and embeddings."""

    def __init__(self, settings: LossSettings, state: GuardState) -> None:
        self.state = state
        self._margin_loss = _margin_loss(settings)

    def check(self, loss: float, std: float, mining: str) -> Intervention | None:
        """Check one step.

        Args:
            loss: loss of the step.
            std: `relative_std` of the step's embeddings.
            mining: mining of triplets in use.
        Returns:
            None if nothing is to be done.
        """
        state = self.state
        if not math.isfinite(loss) or not math.isfinite(std):
            return self._intervene("the loss is NaN or infinite", mining)
        if state.checks == 0:
            state.first_std = std
        state.checks += 1
        state.suspicious = state.suspicious + 1 if self._collapsed(loss, std) else 0
        if state.suspicious < PATIENCE:
            return None
        return self._intervene(
            f"the embeddings have collapsed (their standard deviation is {100 * std:.2g} % of "
            f"their length, and the loss stays at {loss:.3g})",
            mining,
        )

    @property
    def suspicious(self) -> bool:
        """Whether the last batch was collapsed."""
        return self.state.suspicious > 0

    @property
    def exhausted(self) -> bool:
        """Whether further interventions would not help."""
        return self.state.interventions >= MAX_INTERVENTIONS

    def _collapsed(self, loss: float, std: float) -> bool:
        at_margin = self._margin_loss is not None and (
            abs(loss - self._margin_loss) < AT_MARGIN * self._margin_loss
            and std < NEARLY_COLLAPSED_STD
        )
        began_so = std > LOST * self.state.first_std
        if began_so and self.state.checks <= SLOW_START:
            return False
        return std < COLLAPSED_STD or at_margin

    def _intervene(self, reason: str, mining: str) -> Intervention:
        state = self.state
        state.checks = state.suspicious = 0
        state.interventions += 1
        state.rate_factor *= 0.3
        return Intervention(
            reason, "semi-hard" if mining == "hardest" else mining, state.rate_factor
        )


def _margin_loss(settings: LossSettings) -> float | None:
    """The loss when all distances are 0; None if that is no constant."""
    if settings.name == "contrastive":
        return settings.margin**2 / 2
    if settings.name == "triplet":
        return math.log(2) if settings.soft else settings.margin
    return None
