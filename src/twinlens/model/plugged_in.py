"""Parts of a training that a Python program passes as objects: backbone, loss, augmentation.

Settings are plain data in files, so they hold the name of such an object, as in
"python:mypackage.MyNetwork". The object itself is known while its training runs. A name is never
imported: a settings file or a model cannot run code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings, Settings
from twinlens.errors import ConfigError, first_line, short_repr

__all__ = ["Augmentation", "Loss", "check_passed", "check_plugged_loss", "check_plugged_transform",
           "is_plugged_in", "named", "plugged", "plugged_backbone", "plugged_in", "plugged_name",
           "plugged_width"]  # fmt: skip

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (B, D) float32 and labels (B,) int64 to a scalar."""

Augmentation: TypeAlias = Callable[[Tensor], Tensor]
"""A picture (C, H, W), uint8, to a view of the same shape: uint8, or floats in [0, 1]."""

Role: TypeAlias = Literal["backbone", "loss", "augmentation"]

PREFIX = "python:"
KEYS: Mapping[str, str] = {
    "backbone": "model.backbone", "loss": "loss.name", "augmentation": "augment.transform",
}  # fmt: skip
"""The setting that names the object of each role."""

NUM_VIEWS = 4  # pictures that an augmentation is checked on

_PLUGGED: ContextVar[Mapping[str, Any]] = ContextVar("_PLUGGED")


def is_plugged_in(name: str) -> bool:
    """Whether a setting names an object of Python."""
    return name.startswith(PREFIX)


def plugged_name(part: object) -> str:
    """The name of an object in the settings: that of a function or class, or of its class.

    >>> plugged_name(nn.Flatten()), plugged_name(nn.functional.relu)
    ('python:torch.nn.modules.flatten.Flatten', 'python:torch.nn.functional.relu')
    """
    while isinstance(part, partial):
        part = part.func
    named = part if hasattr(part, "__qualname__") else type(part)
    # The script of a program has another name in processes that it starts.
    module = "__main__" if named.__module__ == "__mp_main__" else named.__module__
    return f"{PREFIX}{module}.{named.__qualname__}"


@contextmanager
def plugged_in(parts: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Use some objects in a training, by role; gives the settings that name them.

    Raises:
        ConfigError: an object that is no callable, or a backbone that is no module.
    """
    parts = {role: part for role, part in parts.items() if part is not None}
    for role, part in parts.items():
        if not callable(part) or isinstance(part, type):
            needed = "a torch.nn.Module" if role == "backbone" else "a callable object"
            raise ConfigError(f"{role} needs {needed}, found {short_repr(part)}")
    if not isinstance(parts.get("backbone", nn.Identity()), nn.Module):
        raise ConfigError(
            f"backbone needs a torch.nn.Module, found {short_repr(parts['backbone'])}: networks of "
            "twinlens and timm are named by settings={'model.backbone': NAME}"
        )
    token = _PLUGGED.set(parts)
    try:
        yield {KEYS[role]: plugged_name(part) for role, part in parts.items()}
    finally:
        _PLUGGED.reset(token)


def named(settings: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any]:
    """The user's settings with the names of `plugged_in`.

    Raises:
        ConfigError: a setting names another part than the object that was passed.
    """
    settings = dict(settings or {})
    for key, name in names.items():
        if settings.setdefault(key, name) != name:
            raise ConfigError(
                f"{key} is given twice: {short_repr(settings[key])} and {name.removeprefix(PREFIX)}"
            )
    return settings


def plugged(role: Role, name: str) -> Any:
    """The object of a role, which must have the name that the settings hold.

    Raises:
        ConfigError: no such object was passed, or another one.
    """
    part = _PLUGGED.get({}).get(role)
    passed = None if part is None else plugged_name(part)
    if passed != name:
        instead = "" if passed is None else f", found {passed.removeprefix(PREFIX)}"
        raise ConfigError(
            f"{KEYS[role]} is {name.removeprefix(PREFIX)} of a Python program{instead}: pass this "
            f"object again, twinlens.train(..., {role}=...)"
        )
    return part


def check_passed(settings: Settings) -> None:
    """Check that the objects that some settings name were passed.

    Raises:
        ConfigError: as in `plugged`.
    """
    names: dict[Role, str] = {
        "backbone": settings.model.backbone,
        "loss": settings.loss.name,
        "augmentation": settings.augment.transform,
    }
    for role, name in names.items():
        if is_plugged_in(name):
            plugged(role, name)


def plugged_backbone(model: ModelSettings) -> nn.Module:
    """A copy of the module that was passed, in float32 on the CPU.

    Raises:
        ConfigError: it was not passed, or settings of built-in networks go with it.
    """
    for key, default in (
        ("pretrained", False),
        ("weights", None),
        ("stage", None),
        ("pool", "own"),
    ):
        if getattr(model, key) != default:
            raise ConfigError(
                f"model.{key} is for built-in and timm networks: prepare the module "
                f"{model.backbone.removeprefix(PREFIX)} before it is passed"
            )
    backbone: nn.Module = copy.deepcopy(plugged("backbone", model.backbone))
    return backbone.cpu().float()


@torch.no_grad()
def plugged_width(backbone: nn.Module, picture: PictureSettings, name: str) -> int:
    """The number of features F of a module, from its answer to two pictures.

    Raises:
        ConfigError: it fails, or its answer is no tensor (B, ...) of finite floats.
    """
    was_training = backbone.training
    backbone.eval()
    shape = (2, picture.channels, *picture.size)
    name = name.removeprefix(PREFIX)
    # A layout is computed on the device "meta", where a module of others may not work.
    with torch.device("cpu"):
        try:
            features = backbone(torch.zeros(shape))
        except Exception as error:  # A module of others raises any kind.
            raise ConfigError(
                f"the backbone {name} fails on pictures {shape} ({first_line(error)}): set "
                "picture.size or picture.color to what it takes"
            ) from error
    backbone.train(was_training)
    if not isinstance(features, Tensor):
        problem = short_repr(type(features))
    elif len(features) != 2 or not features.is_floating_point() or not features.numel():
        problem = f"{features.dtype} {tuple(features.shape)}"
    elif not features.isfinite().all():
        problem = "NaN or infinite numbers"
    else:
        return features[0].numel()
    raise ConfigError(
        f"the backbone {name} must map pictures {shape} to features (2, F) or maps (2, C, H, W), "
        f"found {problem}: wrap it in a module that gives one float tensor"
    )


def check_plugged_loss(loss: Loss, name: str, dim: int) -> None:
    """Check a loss on a small batch before training.

    Args:
        loss: loss.
        name: name in the settings.
        dim: dimensions of an embedding.
    Raises:
        ConfigError: it fails, or gives no finite scalar with a finite gradient.
    """
    generator, name = torch.Generator().manual_seed(0), name.removeprefix(PREFIX)
    emb_BD = nn.functional.normalize(torch.randn(8, dim, generator=generator)).requires_grad_()
    label_B = torch.arange(8) // 4  # Two identities: any training has as many.
    call = f"the loss {name} of embeddings {tuple(emb_BD.shape)} and labels {tuple(label_B.shape)}"
    try:
        value = copy.deepcopy(loss)(emb_BD, label_B)  # A loss may have a memory.
    except Exception as error:  # A function of others raises any kind.
        raise ConfigError(f"{call} fails: {first_line(error)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else short_repr(value)
        raise ConfigError(f"{call} must be a scalar tensor, found {shape}")
    if not value.isfinite().all():
        raise ConfigError(f"{call} must be finite, found {float(value.detach()):g}")
    if not value.requires_grad:
        raise ConfigError(f"{call} has no gradient: compute it from the embeddings by torch")
    (gradient,) = torch.autograd.grad(value.squeeze(), emb_BD, allow_unused=True)
    if gradient is None or not gradient.isfinite().all():
        problem = "none" if gradient is None else "NaN or infinite numbers"
        raise ConfigError(f"{call} must have a finite gradient in the embeddings, found {problem}")


def check_plugged_transform(transform: Augmentation, name: str, picture: PictureSettings) -> None:
    """Check an augmentation on a few pictures before training.

    Raises:
        ConfigError: it fails, or gives other shapes or values.
    """
    shape, name = (picture.channels, *picture.size), name.removeprefix(PREFIX)
    call = f"the augmentation {name} of uint8 pictures {shape}"
    for seed in range(NUM_VIEWS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
            try:
                view = transform(pixels)
            except Exception as error:  # A function of others raises any kind.
                raise ConfigError(f"{call} fails: {first_line(error)}") from error
        if not isinstance(view, Tensor) or tuple(view.shape) != shape:
            answer = tuple(view.shape) if isinstance(view, Tensor) else short_repr(type(view))
            raise ConfigError(f"{call} must be a tensor of the same shape, found {answer}")
        if view.dtype == torch.uint8:
            continue
        low, high = float(view.min()), float(view.max())
        if not view.is_floating_point() or not -1e-3 <= low <= high <= 1 + 1e-3:
            raise ConfigError(
                f"{call} must be uint8 or floats in [0, 1], found {view.dtype} from {low:g} to "
                f"{high:g}: leave out Normalize, which the network does itself"
            )
