"""Losses on a batch of embeddings, forward and backward, beside pytorch-metric-learning's.

Prediction: all triplets by sorting beats B^3 by ten times at 256; supervised contrastive loss is
matrix products in both, and should be about even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pytorch_metric_learning import losses as pml

from benchmarks.timing import Row, compare
from twinlens.data.table import pair_masks
from twinlens.learn import losses
from twinlens.model.comparators import Cosine, Euclidean

DIM, IMAGES_PER_LABEL = 128, 4


def rows() -> Iterator[Row]:
    name = "pytorch-metric-learning"
    for size in (256, 512):
        emb, label, genuine, impostor = _batch(size)
        triplets = pml.TripletMarginLoss(margin=0.2, triplets_per_anchor="all")
        yield compare(
            f"all triplets, batch {size}", f"{name} TripletMarginLoss",
            _step(emb, lambda e, g=genuine, i=impostor: losses.triplet(
                Euclidean().matrix(e, e), g, i, 0.2, "all")),
            _step(emb, lambda e, y=label, f=triplets: f(e, y)),
        )  # fmt: skip
    for size in (256, 1024):
        emb, label, genuine, impostor = _batch(size)
        supcon = pml.SupConLoss(temperature=0.1)
        yield compare(
            f"supervised contrastive, batch {size}", f"{name} SupConLoss",
            _step(emb, lambda e, g=genuine, i=impostor: losses.supcon(
                Cosine().matrix(e, e), g, i, 0.1)),
            _step(emb, lambda e, y=label, f=supcon: f(e, y)),
        )  # fmt: skip


def _batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    emb = torch.randn(size, DIM, generator=generator)
    emb = torch.nn.functional.normalize(emb, dim=1).requires_grad_()
    label = torch.arange(size) // IMAGES_PER_LABEL
    forged = torch.zeros(size, dtype=torch.bool)
    genuine, impostor = pair_masks(label[:, None], forged[:, None], label, forged)
    return emb, label, genuine.fill_diagonal_(False), impostor


def _step(
    emb: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    return lambda: torch.autograd.grad(loss(emb), emb)[0]
