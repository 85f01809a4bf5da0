"""Notices a run that is going wrong, and says what to do about it.

Two things ruin siamese training in silence: a loss that is not a number, and collapse, where the
network gives every picture the same embedding and a margin loss sits at its margin (Schroff 2015,
section 3.2; Hermans 2017, section 3). The guard looks at numbers and answers; it changes nothing
itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twinlens.config import LossSettings

__all__ = ["Guard", "GuardState", "Intervention", "relative_std"]

# Collapsed when a batch's embeddings differ from their mean by less than this share of its length,
COLLAPSED_STD = 0.01
# or by less than this one while a margin loss is this near to what it gives for equal distances.
NEARLY_COLLAPSED_STD, AT_MARGIN = 0.1, 0.02
# Looks in a row that must find the collapse: a single odd batch is none.
PATIENCE = 5
# An untrained network may well begin like this; only one that does not get away from it, or one
# that has lost this share of the spread it began with, has collapsed.
SLOW_START, LOST = 100, 0.5
MAX_ANSWERS = 3


@dataclass(frozen=True)
class Intervention:
    """What to do: go back to the last good weights, slower, with an easier choice of negatives."""

    reason: str
    mining: str
    rate_factor: float


@dataclass
class GuardState:
    """All that a guard remembers. It is kept in checkpoints, so that a resumed run judges alike.

    `looks` and `first_std` count from the start or from the last answer; `suspicious` is the
    number of looks in a row that found a collapse.
    """

    answers: int = 0
    rate_factor: float = 1.0
    looks: int = 0
    suspicious: int = 0
    first_std: float = 0.0


@torch.no_grad()
def relative_std(emb_BD: Tensor) -> float:
    """The root mean square distance to the mean embedding, as a share of the RMS length."""
    emb_BD = emb_BD.float()
    centred = (emb_BD - emb_BD.mean(0)).square().sum(1).mean().sqrt()
    length = emb_BD.square().sum(1).mean().sqrt()
    return float(centred / length.clamp_min(1e-12))


class Guard:
    """Watches each step's loss and spread of embeddings."""

    def __init__(self, settings: LossSettings, memory: GuardState) -> None:
        self.memory = memory
        self._margin_loss = _margin_loss(settings)

    def check(self, loss: float, std: float, mining: str) -> Intervention | None:
        """Look at one step; None while all is well.

        Args:
            loss: the step's loss.
            std: `relative_std` of the step's embeddings.
            mining: how triplets are being chosen.
        """
        memory = self.memory
        if not math.isfinite(loss) or not math.isfinite(std):
            return self._answer("the loss is not a number", mining)
        if memory.looks == 0:
            memory.first_std = std
        memory.looks += 1
        memory.suspicious = memory.suspicious + 1 if self._collapsed(loss, std) else 0
        if memory.suspicious < PATIENCE:
            return None
        return self._answer(
            f"the embeddings have collapsed: they differ by {std:.2%} of their length, and "
            f"the loss sits at {loss:.3g}",
            mining,
        )

    @property
    def suspicious(self) -> bool:
        """Whether the last look found something that is no reason to act yet."""
        return self.memory.suspicious > 0

    @property
    def exhausted(self) -> bool:
        """Whether it has answered as often as it is worth."""
        return self.memory.answers >= MAX_ANSWERS

    def _collapsed(self, loss: float, std: float) -> bool:
        at_margin = self._margin_loss is not None and (
            abs(loss - self._margin_loss) < AT_MARGIN * self._margin_loss
            and std < NEARLY_COLLAPSED_STD
        )
        begun_so = std > LOST * self.memory.first_std
        if begun_so and self.memory.looks <= SLOW_START:
            return False
        return std < COLLAPSED_STD or at_margin

    def _answer(self, reason: str, mining: str) -> Intervention:
        memory = self.memory
        memory.looks = memory.suspicious = 0
        memory.answers += 1
        memory.rate_factor *= 0.3
        return Intervention(
            reason, "semi-hard" if mining == "hardest" else mining, memory.rate_factor
        )


def _margin_loss(settings: LossSettings) -> float | None:
    """What the loss gives when all distances are 0; None where that is no constant."""
    if settings.name == "contrastive":
        return settings.margin**2 / 2
    if settings.name == "triplet":
        return math.log(2) if settings.soft else settings.margin
    return None
