"""The objective: from embeddings and a batch to its loss, by comparator, pairs and loss.

Shapes: B pictures of the batch, A of them as anchors, D dimensions, P most positives of an anchor,
Q pairs drawn literally.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from twinlens.config import LossSettings
from twinlens.data.batch import Batch
from twinlens.data.table import pair_masks
from twinlens.errors import ConfigError
from twinlens.learn import losses
from twinlens.learn.blockwise import RowLoss, mean_over_blocks, mean_over_mined
from twinlens.learn.mining import NO_PAIR, Candidates
from twinlens.learn.pml import PML, pml_loss, roles_as_labels
from twinlens.model.comparators import Comparator
from twinlens.model.plugged_in import is_plugged_in, plugged

__all__ = ["Objective"]

COUNTED_ROWS = 64  # rows of the masks at once, to count pairs


class Objective(nn.Module):
    """`objective(emb_BD, batch)` is the loss of a batch; its parameters are trained as well.

    Args:
        settings: loss and its constants; `mining` may be changed during training.
        comparator: comparator of the distances; a learned one is trained as well.
        num_labels: number of training identities, for losses with a vector for each.
        dim: dimensions of an embedding, for the same losses.
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
        # A module with weights is trained: each training begins with a copy of it.
        self.plugged: Callable[[Tensor, Tensor], Tensor] | None = None
        if is_plugged_in(settings.name):
            self.plugged = copy.deepcopy(plugged("loss", settings.name))
        if settings.name == "classes" and dim < num_labels:
            raise ConfigError(
                f"found {num_labels} training identities and embeddings of {dim} dimensions: the "
                f"loss 'classes' needs one for each, so set model.embedding={num_labels}"
            )
        if settings.name.startswith(PML):
            self.library = pml_loss(
                settings.name, settings.args, num_classes=num_labels, embedding_size=dim
            )

    def forward(self, emb_BD: Tensor, batch: Batch) -> Tensor:
        """The loss of embeddings (B, D), a scalar; not for use inside autocast."""
        label = torch.from_numpy(batch.label).to(emb_BD.device)
        forged = torch.from_numpy(batch.forged).to(emb_BD.device)
        if self.library is not None:
            loss: Tensor = self.library(emb_BD, label, forged)
            return loss
        if self.plugged is not None:
            return self.plugged(emb_BD, roles_as_labels(label, forged)).squeeze()
        if self.settings.name == "classes":
            return losses.classes(emb_BD[~forged], label[~forged], self.settings.smoothing)
        if self.settings.name == "bce":
            return self._on_logits(emb_BD, label, forged, batch)
        if batch.triplets is not None and self.settings.name == "triplet":
            dist_BB = self.comparator.matrix(emb_BD, emb_BD)
            given = torch.from_numpy(batch.triplets).to(emb_BD.device)
            return losses.triplet_given(dist_BB, given, self.settings.margin, self.settings.soft)
        return self._on_pairs(emb_BD, _PairsOfBatch.of(label, forged, batch))

    def _on_pairs(self, emb_BD: Tensor, pairs: _PairsOfBatch) -> Tensor:
        # Only embeddings get a gradient here; learned comparators need the loss `bce`.
        assert not list(self.comparator.parameters())
        s = self.settings
        prepared_BD, distance_matrix = (
            self.comparator.prepare(emb_BD),
            self.comparator.prepared_matrix,
        )
        if s.name == "triplet" and self.mining != "all":
            miner = losses.miner(self.mining, s.margin)
            return mean_over_mined(
                prepared_BD,
                distance_matrix,
                self.comparator.prepared_pairwise,
                lambda dist_AB, part: miner(pairs.candidates(dist_AB, part)),
                partial(losses.hinge, margin=s.margin, soft=s.soft),
            )
        loss: RowLoss
        rows = pairs.rows
        if s.name == "contrastive":
            loss = partial(losses.contrastive_terms, margin=s.margin, num=pairs.count())
        elif s.name == "triplet":
            loss = partial(losses.triplet_terms, margin=s.margin, soft=s.soft)
        else:
            loss = partial(losses.supcon_terms, temperature=s.temperature)
            if s.forged_weight != 1:
                rows = partial(pairs.weighted, forged_weight=s.forged_weight)
        return mean_over_blocks(prepared_BD, distance_matrix, rows, loss)

    def _on_logits(self, emb_BD: Tensor, label: Tensor, forged: Tensor, batch: Batch) -> Tensor:
        genuine_BB, impostor_BB = _PairsOfBatch.of(label, forged, batch).rows(slice(None))
        a_Q, b_Q = (genuine_BB | impostor_BB).triu(1).nonzero(as_tuple=True)
        logit_Q = self.comparator.logits(emb_BD[a_Q], emb_BD[b_Q])
        return losses.bce(logit_Q, genuine_BB[a_Q, b_Q], self.settings.smoothing)


@dataclass(frozen=True, eq=False)
class _PairsOfBatch:
    """The genuine and impostor pairs of a batch: all, or those drawn literally."""

    label: Tensor
    forged: Tensor
    given: Tensor | None

    @classmethod
    def of(cls, label: Tensor, forged: Tensor, batch: Batch) -> _PairsOfBatch:
        if batch.pairs is None:
            return cls(label, forged, None)
        given_BB = torch.zeros(len(label), len(label), dtype=torch.bool, device=label.device)
        a_Q, b_Q = torch.from_numpy(batch.pairs).to(label.device).unbind(1)
        given_BB[a_Q, b_Q] = given_BB[b_Q, a_Q] = True
        return cls(label, forged, given_BB)

    def rows(self, part: slice) -> tuple[Tensor, Tensor]:
        """Masks of the genuine and of the impostor pairs of some anchors, (A, B) each."""
        genuine_AB, impostor_AB = pair_masks(
            self.label[part, None], self.forged[part, None], self.label, self.forged
        )
        genuine_AB.diagonal(part.start or 0).fill_(False)
        if self.given is not None:
            return genuine_AB & self.given[part], impostor_AB & self.given[part]
        return genuine_AB, impostor_AB

    def weighted(self, part: slice, forged_weight: float) -> tuple[Tensor, Tensor]:
        """As `rows`, with weights of impostors: `forged_weight` for those of the same label."""
        genuine_AB, impostor_AB = self.rows(part)
        own_AB = impostor_AB & (self.label[part, None] == self.label)
        return genuine_AB, impostor_AB + own_AB * (forged_weight - 1)

    def candidates(self, dist_AB: Tensor, part: slice) -> Candidates:
        """The candidates of some anchors, given their distances, which are overwritten.

        Equal to `Candidates.of` with the masks, whose computation would dominate the time.
        """
        if self.given is not None:
            return Candidates.of(dist_AB, *self.rows(part))
        column_AP, real_AP = self._positives(part)
        positive_AP = dist_AB.gather(1, column_AP)
        dist_AB.scatter_(1, column_AP, NO_PAIR).diagonal(part.start).fill_(NO_PAIR)
        forged_A, forged_B = self.forged[part].to(dist_AB.dtype), self.forged.to(dist_AB.dtype)
        return Candidates(
            column_AP, positive_AP, real_AP, dist_AB.addr_(forged_A, forged_B, alpha=NO_PAIR)
        )

    def _positives(self, part: slice) -> tuple[Tensor, Tensor]:
        """Columns of the positives of anchors, padded with the anchor, and their mask, (A, P)."""
        order_B, rank_B, first_B, num_B, max_num = self._by_label
        slot_P = torch.arange(max_num, device=order_B.device)
        own_A1 = torch.arange(len(order_B), device=order_B.device)[part, None]
        rank_AP = first_B[part, None] + slot_P
        rank_AP += rank_AP >= rank_B[part, None]  # Skips the anchor.
        column_AP = order_B[rank_AP.clamp_max_(len(order_B) - 1)]
        real_AP = slot_P < num_B[part, None]
        return torch.where(real_AP, column_AP, own_A1), real_AP

    @cached_property
    def _by_label(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Pictures sorted by label, each one's rank, first rank of its label and number of
        positives, (B,) each; and the largest number of positives."""
        # Forged pictures have a label of their own, hence no positives.
        label_B = roles_as_labels(self.label, self.forged)
        sorted_B, order_B = label_B.sort(stable=True)
        first_B = torch.searchsorted(sorted_B, label_B)
        num_B = torch.searchsorted(sorted_B, label_B, right=True) - first_B - 1
        return order_B, order_B.argsort(), first_B, num_B, int(num_B.max())

    def count(self) -> tuple[int, int]:
        """The numbers of genuine and of impostor pairs, each pair counted in both directions."""
        genuine = impostor = 0
        for low in range(0, len(self.label), COUNTED_ROWS):
            genuine_AB, impostor_AB = self.rows(slice(low, low + COUNTED_ROWS))
            genuine += int(genuine_AB.sum())
            impostor += int(impostor_AB.sum())
        return genuine, impostor
