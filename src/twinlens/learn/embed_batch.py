"""From the rows of a batch to its embeddings: pixels, rotation, augmentation, forward pass.

Shapes: N pictures, B of a batch, A of them embedded at once, V views of each, C channels, H x W
pixels, F features, D dimensions of the embedding.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinlens.config import Settings
from twinlens.data.augment import augment, mirror, quarter_turns
from twinlens.data.batch import Batch, Ints
from twinlens.data.pixel_shards import PixelShards
from twinlens.data.samplers import Shards
from twinlens.learn.features import BATCH, FrozenPart, can_precompute
from twinlens.learn.grad_cache import chunks_of, embed_in_chunks, moving_norms
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.learn.read_ahead import ReadAhead
from twinlens.model.compute import Compute, compiled
from twinlens.model.encoder import Encoder
from twinlens.model.plugged_in import Augmentation, is_plugged_in, plugged

__all__ = ["BatchEmbedder", "LabelledPixels", "StoredInputs"]

log = logging.getLogger("twinlens")

HASHED = 64  # pictures whose pixels show whether two sets are the same


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """N pictures with their labels, among M in memory, a memory-mapped file or shards.

    Attributes:
        pixels: uint8, shape (M, C, H, W); never copied as a whole.
        row: row of each picture in `pixels`, shape (N,).
        label: identities, shape (N,).
        forged: whether a picture is forged, shape (N,).
    """

    pixels: NDArray[np.uint8]
    row: NDArray[np.int64]
    label: NDArray[np.int64]
    forged: NDArray[np.bool_]

    @classmethod
    def of(
        cls, pixels: NDArray[np.uint8], label: NDArray[np.int64], forged: NDArray[np.bool_]
    ) -> LabelledPixels:
        """All the pictures, M = N."""
        return cls(pixels, np.arange(len(label)), label, forged)

    def select(self, position: NDArray[np.int64]) -> LabelledPixels:
        """Some of the pictures, by position, with labels counted from 0 again."""
        label = np.unique(self.label[position], return_inverse=True)[1]
        return LabelledPixels(self.pixels, self.row[position], label, self.forged[position])

    def take(
        self, position: NDArray[np.int64], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """A copy of the pixels (B, C, H, W) of pictures by their position among the N.

        Args:
            position: positions, shape (B,).
            out: memory for the copy; new memory by default.
        """
        rows = self.row[position]
        if isinstance(self.pixels, np.ndarray):
            # Twice as fast as an index. Another mode would copy `out` first.
            return np.asarray(np.take(self.pixels, rows, axis=0, out=out, mode="clip"))
        if out is None:
            return self.pixels[rows]
        out[:] = self.pixels[rows]
        return out

    @property
    def shards(self) -> Shards | None:
        """Shards of the pictures as a sampler takes them; None without shards."""
        if not isinstance(self.pixels, PixelShards):
            return None
        return self.pixels.shard_of(self.row), self.pixels.per_window, self.pixels.read_ahead

    def digest(self) -> str:
        """Hash of all labels and roles, and of some pixels."""
        some = self.take(np.linspace(0, len(self.row) - 1, HASHED).astype(np.int64))
        parts = (self.label, self.forged, some)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True, eq=False)
class StoredInputs:
    """What the frozen layers of a network give for some rows, in each view.

    Attributes:
        views: (N, ...) of each view.
        row: rows of these pictures, ascending, (N,).
    """

    views: tuple[Tensor, ...]
    row: NDArray[np.int64]

    def rows(self, view: int, row_B: NDArray[np.int64]) -> Tensor:
        """The stored part (B, ...) of some rows in one view."""
        place = torch.from_numpy(np.searchsorted(self.row, row_B))
        return self.views[view][place.to(self.views[view].device)]

    def joined(self, other: StoredInputs) -> StoredInputs:
        """Those of these rows and of other ones."""
        row, views = np.union1d(self.row, other.row), list[Tensor]()
        for pair in zip(self.views, other.views, strict=True):
            view = pair[0].new_empty((len(row), *pair[0].shape[1:]))  # One copy: they are large.
            for part, rows in zip(pair, (self.row, other.row), strict=True):
                view[torch.from_numpy(np.searchsorted(row, rows)).to(view.device)] = part
            views.append(view)
        return StoredInputs(tuple(views), row)


class BatchEmbedder:
    """`embed(batch, seed)` gives the embeddings of a batch, with their graph.

    Of several ranks each embeds its part of the batch and receives the other parts. If layers are
    frozen and pictures are at most mirrored, what these layers give is computed once: `stored`
    (V, N, ...), of pictures for which it is not given. With `train.chunk` the graph of that many
    pictures is in memory at once.

    Attributes:
        frozen_seconds: seconds of the frozen layers on this machine, for each picture that they
            were computed for.
    """

    frozen_seconds = 0.0

    def __init__(
        self,
        encoder: Encoder,
        images: LabelledPixels,
        settings: Settings,
        compute: Compute,
        progress: Callable[[int, int], None] | None = None,
        stored: StoredInputs | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.encoder, self.images, self.compute = encoder, images, compute
        self.ranks = ranks
        self.chunk = settings.train.chunk
        self.augmentation, transform = settings.augment, settings.augment.transform
        self.transform: Augmentation | None = None
        if is_plugged_in(transform):
            self.transform = plugged("augmentation", transform)
        self.rotations = settings.sampler.rotations
        self.fill = settings.picture.fill / 255
        self.stored = stored
        self.network: Callable[[Tensor], Tensor] = encoder
        if settings.train.compile:
            self.network = compiled(encoder)
        is_beside = encoder.device.type == "cuda" or type(images.pixels) is not np.ndarray
        self.reader: ReadAhead | None = None
        if is_beside:
            self.reader = ReadAhead(images.take, encoder.device, images.pixels.shape[1:])
        if can_precompute(settings):
            self.frozen = FrozenPart(encoder, compute)
            self.stored = self._compute_stored(stored, progress)
        elif self.chunk is not None and moving_norms(encoder.train()):
            log.warning(
                "train.chunk: batch norm uses the statistics of %d pictures, not of the whole "
                "batch. Frozen layers (model.freeze) keep theirs, and model.batch_norm=false "
                "builds 'conv' without batch norm", self.chunk,
            )  # fmt: skip

    def __call__(self, batch: Batch, seed: int) -> Tensor:
        """The embeddings (B, D) of a batch, float32; the views depend on `seed` alone.

        Raises:
            TrainingError: the batch is too small for the number of ranks.
        """
        num = len(batch.row)
        self.ranks.check_batch(num)
        self.encoder.train()
        return self.ranks.gather(self._embed(batch, self.ranks.own(num), seed), num)

    def _embed(self, batch: Batch, own_A: Ints, seed: int) -> Tensor:
        """The embeddings (A, D) of the pictures at some positions of a batch."""
        if self.stored is not None:
            generator = torch.Generator().manual_seed(seed)
            num_views, num = len(self.stored.views), len(batch.row)
            view_A = torch.randint(num_views, (num,), generator=generator)[torch.from_numpy(own_A)]
            rows = self.images.row[batch.row[own_A]]
            parts = [self.stored.rows(view, rows) for view in range(num_views)]
            stored = parts[0]
            for view, part in enumerate(parts[1:], 1):
                chosen = (view_A == view).to(part.device).view(-1, *[1] * (part.dim() - 1))
                stored = torch.where(chosen, part, stored)
            return self.encoder.project(self.frozen.after(stored))
        read = self.images.take if self.reader is None else self.reader
        pixels = torch.as_tensor(read(batch.row[own_A]))
        if self.chunk is None or self.chunk >= len(own_A):
            return self._forward(self._views(pixels, batch, seed, own_A))
        return embed_in_chunks(
            lambda part: self._forward(self._views(pixels[part], batch, seed, own_A[part])),
            chunks_of(len(own_A), self.chunk),
            self.encoder,
        )

    def begin(self, batch: Batch) -> None:
        """Begin to read the pictures of the next batch, if that takes other hardware."""
        if self.reader is not None and self.stored is None:
            self.reader.begin(batch.row[self.ranks.own(len(batch.row))])

    def _compute_stored(
        self, known: StoredInputs | None, progress: Callable[[int, int], None] | None
    ) -> StoredInputs | None:
        order = np.setdiff1d(self.images.row, () if known is None else known.row)
        if not len(order):
            return known
        views, started = [], time.monotonic()
        for mirrored in (False, True) if self.augmentation.flip else (False,):
            view = self.frozen.compute_all(
                self.images.pixels, order, progress, mirrored=mirrored, ranks=self.ranks
            )
            if view is None:
                return None
            views.append(view)
        self.frozen_seconds = (time.monotonic() - started) * self.ranks.size / len(order)
        stored = StoredInputs(tuple(views), order)
        return stored if known is None else known.joined(stored)

    def initial_features(self) -> Tensor:
        """The features (V x N, F) of the initial weights, of each stored view."""
        if self.stored is not None:
            views = range(len(self.stored.views))
            each = (self.stored.rows(view, self.images.row) for view in views)
            return torch.cat([self.frozen.features(view) for view in each])
        self.encoder.eval()
        parts = []
        with torch.no_grad(), self.compute.autocast():
            for start in range(0, len(self.images.row), BATCH):
                positions = np.arange(start, min(start + BATCH, len(self.images.row)))
                pixels = torch.from_numpy(self.images.take(positions)).to(self.encoder.device)
                parts.append(self.encoder.features(pixels).float())
        return torch.cat(parts)

    def pictures(self, batch: Batch, seed: int, position_A: Ints | None = None) -> Tensor:
        """The views (A, C, H, W) of a batch's pictures, float in [0, 1], on the device.

        Args:
            batch: batch.
            seed: seed of the views; a picture has the same one in whatever part of the batch.
            position_A: positions in the batch; None for all.
        """
        at = np.arange(len(batch.row)) if position_A is None else position_A
        return self._views(torch.from_numpy(self.images.take(batch.row[at])), batch, seed, at)

    def _views(self, pixels_ACHW: Tensor, batch: Batch, seed: int, position_A: Ints) -> Tensor:
        """The views of `pictures`, of pixels that are read."""
        generator = torch.Generator().manual_seed(seed)
        pixels = pixels_ACHW.to(self.encoder.device, non_blocking=True)
        if self.rotations:
            pixels = quarter_turns(pixels, torch.from_numpy(batch.turns[position_A]))
        if batch.mirrored is not None:
            pixels = mirror(pixels, torch.from_numpy(batch.mirrored[position_A]))
        place = torch.from_numpy(position_A), len(batch.row)
        if self.transform is not None:
            return _transformed(pixels, self.transform, generator, place)
        return augment(pixels.float() / 255, self.augmentation, generator, self.fill, place)

    def _forward(self, x_BCHW: Tensor) -> Tensor:
        with self.compute.autocast():
            emb_BD = self.network(x_BCHW)
        return emb_BD.float()


def _transformed(
    pixels_ACHW: Tensor,
    transform: Augmentation,
    generator: torch.Generator,
    place: tuple[Tensor, int],
) -> Tensor:
    """Views (A, C, H, W) of each picture by itself, float in [0, 1], drawn by torch's generator."""
    position_A, num = place
    seed_A = torch.randint(2**62, (num,), generator=generator)[position_A].tolist()
    views = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for seed, picture_CHW in zip(seed_A, pixels_ACHW.cpu(), strict=True):
            torch.manual_seed(seed)
            views.append(transform(picture_CHW))
    view_ACHW = torch.stack(views).to(pixels_ACHW.device)
    return view_ACHW.float() / 255 if view_ACHW.dtype == torch.uint8 else view_ACHW.float()
