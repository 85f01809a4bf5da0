"""The encoder: preprocessing, backbone and head, from uint8 pictures to embeddings.

Shapes: B pictures, C channels, H x W pixels, F features, D dimensions of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from twinlens.config import SHIFTS, Member, ModelSettings, PictureSettings
from twinlens.data.pixels import Pixels
from twinlens.model.backbones import freeze_before, make_backbone, num_features
from twinlens.model.layers import glorot, make_head
from twinlens.model.own_backbones import is_own

__all__ = ["Encoder", "default_batch_size", "embed_features", "embed_pixels"]

SMALL = 2**15  # numbers of a picture: 256 larger ones take gigabytes


class Encoder(nn.Module):
    """A network from pictures to embeddings, with its own preprocessing.

    Args:
        model: settings of the network.
        picture: size, colours and statistics of its pictures.
        load: whether to load pretrained weights.
    """

    mean: Tensor
    std: Tensor
    members: tuple[Member, ...] = ()

    def __init__(
        self, model: ModelSettings, picture: PictureSettings, *, load: bool = True
    ) -> None:
        super().__init__()
        self.model_settings = model
        self.picture = picture
        self.backbone = make_backbone(model, picture, load)
        self.num_features = num_features(self.backbone, picture, model.backbone)
        self.head = make_head(self.num_features, model)
        if model.init == "glorot":
            self.head.apply(glorot)
            if is_own(model.backbone) and model.weights is None:
                self.backbone.apply(glorot)
        self._frozen = freeze_before(self.backbone, model.freeze)
        # Buffers follow the device; the statistics are stored in the settings, not in the weights.
        self.register_buffer("mean", torch.tensor(picture.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(picture.std).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode as in every module, but keep frozen layers in inference mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        if self.model_settings.norms == "frozen":
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The backbone's features (B, F) of pictures, uint8 or float in [0, 1]."""
        x_BCHW = (as_float(x_BCHW) - self.mean) / self.std
        if self.uses_channels_last:
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.backbone(x_BCHW)
        return features.flatten(1)

    def project(self, features_BF: Tensor) -> Tensor:
        """The embedding (B, D) in float32 of the backbone's features."""
        emb_BD: Tensor = self.head(features_BF).float()
        model = self.model_settings
        if model.classes or model.normalize:
            return unit_length(emb_BD, classes=model.classes)
        return emb_BD

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pictures (B, C, H, W), uint8 or float in [0, 1], to embeddings (B, D) in float32."""
        return self.embed(x_BCHW)

    def embed(self, x_BCHW: Tensor, *, at_once: bool = False) -> Tensor:
        """The embeddings (B, D) of `forward`; `at_once` takes all views in one pass."""
        views = self.views(x_BCHW)
        return self.average(of_views(lambda x: self.project(self.features(x)), views, at_once))

    def views(self, x_BCHW: Tensor) -> list[Tensor]:
        """The pictures; in inference shifted by each of `SHIFTS`, and mirrored, if so set."""
        if self.training:
            return [x_BCHW]
        shifts = self.model_settings.shifts
        views = list(_shifted(as_float(x_BCHW))) if shifts else [x_BCHW]
        mirrored = [view.flip(3) for view in views] if self.model_settings.mirrored else []
        return views + mirrored

    def average(self, views: Sequence[Tensor]) -> Tensor:
        """The embedding (B, D) of pictures from the embeddings (B, D) of their views."""
        if len(views) == 1:
            return views[0]
        emb_BD = torch.stack(list(views)).mean(0)
        unit = self.model_settings.normalize or self.model_settings.classes
        return F.normalize(emb_BD, dim=1) if unit else emb_BD

    @property
    def uses_channels_last(self) -> bool:
        """Whether the weights of convolutions are in the format channels last."""
        weights = [p for p in self.backbone.parameters() if p.dim() == 4]
        return any(
            w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous()
            for w in weights
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device


def of_views(
    function: Callable[[Tensor], Tensor], views: Sequence[Tensor], at_once: bool
) -> list[Tensor]:
    """What a function gives, (B, F), for each view (B, ...); `at_once` in one call."""
    if not at_once or len(views) == 1:
        return [function(view) for view in views]
    joined = function(torch.cat(list(views)))
    return list(joined.reshape(len(views), -1, joined.shape[1]).unbind(0))


def unit_length(head_ND: Tensor, *, classes: bool) -> Tensor:
    """Embeddings (..., D) of length 1 from a head's output: for classes, roots of probabilities."""
    if classes:
        return F.log_softmax(head_ND, dim=-1).div(2).exp()
    return F.normalize(head_ND, dim=-1)


def as_float(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.float() / 255 if x_BCHW.dtype == torch.uint8 else x_BCHW


def _shifted(x_BCHW: Tensor) -> Iterator[Tensor]:
    """The pictures (B, C, H, W) shifted by each of `SHIFTS`; the border is repeated."""
    height, width = x_BCHW.shape[2:]
    padded = F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate")
    for down, right in SHIFTS:
        yield padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def default_batch_size(encoder: Encoder) -> int:
    """Default batch size of a forward pass: 256 for small networks on small pictures, else 32."""
    fused = [(member.model, member.picture) for member in encoder.members]
    parts = fused or [(encoder.model_settings, encoder.picture)]
    small = all(
        is_own(model.backbone) and picture.channels * math.prod(picture.size) <= SMALL
        for model, picture in parts
    )
    return 256 if small else 32


@torch.inference_mode()
def embed_pixels(
    encoder: Encoder,
    pixels_NCHW: Pixels,
    *,
    batch_size: int | None = None,
    bfloat16: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Embed decoded pictures in inference mode.

    Args:
        encoder: network; its mode is restored.
        pixels_NCHW: uint8 pictures, shape (N, C, H, W), in memory or memory-mapped.
        batch_size: pictures of a forward pass; `default_batch_size` by default.
        bfloat16: whether to autocast the forward pass; embeddings are float32 in either case.
        progress: called with (done, N) after each batch.
    Returns:
        Embeddings, shape (N, D), in the order of `pixels_NCHW`.
    """
    size = default_batch_size(encoder) if batch_size is None else batch_size
    num = len(pixels_NCHW)
    emb_ND = np.zeros((num, encoder.model_settings.embedding), dtype=np.float32)
    device = encoder.device
    autocast = torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
    was_training = encoder.training
    encoder.eval()
    for start in range(0, num, size):
        # A copy: torch does not share read-only memory.
        batch = torch.from_numpy(np.array(pixels_NCHW[start : start + size]))
        with autocast:
            emb_ND[start : start + size] = encoder(batch.to(device)).cpu().numpy()
        if progress is not None:
            progress(min(start + size, num), num)
    encoder.train(was_training)
    return emb_ND


@torch.inference_mode()
def embed_features(encoder: Encoder, features_NF: Tensor) -> NDArray[np.float32]:
    """Embeddings, shape (N, D), of backbone features (N, F), in inference mode."""
    was_training = encoder.training
    encoder.eval()
    emb_ND = encoder.project(features_NF).cpu().numpy()
    encoder.train(was_training)
    return np.asarray(emb_ND, dtype=np.float32)
