"""What the weights of a layer begin with, where it is not what torch does by itself."""

from __future__ import annotations

from torch import nn

__all__ = ["glorot"]


def glorot(layer: nn.Module) -> None:
    """Weights as Keras begins with them (Glorot 2010): uniform, by both widths; biases 0.

    For `module.apply(glorot)`. Layers other than convolutions and linear ones stay as they are.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
