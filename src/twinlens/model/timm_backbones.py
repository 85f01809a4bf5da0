"""Networks of timm by name, their pretrained weights, and the first stages of a network."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ConfigError, first_line
from twinlens.model.own_backbones import is_own

__all__ = ["Stage", "has_pretrained", "pretrained_picture", "stage_strides", "timm_backbone"]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # weights in a repository of the hub
HUB_SECONDS = 10


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


def stage_strides(name: str) -> tuple[int, ...]:
    """Pixels between two cells of the feature map after each stage of a network.

    Empty for networks of `own_backbones`, for those whose maps keep one size, and for those made
    for one size of picture.

    >>> stage_strides("resnet18")
    (2, 4, 8, 16, 32)
    """
    import timm

    record = _record(name)
    if is_own(name) or record is None or record.fixed_input_size:
        return ()
    with torch.device("meta"):  # Without memory for weights.
        network = timm.create_model(name, pretrained=False, num_classes=0)
    stages = getattr(network, "feature_info", None)
    strides = tuple(int(stage["reduction"]) for stage in stages or ())
    can_prune = hasattr(network, "prune_intermediate_layers")
    return strides if can_prune and len(set(strides)) > 1 else ()


def timm_backbone(model: ModelSettings, picture: PictureSettings, pretrained: bool) -> nn.Module:
    """A network of timm without its classifier.

    Raises:
        ConfigError: timm cannot build it, or its weights cannot be downloaded.
    """
    import timm

    if pretrained:
        _check_hub(model.backbone)
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": picture.channels}
    if "img_size" in _arguments_of(model.backbone):
        arguments["img_size"] = picture.size
    if model.pool != "own":
        arguments["global_pool"] = "" if model.pool == "flatten" else "avg"
    try:
        backbone: nn.Module = timm.create_model(model.backbone, pretrained=pretrained, **arguments)
    except Exception as error:
        # timm and its hub client raise many kinds of error, from unknown tags to no network.
        line = first_line(error).rstrip(".")
        part = "the pretrained weights of" if pretrained else "the network"
        raise ConfigError(
            f"timm could not build {part} '{model.backbone}' for {picture.channels}-channel "
            f"pictures of {picture.size[0]}x{picture.size[1]}: {line}"
            + ("; a local copy can be given with --weights FILE" if pretrained else "")
        ) from error
    return backbone


def _check_hub(name: str) -> None:
    """Fail fast if weights must be downloaded and their host cannot be reached.

    The hub's client tries each of several files five times, which takes minutes.

    Raises:
        ConfigError: the weights are not cached, and their host does not answer.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    record = _record(name)
    if record is None or not record.hf_hub_id or record.file:
        return
    cached = (try_to_load_from_cache(record.hf_hub_id, file) for file in HUB_FILES)
    if any(isinstance(path, str) for path in cached):
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return  # The host answers; timm reports its errors.
    except OSError as error:
        raise ConfigError(
            f"the pretrained weights of '{name}' cannot be downloaded ({error}): give a local copy "
            "with --weights FILE (and its network with --backbone), or begin with random weights: "
            "--set model.pretrained=false"
        ) from error


def _arguments_of(name: str) -> frozenset[str]:
    """Arguments of a network's builder: vision transformers need the picture's size."""
    record = _record(name)
    return frozenset({"img_size"} if record is not None and record.fixed_input_size else ())


def _record(name: str) -> Any:
    """timm's record of a network and its weights; None for an unknown name or tag."""
    import timm

    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        return None


def has_pretrained(name: str) -> bool:
    """Whether timm has pretrained weights for a network.

    >>> has_pretrained("resnet50"), has_pretrained("conv")
    (True, False)
    """
    record = _record(name)
    return record is not None and bool(record.has_weights)


def pretrained_picture(model: ModelSettings) -> dict[str, Any] | None:
    """The pictures that pretrained weights expect: `size` (one side), `mean`, `std`.

    They come from timm's record of the network, also for weights from a file. None without
    pretrained weights.
    """
    if is_own(model.backbone) or not (model.pretrained or model.weights is not None):
        return None
    record = _record(model.backbone)
    if record is None:
        return None
    return {"size": record.input_size[-1], "mean": record.mean, "std": record.std}
