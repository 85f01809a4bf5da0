"""From a batch's rows to its embeddings: pictures, turned and seen in random views.

It does not know what the embeddings are for.

Shapes: N pictures of the pool, B of the batch, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinlens.config import Settings
from twinlens.data.augment import augment, mirror, quarter_turns
from twinlens.data.pools import Batch
from twinlens.learn.features import backbone_features, can_precompute
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

__all__ = ["Feed", "Pool"]


@dataclass(frozen=True, eq=False)
class Pool:
    """N pictures with their labels, among more that may lie in a memory-mapped file.

    Attributes:
        pixels: uint8, shape (M, C, H, W), in memory or memory-mapped; never copied whole.
        row: which of the M each picture is, shape (N,).
        label: identities, shape (N,).
        forged: shape (N,).
    """

    pixels: NDArray[np.uint8]
    row: NDArray[np.int64]
    label: NDArray[np.int64]
    forged: NDArray[np.bool_]

    @classmethod
    def of(
        cls, pixels: NDArray[np.uint8], label: NDArray[np.int64], forged: NDArray[np.bool_]
    ) -> Pool:
        """A pool of all the pictures."""
        return cls(pixels, np.arange(len(label)), label, forged)

    def take(self, place: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pixels (B, C, H, W) of pictures by their place in the pool, copied."""
        return np.asarray(self.pixels[self.row[place]])


class Feed:
    """`feed(batch, seed)` embeds a batch with its graph.

    Where the backbone is frozen and the views are still, its features are computed once instead.
    """

    def __init__(
        self,
        encoder: Encoder,
        pool: Pool,
        settings: Settings,
        compute: Compute,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.encoder, self.pool, self.compute = encoder, pool, compute
        self.views = settings.augment
        self.turning = settings.sampler.rotations
        self.fill = settings.picture.fill / 255
        self.features: Tensor | None = None
        if can_precompute(settings):
            self.features = backbone_features(encoder, pool.pixels, compute, pool.row, progress)

    def __call__(self, batch: Batch, seed: int) -> Tensor:
        """The embeddings (B, D) of a batch, float32; `seed` alone decides the views."""
        self.encoder.train()
        if self.features is not None:
            rows = torch.from_numpy(batch.row).to(self.features.device)
            return self.encoder.project(self.features[rows])
        with self.compute.autocast():
            emb_BD: Tensor = self.encoder(self.pictures(batch, seed))
        return emb_BD.float()

    def pictures(self, batch: Batch, seed: int) -> Tensor:
        """The views (B, C, H, W) of a batch's pictures, float in [0, 1], on the device."""
        pixels = torch.from_numpy(self.pool.take(batch.row)).to(self.encoder.device)
        if self.turning:
            pixels = quarter_turns(pixels, torch.from_numpy(batch.turns))
        if batch.mirrored is not None:
            pixels = mirror(pixels, torch.from_numpy(batch.mirrored))
        generator = torch.Generator().manual_seed(seed)
        return augment(pixels.float() / 255, self.views, generator, self.fill)
