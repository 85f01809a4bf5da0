"""Projection heads: features -> embedding."""

from __future__ import annotations

from torch import nn

from twinlens.config import ModelSettings

__all__ = ["make_head"]


def make_head(num_features: int, model: ModelSettings) -> nn.Sequential:
    """Fully connected layers from the features (B, F) to the embedding (B, D), not normalised.

    Each hidden width of `model.head` is followed by ReLU, dropout and batch norm; where
    `model.head_norm` is "between", the last one is not normalised. Without hidden layers it is
    one linear map.
    """
    layers: list[nn.Module] = []
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
