"""The loss of a batch's pairs and its gradient, a block of anchors at a time.

A loss on the distances of B pictures goes over B x B matrices many times. Here each block of rows
is made, used for the value and the gradient, and forgotten, while it fits a processor's cache: that
is faster than the whole, and its memory does not grow with B^2. Mining needs no gradient of the
distances, so of these only the few that are mined are made again with one. It knows nothing of
networks, nor of which loss it is.

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
"""The distances (A, B) of anchors (A, D) and all pictures (B, D), differentiable."""

PairMasks = Callable[[slice], tuple[Tensor, Tensor]]
"""The rows of the masks of genuine and of impostor pairs, as the loss takes them, (A, B) each."""

RowLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From distances, genuine and impostor pairs (A, B) to a sum of terms, and their number."""

PairwiseDistances = Callable[[Tensor, Tensor], Tensor]
"""The distances (T,) of embeddings (T, D) and (T, D) row by row, differentiable."""

Miner = Callable[[Tensor, slice], Tensor]
"""From the distances (A, B) of a slice of anchors, which it may overwrite, to positions of
anchor (in the slice), positive and negative, int64, (T, 3)."""

TripletLoss = Callable[[Tensor, Tensor], Tensor]
"""From the distances (T,) to the positives and to the negatives to a term each, (T,)."""

# Distances of a block for each thread: 512 KB of float32, a few of which fit the cache of a core.
BLOCK = 1 << 17
# Mined blocks are gone over less often, so that fewer steps weigh more.
MINED_BLOCK = 1 << 19
# Triplets that are differentiated together, since a few are not worth the steps.
BUNDLE = 2048
# From one triplet for so many distances on, a block's two matrix products are the quicker way.
MANY = 64


def mean_over_blocks(
    emb_BD: Tensor, distance_matrix: DistanceMatrix, pairs: PairMasks, loss: RowLoss
) -> Tensor:
    """The mean of a loss's terms over all anchors, a scalar; 0 with a gradient where there is none.

    Args:
        emb_BD: embeddings; the only thing that gets a gradient.
        distance_matrix: their distances.
        pairs: which of them count.
        loss: the sum of the terms of some anchors and how many there are; the gradient of neither
            may hang on other anchors.
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
    """The mean of a loss's terms over mined triplets, a scalar; 0 with a gradient for none.

    Args:
        emb_BD: embeddings; the only thing that gets a gradient.
        distance_matrix: their distances.
        pairwise: the same distances of rows, for the gradient.
        miner: which triplets of some anchors to take.
        loss: the terms of triplets.
    """

    def add(sums: _Sums) -> None:
        waiting: list[Tensor] = []
        for part in _parts(len(emb_BD), MINED_BLOCK):
            dist_AB = distance_matrix(sums.emb_BD[part], sums.emb_BD)
            triplets_T3 = miner(dist_AB, part)
            if MANY * len(triplets_T3) > dist_AB.numel():
                sums.add_rows(
                    part,
                    distance_matrix,
                    lambda dist_AB: _chosen(dist_AB, triplets_T3, loss),  # noqa: B023
                )
                continue
            triplets_T3[:, 0] += part.start
            waiting.append(triplets_T3)
            if sum(map(len, waiting)) >= BUNDLE:
                sums.add_triplets(torch.cat(waiting), pairwise, loss)
                waiting.clear()
        if waiting:
            sums.add_triplets(torch.cat(waiting), pairwise, loss)

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
    """The sum of all terms so far, their number, and their gradient where it is wanted."""

    def __init__(self, emb_BD: Tensor, wanted: bool) -> None:
        self.emb_BD = emb_BD.detach()
        self.grad_BD = torch.zeros_like(emb_BD)
        self.wanted = wanted
        self.total = emb_BD.new_zeros((), dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.int64, device=emb_BD.device)

    def add_rows(
        self,
        part: slice,
        distance_matrix: DistanceMatrix,
        loss: Callable[[Tensor], tuple[Tensor, Tensor | int]],
    ) -> None:
        """A loss on the distances of some anchors to all."""
        anchor_AD = self.emb_BD[part].detach().requires_grad_()
        other_BD = self.emb_BD.detach().requires_grad_()
        with torch.enable_grad():
            some, num = loss(distance_matrix(anchor_AD, other_BD))
        if self.wanted:
            on_anchor_AD, on_other_BD = torch.autograd.grad(some, (anchor_AD, other_BD))
            self.grad_BD[part] += on_anchor_AD
            self.grad_BD += on_other_BD
        self.total += some.detach()
        self.count += num

    def add_triplets(
        self, triplets_T3: Tensor, pairwise: PairwiseDistances, loss: TripletLoss
    ) -> None:
        """A loss on the distances within triplets of positions."""
        anchor_T, positive_T, negative_T = triplets_T3.unbind(dim=1)
        # Both pairs of a triplet at once: the steps are many and their work is little.
        ends = torch.cat([anchor_T, anchor_T]), torch.cat([positive_T, negative_T])
        leaves = [self.emb_BD.index_select(0, end).requires_grad_() for end in ends]
        with torch.enable_grad():
            some = loss(*pairwise(*leaves).chunk(2)).sum()
        if self.wanted:
            for end, gradient in zip(ends, torch.autograd.grad(some, leaves), strict=True):
                if end.device.type == "cpu":
                    self.grad_BD.index_add_(0, end, gradient)
                else:  # Slower on the CPU, but elsewhere the other one adds in an order of chance.
                    self.grad_BD.index_put_((end,), gradient, accumulate=True)
        self.total += some.detach()
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
