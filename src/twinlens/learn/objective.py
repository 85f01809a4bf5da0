"""What a batch of embeddings is taught: the comparator, the pairs, the loss.

Shapes: B pictures of the batch, D dimensions, Q given pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinlens.config import LossSettings
from twinlens.data.pools import Batch
from twinlens.data.table import pair_masks
from twinlens.learn import losses
from twinlens.model.comparators import Comparator

__all__ = ["Objective"]


class Objective(nn.Module):
    """`objective(emb_BD, batch)` is the loss of a batch; losses with weights of their own train.

    Args:
        settings: which loss, and its constants. `mining` may be changed while training.
        comparator: gives the distances; a learned one is trained along.
        num_labels: the number of training identities, for losses with a vector for each.
        dim: the dimensions of an embedding, for the same.
    """

    def __init__(
        self, settings: LossSettings, comparator: Comparator, num_labels: int, dim: int
    ) -> None:
        super().__init__()
        losses.check_loss(settings)
        self.settings = settings
        self.mining: str = settings.mining
        self.comparator = comparator
        self.library = None
        if settings.name.startswith("pml:"):
            self.library = losses.pml_loss(
                settings.name, settings.args, num_classes=num_labels, embedding_size=dim
            )

    def forward(self, emb_BD: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar; call it outside autocast."""
        label = torch.from_numpy(batch.label).to(emb_BD.device)
        forged = torch.from_numpy(batch.forged).to(emb_BD.device)
        if self.library is not None:
            loss: Tensor = self.library(emb_BD, label, forged)
            return loss
        if self.settings.name == "bce":
            return self._on_logits(emb_BD, label, forged, batch)
        dist_BB = self.comparator.matrix(emb_BD, emb_BD)
        if batch.triplets is not None and self.settings.name == "triplet":
            given = torch.from_numpy(batch.triplets).to(emb_BD.device)
            return losses.triplet_given(dist_BB, given, self.settings.margin, self.settings.soft)
        return self._on_pool(dist_BB, *_pool(label, forged, batch))

    def _on_pool(self, dist_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor) -> Tensor:
        s = self.settings
        if s.name == "contrastive":
            return losses.contrastive(dist_BB, genuine_BB, impostor_BB, s.margin)
        if s.name == "triplet":
            return losses.triplet(dist_BB, genuine_BB, impostor_BB, s.margin, self.mining, s.soft)
        return losses.supcon(dist_BB, genuine_BB, impostor_BB, s.temperature)

    def _on_logits(self, emb_BD: Tensor, label: Tensor, forged: Tensor, batch: Batch) -> Tensor:
        genuine_BB, impostor_BB = _pool(label, forged, batch)
        a_Q, b_Q = (genuine_BB | impostor_BB).triu(1).nonzero(as_tuple=True)
        logit_Q = self.comparator.logits(emb_BD[a_Q], emb_BD[b_Q])
        return losses.bce(logit_Q, genuine_BB[a_Q, b_Q], self.settings.smoothing)


def _pool(label: Tensor, forged: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The masks (B, B) of genuine and impostor pairs: all of the batch's, or the given ones."""
    genuine_BB, impostor_BB = pair_masks(label[:, None], forged[:, None], label, forged)
    genuine_BB.fill_diagonal_(False)
    if batch.pairs is not None:
        given_BB = torch.zeros_like(genuine_BB)
        a_Q, b_Q = torch.from_numpy(batch.pairs).to(label.device).unbind(1)
        given_BB[a_Q, b_Q] = given_BB[b_Q, a_Q] = True
        return genuine_BB & given_BB, impostor_BB & given_BB
    return genuine_BB, impostor_BB
