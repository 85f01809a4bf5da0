"""The learner: network, objective and optimiser, and their checkpoint.

A checkpoint holds all that changes from step to step, so that a resumed run reaches the same
weights as an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from twinlens.config import OptimizerSettings, Share
from twinlens.errors import TrainingError, one_line, validation_problems
from twinlens.learn.guard import GuardState
from twinlens.learn.muon import Muon
from twinlens.learn.objective import Objective
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.learn.run_folder import Checkpoint
from twinlens.model.encoder import Encoder
from twinlens.model.tensor_file import layout_problem, tensors_under
from twinlens.model.weights import layout_of, not_finite

__all__ = ["Learner", "TrainingState", "make_checkpoint", "make_optimizer", "restore_checkpoint"]

Weights = dict[str, Tensor]
Steps = Annotated[int, Field(ge=0, le=10**12)]


class TrainingState(BaseModel):
    """All that changes from step to step other than tensors: the header of a checkpoint.

    Attributes:
        step: steps done.
        seconds: seconds spent in them.
        validations: validations done.
        planned: validations of the whole run.
        rows: rows of the history that were due so far.
        rounds: further rounds, the one that runs included.
        round_metric: metric at the end of the last round.
        stale: validations in a row without a gain.
        skipped: share of the schedule that an early end left out.
        best_metric: metric of the weights that are kept.
        top_metric: highest metric so far.
        best_step: step of the weights that are kept.
        good_step: step of `Learner.good`.
        loss_sum: sum of the losses since the last row of the history.
        loss_count: their number.
        mining: mining of triplets in use.
        guard: state of the guard.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, strict=True, allow_inf_nan=False
    )

    step: Steps = 0
    seconds: float = Field(0.0, ge=0)
    validations: Steps = 0
    planned: Steps = 0
    rows: Steps = 0
    rounds: Steps = 0
    round_metric: Share | None = None
    stale: Steps = 0
    skipped: Share = 0.0
    best_metric: Share | None = None
    top_metric: Share | None = None
    best_step: Steps = 0
    good_step: Steps = 0
    loss_sum: float = 0.0
    loss_count: Steps = 0
    mining: Annotated[str, Field(pattern="^(all|semi-hard|hardest|given)$")] = "semi-hard"
    guard: GuardState = Field(default_factory=GuardState, alias="watch")

    def take_mean_loss(self) -> float:
        """The mean loss since the last call; NaN without a step."""
        mean = self.loss_sum / self.loss_count if self.loss_count else math.nan
        self.loss_sum, self.loss_count = 0.0, 0
        return mean


@dataclass(eq=False)
class Learner:
    """The parts that learn together.

    Attributes:
        best: weights with the best validation metric so far.
        good: weights that an intervention of the guard returns to.
        ranks: processes that learn together.
    """

    encoder: Encoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    best: Weights = field(default_factory=dict)
    good: Weights = field(default_factory=dict)
    ranks: Ranks = ALONE

    def weights(self) -> Weights:
        """A copy of every tensor of the model, by name."""
        return {
            f"{part}.{name}": value.detach().clone()
            for part, module in self._parts()
            for name, value in module.state_dict().items()
        }

    def load(self, weights: Weights) -> None:
        """Load weights as `weights` returns them."""
        for part, module in self._parts():
            module.load_state_dict(tensors_under(weights, f"{part}."))

    def is_finite(self) -> bool:
        """Whether every weight and statistic is finite."""
        tensors = [t for _, module in self._parts() for t in module.state_dict().values()]
        return bool(torch.stack([t.isfinite().all() for t in tensors]).all())  # One wait for a GPU.

    def update(self, loss: Tensor, rate: float, clip: float) -> None:
        """One step of the optimiser, with the gradients of all ranks.

        Args:
            loss: scalar with a graph.
            rate: learning rate.
            clip: largest norm of the gradient; 0 for no limit.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.reduce_gradients(self.encoder, self.objective)
        if clip:
            nn.utils.clip_grad_norm_(self.params(), clip)
        self.optimizer.step()

    def restore_good(self) -> None:
        """Load the good weights, and drop the optimiser's moments."""
        self.load(self.good)
        self.optimizer.state.clear()

    def params(self) -> list[nn.Parameter]:
        """The trained parameters, in the optimiser's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _parts(self) -> Iterable[tuple[str, nn.Module]]:
        return (("encoder", self.encoder), ("objective", self.objective))


def make_optimizer(
    encoder: Encoder, objective: nn.Module, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimiser of all trained parameters; no weight decay on biases and norms (He 2019)."""
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
    """Everything that training needs to resume from here."""
    parts = {"now": learner.weights(), "best": learner.best}
    if state.good_step != state.step:
        parts["good"] = learner.good
    tensors = {f"{part}.{k}": v for part, weights in parts.items() for k, v in weights.items()}
    for index, moments in learner.optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = value.clone()
    return Checkpoint(tensors, state.model_dump(by_alias=True))


def restore_checkpoint(learner: Learner, checkpoint: Checkpoint) -> TrainingState:
    """Load a checkpoint: the inverse of `make_checkpoint`.

    Raises:
        TrainingError: it belongs to another network or another version of twinlens.
    """
    parts: dict[str, Weights] = {"now": {}, "best": {}, "good": {}, "optimizer": {}}
    try:
        for key, value in checkpoint.tensors.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise ValueError(f"it holds {one_line(key)}, of no part of it")
            parts[part][name] = value
        state = TrainingState.model_validate(checkpoint.state)
        _check_weights(learner, parts, state)
        learner.load(parts["now"])
        _load_moments(learner, parts["optimizer"])
    except (TypeError, ValueError) as error:
        problem = validation_problems(error) if isinstance(error, ValidationError) else str(error)
        raise TrainingError(
            f"the checkpoint does not fit this run ({' '.join(problem.split())}): start a new run "
            "in another folder"
        ) from error
    learner.best = parts["best"]
    learner.good = parts["good"] if state.good_step != state.step else learner.weights()
    return state


def _check_weights(learner: Learner, parts: dict[str, Weights], state: TrainingState) -> None:
    """Check the names, shapes and numbers of all weights before any is loaded."""
    needed = layout_of(learner.weights())
    for part in ("now", "best", "good"):
        weights = parts[part]
        if not weights and (part == "best" or (part == "good" and state.good_step == state.step)):
            continue  # No validation yet; or the good weights are those of now.
        problem = layout_problem(layout_of(weights), needed)
        if problem is not None:
            raise ValueError(f"{part}: {problem}")
        # The guard replaces weights that are not finite; those that it returns to must be.
        is_last_resort = part == "now" and state.good_step == state.step
        if part != "now" or is_last_resort:
            problem = not_finite(weights)
        if problem is not None:
            raise ValueError(f"{part}: {problem}")


def _load_moments(learner: Learner, values: Weights) -> None:
    """Load the optimiser's moments ("0.exp_avg", ...) in the memory format of their parameters.

    A fused optimiser reads both in the order of memory, and files hold one format only.
    """
    params = learner.params()
    moments: dict[int, dict[str, Any]] = {}
    for key, value in values.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(params):
            raise ValueError(f"it holds optimizer.{one_line(key)} for {len(params)} parameters")
        param = params[int(index)]
        shape, dtype = ((), torch.float32) if name == "step" else (param.shape, param.dtype)
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(f"optimizer.{one_line(key)} has another shape or type")
        if name != "step":
            value = torch.empty_like(param, dtype=value.dtype).copy_(value)
        moments.setdefault(int(index), {})[name] = value.detach().clone()
    groups = learner.optimizer.state_dict()["param_groups"]
    is_matrix = [group.get("matrices", False) for group in groups for _ in group["params"]]
    for number, named in moments.items():
        needed = _moment_names(learner.optimizer, is_matrix[number])
        if named.keys() != needed:
            raise ValueError(
                f"the optimiser keeps {', '.join(sorted(needed))} of a parameter, found "
                f"{one_line(', '.join(sorted(named)))} of number {number}"
            )
    learner.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _moment_names(optimizer: torch.optim.Optimizer, is_matrix: bool) -> frozenset[str]:
    """The tensors that an optimiser keeps of a parameter."""
    if is_matrix:
        return frozenset({"momentum", "step"})
    if isinstance(optimizer, torch.optim.SGD):
        return frozenset({"momentum_buffer"})
    if isinstance(optimizer, torch.optim.RMSprop):
        return frozenset({"step", "square_avg"})
    return frozenset({"step", "exp_avg", "exp_avg_sq"})
