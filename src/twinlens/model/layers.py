"""Layers that several networks share: projection head, pooling, initial weights.

Shapes: B pictures, C channels, H x W map, F features, D dimensions of the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinlens.config import ModelSettings

__all__ = ["Clipped", "HalvingMaxPool", "glorot", "make_head"]


CONSTANT = 1e-3
"""Largest share of the widest feature's standard deviation that counts as constant."""


def make_head(num_features: int, model: ModelSettings) -> nn.Sequential:
    """Fully connected layers from the features (B, F) to the embedding (B, D), not normalised.

    Each hidden layer of `model.head` is followed by ReLU, dropout and batch norm; with
    `model.head_norm` "between" the last one has no batch norm. Without hidden layers the head is
    one linear layer. With `model.clip`, `Clipped` comes first.

    >>> len(make_head(8, ModelSettings(head=(5,), embedding=2)))
    3
    """
    layers: list[nn.Module] = [Clipped(num_features, model.clip)] if model.clip else []
    width = num_features
    for index, hidden in enumerate(model.head):
        layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True)]
        if model.dropout:
            layers.append(nn.Dropout(model.dropout))
        last = index == len(model.head) - 1
        if model.head_norm == "all" or (model.head_norm == "between" and not last):
            layers.append(nn.BatchNorm1d(hidden))
        width = hidden
    if model.dropout and not model.head:
        layers.append(nn.Dropout(model.dropout))
    return nn.Sequential(*layers, nn.Linear(width, model.embedding))


class Clipped(nn.Module):
    """Features (B, F), standardised, and clipped to `limit` standard deviations."""

    mean: Tensor
    scale: Tensor

    def __init__(self, num_features: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    @torch.no_grad()
    def measure(self, features_NF: Tensor) -> None:
        """Take mean and standard deviation from the training pictures; constant features: 0."""
        std_F, mean_F = torch.std_mean(features_NF.double(), 0, correction=0)
        self.mean.copy_(mean_F)
        constant_F = std_F <= CONSTANT * std_F.max()
        self.scale.copy_((1 / std_F).masked_fill(constant_F, 0))

    def forward(self, features_BF: Tensor) -> Tensor:
        """The features (B, F) in [-limit, limit]."""
        return ((features_BF - self.mean) * self.scale).clamp(-self.limit, self.limit)


class HalvingMaxPool(nn.MaxPool2d):
    """`nn.MaxPool2d(2)`, faster on a CPU without a gradient; an odd last row or column is dropped.

    torch also records the position of each maximum, which only a gradient needs: on two cores
    23.5 ms instead of 3.1 ms for 256 x 32 x 28 x 28 (benchmarks/NOTES.md).
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The pooled map (B, C, H // 2, W // 2)."""
        is_slow = x_BCHW.device.type == "cpu" and not x_BCHW.requires_grad
        if not is_slow or torch.compiler.is_exporting():
            pooled: Tensor = super().forward(x_BCHW)
            return pooled
        height, width = x_BCHW.shape[2] // 2 * 2, x_BCHW.shape[3] // 2 * 2
        rows = torch.maximum(x_BCHW[:, :, 0:height:2, :width], x_BCHW[:, :, 1:height:2, :width])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def glorot(layer: nn.Module) -> None:
    """Initialise convolutions and linear layers as Keras does: Glorot 2010, uniform; biases 0.

    For `module.apply(glorot)`; other layers stay as they are.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
