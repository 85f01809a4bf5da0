"""The losses of pytorch-metric-learning by name, on embeddings, labels and roles.

The library is the extra `losses`, and is imported only for its losses.

Shapes: B pictures, D dimensions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.errors import ConfigError, MissingExtraError, first_line, unknown_name

__all__ = ["PML", "PmlLoss", "pml_loss", "roles_as_labels"]

PML = "pml:"
"""Prefix of the names of its losses."""

MAX_NUMBERS = 2**28  # weights of a loss
_EMBEDDING_SIZES = ("embedding_size", "descriptors_dim")
# Arguments that are objects in the library, and the module of their classes.
_PARTS = {
    "distance": "distances",
    "reducer": "reducers",
    "embedding_regularizer": "regularizers",
    "weight_regularizer": "regularizers",
}
_NOT_OFFERED = {"mat_based_loss", "collect_stats", "weight_init_func"}
# Base classes, and a loss that takes other inputs than embeddings with labels.
_NOT_LOSSES = {"BaseMetricLossFunction", "GenericPairLoss", "VICRegLoss"}


class PmlLoss(nn.Module):
    """A loss of pytorch-metric-learning on embeddings, labels and roles, in float32.

    Its `parameters()` (class weights, proxies) are trained with the network's. A loss that requires
    `num_classes` is a classification loss; forged pictures have no class and are left out of the
    batch. In all other losses each forged picture has a label of its own, so it is a negative of
    every picture, other forged ones included.
    """

    def __init__(self, loss: nn.Module, is_classification: bool) -> None:
        super().__init__()
        self.loss = loss
        self.is_classification = is_classification

    def forward(self, emb_BD: Tensor, label_B: Tensor, forged_B: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar; 0 with a gradient if no picture is left.

        Raises:
            ConfigError: arguments of a wrong type, or fewer classes than labels.
        """
        emb_BD = emb_BD.to(torch.promote_types(emb_BD.dtype, torch.float32))
        if forged_B is not None and self.is_classification:
            emb_BD, label_B = emb_BD[~forged_B], label_B[~forged_B]
        elif forged_B is not None:
            label_B = roles_as_labels(label_B, forged_B)
        if len(emb_BD) == 0:
            return emb_BD.sum() * 0
        try:
            with torch.autocast(emb_BD.device.type, enabled=False):
                value: Tensor = self.loss(emb_BD, label_B)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Some losses use wrong arguments only here.
            raise ConfigError(
                f"{PML}{type(self.loss).__name__} fails ({first_line(error)}): change or leave out "
                "its loss.args"
            ) from error
        return value


def roles_as_labels(label_B: Tensor, forged_B: Tensor) -> Tensor:
    """The labels (B,) with a new label for each forged picture, which thus has no positive.

    >>> roles_as_labels(torch.tensor([4, 4, 0]), torch.tensor([False, True, False])).tolist()
    [4, 5, 0]
    """
    if label_B.numel() == 0:
        return label_B
    return torch.where(forged_B, label_B.max() + forged_B.cumsum(0), label_B)


def pml_loss(
    name: str,
    args: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    embedding_size: int | None = None,
) -> PmlLoss:
    """A loss of pytorch-metric-learning by name: "pml:MultiSimilarityLoss".

    Args:
        name: "pml:" and a class of `pytorch_metric_learning.losses`.
        args: keyword arguments of the class, as in TOML. `distance`, `reducer` and the regularizers
            are class names ("LpDistance") or tables with `name`.
        num_classes: the sampler's `num_labels`, for classes that require it.
        embedding_size: dimensions of an embedding, for classes that require them. Their weights
            are drawn from torch's global generator.

    Raises:
        ConfigError: an unknown class, or unknown arguments; the message lists the known ones.
        MissingExtraError: pytorch-metric-learning is not installed.
    """
    try:
        from pytorch_metric_learning import losses
    except ImportError as error:
        raise MissingExtraError(
            "losses", f"the loss '{name}' needs pytorch-metric-learning"
        ) from error
    choices: dict[str, Any] = {
        key: value
        for key, value in vars(losses).items()
        if inspect.isclass(value)
        and issubclass(value, losses.BaseMetricLossFunction)
        and key not in _NOT_LOSSES
    }
    kind = name.removeprefix(PML)
    if kind not in choices:
        raise ConfigError(unknown_name("loss", name, [PML + choice for choice in choices]))
    accepted = _accepted(choices[kind])
    filled = dict(args)
    if accepted.get("num_classes") and num_classes is not None:
        filled.setdefault("num_classes", num_classes)
    for key in _EMBEDDING_SIZES:
        if key in accepted and embedding_size is not None:
            filled.setdefault(key, embedding_size)
    built = _build(name, choices[kind], accepted, filled)
    return PmlLoss(built, is_classification=accepted.get("num_classes", False))


def _accepted(kind: type) -> dict[str, bool]:
    """Keyword arguments of a class and its base classes: name -> required."""
    accepted: dict[str, bool] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or not base.__module__.startswith("pytorch_metric"):
            continue
        for parameter in list(inspect.signature(base).parameters.values()):
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                required = parameter.default is parameter.empty
                accepted.setdefault(parameter.name, required)
    return {key: value for key, value in accepted.items() if key not in _NOT_OFFERED}


def _build(
    name: str, kind: type[nn.Module], accepted: dict[str, bool], args: dict[str, Any]
) -> nn.Module:
    for key in args:
        if key not in accepted:
            raise ConfigError(f"{name}: {unknown_name('argument', key, accepted)}")
    missing = [key for key, required in accepted.items() if required and key not in args]
    if missing:
        raise ConfigError(
            f"{name} needs loss.args.{' and loss.args.'.join(missing)}; it takes "
            f"{', '.join(sorted(accepted))}"
        )
    # Classes, dimensions, centres: the loss allocates as many numbers as their product says.
    sizes = {k: v for k, v in args.items() if isinstance(v, int) and v > 1}
    if math.prod(sizes.values()) > MAX_NUMBERS:
        shown = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise ConfigError(f"{name} would be too large ({shown}): set smaller loss.args")
    try:
        parts = {key: _part(key, value) for key, value in args.items()}
        return kind(**parts)
    except ConfigError:
        raise
    except Exception as error:  # The library raises many kinds of error for a wrong value.
        raise ConfigError(
            f"{name} refuses its arguments ({error}); it takes {', '.join(sorted(accepted))}"
        ) from error


def _part(key: str, value: Any) -> Any:
    """The object for an argument that names a class; any other value unchanged."""
    if key not in _PARTS:
        return value
    import pytorch_metric_learning as pml
    from pytorch_metric_learning import distances, reducers, regularizers  # noqa: F401

    module = getattr(pml, _PARTS[key])
    table = dict(value) if isinstance(value, Mapping) else {"name": value}
    kind = str(table.pop("name", None))
    choices = [
        n for n, c in vars(module).items() if inspect.isclass(c) and not n.startswith("Base")
    ]
    if kind not in choices:
        raise ConfigError(unknown_name(f"loss.args.{key}", kind, choices))
    return getattr(module, kind)(**table)
