"""What the frozen part of a network gives for each picture, computed once instead of once an epoch.

With the whole backbone frozen these are its features. With its first layers frozen they are the
inputs of the first layer that learns, in half precision.

Shapes: V views, N pictures, A of them computed here, B of a batch, C channels, H x W pixels,
F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twinlens.config import AugmentSettings, Settings
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.machine import memory
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder
from twinlens.model.timm_backbones import Stage

__all__ = ["BATCH", "FrozenPart", "can_precompute", "inputs_of"]

BATCH = 32
MEMORY_SHARE = 0.25  # of the memory where they lie, at most, for inputs of a layer
CLOSE = 0.02  # largest relative difference of features by half precision


def can_precompute(settings: Settings) -> bool:
    """Whether a frozen part can run once: there is one, and views are at most mirrored."""
    turned = settings.sampler.rotations or settings.sampler.mirror
    augmented = settings.augment.model_copy(update={"flip": False}) != AugmentSettings()
    return settings.model.freeze != "none" and not augmented and not turned


class _ReachedLayerError(Exception):
    """Ends a forward pass before a layer; `args` holds its input."""


class FrozenPart:
    """The frozen layers of an encoder's backbone, apart from those that learn.

    Args:
        encoder: its `model.freeze` is "all" or the name of a layer.
        compute: device and number format.
    """

    def __init__(self, encoder: Encoder, compute: Compute) -> None:
        self.encoder, self.compute = encoder, compute
        name = encoder.model_settings.freeze
        network = encoder.backbone
        if isinstance(network, Stage):
            network = network.network
        self.layer: nn.Module | None = None if name == "all" else network.get_submodule(name)

    def before(self, x_BCHW: Tensor) -> Tensor:
        """The stored part of pictures: features (B, F), or the layer's input (B, ...)."""
        with torch.no_grad(), self.compute.autocast():
            if self.layer is None:
                return self.encoder.features(x_BCHW).float()
            stored: Tensor
            with _hook(self.layer, _stop):
                try:
                    self.encoder.features(x_BCHW)
                except _ReachedLayerError as reached:
                    (stored,) = reached.args
                    return stored.half()
        raise AssertionError("the forward pass does not reach the layer")

    def after(self, stored: Tensor) -> Tensor:
        """The features (B, F) of stored inputs, with their graph."""
        if self.layer is None:
            return stored
        # The frozen layers run on one blank picture, and the layer gets the stored inputs.
        picture = self.encoder.picture
        blank = torch.zeros(1, picture.channels, *picture.size, device=stored.device)
        with self.compute.autocast(), _hook(self.layer, lambda *_: (stored.float(),)):
            return self.encoder.features(blank).float()

    def compute_all(
        self,
        pixels_MCHW: NDArray[np.uint8],
        row_N: NDArray[np.int64],
        progress: Callable[[int, int], None] | None = None,
        *,
        mirrored: bool = False,
        ranks: Ranks = ALONE,
    ) -> Tensor | None:
        """The stored part (N, ...) of the pictures `row_N`, on the encoder's device.

        Ranks compute a part of them each, and have all of them in the end.

        None if it does not fit the memory, or if the network's layers are no chain, so that the
        layer's input alone does not give the features.
        """
        self.encoder.eval()
        stored = torch.empty(0)
        if len(row_N) < ranks.size:
            ranks = ALONE
        own_A = row_N[ranks.own(len(row_N))]
        for start in range(0, len(own_A), BATCH):
            batch = torch.from_numpy(np.array(pixels_MCHW[own_A[start : start + BATCH]]))
            if mirrored:
                batch = batch.flip(3)
            if start == 0 and not ranks.all(self.is_usable(batch, len(row_N))):
                return None
            part = self.before(batch.to(self.encoder.device))
            if start == 0:
                stored = part.new_empty((len(own_A), *part.shape[1:]))
            stored[start : start + BATCH] = part
            if progress is not None:
                progress(min(start + BATCH, len(own_A)), len(own_A))
        return ranks.gather(stored, len(row_N))

    def is_usable(self, batch: Tensor, num: int) -> bool:
        """Whether the stored part of `num` pictures like a batch fits memory and gives features."""
        if self.layer is None:
            return True
        self.encoder.eval()
        part = self.before(batch.to(self.encoder.device))
        if part[0].numel() * part.element_size() * num > MEMORY_SHARE * _memory_of(part.device):
            return False
        with torch.no_grad(), self.compute.autocast():
            whole = self.encoder.features(batch.to(self.encoder.device)).float()
            rest = self.after(part)
        return rest.shape == whole.shape and bool(
            (rest - whole).abs().max() <= CLOSE * whole.abs().max()
        )

    def features(self, stored: Tensor) -> Tensor:
        """The features (N, F) of any number of stored inputs, without a graph."""
        self.encoder.eval()
        with torch.no_grad():
            return torch.cat([self.after(part) for part in torch.split(stored, BATCH)])


def _memory_of(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory() or 4e9


@contextmanager
def inputs_of(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """The inputs that a layer gets meanwhile, in half precision; none without a layer."""
    reached = list[Tensor]()
    if layer is None:
        yield reached
        return
    with _hook(layer, lambda _, inputs: reached.append(inputs[0].half())):
        yield reached


def _stop(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _ReachedLayerError(inputs[0])


@contextmanager
def _hook(layer: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
