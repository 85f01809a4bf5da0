"""Networks of timm by name, their pretrained weights, and the first stages of a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ConfigError, first_line
from twinlens.model.drawing_start import read_start
from twinlens.model.hub import cached_weights, check_hub, timm_record, weights_in_folder
from twinlens.model.own_backbones import is_own
from twinlens.model.weights import load_weights

__all__ = ["Stage", "Taps", "has_pretrained", "is_pretrained", "last_blocks", "pretrained_picture",
           "stage_precedes", "stage_strides", "stage_widths", "timm_backbone"]  # fmt: skip


class Stage(nn.Module):
    """The first stages of a network; their last feature map, averaged to `model.grid` cells.

    Raises:
        ConfigError: a network without such a stage.
    """

    def __init__(self, network: nn.Module, model: ModelSettings) -> None:
        super().__init__()
        strides = stage_strides(model.backbone)
        assert model.stage is not None
        if model.stage >= len(strides):
            has = f"0 to {len(strides) - 1}" if strides else "none"
            raise ConfigError(
                f"'{model.backbone}' has no stage {model.stage} (it has {has}): set another "
                "model.stage, or leave it unset"
            )
        prune: Any = network.prune_intermediate_layers
        prune([model.stage], prune_norm=True, prune_head=True)
        self.network = network
        self.stage = model.stage
        self.pool = nn.AdaptiveAvgPool2d(model.grid)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalised pictures (B, C, H, W) to features (B, channels x grid x grid)."""
        forward: Any = self.network.forward_intermediates
        (map_BCHW,) = forward(
            x_BCHW, indices=[self.stage], intermediates_only=True, stop_early=True
        )
        features_BF: Tensor = self.pool(map_BCHW).flatten(1)
        return features_BF


class Taps(nn.Module):
    """A whole network, and the features at several places of it by one forward pass.

    Args:
        network: network of timm.
        taps: (stage, grid) of each tap, as `model.stage` and `model.grid`; a stage of None is the
            network's own last features.
    """

    def __init__(self, network: nn.Module, taps: Sequence[tuple[int | None, int]]) -> None:
        super().__init__()
        self.network, self.taps = network, tuple(taps)
        self.stages = sorted({stage for stage, _ in taps if stage is not None})

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Normalised pictures (B, C, H, W) to features (B, F) of each tap."""
        network: Any = self.network
        if not self.stages:
            return tuple(network(x_BCHW) for _ in self.taps[:1]) * len(self.taps)
        last, maps = network.forward_intermediates(x_BCHW, indices=self.stages)
        map_of = dict(zip(self.stages, maps, strict=True))
        return tuple(
            network.forward_head(last)
            if stage is None
            else F.adaptive_avg_pool2d(map_of[stage], grid).flatten(1)
            for stage, grid in self.taps
        )


@cache
def _unbuilt(name: str) -> Any:
    """A network of timm without memory for weights, to read its structure."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=0)


def stage_strides(name: str) -> tuple[int, ...]:
    """Pixels between two cells of the feature map after each stage of a network.

    Empty for networks of `own_backbones`, for those whose maps keep one size, and for those made
    for one size of picture.

    >>> stage_strides("resnet18")
    (2, 4, 8, 16, 32)
    """
    record = timm_record(name)
    if is_own(name) or record is None or record.fixed_input_size:
        return ()
    network = _unbuilt(name)
    stages = getattr(network, "feature_info", None)
    strides = tuple(int(stage["reduction"]) for stage in stages or ())
    can_prune = hasattr(network, "prune_intermediate_layers")
    return strides if can_prune and len(set(strides)) > 1 else ()


def stage_widths(name: str) -> tuple[tuple[int, int], ...]:
    """Stride and channels of the feature map after each stage; empty as `stage_strides`."""
    if not stage_strides(name):
        return ()
    network = _unbuilt(name)
    return tuple((int(stage["reduction"]), int(stage["num_chs"])) for stage in network.feature_info)


def stage_precedes(name: str, stage: int, layer: str) -> bool:
    """Whether the map of a stage is computed before a layer."""
    network = _unbuilt(name)
    order = [module for module, _ in network.named_modules()]
    return order.index(network.feature_info[stage]["module"]) < order.index(layer)


def last_blocks(name: str) -> str:
    """The layer with which the last third of a network's blocks begins; "none" if unknown.

    >>> last_blocks("resnet18"), last_blocks("tf_efficientnet_lite0")
    ('layer4', 'blocks.5')
    """
    network = _unbuilt(name)
    children = dict(network.named_children())
    for group in ("blocks", "stages"):
        if group in children:
            names = [f"{group}.{number}" for number, _ in children[group].named_children()]
            return names[-(-2 * len(names) // 3)]
    layers = [child for child in children if child.startswith("layer") and child[5:].isdigit()]
    return layers[-(-2 * len(layers) // 3)] if layers else "none"


def timm_backbone(model: ModelSettings, picture: PictureSettings, pretrained: bool) -> nn.Module:
    """A network of timm without its classifier.

    Raises:
        ConfigError: timm cannot build it, or its weights are damaged or cannot be downloaded.
    """
    import timm

    file = None
    if pretrained and cached_weights(model.backbone) is None:
        file = weights_in_folder(model.backbone)
        if file is None:
            check_hub(model.backbone)
    by_timm = pretrained and file is None
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": picture.channels}
    has_size = "img_size" in _arguments_of(model.backbone)
    if has_size and file is None:
        arguments["img_size"] = picture.size
    if model.pool != "own":
        arguments["global_pool"] = "" if model.pool == "flatten" else "avg"
    try:
        backbone: nn.Module = timm.create_model(model.backbone, pretrained=by_timm, **arguments)
    except Exception as error:
        # timm and its hub client raise many kinds of error, from unknown tags to no network.
        line = first_line(error).rstrip(".")
        part = "the pretrained weights of" if by_timm else "the network"
        raise ConfigError(
            f"timm could not build {part} '{model.backbone}' for {picture.channels}-channel "
            f"pictures of {picture.size[0]}x{picture.size[1]}: {line}"
            + ("; a local copy can be given with --weights FILE" if by_timm else "")
        ) from error
    if file is not None:
        load_weights(backbone, file)
        if has_size:  # The positions of its weights are those of one size.
            resize: Any = backbone.set_input_size
            resize(img_size=picture.size)
    return backbone


def _arguments_of(name: str) -> frozenset[str]:
    """Arguments of a network's builder: vision transformers need the picture's size."""
    record = timm_record(name)
    return frozenset({"img_size"} if record is not None and record.fixed_input_size else ())


def is_pretrained(model: ModelSettings) -> bool:
    """Whether a network is one of timm's with weights from elsewhere."""
    return not is_own(model.backbone) and (model.pretrained or model.weights is not None)


def has_pretrained(name: str) -> bool:
    """Whether timm has pretrained weights for a network.

    >>> has_pretrained("resnet50"), has_pretrained("conv")
    (True, False)
    """
    record = timm_record(name)
    return record is not None and bool(record.has_weights)


def pretrained_picture(model: ModelSettings) -> dict[str, Any] | None:
    """The pictures that pretrained weights expect: `size` (one side), `mean`, `std`.

    They come from timm's record of the network, also for weights from a file, or are those of the
    start for drawings. None without pretrained weights.

    Raises:
        ConfigError: a damaged start.
    """
    start = None if model.weights is None else read_start(Path(model.weights).parent)
    if start is not None:
        picture = start.picture
        return {"size": picture.size[-1], "mean": picture.mean, "std": picture.std}
    if is_own(model.backbone) or not (model.pretrained or model.weights is not None):
        return None
    record = timm_record(model.backbone)
    if record is None:
        return None
    return {"size": record.input_size[-1], "mean": record.mean, "std": record.std}
