"""What learns, and how it is kept: weights, optimiser, and the small state between two steps.

A checkpoint holds all of it, so that a resumed run goes on as if it had never stopped. This module
does not know what the loss is, nor when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twinlens.config import OptimizerSettings
from twinlens.errors import TrainingError
from twinlens.learn.guard import GuardState
from twinlens.learn.muon import Muon
from twinlens.learn.objective import Objective
from twinlens.learn.run_folder import Checkpoint
from twinlens.model.encoder import Encoder

__all__ = ["Learner", "TrainingState", "make_checkpoint", "make_optimizer", "restore_checkpoint"]

Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """What changes from step to step, other than tensors.

    `validations`, of those `planned`, and `rows` count those that progress has passed; `loss_sum`
    and `loss_count` are of the steps since the last row; `good_step` is where `Learner.good` was
    taken; `top_metric` is the highest so far, `best_metric` that of the weights that are kept.
    """

    step: int = 0
    seconds: float = 0.0
    validations: int = 0
    planned: int = 0
    rows: int = 0
    best_metric: float | None = None
    top_metric: float | None = None
    best_step: int = 0
    good_step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    mining: str = "semi-hard"
    watch: GuardState = field(default_factory=GuardState)

    def mean_loss(self) -> float:
        """The mean loss since this was last asked; NaN where there was no step."""
        mean = self.loss_sum / self.loss_count if self.loss_count else math.nan
        self.loss_sum, self.loss_count = 0.0, 0
        return mean


@dataclass(eq=False)
class Learner:
    """The parts that learn together, the best weights so far, and those to go back to."""

    encoder: Encoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    best: Weights = field(default_factory=dict)
    good: Weights = field(default_factory=dict)

    def weights(self) -> Weights:
        """Every tensor that makes the model, by name, copied."""
        return {
            f"{part}.{name}": value.detach().clone()
            for part, module in self._parts()
            for name, value in module.state_dict().items()
        }

    def load(self, weights: Weights) -> None:
        """Take over the weights that `weights` gave."""
        for part, module in self._parts():
            start = f"{part}."
            own = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
            module.load_state_dict(own)

    def finite(self) -> bool:
        """Whether every weight and statistic is a number."""
        tensors = [t for _, module in self._parts() for t in module.state_dict().values()]
        return all(bool(t.isfinite().all()) for t in tensors)

    def update(self, loss: Tensor, rate: float, clip: float) -> None:
        """One step of the optimiser; `clip` is the largest length of the gradient, 0 for any."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip:
            nn.utils.clip_grad_norm_(self.params(), clip)
        self.optimizer.step()

    def restore_good(self) -> None:
        """Take the good weights again; what the optimiser remembers of the way is forgotten."""
        self.load(self.good)
        self.optimizer.state.clear()

    def params(self) -> list[nn.Parameter]:
        """What the optimiser moves, in its own order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _parts(self) -> Iterable[tuple[str, nn.Module]]:
        return (("encoder", self.encoder), ("objective", self.objective))


def make_optimizer(
    encoder: Encoder, objective: nn.Module, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimiser over all that learns; weight decay spares biases and norms (He 2019)."""
    params = [p for m in (encoder, objective) for p in m.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.name == "muon":
        groups[0]["matrices"] = True
    groups = [group for group in groups if group["params"]]
    if settings.name == "muon":
        return Muon(groups, settings.rate)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.rate, fused=True)
    if settings.name == "adam":
        return torch.optim.Adam(groups, lr=settings.rate, fused=True)
    if settings.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=settings.rate, alpha=settings.rho)
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum)


def make_checkpoint(learner: Learner, state: TrainingState) -> Checkpoint:
    """Everything that training needs to go on from here."""
    parts = {"now": learner.weights(), "best": learner.best}
    if state.good_step != state.step:
        parts["good"] = learner.good
    tensors = {f"{part}.{k}": v for part, weights in parts.items() for k, v in weights.items()}
    for index, moments in learner.optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = value.clone()
    return Checkpoint(tensors, asdict(state))


def restore_checkpoint(learner: Learner, checkpoint: Checkpoint) -> TrainingState:
    """Take over a make_checkpoint; the inverse of `make_checkpoint`.

    Raises:
        TrainingError: it is of another network or another twinlens.
    """
    parts: dict[str, Weights] = {"now": {}, "best": {}, "good": {}, "optimizer": {}}
    try:
        for key, value in checkpoint.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        watch = GuardState(**checkpoint.state["watch"])
        state = TrainingState(**(checkpoint.state | {"watch": watch}))
        learner.load(parts["now"])
        _load_moments(learner, parts["optimizer"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise TrainingError(
            f"the checkpoint does not fit this run ({line}): start it anew in another folder"
        ) from error
    learner.best = parts["best"]
    learner.good = parts["good"] if state.good_step != state.step else learner.weights()
    return state


def _load_moments(learner: Learner, found: Weights) -> None:
    """Give the optimiser its moments, in the memory format of their parameters.

    A fused optimiser walks through both side by side in memory; files know only one format.
    """
    params = learner.params()
    moments: dict[int, dict[str, Any]] = {}
    for key, value in found.items():
        index, _, name = key.partition(".")
        param = params[int(index)]
        if value.shape == param.shape:
            value = torch.empty_like(param, dtype=value.dtype).copy_(value)
        moments.setdefault(int(index), {})[name] = value.detach().clone()
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": moments, "param_groups": groups})
