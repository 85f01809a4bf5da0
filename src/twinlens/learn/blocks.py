"""The loss of a batch's pairs and its gradient, a block of anchors at a time.

A loss on the distances of B pictures goes over B x B matrices many times. Here each block of rows
is made, used for the value and the gradient, and forgotten, while it fits a processor's cache: that
is faster than the whole, and its memory does not grow with B^2. It knows nothing of networks, nor
of which loss it is.

Shapes: B pictures of the batch, A anchors of a block, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Between", "Pairs", "RowLoss", "mean_over_blocks"]

Between = Callable[[Tensor, Tensor], Tensor]
"""The distances (A, B) of anchors (A, D) and all pictures (B, D), differentiable."""

Pairs = Callable[[slice], tuple[Tensor, Tensor]]
"""The rows of the masks of genuine and of impostor pairs, boolean, (A, B) each."""

RowLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From distances, genuine and impostor pairs (A, B) to a sum of terms, and their number."""

# Distances of a block: 512 KB of float32, so that a few of them fit the cache of a core.
BLOCK = 1 << 17


def mean_over_blocks(emb_BD: Tensor, between: Between, pairs: Pairs, loss: RowLoss) -> Tensor:
    """The mean of a loss's terms over all anchors, a scalar; 0 with a gradient where there is none.

    Args:
        emb_BD: embeddings; the only thing that gets a gradient.
        between: their distances.
        pairs: which of them count.
        loss: the sum of the terms of some anchors and how many there are; the gradient of neither
            may hang on other anchors.
    """
    value: Tensor = _MeanOverBlocks.apply(emb_BD, between, pairs, loss)
    return value


class _MeanOverBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, emb_BD: Tensor, between: Between, pairs: Pairs, loss: RowLoss) -> Tensor:
        grad_BD = torch.zeros_like(emb_BD)
        total = emb_BD.new_zeros((), dtype=torch.float64)
        count = torch.zeros((), dtype=torch.int64, device=emb_BD.device)
        rows = max(1, BLOCK // max(1, len(emb_BD)))
        for low in range(0, len(emb_BD), rows):
            part = slice(low, low + rows)
            with torch.enable_grad():
                anchor_AD = emb_BD[part].detach().requires_grad_()
                other_BD = emb_BD.detach().requires_grad_()
                some, num = loss(between(anchor_AD, other_BD), *pairs(part))
            if ctx.needs_input_grad[0]:
                on_anchor_AD, on_other_BD = torch.autograd.grad(some, (anchor_AD, other_BD))
                grad_BD[part] += on_anchor_AD
                grad_BD += on_other_BD
            total, count = total + some.detach(), count + num
        count.clamp_min_(1)
        ctx.save_for_backward(grad_BD.div_(count))
        return (total / count).to(emb_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_BD,) = ctx.saved_tensors
        return grad_BD * grad, None, None, None
