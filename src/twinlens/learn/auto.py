"""Settings that a recipe leaves to the data, each chosen by a rule that gives its reason.

A rule reads statistics of the training pictures and the settings that are fixed so far. Only keys
that the recipe sets to "auto" are chosen; settings of the user stay.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.config import Settings
from twinlens.data.inspection import TableStatistics
from twinlens.learn import auto_network as network
from twinlens.learn import auto_training as training
from twinlens.learn.auto_facts import LONGEST, PLENTY, Facts, Rule
from twinlens.learn.records import Choice
from twinlens.model.backbones import check_backbone
from twinlens.model.device import pick_device
from twinlens.model.pretrained import Start, find_drawing_start, find_start
from twinlens.model.timm_backbones import pretrained_picture
from twinlens.recipes import Recipe

__all__ = ["choose_levels", "choose_settings", "start_for"]

log = logging.getLogger("twinlens")

OPEN = {"model.backbone", "model.pretrained", "model.weights", "picture.color"}
"""Settings that the user must leave open for a start."""

# In this order: a rule reads the choices of the rules above it.
RULES: Mapping[str, Rule] = {
    "model.classes": network.classes,
    "loss.name": training.loss,
    "picture.color": network.color,
    "model.backbone": network.backbone,
    "model.weights": network.weights,
    "model.pretrained": network.pretrained,
    "model.freeze": network.freeze,
    "sampler.rotations": training.rotations,
    "picture.size": network.size,
    "model.stage": network.stage,
    "model.grid": network.grid,
    "model.init": network.init,
    "model.clip": network.clip,
    "picture.fit": network.fit,
    "picture.fill": network.fill,
    "model.convolutions": network.convolutions,
    "model.channels": network.channels,
    "model.pool": network.pool,
    "model.embedding": network.embedding,
    "model.shifts": network.shifts,
    "sampler.labels_per_batch": training.labels_per_batch,
    "sampler.images_per_label": training.images_per_label,
    "sampler.forged_per_label": training.forged_per_label,
    "augment.rotate": training.view(10.0, 8.0),
    "augment.translate": training.view(0.08, 0.05, often=1 / 16),
    "augment.scale": training.view(0.15, 0.1),
    "augment.shear": training.view(8.0, 4.0),
    "augment.flip": training.flip,
    "model.mirrored": network.mirrored,
    "augment.brightness": training.view(0.0, 0.1),
    "augment.contrast": training.view(0.0, 0.2),
    "optimizer.name": training.optimizer,
    "loss.temperature": training.temperature,
    "loss.forged_weight": training.forged_weight,
    "optimizer.rate": training.rate,
    "optimizer.weight_decay": training.weight_decay,
    "train.steps": training.steps,
    "train.metric": training.metric,
    "train.candidates": training.candidates,
    "train.refit": training.refit,
    "train.extend": training.extend,
    "train.patience": training.patience,
}


def choose_settings(
    recipe: Recipe,
    data: TableStatistics,
    *,
    closed: bool,
    start: Start | None = None,
    has_test: bool = True,
) -> tuple[Settings, list[Choice]]:
    """Choose all settings that the recipe leaves to the data, except mean and std.

    Args:
        recipe: recipe with the user's overrides.
        data: statistics of the training pictures.
        closed: closed set: the model will be used on the identities that it is trained on.
        start: from `start_for`; None to learn from nothing.
        has_test: whether there are test pictures.
    Returns:
        The full settings, and each choice with its reason.
    Raises:
        ConfigError: an unknown backbone, or a choice that contradicts the user's settings.
    """
    if "model.backbone" not in recipe.auto:
        check_backbone(recipe.settings().model.backbone)
    chosen: dict[str, Any] = {}
    choices = []
    for key, rule in RULES.items():
        if key not in recipe.auto:
            continue
        given = frozenset(recipe.overrides)
        facts = Facts(data, recipe.settings(chosen), closed, start, given, has_test)
        if start is not None and key in start.settings:
            value, why = start.settings[key], start.reason
        else:
            value, why = rule(facts)
        chosen[key] = value
        choices.append(Choice(key, value, why))
    return recipe.settings(chosen), choices


def start_for(
    recipe: Recipe, data: TableStatistics, *, closed: bool, download: bool = True
) -> Start | None:
    """Pretrained weights to begin with, if the recipe leaves the network open.

    Those of timm for photographs, those of `twinlens pretrain` for drawings. A closed set with many
    drawings or small photographs learns a better network from nothing.

    Args:
        recipe: recipe with the user's overrides.
        data: statistics of the training pictures.
        closed: as in `choose_settings`.
        download: whether weights may be downloaded.
    Raises:
        ConfigError: no such device, TWINLENS_WEIGHTS names no folder, or a damaged start.
    """
    settings = recipe.settings()
    drawing = Facts(data, settings, closed).drawing
    small = max(data.median_height, data.median_width) <= LONGEST
    better_without = closed and data.num_pictures >= PLENTY and (drawing or small)
    if not recipe.auto >= OPEN or better_without or data.num_forged:
        return None
    if not drawing:
        device, accept = pick_device(settings.train.device), settings.train.accept_licence
        return find_start(device, accept_licence=accept, download=download)
    start = find_drawing_start(data.border_level)
    if start is None:
        return None
    given = settings.model_dump()
    for key, value in start.settings.items():
        section, _, name = key.partition(".")
        if key not in recipe.auto and given[section][name] != value:
            log.info("the start for drawings is not used: it has %s %s", key, value)
            return None
    return start


def choose_levels(
    recipe: Recipe, settings: Settings, pixels_NCHW: NDArray[np.uint8]
) -> tuple[Settings, list[Choice]]:
    """Choose `picture.mean` and `picture.std`, which need pictures at their final size.

    Args:
        recipe: recipe that leaves one, both or none of them to the data.
        settings: all other settings.
        pixels_NCHW: sample of the training pictures, uint8; a thousand are enough.
    Returns:
        The full settings, and each choice with its reason.
    """
    pretrained = pretrained_picture(settings.model)
    if pretrained is not None:
        levels = {key: np.array(pretrained[key]) for key in ("mean", "std")}
        if settings.picture.channels == 1:  # As timm averages the first layer's weights.
            levels = {key: value.mean(keepdims=True) for key, value in levels.items()}
    else:
        levels = _levels(pixels_NCHW)
    chosen = {
        key: tuple(round(float(level), 4) for level in levels[key])
        for key in ("mean", "std")
        if f"picture.{key}" in recipe.auto
    }
    source = "the pretrained weights" if pretrained is not None else "the training pictures"
    choices = [Choice(f"picture.{k}", v, f"the {k} of {source}") for k, v in chosen.items()]
    picture = settings.picture.model_copy(update=chosen)
    return settings.model_copy(update={"picture": picture}), choices


def _levels(pixels_NCHW: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Mean and standard deviation of each channel, in [0, 1], from histograms."""
    count_CL = np.zeros((pixels_NCHW.shape[1], 256))
    for picture in pixels_NCHW:
        count_CL += [np.bincount(channel.ravel(), minlength=256) for channel in picture]
    share_CL, level_L = count_CL / count_CL.sum(1, keepdims=True), np.arange(256) / 255
    mean_C = share_CL @ level_L
    std_C = np.sqrt((share_CL * (level_L - mean_C[:, None]) ** 2).sum(1))
    return {"mean": mean_C, "std": np.maximum(std_C, 1e-3)}  # Blank pictures have std 0.
