"""Networks for small pictures: convolutions, residual, fully connected, SigNet's, strokes.

Each is built from the settings `picture` and `model`. It takes normalised float pictures
(B, C, H, W) and gives features (B, F).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.model.descriptors import DESCRIPTORS
from twinlens.model.layers import HalvingMaxPool
from twinlens.model.strokes import grey_features

__all__ = ["OWN_BACKBONES", "Strokes", "conv", "is_own", "mlp", "residual", "signet"]


def conv(picture: PictureSettings, model: ModelSettings) -> nn.Sequential:
    """Blocks of convolution, batch norm, ReLU, 2x2 max pooling, flattened or averaged.

    The network of Koch 2015 and of prototypical networks (Snell 2017, section 3.1), with the widths
    `channels`; with 2x2 kernels, dropout and no batch norm, that of many tutorials. A block pools
    only with `max_pool`, and if both sides have at least two pixels. Further `convolutions` of a
    block follow on the pooled map, as in Jordan 2024 (arXiv 2404.00498), where they cost a quarter.
    """
    blocks: list[nn.Module] = []
    width, (height, length) = picture.channels, picture.size
    for channel in model.channels:
        layers = [*_same(width, channel, model.kernel, bias=not model.batch_norm)]
        pools = model.max_pool and min(height, length) >= 2
        # Max pooling and ReLU commute; in this order ReLU has a quarter of the work.
        norm_and_pool: list[nn.Module] = [nn.BatchNorm2d(channel)] if model.batch_norm else []
        if pools:
            norm_and_pool.append(HalvingMaxPool())
            height, length = height // 2, length // 2
        if model.convolutions > 1:
            norm_and_pool.reverse()  # So has batch norm; models of one convolution stay the same.
        layers += [*norm_and_pool, _relu(model.leak)]
        for _ in range(model.convolutions - 1):
            layers += _same(channel, channel, model.kernel, bias=not model.batch_norm)
            layers += [nn.BatchNorm2d(channel)] if model.batch_norm else []
            layers.append(_relu(model.leak))
        if model.block_dropout:
            layers.append(nn.Dropout(model.block_dropout))
        blocks.append(nn.Sequential(*layers))
        width = channel
    # Without max pooling the last map is as large as the picture: flat, it would need gigabytes.
    own = "flatten" if model.max_pool else "average"
    return nn.Sequential(*blocks, *_pooling(model.pool, own), nn.Flatten())


def _same(width: int, channel: int, kernel: int, *, bias: bool) -> list[nn.Module]:
    """A convolution that keeps the size; an even kernel pads more below and to the right."""
    if kernel % 2:
        return [nn.Conv2d(width, channel, kernel, padding=kernel // 2, bias=bias)]
    before, after = (kernel - 1) // 2, kernel // 2
    return [
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(width, channel, kernel, bias=bias),
    ]


def _relu(leak: float) -> nn.Module:
    return nn.LeakyReLU(leak, inplace=True) if leak else nn.ReLU(inplace=True)


def _pooling(pool: str, own: str) -> list[nn.Module]:
    """Layers before flattening for `model.pool`; "own" stands for the network's default."""
    pool = own if pool == "own" else pool
    return [nn.AdaptiveAvgPool2d(1)] if pool == "average" else []


def mlp(picture: PictureSettings, model: ModelSettings) -> nn.Sequential:
    """Fully connected layers with ReLU on the flattened picture, with the widths `channels`."""
    width = picture.channels * picture.size[0] * picture.size[1]
    layers: list[nn.Module] = [nn.Flatten()]
    for channel in model.channels:
        layers += [nn.Linear(width, channel), _relu(model.leak)]
        width = channel
    return nn.Sequential(*layers)


def residual(picture: PictureSettings, model: ModelSettings) -> nn.Sequential:
    """A small residual network with a 3x3 stem, as in He 2016 (section 4.2) for CIFAR-10.

    One stage of two basic blocks for each width; every stage but the first halves the map; global
    average pooling. With `attention` "eca" each stage ends in efficient channel attention
    (Wang 2020, arXiv 1910.03151).
    """
    from timm.layers import EcaModule

    width = model.channels[0]
    stem = nn.Sequential(
        nn.Conv2d(picture.channels, width, 3, model.stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        _relu(model.leak),
    )
    stages: list[nn.Module] = [stem]
    for index, channel in enumerate(model.channels):
        blocks = [
            _block(width, channel, 1 if index == 0 else 2, model.leak),
            _block(channel, channel, 1, model.leak),
        ]
        if model.attention == "eca":
            blocks.append(EcaModule(channel))
        stages.append(nn.Sequential(*blocks))
        width = channel
    return nn.Sequential(*stages, *_pooling(model.pool, "average"), nn.Flatten())


def _block(width: int, channel: int, stride: int, leak: float) -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or width != channel:
        shortcut = nn.Sequential(
            nn.Conv2d(width, channel, 1, stride, bias=False), nn.BatchNorm2d(channel)
        )
    block: nn.Module = BasicBlock(width, channel, stride, shortcut)
    block.relu = _relu(leak)
    return block


def signet(picture: PictureSettings, model: ModelSettings) -> nn.Sequential:
    """The convolutions of SigNet (Dey 2017, arXiv 1707.02131, table 1), flattened.

    Its fully connected layers are the head. The first convolution has stride 1 in the table and 4
    in the code that its authors published; `stride` sets it.
    """

    def normalised() -> nn.Module:
        # The paper's alpha is Krizhevsky's 1e-4; torch divides alpha by the size of 5.
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)

    return nn.Sequential(
        nn.Conv2d(picture.channels, 96, 11, model.stride), nn.ReLU(inplace=True), normalised(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(inplace=True), normalised(),
        nn.MaxPool2d(3, 2), nn.Dropout(0.3),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2), nn.Dropout(0.3),
        *_pooling(model.pool, "flatten"),
        nn.Flatten(),
    )  # fmt: skip


class Strokes(nn.Module):
    """Normalised pictures (B, 1 or 3, H, W) to measures of their strokes (B, F), without weights.

    Each picture is measured by itself, by `model.strokes`, on the CPU and without a gradient.
    """

    def __init__(self, picture: PictureSettings, model: ModelSettings) -> None:
        super().__init__()
        self.picture, self.pressure = picture, model.pressure

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The measures (B, F), float32."""
        mean, std = (
            np.array(numbers, dtype=np.float32)[:, None, None]
            for numbers in (self.picture.mean, self.picture.std)
        )
        pictures = x_BCHW.detach().float().cpu().numpy()
        grey_BHW = ((x_CHW * std + mean).mean(0) for x_CHW in pictures)
        features_BF = np.stack(
            [grey_features(grey_HW, self.picture, self.pressure) for grey_HW in grey_BHW]
        )
        return torch.from_numpy(features_BF).to(x_BCHW.device)


OWN_BACKBONES = {
    "conv": conv, "mlp": mlp, "residual": residual, "signet": signet, "strokes": Strokes,
    **DESCRIPTORS,
}  # fmt: skip


def is_own(name: str) -> bool:
    """Whether a backbone is one of this module, or several in one, rather than timm's."""
    return name in OWN_BACKBONES or name == "fused"
