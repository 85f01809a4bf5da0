"""Starts: networks with pretrained weights, the one to begin with on this machine, its licence.

The table holds facts of timm's own records; a test compares them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from twinlens.config import ModelSettings
from twinlens.errors import first_line
from twinlens.model.drawing_start import START_WEIGHTS, drawing_start_folder, read_start
from twinlens.model.hub import (
    cached_weights,
    download_weights,
    hub_problem,
    timm_record,
    weights_in_folder,
)
from twinlens.model.stored import HUB, StartRecord

__all__ = ["FREE", "STARTS", "Pretrained", "Start", "best_start", "describe_start",
           "find_drawing_start", "find_start", "place_of", "ranked_starts"]  # fmt: skip

log = logging.getLogger("twinlens")


class Pretrained(NamedTuple):
    """A network of timm with pretrained weights.

    Attributes:
        name: timm's name, with the tag of the weights.
        licence: as timm records it.
        megabytes: size of the file.
        trained_on: pictures of the pretraining.
        size: side of the pictures that it takes here, in pixels.
        cpu: rank among those for CPUs, lowest first; None if too slow there.
        gpu: rank among those for GPUs.
    """

    name: str
    licence: str
    megabytes: int
    trained_on: str
    size: int
    cpu: int | None
    gpu: int


# Measured here: tf_efficientnet_lite0.in1k alone (docs/pretrained.md). No weights of the others
# were at hand, so their ranks follow published retrieval results and their cost.
STARTS = (
    Pretrained("tf_efficientnet_lite0.in1k", "apache-2.0", 13, "ImageNet-1k", 224, 0, 6),
    Pretrained("mobilenetv4_conv_medium.e500_r256_in1k", "apache-2.0", 34, "ImageNet-1k",
               256, 1, 5),
    Pretrained("convnext_tiny.in12k_ft_in1k", "apache-2.0", 111, "ImageNet-12k", 224, 3, 3),
    Pretrained("vit_small_patch14_reg4_dinov2.lvd142m", "apache-2.0", 88,
               "LVD-142M, without labels (DINOv2)", 224, 2, 2),
    Pretrained("vit_base_patch16_siglip_224.v2_webli", "apache-2.0", 372,
               "WebLI, pictures with texts (SigLIP 2)", 224, None, 0),
    Pretrained("vit_pe_core_base_patch16_224.fb", "apache-2.0", 372,
               "pictures and videos with texts (Perception Encoder)", 224, None, 1),
    Pretrained("vit_small_patch16_dinov3.lvd1689m", "dinov3-license", 86,
               "LVD-1689M, without labels (DINOv3)", 256, 4, 4),
    Pretrained("convnextv2_tiny.fcmae_ft_in22k_in1k", "cc-by-nc-4.0", 111, "ImageNet-22k",
               224, 5, 7),
)  # fmt: skip
FREE = ("apache-2.0", "mit", "bsd-3-clause")  # licences that need no consent


PLACES = {
    "the hub's cache": lambda name: cached_weights(name, f"timm/{name}"),
    "TWINLENS_WEIGHTS": weights_in_folder,
}
MIDDLE = 127  # grey level between dark and light grounds


@dataclass(frozen=True)
class Start:
    """Pretrained weights at hand.

    Attributes:
        name: of network and weights.
        place: source of the weights, in words.
        settings: settings ("section.key" -> value) that belong to the weights.
        size: side of the pictures of a whole network of timm, in pixels; None if set already.
        reason: the weights in words, for the log.
    """

    name: str
    place: str
    settings: Mapping[str, Any]
    size: int | None
    reason: str

    @classmethod
    def of_timm(cls, pretrained: Pretrained, place: str) -> Start:
        """The start with weights of timm's."""
        return cls(
            pretrained.name,
            place,
            {"model.backbone": pretrained.name, "picture.color": "rgb"},
            pretrained.size,
            f"photographs: {pretrained.name} was pretrained on {pretrained.trained_on} "
            f"({pretrained.licence}); from {place}",
        )


def find_start(device: str, *, accept_licence: bool = False, download: bool = True) -> Start | None:
    """The best start for photographs that this machine can use and whose weights are at hand.

    Searches the cache of huggingface_hub, then the folder TWINLENS_WEIGHTS, then downloads. Logs
    one line if nothing is at hand.

    Args:
        device: as torch names it; on CPUs fast networks come first.
        accept_licence: whether licences with conditions are accepted.
        download: whether weights may be downloaded.
    Raises:
        ConfigError: TWINLENS_WEIGHTS names no folder.
    """
    start = best_start(device, accept_licence=accept_licence, download=download)
    if start is not None:
        return start
    ranked = ranked_starts(device)
    usable = _usable(device, accept_licence=accept_licence)
    for pretrained in ranked:
        if place_of(pretrained.name) is not None:
            log.warning(
                "learning from nothing: the only pretrained weights at hand, %s, have the licence "
                "%s; --accept-licence takes them", pretrained.name, pretrained.licence,
            )  # fmt: skip
            return None
    log.warning(
        "learning from nothing: no pretrained weights are at hand, and on photographs they help "
        "(groceries: EER 12 %% instead of 19 %%). Put %s.safetensors (timm's) into a folder and "
        "name it in TWINLENS_WEIGHTS, give a file with --backbone and --weights, or allow the "
        "download from the network", usable[0].name,
    )  # fmt: skip
    return None


def best_start(device: str, *, accept_licence: bool = False, download: bool = True) -> Start | None:
    """As `find_start`, without a word in the log if nothing is at hand."""
    start = start_at_hand(device, accept_licence=accept_licence)
    best = _usable(device, accept_licence=accept_licence)[0]
    if start is None and download and _download(best):
        return Start.of_timm(best, "a download")
    return start


def _usable(device: str, *, accept_licence: bool) -> list[Pretrained]:
    """The starts for a device whose licence is free or accepted, best first."""
    return [one for one in ranked_starts(device) if accept_licence or one.licence in FREE]


def start_at_hand(device: str, *, accept_licence: bool = False) -> Start | None:
    """The best start for photographs in the hub's cache, else in TWINLENS_WEIGHTS; as `find_start`.

    Raises:
        ConfigError: TWINLENS_WEIGHTS names no folder.
    """
    for place, file_of in PLACES.items():
        for pretrained in ranked_starts(device):
            is_usable = accept_licence or pretrained.licence in FREE
            if is_usable and file_of(pretrained.name) is not None:
                return Start.of_timm(pretrained, place)
    return None


def find_drawing_start(border_level: int) -> Start | None:
    """The start for drawings that `twinlens pretrain` left in the cache; None without.

    Args:
        border_level: grey level, 0..255, of the ground; a start knows drawings on a dark ground or
            on a light one.
    Raises:
        ConfigError: a damaged start.
    """
    folder = drawing_start_folder()
    start = read_start(folder)
    if start is None or (start.picture.fill > MIDDLE) != (border_level > MIDDLE):
        return None
    reason = f"drawings: pretrained on {start.record.trained_on} of {start.record.source}"
    settings = start.settings(folder / START_WEIGHTS)
    return Start(start.record.name, "the cache", settings, None, reason)


def describe_start(model: ModelSettings) -> StartRecord | None:
    """The pretrained weights that settings name, for the description of a model; None if none."""
    if model.weights is not None:
        file = Path(model.weights)
        start = read_start(file.parent) if file.name == START_WEIGHTS else None
        unknown = StartRecord(file.name, "unknown", file.name, "unknown")
        return unknown if start is None else start.record
    record = timm_record(model.backbone) if model.pretrained else None
    if record is None:
        return None
    name = f"{record.architecture}.{record.tag}" if record.tag else record.architecture
    source = f"{HUB}{record.hf_hub_id}" if record.hf_hub_id else record.url
    known = {start.name: start.trained_on for start in STARTS}
    return StartRecord(
        name, record.license or "unknown", source or "unknown", known.get(name, record.tag)
    )


def place_of(name: str) -> str | None:
    """The place of a network's weights on this machine, in words; None if they are not at hand.

    Raises:
        ConfigError: TWINLENS_WEIGHTS names no folder.
    """
    return next((place for place, of in PLACES.items() if of(name) is not None), None)


def ranked_starts(device: str) -> Sequence[Pretrained]:
    """The starts for a device, best first."""
    if device.startswith("cuda"):
        return sorted(STARTS, key=lambda start: start.gpu)
    ranks = {start: start.cpu for start in STARTS if start.cpu is not None}
    return sorted(ranks, key=ranks.__getitem__)


@cache  # One try in a process.
def _download(pretrained: Pretrained) -> bool:
    """Whether the weights are in the hub's cache after a download."""
    if hub_problem() is not None:
        return False
    log.info("downloading %s (%d MB)", pretrained.name, pretrained.megabytes)
    try:
        download_weights(pretrained.name)
    except Exception as error:  # The hub's client raises many kinds of error.
        log.warning("cannot download %s: %s", pretrained.name, first_line(error))
        return False
    return True
