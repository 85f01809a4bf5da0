"""Features of a frozen backbone, computed once for each picture instead of once an epoch."""

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
    """Whether features can be stored: the backbone is frozen, and views are at most mirrored."""
    turned = settings.sampler.rotations or settings.sampler.mirror
    augmented = settings.augment.model_copy(update={"flip": False}) != AugmentSettings()
    return settings.model.freeze == "all" and not augmented and not turned


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
    """The features (N, F) of the pictures `row_N` (all by default), on the encoder's device."""
    rows = np.arange(len(pixels_MCHW)) if row_N is None else row_N
    encoder.eval()
    features_NF = torch.empty(0)
    for start in range(0, len(rows), BATCH):
        batch = torch.from_numpy(np.array(pixels_MCHW[rows[start : start + BATCH]]))
        if mirrored:
            batch = batch.flip(3)
        with compute.autocast():
            batch_BF = encoder.features(batch.to(encoder.device)).float()
        if start == 0:
            features_NF = batch_BF.new_empty((len(rows), batch_BF.shape[1]))
        features_NF[start : start + BATCH] = batch_BF
        if progress is not None:
            progress(min(start + BATCH, len(rows)), len(rows))
    return features_NF
