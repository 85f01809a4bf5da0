"""Networks from pictures to features: any of timm's by name, and our own for small pictures.

A backbone takes normalised float pictures (B, C, H, W) and gives features (B, F); it knows nothing
of embeddings, losses or files other than its own pretrained weights.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ConfigError, unknown_name
from twinlens.model.layers import HalvingMaxPool
from twinlens.model.strokes import Strokes

__all__ = [
    "OWN_BACKBONES",
    "check_backbone",
    "freeze_before",
    "has_pretrained",
    "is_own",
    "make_backbone",
    "num_features",
    "pretrained_picture",
    "stage_strides",
]


HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Where timm looks for weights in their repository."""

HUB_SECONDS = 10


def conv(picture: PictureSettings, model: ModelSettings) -> nn.Sequential:
    """Blocks of convolution, batch norm, ReLU, 2x2 max pooling, flattened or averaged.

    The network of Koch 2015 and of prototypical networks (Snell 2017, section 3.1) in the widths
    `channels`; with 2x2 kernels, dropout and no batch norm, that of many tutorials. A block pools
    only while both sides have two pixels to give.
    """
    blocks: list[nn.Module] = []
    width, (height, length) = picture.channels, picture.size
    for channel in model.channels:
        layers = [*_same(width, channel, model.kernel, bias=not model.batch_norm)]
        if model.batch_norm:
            layers.append(nn.BatchNorm2d(channel))
        if min(height, length) >= 2:
            # The largest of four and ReLU come to the same in either order; so ReLU has less to do.
            layers.append(HalvingMaxPool())
            height, length = height // 2, length // 2
        layers.append(_relu(model.leak))
        if model.block_dropout:
            layers.append(nn.Dropout(model.block_dropout))
        blocks.append(nn.Sequential(*layers))
        width = channel
    return nn.Sequential(*blocks, *_pooling(model.pool, "flatten"), nn.Flatten())


def _same(width: int, channel: int, kernel: int, *, bias: bool) -> list[nn.Module]:
    """A convolution that keeps the picture's size; an even kernel has its larger half below."""
    if kernel % 2:
        return [nn.Conv2d(width, channel, kernel, padding=kernel // 2, bias=bias)]
    before, after = (kernel - 1) // 2, kernel // 2
    return [
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(width, channel, kernel, bias=bias),
    ]


def _relu(leak: float) -> nn.Module:
    return nn.LeakyReLU(leak, inplace=True) if leak else nn.ReLU(inplace=True)


def _pooling(wanted: str, own: str) -> list[nn.Module]:
    """What comes before flattening, where "own" is what the network does by itself."""
    way = own if wanted == "own" else wanted
    return [nn.AdaptiveAvgPool2d(1)] if way == "average" else []


def mlp(picture: PictureSettings, model: ModelSettings) -> nn.Sequential:
    """The picture as one vector, then fully connected layers with ReLU in the widths `channels`."""
    width = picture.channels * picture.size[0] * picture.size[1]
    layers: list[nn.Module] = [nn.Flatten()]
    for channel in model.channels:
        layers += [nn.Linear(width, channel), _relu(model.leak)]
        width = channel
    return nn.Sequential(*layers)


def residual(picture: PictureSettings, model: ModelSettings) -> nn.Sequential:
    """A small residual network without the big stem, as He 2016 (section 4.2) used on CIFAR-10.

    One stage of two basic blocks for each width; every stage but the first halves the picture;
    global average pooling. With `attention` "eca" each stage ends in efficient channel attention
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

    Their fully connected layers are the head. The first convolution has stride 1 in the table
    and 4 in the code that its authors published; `stride` says which.
    """

    def normalised() -> nn.Module:
        # The paper's alpha of 1e-4 is Krizhevsky's, not divided by the size, as torch's is.
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


OWN_BACKBONES = {
    "conv": conv, "mlp": mlp, "residual": residual, "signet": signet, "strokes": Strokes,
}  # fmt: skip


def is_own(name: str) -> bool:
    """Whether a backbone is one of ours rather than timm's."""
    return name in OWN_BACKBONES


def check_backbone(name: str) -> None:
    """Refuse a name that neither we nor timm know, before any work is done.

    Raises:
        ConfigError: with the near names.
    """
    if is_own(name):
        return
    import timm

    if not timm.is_model(name.partition(".")[0]):
        names = [*OWN_BACKBONES, *timm.list_models()]
        raise ConfigError(unknown_name("backbone", name, names))


def make_backbone(model: ModelSettings, picture: PictureSettings, load: bool = True) -> nn.Module:
    """Build a backbone, with its pretrained weights if the settings name any.

    Args:
        model: what builds the network, `pretrained` and `weights` are read; `freeze` and `init` are
            for later.
        picture: the size and the channels that the network will get.
        load: False leaves the weights random, for a bundle that brings its own.
    Raises:
        ConfigError: an unknown name, weights that do not fit, or a download that failed.
    """
    if is_own(model.backbone):
        if model.pretrained:
            raise ConfigError(
                f"there are no pretrained weights for our own '{model.backbone}': "
                "set model.pretrained=false, or name one of timm's networks"
            )
        backbone: nn.Module = OWN_BACKBONES[model.backbone](picture, model)
    else:
        wanted = load and model.pretrained and model.weights is None
        backbone = _timm_backbone(model, picture, pretrained=wanted)
    if load and model.weights is not None:
        load_weights(backbone, Path(model.weights))
    return backbone if model.stage is None else Stage(backbone, model)


class Stage(nn.Module):
    """The first stages of one of timm's networks; their last map, averaged to a grid of cells.

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
                "model.stage, or leave it out"
            )
        prune: Any = network.prune_intermediate_layers
        prune([model.stage], prune_norm=True, prune_head=True)
        self.network = network
        self.stage = model.stage
        self.pool = nn.AdaptiveAvgPool2d(model.grid)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalised pictures (B, C, H, W) to features (B, channels x grid x grid)."""
        look: Any = self.network.forward_intermediates
        (map_BCHW,) = look(x_BCHW, indices=[self.stage], intermediates_only=True, stop_early=True)
        features_BF: Tensor = self.pool(map_BCHW).flatten(1)
        return features_BF


def stage_strides(name: str) -> tuple[int, ...]:
    """How many pixels lie between two places of the map after each stage of a network of timm's.

    Empty for networks without maps that get coarser, or made for one size of picture, and for ours.
    """
    import timm

    record = _record(name)
    if is_own(name) or record is None or record.fixed_input_size:
        return ()
    with torch.device("meta"):  # No weights are needed to ask.
        network = timm.create_model(name, pretrained=False, num_classes=0)
    known = getattr(network, "feature_info", None)
    strides = tuple(int(stage["reduction"]) for stage in known or ())
    prunes = hasattr(network, "prune_intermediate_layers")
    return strides if prunes and len(set(strides)) > 1 else ()


def _timm_backbone(model: ModelSettings, picture: PictureSettings, pretrained: bool) -> nn.Module:
    import timm

    check_backbone(model.backbone)
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
        # timm and its hub client raise many kinds, from "no such tag" to "no network".
        line = _first_line(error).rstrip(".")
        what = "the pretrained weights of" if pretrained else "the network"
        raise ConfigError(
            f"timm could not build {what} '{model.backbone}' for {picture.channels}-channel "
            f"pictures of {picture.size[0]}x{picture.size[1]}: {line}"
            + ("; a local copy can be given with --weights FILE" if pretrained else "")
        ) from error
    return backbone


def _check_hub(name: str) -> None:
    """Refuse at once to download weights where there is no way to their host.

    The hub's own client tries each of several files five times, which takes minutes.

    Raises:
        ConfigError: the weights are not in the cache, and their host does not answer.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    record = _record(name)
    if record is None or not record.hf_hub_id or record.file:
        return
    cached = (try_to_load_from_cache(record.hf_hub_id, file) for file in HUB_FILES)
    if any(isinstance(found, str) for found in cached):
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return  # It answers; what it has to say of the weights, timm will hear.
    except OSError as error:
        raise ConfigError(
            f"the pretrained weights of '{name}' cannot be downloaded ({error}): give a local copy "
            "with --weights FILE, another network that you have weights of with --backbone too, or "
            "begin with random weights by --set model.pretrained=false"
        ) from error


def _arguments_of(name: str) -> frozenset[str]:
    """Vision transformers need to know the picture's size when they are built."""
    record = _record(name)
    return frozenset({"img_size"} if record is not None and record.fixed_input_size else ())


def _record(name: str) -> Any:
    """What timm knows of a network and its weights; None for a name or a tag that it lacks."""
    import timm

    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        return None


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load a local .safetensors or .pth file into a backbone; a classifier's weights are left out.

    Raises:
        ConfigError: no such file, not weights, or weights of another network.
    """
    if not any(True for _ in backbone.parameters()):
        raise ConfigError(
            f"found weights {path} for a backbone that has none to load: leave --weights out, or "
            "name another network with --backbone"
        )
    if not path.is_file():
        raise ConfigError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights: Any = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"{path} does not hold weights that can be read: {_first_line(error)}"
        ) from error
    weights = _tensors(weights)
    own = backbone.state_dict()
    # Old files lack the count of batches, which no network of ours reads.
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = sorted(set(needed) - set(weights))
    wrong = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or wrong:
        name = (missing or wrong)[0]
        raise ConfigError(
            f"{path} is of another network: {len(missing)} of {len(own)} tensors are missing and "
            f"{len(wrong)} have another shape, the first of them '{name}'"
        )
    backbone.load_state_dict({name: weights.get(name, own[name]) for name in own})


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors by name of what a weights file held, be it the bare dict or a checkpoint."""
    for inner in ("state_dict", "model"):  # As Lightning and many training scripts save them.
        if isinstance(content, dict) and isinstance(content.get(inner), dict):
            content = content[inner]
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def freeze_before(backbone: nn.Module, layer: str) -> list[nn.Module]:
    """Freeze the parameters before `layer`, and say which modules must stay in inference mode.

    Args:
        backbone: its modules are taken in the order of definition, which is that of the forward
            pass in timm's and in our networks.
        layer: "none", "all", or the name of a module, as in `named_modules()`.
    Returns:
        The modules that are frozen as a whole; they must not see `train()`, since it would move
        the statistics of batch norms among them.
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
        # Some parameters hang on a module that has children too: class tokens, positions.
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        holds_layer = layer != "all" and (not name or layer.startswith(f"{name}."))
        if not holds_layer:
            frozen.append(module)
    return frozen


@torch.no_grad()
def num_features(backbone: nn.Module, picture: PictureSettings) -> int:
    """The number of features F that a backbone gives for one picture.

    Raises:
        ConfigError: the network cannot take pictures of this size.
    """
    backbone.eval()
    try:
        features_BF: Tensor = backbone(torch.zeros(1, picture.channels, *picture.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"the network cannot take {picture.channels}-channel pictures of "
            f"{picture.size[0]}x{picture.size[1]} ({_first_line(error)}): set another picture.size"
        ) from error
    backbone.train()
    return int(features_BF.flatten(1).shape[1])


def has_pretrained(name: str) -> bool:
    """Whether timm knows where to download weights for a network."""
    record = _record(name)
    return record is not None and bool(record.has_weights)


def pretrained_picture(model: ModelSettings) -> dict[str, Any] | None:
    """What pretrained weights expect: `size` (one side), `mean`, `std`; None without any.

    Read from timm's own record of the network, for weights of timm's and for local ones alike.
    """
    if is_own(model.backbone) or not (model.pretrained or model.weights is not None):
        return None
    record = _record(model.backbone)
    if record is None:
        return None
    return {"size": record.input_size[-1], "mean": record.mean, "std": record.std}
