"""Several networks and descriptors as one encoder, whose distance is a weighted sum of theirs.

A member maps features to an embedding of length 1. The fused embedding is all of these in a row,
each times the root of its weight. The weights sum to 1, so the fused embedding has length 1 too,
and its cosine distance is the weighted sum of the members' cosine distances. A fused model
therefore serves galleries, graphs and calibration as any other does.

Shapes: B pictures, C channels, H x W pixels, F features of all members, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from twinlens.config import SHIFTS, Member, ModelSettings, PictureSettings
from twinlens.errors import ConfigError, first_line
from twinlens.model.backbones import feature_widths, make_backbone
from twinlens.model.descriptors import Resize
from twinlens.model.encoder import Encoder, as_float, of_views, unit_length
from twinlens.model.layers import make_head
from twinlens.model.own_backbones import is_own
from twinlens.model.tensor_file import TensorLayout
from twinlens.model.timm_backbones import Taps
from twinlens.model.weights import layout_of

__all__ = ["FusedEncoder", "encoder_layout", "fused_settings", "make_encoder", "network_key"]

MAX_NUMBERS = 2**31
"""Weights of the largest encoder: 8 GiB in float32, and four times as much in training."""

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns colours into grey levels


def fused_settings(members: Sequence[Member], *, mirrored: bool = False) -> ModelSettings:
    """The settings of the model that joins some members; a shift is seen by those that ask for it.

    Args:
        members: the members.
        mirrored: whether each is averaged over pictures and their mirror images.
    """
    dim = sum(member.model.embedding for member in members)
    shifts = any(member.model.shifts for member in members)
    return ModelSettings(backbone="fused", embedding=dim, shifts=shifts, mirrored=mirrored)


def network_key(member: Member) -> tuple[str, str]:
    """Members with the same key take features of one network, at different stages.

    A network of timm is held once, or twice if it is tuned in one of them only.
    """
    model = member.model
    if is_own(model.backbone):
        return f"{model.backbone} {model.model_dump_json()}", member.picture.model_dump_json()
    return f"{model.backbone} {model.freeze}", member.picture.model_dump_json()


class _Input(nn.Module):
    """Pictures of the fused model, float in [0, 1], as a member's network takes them."""

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, own: PictureSettings, whole: PictureSettings) -> None:
        super().__init__()
        self.resize = None if own.size == whole.size else Resize(whole.size, own.size)
        self.to_grey = own.channels < whole.channels
        self.to_color = own.channels > whole.channels
        for name, numbers in (("mean", own.mean), ("std", own.std), ("luma", LUMA)):
            self.register_buffer(name, torch.tensor(numbers).view(1, -1, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.to_grey:
            x_BCHW = (x_BCHW * self.luma).sum(1, keepdim=True)
        if self.resize is not None:
            x_BCHW = self.resize(x_BCHW)
        if self.to_color:
            x_BCHW = x_BCHW.expand(-1, 3, -1, -1)
        return (x_BCHW - self.mean) / self.std


class FusedEncoder(Encoder):
    """An encoder of several members; it is put together, not trained.

    Args:
        model: `fused_settings` of the members.
        picture: pictures that those of every member are made of.
        members: the members, in the order of their embeddings.
        load: whether to load pretrained weights.
    """

    scale: Tensor

    def __init__(
        self,
        model: ModelSettings,
        picture: PictureSettings,
        members: Sequence[Member],
        *,
        load: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.model_settings, self.picture, self.members = model, picture, tuple(members)
        self._frozen: list[nn.Module] = []
        keys = list(dict.fromkeys(map(network_key, members)))
        self._network_of = [keys.index(network_key(member)) for member in members]
        networks = nn.ModuleList()
        self.inputs, self.backbone, self.heads = nn.ModuleList(), networks, nn.ModuleList()
        self._tap_of = [0] * len(members)
        widths = [0] * len(members)
        for index in range(len(keys)):
            of_network = self._members_of(index)
            first = members[of_network[0]]
            self.inputs.append(_Input(first.picture, picture))
            network = _network([members[i] for i in of_network], load)
            networks.append(network)
            for tap, (number, width) in enumerate(
                zip(of_network, feature_widths(network, first.picture), strict=True)
            ):
                self._tap_of[number], widths[number] = tap, width
        self.widths = widths
        self.num_features = sum(widths)
        for member, width in zip(members, widths, strict=True):
            self.heads.append(make_head(width, member.model))
        total = sum(member.weight for member in members)
        scales = [math.sqrt(member.weight / total) for member in members]
        # A buffer, so that graphs of other weights of the same members differ in it alone.
        self.register_buffer("scale", torch.tensor(scales), persistent=False)
        # `device` reads it.
        self.register_buffer("mean", torch.zeros(1), persistent=False)

    @property
    def networks(self) -> nn.ModuleList:
        """The backbone: the distinct networks of all members."""
        return cast(nn.ModuleList, self.backbone)

    def network_of(self, number: int) -> nn.Module:
        """The network of member `number`, without its taps."""
        network = self.networks[self._network_of[number]]
        return network.network if isinstance(network, Taps) else network

    def take_over(self, number: int, encoder: Encoder) -> None:
        """Load the network and the head of a trained encoder as member `number`."""
        self.network_of(number).load_state_dict(encoder.backbone.state_dict())
        self.heads[number].load_state_dict(encoder.head.state_dict())

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The features (B, F) of all members in a row."""
        x_BCHW, parts = as_float(x_BCHW), dict[int, Tensor]()
        for index in range(len(self.networks)):
            parts |= self._split(index, self._features(index, x_BCHW))
        return torch.cat([parts[number] for number in range(len(self.members))], 1)

    def embed(self, x_BCHW: Tensor, *, at_once: bool = False) -> Tensor:
        """The embeddings (B, D); each member's own one is averaged over the views that it sees."""
        views = self.views(as_float(x_BCHW))
        plain = views[:: len(SHIFTS)] if len(views) >= len(SHIFTS) else views
        embeddings = {}
        for index in range(len(self.networks)):
            numbers = self._members_of(index)
            is_shifted = any(self.members[number].model.shifts for number in numbers)
            seen = views if is_shifted else plain
            rows = of_views(partial(self._features, index), seen, at_once)
            parts = [self._split(index, features) for features in rows]
            for number in numbers:
                own = self.average([self._own(number, part[number]) for part in parts])
                embeddings[number] = own * self.scale[number]
        return torch.cat([embeddings[number] for number in range(len(self.members))], 1)

    def _members_of(self, index: int) -> list[int]:
        """Numbers of the members that take features of a network."""
        return [number for number, own in enumerate(self._network_of) if own == index]

    def _features(self, index: int, x_BCHW: Tensor) -> Tensor:
        """The features (B, F) of a network's members in a row, of pictures in [0, 1]."""
        features = self.networks[index](self.inputs[index](x_BCHW))
        taps = features if isinstance(features, tuple) else (features,)
        return torch.cat([taps[self._tap_of[n]].flatten(1) for n in self._members_of(index)], 1)

    def _split(self, index: int, features_BF: Tensor) -> dict[int, Tensor]:
        """The features of each member of a network, by its number."""
        numbers = self._members_of(index)
        widths = [self.widths[number] for number in numbers]
        return dict(zip(numbers, torch.split(features_BF, widths, dim=1), strict=True))

    def _own(self, number: int, features_BF: Tensor) -> Tensor:
        """The embedding (B, D) of length 1 of a member's features."""
        classes = self.members[number].model.classes
        return unit_length(self.heads[number](features_BF).float(), classes=classes)

    def project(self, features_BF: Tensor) -> Tensor:
        """The embedding (B, D), of length 1."""
        parts = torch.split(features_BF, self.widths, dim=1)
        return torch.cat([self._own(n, part) * self.scale[n] for n, part in enumerate(parts)], 1)


def _network(members: Sequence[Member], load: bool) -> nn.Module:
    """The network that some members share."""
    first = members[0]
    if is_own(first.model.backbone):
        if len(members) > 1:
            raise ConfigError(f"two members are the same network: '{first.model.backbone}'")
        return make_backbone(first.model, first.picture, load)
    whole = first.model.model_copy(update={"stage": None})
    network = make_backbone(whole, first.picture, load)
    return Taps(network, [(member.model.stage, member.model.grid) for member in members])


def make_encoder(
    model: ModelSettings,
    picture: PictureSettings,
    members: Sequence[Member] = (),
    *,
    load: bool = True,
) -> Encoder:
    """The encoder of a model: of one network, or fused of several members."""
    if members:
        return FusedEncoder(model, picture, members, load=load)
    return Encoder(model, picture, load=load)


def encoder_layout(
    model: ModelSettings, picture: PictureSettings, members: Sequence[Member] = ()
) -> dict[str, TensorLayout]:
    """The layout of an encoder's tensors, by name, without memory for them.

    Raises:
        ConfigError: no such network, one that cannot take such pictures, or one that is too large.
    """
    try:
        with torch.device("meta"):
            layout = layout_of(make_encoder(model, picture, members, load=False).state_dict())
    except RuntimeError as error:  # A size beyond 64 bits.
        raise ConfigError(f"the network cannot be built: {first_line(error)}") from error
    num = sum(math.prod(tensor.shape) for tensor in layout.values())
    if num > MAX_NUMBERS:
        raise ConfigError(
            f"the network would have {num:,} numbers, at most {MAX_NUMBERS:,}: set smaller "
            "model.channels, model.head or picture.size, or another model.backbone"
        )
    return layout
