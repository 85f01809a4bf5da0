"""Comparison of a library's loss with ours: the same value and gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def embedded(number: int, size: int = 32, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Embeddings (B, 8) with a gradient, and labels that each occur several times."""
    generator = torch.Generator().manual_seed(number)
    emb = torch.randn(size, 8, generator=generator, dtype=torch.float64)
    return emb.requires_grad_(), torch.arange(size) % classes


def agree(ours: Tensor, theirs: Tensor, emb: Tensor) -> None:
    """Check that two losses of the same embeddings have equal values and non-zero gradients."""
    torch.testing.assert_close(ours, theirs)
    (own,) = torch.autograd.grad(ours, emb, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, emb)
    assert float(own.abs().sum()) > 0
    torch.testing.assert_close(own, other)
