"""The outputs of a frozen backbone, computed once a picture instead of once an epoch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinlens.config import AugmentSettings, Settings
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

__all__ = ["backbone_features", "can_precompute"]

BATCH = 32


def can_precompute(settings: Settings) -> bool:
    """Whether features can be kept: the backbone is frozen, and views are at most mirrored."""
    turned = settings.sampler.rotations or settings.sampler.mirror
    views = settings.augment.model_copy(update={"flip": False})
    still = views == AugmentSettings() and not turned
    return settings.model.freeze == "all" and still


@torch.no_grad()
def backbone_features(
    encoder: Encoder,
    pixels_MCHW: NDArray[np.uint8],
    compute: Compute,
    row_N: NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    mirrored: bool = False,
) -> Tensor:
    """The features (N, F) of the pictures in `row_N` (all by default), on the encoder's device."""
    rows = np.arange(len(pixels_MCHW)) if row_N is None else row_N
    encoder.eval()
    features_NF = torch.empty(0)
    for start in range(0, len(rows), BATCH):
        batch = torch.from_numpy(np.array(pixels_MCHW[rows[start : start + BATCH]]))
        if mirrored:
            batch = batch.flip(3)
        with compute.autocast():
            some_BF = encoder.features(batch.to(encoder.device)).float()
        if start == 0:
            features_NF = some_BF.new_empty((len(rows), some_BF.shape[1]))
        features_NF[start : start + BATCH] = some_BF
        if progress is not None:
            progress(min(start + BATCH, len(rows)), len(rows))
    return features_NF
