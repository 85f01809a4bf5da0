"""fit(): one readable loop from pictures to weights.

Step t of a run draws its batch, its views and its dropout from (seed, t) alone, so a run that was
killed and resumed at any checkpoint comes to the same weights as an unbroken one. It does not know
where pictures come from, and leaves calibration and reports to others.

Shapes: N pictures of the pool, B of the batch, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twinlens.config import AugmentSettings, OptimizerSettings, Settings
from twinlens.data.augment import augment, quarter_turns
from twinlens.data.batches import Batch, make_sampler
from twinlens.errors import TrainingError
from twinlens.learn.course import plan_course, rate_share
from twinlens.learn.features import backbone_features, can_precompute
from twinlens.learn.guard import Answer, Guard, spread
from twinlens.learn.objective import Objective
from twinlens.learn.run import Checkpoint, HistoryRow, RunFolder
from twinlens.learn.validation import Validator
from twinlens.model.comparators import Comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

__all__ = ["Fitted", "Moment", "Pool", "fit"]

log = logging.getLogger("twinlens")

ROWS = 100  # of the history, spread evenly over the run
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Pool:
    """Pictures with their labels: uint8 (N, C, H, W), int64 (N,), bool (N,)."""

    pixels: NDArray[np.uint8]
    label: NDArray[np.int64]
    forged: NDArray[np.bool_]


@dataclass(frozen=True)
class Moment:
    """Where a run is, for those who show its progress."""

    step: int
    progress: float
    seconds: float
    loss: float
    metric: float | None


@dataclass(frozen=True)
class Fitted:
    """What a run came to. The encoder and the comparator hold the best weights.

    `best_metric` is 1 - EER or recall at 1 on the validation pictures; None without any.
    """

    steps: int
    seconds: float
    best_metric: float | None
    best_step: int
    history: list[HistoryRow]
    interrupted: bool


@dataclass
class State:
    """What changes from step to step, other than tensors."""

    step: int = 0
    seconds: float = 0.0
    validations: int = 0
    rows: int = 0
    best_metric: float | None = None
    best_step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    mining: str = "semi-hard"
    answers: int = 0
    rate_factor: float = 1.0


@dataclass(eq=False)
class Learner:
    """The parts that learn together."""

    encoder: Encoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor that makes the model, by name, copied."""
        parts = {"encoder": self.encoder, "objective": self.objective}
        return {
            f"{part}.{name}": value.detach().clone()
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights that `weights` gave."""
        for part, module in (("encoder", self.encoder), ("objective", self.objective)):
            start = f"{part}."
            own = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
            module.load_state_dict(own)


def fit(
    encoder: Encoder,
    comparator: Comparator,
    train: Pool,
    val: Pool | None,
    settings: Settings,
    *,
    compute: Compute,
    run: RunFolder | None = None,
    spent: float = 0.0,
    on_moment: Callable[[Moment], None] | None = None,
) -> Fitted:
    """Train the encoder and the comparator in place, and leave the best weights in them.

    Args:
        encoder: with the weights to start from.
        comparator: a learned one is trained along.
        train: the pictures to learn from.
        val: other pictures, to choose the best weights by; None keeps the last.
        settings: `loss`, `sampler`, `augment`, `optimizer`, `train` and `seed` are read.
        compute: the device and the format of the arithmetic.
        run: where checkpoints and curves go; a checkpoint that is there is gone on with.
        spent: seconds of the time budget that are gone already.
        on_moment: called after each step.
    Raises:
        DataError: the pictures cannot make a batch.
        TrainingError: the run keeps collapsing, or its checkpoint is damaged.
    """
    sampler = make_sampler(train.label, train.forged, settings.sampler, settings.seed)
    compute.place(encoder)
    num_labels = int(train.label.max()) + 1
    turned = 4 * num_labels if settings.sampler.rotations else num_labels
    objective = Objective(settings.loss, comparator, turned, settings.model.embedding)
    objective.to(compute.device)
    learner = Learner(encoder, objective, make_optimizer(encoder, objective, settings.optimizer))
    feed = Feed(encoder, train, settings, compute)
    started = time.monotonic()
    validator = Validator.make(val, settings, compute, encoder) if val is not None else None

    state, history = State(mining=settings.loss.mining), list[HistoryRow]()
    checkpoint = run.read_checkpoint() if run is not None else None
    if checkpoint is not None and run is not None:
        state = restore(learner, checkpoint)
        history = run.read_history(state.step)
        log.info("resumed at step %d of %s", state.step, run.path)
    guard = Guard(settings.loss, state.answers, state.rate_factor)
    board = make_board(run, state.step)

    if validator is not None and state.step == 0:
        metric = validator(encoder, comparator)
        history.append(HistoryRow(0, 0.0, 0.0, math.nan, 0.0, metric))
    # Validating took this long; calibrating and reporting afterwards take about three times that.
    taken = time.monotonic() - started
    course = plan_course(settings.train, sampler.steps_per_epoch, spent + 3 * taken + 5.0)
    good = snapshot(learner, state)
    clock, before, saved = time.monotonic(), state.seconds, time.monotonic()
    interrupted = False
    progress = course.progress(state.step, state.seconds)
    try:
        while progress < 1:
            batch = sampler.batch(state.step)
            torch.manual_seed(step_seed(settings.seed, state.step))
            share = rate_share(settings.optimizer.schedule, progress) * guard.rate_factor
            rate = set_rate(learner.optimizer, settings.optimizer.rate * share)
            objective.mining = state.mining
            emb_BD = feed(batch)
            loss = objective(emb_BD, batch)
            loss_now = float(loss.detach())
            answer = guard.watch(loss_now, spread(emb_BD.detach()), state.mining)
            if answer is None:
                descend(learner, loss, settings.optimizer.clip)
            state.step += 1
            state.seconds = before + time.monotonic() - clock
            progress = course.progress(state.step, state.seconds)
            event = ""
            if answer is not None:
                event = go_back(learner, good, answer, guard, state)
            else:
                state.loss_sum += loss_now
                state.loss_count += 1

            metric = None
            due = math.floor(progress * settings.train.validations + 1e-9) > state.validations
            if validator is not None and due:
                metric = validator(encoder, comparator)
                state.validations = math.floor(progress * settings.train.validations + 1e-9)
                if state.best_metric is None or metric >= state.best_metric:
                    state.best_metric, state.best_step = metric, state.step
                    learner.best = learner.weights()
            if due or event or math.floor(progress * ROWS + 1e-9) > state.rows or progress >= 1:
                row = make_row(state, sampler.steps_per_epoch, rate, metric, event)
                history.append(row)
                state.rows = math.floor(progress * ROWS + 1e-9)
                record(row, run, history, board)
            if due or event or time.monotonic() - saved > CHECKPOINT_SECONDS or progress >= 1:
                good = snapshot(learner, state)
                saved = time.monotonic()
                if run is not None:
                    run.write_checkpoint(good)
            if on_moment is not None:
                on_moment(Moment(state.step, progress, state.seconds, loss_now, metric))
    except KeyboardInterrupt:
        interrupted = True
        log.warning("interrupted at step %d: the best weights so far are kept", state.step)
    if board is not None:
        board.close()
    if learner.best:
        learner.load(learner.best)
    else:
        state.best_step = state.step
    encoder.eval()
    comparator.eval()
    return Fitted(
        state.step, state.seconds, state.best_metric, state.best_step, history, interrupted
    )


class Feed:
    """From a batch's rows to its embeddings: pictures, turned and seen in random views.

    Where the backbone is frozen and the views are still, its features are computed once instead.
    """

    def __init__(self, encoder: Encoder, pool: Pool, settings: Settings, compute: Compute) -> None:
        self.encoder, self.pool, self.compute = encoder, pool, compute
        self.seed = settings.seed
        self.views: AugmentSettings = settings.augment
        self.turning = settings.sampler.rotations
        self.fill = settings.picture.fill / 255
        self.features = None
        if can_precompute(settings):
            self.features = backbone_features(encoder, pool.pixels, compute)
        self._step = 0

    def __call__(self, batch: Batch) -> Tensor:
        """The embeddings (B, D) of a batch, with their graph."""
        self.encoder.train()
        if self.features is not None:
            rows = torch.from_numpy(batch.row).to(self.features.device)
            return self.encoder.project(self.features[rows])
        pixels = torch.from_numpy(self.pool.pixels[batch.row]).to(self.encoder.device)
        if self.turning:
            pixels = quarter_turns(pixels, torch.from_numpy(batch.turns))
        generator = torch.Generator().manual_seed(torch.initial_seed())
        x_BCHW = augment(pixels.float() / 255, self.views, generator, self.fill)
        with self.compute.autocast():
            emb_BD: Tensor = self.encoder(x_BCHW)
        return emb_BD.float()


def make_optimizer(
    encoder: Encoder, objective: nn.Module, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimiser over all that learns; weight decay spares biases and norms (He 2019)."""
    params = [p for m in (encoder, objective) for p in m.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.rate, fused=True)
    if settings.name == "adam":
        return torch.optim.Adam(groups, lr=settings.rate, fused=True)
    if settings.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=settings.rate, momentum=0.9)
    return torch.optim.SGD(groups, lr=settings.rate, momentum=0.9)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def step_seed(seed: int, step: int) -> int:
    """A seed for the randomness of one step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def descend(learner: Learner, loss: Tensor, clip: float) -> None:
    """One step of the optimiser."""
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if clip:
        params = [p for group in learner.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, clip)
    learner.optimizer.step()


def go_back(learner: Learner, good: Checkpoint, answer: Answer, guard: Guard, state: State) -> str:
    """Do what the guard says: good weights again, a lower rate, easier negatives; say so.

    Raises:
        TrainingError: it has been done too often.
    """
    if guard.exhausted:
        raise TrainingError(
            f"step {state.step}: {answer.reason}, for the third time. Going back to good weights "
            "with a lower rate did not help: try another loss (--loss supcon), a lower "
            "optimizer.rate, or look at the data with `twinlens inspect --montage`."
        )
    now = replace(state)
    restore(learner, good)
    learner.optimizer.state.clear()
    state.mining, state.rate_factor, state.answers = (
        answer.mining,
        answer.rate_factor,
        guard.answers,
    )
    changed = "" if answer.mining == now.mining else f", {now.mining} -> {answer.mining} negatives"
    event = (
        f"{answer.reason}; back to the weights of step {good.state['step']}, "
        f"rate x {answer.rate_factor:.2g}{changed}"
    )
    log.warning("step %d: %s", state.step, event)
    return event


def snapshot(learner: Learner, state: State) -> Checkpoint:
    """Everything that training needs to go on from here."""
    tensors = {f"now.{k}": v for k, v in learner.weights().items()}
    tensors |= {f"best.{k}": v for k, v in learner.best.items()}
    for index, moments in learner.optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = value.clone()
    return Checkpoint(tensors, dict(vars(state)))


def restore(learner: Learner, checkpoint: Checkpoint) -> State:
    """Take over a snapshot; the inverse of `snapshot`."""
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "optimizer": {}}
    for key, value in checkpoint.tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    learner.load(parts["now"])
    learner.best = dict(parts["best"])
    moments: dict[int, dict[str, Any]] = {}
    for key, value in parts["optimizer"].items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value.clone()
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return State(**checkpoint.state)


def make_row(
    state: State, steps_per_epoch: int, rate: float, metric: float | None, event: str
) -> HistoryRow:
    """A row of the history: the mean loss since the last one."""
    loss = state.loss_sum / state.loss_count if state.loss_count else math.nan
    state.loss_sum, state.loss_count = 0.0, 0
    epoch = state.step / steps_per_epoch
    return HistoryRow(state.step, epoch, state.seconds, loss, rate, metric, event)


def make_board(run: RunFolder | None, step: int) -> Any:
    """A writer of TensorBoard events that forgets what a killed run wrote after its checkpoint."""
    if run is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]


def record(row: HistoryRow, run: RunFolder | None, history: list[HistoryRow], board: Any) -> None:
    """Write a row where people look: `history.csv` and TensorBoard."""
    if run is None:
        return
    run.write_history(history)
    board.add_scalar("loss", row.loss, row.step)
    board.add_scalar("rate", row.rate, row.step)
    if row.metric is not None:
        board.add_scalar("validation", row.metric, row.step)
    if row.event:
        board.add_text("event", row.event, row.step)
