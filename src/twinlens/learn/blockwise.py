"""The loss of a batch's pairs and its gradient, a block of anchors at a time.

A loss on the distances of B pictures makes many passes over B x B matrices. Here each block of rows
is computed, used for value and gradient, and dropped while it fits a processor's cache. Memory does
not grow with B^2. Mining needs distances without a gradient; only those of mined triplets are
computed again with one. All triplets of 1,024 pictures take 39 ms and 14 MB on two cores, and
2.2 s and 1.1 GB with pytorch-metric-learning (benchmarks/RESULTS.md).

Shapes: B pictures of the batch, A anchors of a block, D dimensions, T triplets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "DistanceMatrix",
    "Miner",
    "PairMasks",
    "PairwiseDistances",
    "RowLoss",
    "TripletLoss",
    "mean_over_blocks",
    "mean_over_mined",
]

DistanceMatrix = Callable[[Tensor, Tensor], Tensor]
"""Embeddings of anchors (A, D) and of all pictures (B, D) -> distances (A, B), differentiable."""

PairMasks = Callable[[slice], tuple[Tensor, Tensor]]
"""A slice of anchors -> masks of genuine and of impostor pairs, (A, B) each."""

RowLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Distances, genuine and impostor pairs (A, B) -> sum of terms, and their number."""

PairwiseDistances = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (T, D) and (T, D) -> distances (T,) of each row, differentiable."""

Miner = Callable[[Tensor, slice], Tensor]
"""Distances (A, B) of a slice of anchors, which may be overwritten -> positions of anchor (in the
slice), positive and negative, int64, (T, 3)."""

TripletLoss = Callable[[Tensor, Tensor], Tensor]
"""Distances (T,) to the positives and to the negatives -> terms (T,)."""

# Distances of a block for each thread: 512 KB of float32, several of which fit a core's cache.
BLOCK = 1 << 17
# Mining makes fewer passes, so that fewer and larger blocks are faster.
MINED_BLOCK = 1 << 19
# Triplets that are differentiated together, since each call has a fixed cost.
TRIPLETS_AT_ONCE = 2048
# With more than one triplet for this many distances, the block's two matrix products are faster.
DISTANCES_PER_TRIPLET = 64


def mean_over_blocks(
    emb_BD: Tensor, distance_matrix: DistanceMatrix, pairs: PairMasks, loss: RowLoss
) -> Tensor:
    """The mean of a loss's terms over all anchors, a scalar; 0 with a gradient without terms.

    Args:
        emb_BD: embeddings; the only tensor that gets a gradient.
        distance_matrix: their distances.
        pairs: masks of the pairs that count.
        loss: sum and number of the terms of some anchors, independent of other anchors.
    """

    def add(sums: _Sums) -> None:
        for part in _parts(len(emb_BD), BLOCK * torch.get_num_threads()):
            sums.add_rows(part, distance_matrix, lambda dist_AB: loss(dist_AB, *pairs(part)))  # noqa: B023

    value: Tensor = _Mean.apply(emb_BD, add)
    return value


def mean_over_mined(
    emb_BD: Tensor,
    distance_matrix: DistanceMatrix,
    pairwise: PairwiseDistances,
    miner: Miner,
    loss: TripletLoss,
) -> Tensor:
    """The mean of a loss's terms over mined triplets, a scalar; 0 with a gradient without triplets.

    Args:
        emb_BD: embeddings; the only tensor that gets a gradient.
        distance_matrix: their distances, for mining.
        pairwise: the same distances of rows, for the gradient.
        miner: triplets of some anchors.
        loss: terms of triplets.
    """

    def add(sums: _Sums) -> None:
        pending: list[Tensor] = []
        for part in _parts(len(emb_BD), MINED_BLOCK):
            dist_AB = distance_matrix(sums.emb_BD[part], sums.emb_BD)
            triplets_T3 = miner(dist_AB, part)
            if DISTANCES_PER_TRIPLET * len(triplets_T3) > dist_AB.numel():
                sums.add_rows(
                    part,
                    distance_matrix,
                    lambda dist_AB: _chosen(dist_AB, triplets_T3, loss),  # noqa: B023
                )
                continue
            triplets_T3[:, 0] += part.start
            pending.append(triplets_T3)
            if sum(map(len, pending)) >= TRIPLETS_AT_ONCE:
                sums.add_triplets(torch.cat(pending), pairwise, loss)
                pending.clear()
        if pending:
            sums.add_triplets(torch.cat(pending), pairwise, loss)

    value: Tensor = _Mean.apply(emb_BD, add)
    return value


def _parts(num: int, block: int) -> Iterator[slice]:
    rows = max(1, block // max(1, num))
    return (slice(low, low + rows) for low in range(0, num, rows))


def _chosen(dist_AB: Tensor, triplets_T3: Tensor, loss: TripletLoss) -> tuple[Tensor, int]:
    anchor_T, positive_T, negative_T = triplets_T3.unbind(dim=1)
    value_T = loss(dist_AB[anchor_T, positive_T], dist_AB[anchor_T, negative_T])
    return value_T.sum(), len(triplets_T3)


class _Sums:
    """The sum of all terms so far, their number, and their gradient if needed."""

    def __init__(self, emb_BD: Tensor, needs_grad: bool) -> None:
        self.emb_BD = emb_BD.detach()
        self.grad_BD = torch.zeros_like(emb_BD)
        self.needs_grad = needs_grad
        self.total = emb_BD.new_zeros((), dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.int64, device=emb_BD.device)

    def add_rows(
        self,
        part: slice,
        distance_matrix: DistanceMatrix,
        loss: Callable[[Tensor], tuple[Tensor, Tensor | int]],
    ) -> None:
        """Add a loss on the distances of some anchors to all pictures."""
        anchor_AD = self.emb_BD[part].detach().requires_grad_()
        other_BD = self.emb_BD.detach().requires_grad_()
        with torch.enable_grad():
            total, num = loss(distance_matrix(anchor_AD, other_BD))
        if self.needs_grad:
            on_anchor_AD, on_other_BD = torch.autograd.grad(total, (anchor_AD, other_BD))
            self.grad_BD[part] += on_anchor_AD
            self.grad_BD += on_other_BD
        self.total += total.detach()
        self.count += num

    def add_triplets(
        self, triplets_T3: Tensor, pairwise: PairwiseDistances, loss: TripletLoss
    ) -> None:
        """Add a loss on the distances within triplets of positions."""
        anchor_T, positive_T, negative_T = triplets_T3.unbind(dim=1)
        # Both pairs of a triplet at once: each call has a fixed cost.
        ends = torch.cat([anchor_T, anchor_T]), torch.cat([positive_T, negative_T])
        leaves = [self.emb_BD.index_select(0, end).requires_grad_() for end in ends]
        with torch.enable_grad():
            total = loss(*pairwise(*leaves).chunk(2)).sum()
        if self.needs_grad:
            for end, gradient in zip(ends, torch.autograd.grad(total, leaves), strict=True):
                if end.device.type == "cpu":
                    self.grad_BD.index_add_(0, end, gradient)
                else:  # Slower on a CPU; elsewhere index_add_ adds in random order.
                    self.grad_BD.index_put_((end,), gradient, accumulate=True)
        self.total += total.detach()
        self.count += len(triplets_T3)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, emb_BD: Tensor, add: Callable[[_Sums], None]) -> Tensor:
        sums = _Sums(emb_BD, ctx.needs_input_grad[0])
        add(sums)
        sums.count.clamp_min_(1)
        ctx.save_for_backward(sums.grad_BD.div_(sums.count))
        return (sums.total / sums.count).to(emb_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grad_BD,) = ctx.saved_tensors
        return grad_BD * grad, None
