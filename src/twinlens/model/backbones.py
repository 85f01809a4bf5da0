"""A backbone by name, and its frozen layers.

A backbone takes normalised float pictures (B, C, H, W) and gives features (B, F). Names are those
of `own_backbones`, of timm, and of modules that a program passes (`plugged_in`).
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ConfigError, first_line, unknown_name
from twinlens.model.own_backbones import OWN_BACKBONES, Strokes, is_own
from twinlens.model.plugged_in import is_plugged_in, plugged, plugged_backbone, plugged_width
from twinlens.model.strokes import MEASURE_STD
from twinlens.model.timm_backbones import Stage, timm_backbone
from twinlens.model.weights import load_weights

__all__ = ["check_backbone", "feature_widths", "freeze_before", "make_backbone", "num_features"]

FEW_NUMBERS = 1 << 23
"""Weights and pixels of a network for which a pass on zeros takes milliseconds."""
WIDEST = 64  # numbers of a feature map for each number of a picture, about


def check_backbone(name: str) -> None:
    """Refuse an unknown name of a backbone before any work is done.

    Raises:
        ConfigError: the message lists similar names.
    """
    if is_own(name):
        return
    if is_plugged_in(name):
        plugged("backbone", name)
        return
    import timm

    if not timm.is_model(name.partition(".")[0]):
        message = unknown_name("backbone", name, [*OWN_BACKBONES, *timm.list_models()])
        if "did you mean" not in message:
            own = unknown_name("backbone", name, OWN_BACKBONES)
            message = f"{own}, or from timm's networks, such as resnet18"
        raise ConfigError(message)


def make_backbone(model: ModelSettings, picture: PictureSettings, load: bool = True) -> nn.Module:
    """Build a backbone, with pretrained weights if the settings name any.

    Args:
        model: settings of the network; `freeze` and `init` are applied elsewhere.
        picture: size and channels of the pictures.
        load: whether to load weights; a stored model brings its own.
    Raises:
        ConfigError: an unknown name, weights that do not fit, or a failed download.
    """
    if is_plugged_in(model.backbone):
        return plugged_backbone(model)
    if is_own(model.backbone):
        if model.backbone not in OWN_BACKBONES:
            raise ConfigError("'fused' is made by `auto` of several networks, not trained itself")
        if model.pretrained:
            raise ConfigError(
                f"there are no pretrained weights for '{model.backbone}': set "
                "model.pretrained=false, or name a network of timm with --backbone"
            )
        backbone: nn.Module = OWN_BACKBONES[model.backbone](picture, model)
    else:
        check_backbone(model.backbone)
        pretrained = load and model.pretrained and model.weights is None
        backbone = timm_backbone(model, picture, pretrained)
    if load and model.weights is not None:
        load_weights(backbone, Path(model.weights))
    return backbone if model.stage is None else Stage(backbone, model)


def freeze_before(backbone: nn.Module, layer: str) -> list[nn.Module]:
    """Freeze the parameters before `layer`.

    Args:
        backbone: network whose modules are defined in the order of the forward pass, as timm's are.
        layer: "none", "all", or the name of a module, as in `named_modules()`.
    Returns:
        The modules that are frozen as a whole. They must stay in inference mode, since `train()`
        would change the statistics of their batch norms.
    Raises:
        ConfigError: no layer of that name.
    """
    if layer == "none":
        return []
    if isinstance(backbone, Stage):
        backbone = backbone.network
    names = [name for name, _ in backbone.named_modules() if name]
    if layer != "all" and layer not in names:
        raise ConfigError(unknown_name("layer of the backbone", layer, names))
    frozen = []
    for name, module in backbone.named_modules():
        if name == layer:
            break
        # A module with children may have parameters of its own: class tokens, positions.
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        holds_layer = layer != "all" and (not name or layer.startswith(f"{name}."))
        if not holds_layer:
            frozen.append(module)
    return frozen


def num_features(backbone: nn.Module, picture: PictureSettings, name: str = "") -> int:
    """The number of features F of a backbone for pictures of some size; as `feature_widths`."""
    if isinstance(backbone, Strokes):
        return len(MEASURE_STD)
    if is_plugged_in(name):
        return plugged_width(backbone, picture, name)
    (width,) = feature_widths(backbone, picture)
    return width


@torch.no_grad()
def feature_widths(backbone: nn.Module, picture: PictureSettings) -> list[int]:
    """The number of features at each tap of a backbone, for pictures of some size.

    Raises:
        ConfigError: the network cannot take pictures of this size.
    """
    backbone.eval()
    tensors = dict(chain(backbone.named_parameters(), backbone.named_buffers()))
    # On "meta" a pass takes no memory, whatever the size; but the first imports half of torch.
    numbers = picture.channels * math.prod(picture.size) * WIDEST
    numbers += sum(tensor.numel() for tensor in tensors.values())
    device = "cpu" if numbers <= FEW_NUMBERS else "meta"
    unbuilt = {name: torch.zeros_like(tensor, device=device) for name, tensor in tensors.items()}
    x_BCHW = torch.zeros(1, picture.channels, *picture.size, device=device)
    try:
        with torch.device(device):
            features = functional_call(backbone, unbuilt, x_BCHW)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"the network cannot take {picture.channels}-channel pictures of "
            f"{picture.size[0]}x{picture.size[1]} ({first_line(error)}): set another picture.size"
        ) from error
    backbone.train()
    taps = features if isinstance(features, tuple) else (features,)
    return [int(tap.flatten(1).shape[1]) for tap in taps]
