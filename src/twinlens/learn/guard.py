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

__all__ = ["Answer", "Guard", "spread"]

# Collapsed when embeddings of a batch differ from their mean by less than this share of its length.
COLLAPSED_SPREAD = 0.01
# ... or when a triplet loss is this near to what it gives for equal distances.
AT_MARGIN = 0.02
# Looks in a row that must find the collapse: a single odd batch is none.
PATIENCE = 5
MAX_ANSWERS = 3


@dataclass(frozen=True)
class Answer:
    """What to do: go back to the last good weights, slower, with an easier choice of negatives."""

    reason: str
    mining: str
    rate_factor: float


@torch.no_grad()
def spread(emb_BD: Tensor) -> float:
    """The root mean square distance to the mean embedding, as a share of the RMS length."""
    emb_BD = emb_BD.float()
    centred = (emb_BD - emb_BD.mean(0)).square().sum(1).mean().sqrt()
    length = emb_BD.square().sum(1).mean().sqrt()
    return float(centred / length.clamp_min(1e-12))


class Guard:
    """Watches each step's loss and spread of embeddings.

    `answers` and `rate_factor` are its whole memory, so a resumed run goes on where it was.
    """

    def __init__(self, settings: LossSettings, answers: int = 0, rate_factor: float = 1.0) -> None:
        self.answers = answers
        self.rate_factor = rate_factor
        self._margin_loss = _margin_loss(settings)
        self._suspicious = 0

    def watch(self, loss: float, spread_now: float, mining: str) -> Answer | None:
        """Look at one step; None while all is well.

        Args:
            loss: the step's loss.
            spread_now: `spread` of the step's embeddings.
            mining: how triplets are being chosen.
        """
        if not math.isfinite(loss) or not math.isfinite(spread_now):
            return self._answer("the loss is not a number", mining)
        at_margin = self._margin_loss is not None and (
            abs(loss - self._margin_loss) < AT_MARGIN * self._margin_loss
            and spread_now < 10 * COLLAPSED_SPREAD
        )
        if spread_now < COLLAPSED_SPREAD or at_margin:
            self._suspicious += 1
        else:
            self._suspicious = 0
        if self._suspicious < PATIENCE:
            return None
        return self._answer(
            f"the embeddings have collapsed: they differ by {spread_now:.2%} of their length, and "
            f"the loss sits at {loss:.3g}",
            mining,
        )

    @property
    def exhausted(self) -> bool:
        """Whether it has answered as often as it is worth."""
        return self.answers >= MAX_ANSWERS

    def _answer(self, reason: str, mining: str) -> Answer:
        self._suspicious = 0
        self.answers += 1
        self.rate_factor *= 0.3
        return Answer(reason, "semi-hard" if mining == "hardest" else mining, self.rate_factor)


def _margin_loss(settings: LossSettings) -> float | None:
    """What the loss gives when all distances are equal; None where that is no constant."""
    if settings.name != "triplet":
        return None
    return math.log(2) if settings.soft else settings.margin
