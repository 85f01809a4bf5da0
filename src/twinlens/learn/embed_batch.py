"""From a batch's rows to its embeddings: pictures, turned and seen in random views.

It does not know what the embeddings are for.

Shapes: N pictures of the pool, B of the batch, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinlens.config import Settings
from twinlens.data.augment import augment, mirror, quarter_turns
from twinlens.data.batch import Batch
from twinlens.data.pixels import PixelRows
from twinlens.learn.features import backbone_features, can_precompute
from twinlens.learn.grad_cache import chunks_of, embed_in_chunks, moving_norms
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

__all__ = ["BatchEmbedder", "LabelledPixels"]

log = logging.getLogger("twinlens")


@dataclass(frozen=True, eq=False)
class LabelledPixels:
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
    ) -> LabelledPixels:
        """A pool of all the pictures."""
        return cls(pixels, np.arange(len(label)), label, forged)

    def take(self, place: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pixels (B, C, H, W) of pictures by their place in the pool, copied."""
        return PixelRows(self.pixels, self.row)[place]


class BatchEmbedder:
    """`feed(batch, seed)` embeds a batch with its graph.

    Where the backbone is frozen and a picture is at most mirrored, its features (V, N, F) of each
    of the V views are computed once instead.
    With `train.chunk` the graph of no more than so many pictures is in memory at once.
    """

    def __init__(
        self,
        encoder: Encoder,
        pool: LabelledPixels,
        settings: Settings,
        compute: Compute,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.encoder, self.pool, self.compute = encoder, pool, compute
        self.chunk = settings.train.chunk
        self.views = settings.augment
        self.turning = settings.sampler.rotations
        self.fill = settings.picture.fill / 255
        self.features: Tensor | None = None
        if can_precompute(settings):
            views = [
                backbone_features(encoder, pool.pixels, compute, pool.row, progress, mirrored=view)
                for view in ((False, True) if self.views.flip else (False,))
            ]
            # One view is not copied: it may fill half of the memory.
            self.features = torch.stack(views) if len(views) > 1 else views[0][None]
        elif self.chunk is not None and moving_norms(encoder.train()):
            log.warning(
                "train.chunk: batch norm takes the statistics of %d pictures, not of the whole "
                "batch; model.freeze leaves them alone, and 'conv' does without by "
                "model.batch_norm=false", self.chunk,
            )  # fmt: skip

    def __call__(self, batch: Batch, seed: int) -> Tensor:
        """The embeddings (B, D) of a batch, float32; `seed` alone decides the views."""
        self.encoder.train()
        if self.features is not None:
            generator = torch.Generator().manual_seed(seed)
            view_B = torch.randint(len(self.features), (len(batch.row),), generator=generator)
            rows = torch.from_numpy(batch.row).to(self.features.device)
            return self.encoder.project(self.features[view_B.to(rows.device), rows])
        if self.chunk is None or self.chunk >= len(batch.row):
            return self._embedded(self.pictures(batch, seed))
        generator = torch.Generator().manual_seed(seed)
        begun: dict[int, Tensor] = {}

        def embed(part: slice) -> Tensor:
            # The second time the views are drawn as the first time.
            generator.set_state(begun.setdefault(part.start, generator.get_state()))
            return self._embedded(self._views(_part_of(batch, part), generator))

        return embed_in_chunks(embed, chunks_of(len(batch.row), self.chunk), self.encoder)

    def pictures(self, batch: Batch, seed: int) -> Tensor:
        """The views (B, C, H, W) of a batch's pictures, float in [0, 1], on the device."""
        return self._views(batch, torch.Generator().manual_seed(seed))

    def _embedded(self, x_BCHW: Tensor) -> Tensor:
        with self.compute.autocast():
            emb_BD: Tensor = self.encoder(x_BCHW)
        return emb_BD.float()

    def _views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        pixels = torch.from_numpy(self.pool.take(batch.row)).to(self.encoder.device)
        if self.turning:
            pixels = quarter_turns(pixels, torch.from_numpy(batch.turns))
        if batch.mirrored is not None:
            pixels = mirror(pixels, torch.from_numpy(batch.mirrored))
        return augment(pixels.float() / 255, self.views, generator, self.fill)


def _part_of(batch: Batch, part: slice) -> Batch:
    """Some of a batch's pictures, without its pairs and triplets."""
    mirrored = None if batch.mirrored is None else batch.mirrored[part]
    return Batch(
        batch.row[part], batch.label[part], batch.forged[part], batch.turns[part], mirrored=mirrored
    )
