"""fit(): one readable loop from pictures to weights.

Step t of a run draws its batch, its views and its dropout from (seed, t) alone, so a run that was
killed and resumed at any checkpoint comes to the same weights as an unbroken one. It does not know
where pictures come from, and leaves calibration and reports to others.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from twinlens.config import Settings, TrainSettings
from twinlens.data.samplers import make_sampler
from twinlens.errors import TrainingError
from twinlens.learn.embed_batch import BatchEmbedder, LabelledPixels
from twinlens.learn.guard import Guard, Intervention, relative_std
from twinlens.learn.history import History
from twinlens.learn.learner import (
    Learner,
    TrainingState,
    make_checkpoint,
    make_optimizer,
    restore_checkpoint,
)
from twinlens.learn.objective import Objective
from twinlens.learn.run_folder import HistoryRow, RunFolder
from twinlens.learn.schedule import RunLength, run_length, schedule_factor
from twinlens.learn.validation import Validator
from twinlens.learn.whitening import whiten
from twinlens.model.comparators import Comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

__all__ = ["FitResult", "LabelledPixels", "StepReport", "fit"]

log = logging.getLogger("twinlens")

ROWS = 100  # of the history, spread evenly over the run
CHECKPOINT_SECONDS = 60.0
LOOKING = 0.1  # of a time budget, at most, is for validations


@dataclass(frozen=True)
class StepReport:
    """Where a run is, for those who show its progress."""

    step: int
    progress: float
    seconds: float
    loss: float
    metric: float | None


@dataclass(frozen=True)
class FitResult:
    """What a run came to. The encoder and the comparator hold the best weights.

    `best_metric` is 1 - EER or recall at 1 on the validation pictures; None without any.
    """

    steps: int
    seconds: float
    best_metric: float | None
    best_step: int
    history: list[HistoryRow]
    interrupted: bool


def fit(
    encoder: Encoder,
    comparator: Comparator,
    train: LabelledPixels,
    val: LabelledPixels | None,
    settings: Settings,
    *,
    compute: Compute,
    run: RunFolder | None = None,
    spent: float = 0.0,
    reserve: Callable[[float], float] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_features: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Train the encoder and the comparator in place, and leave the best weights in them.

    torch's global random numbers are seeded anew each step, since dropout knows no others.

    Args:
        encoder: with the weights to start from.
        comparator: a learned one is trained along.
        train: the pictures to learn from.
        val: other pictures, to choose the best weights by; None keeps the last.
        settings: `loss`, `sampler`, `augment`, `optimizer`, `train` and `seed` are read.
        compute: the device and the format of the arithmetic.
        run: where checkpoints and curves go; a checkpoint that is there is gone on with.
        spent: seconds of the time budget that are gone already.
        reserve: from the seconds that a validation takes, those of the budget that the work after
            the training will take.
        on_step: called after each step.
        on_features: called with (done, all) while a frozen backbone looks at the pictures.
    Raises:
        DataError: the pictures cannot make a batch.
        TrainingError: the run keeps collapsing before anything was learned, or its checkpoint is
            damaged.
    """
    started = time.monotonic()
    sampler = make_sampler(train.label, train.forged, settings.sampler, settings.seed)
    compute.place(encoder)
    learner = _make_learner(encoder, comparator, sampler.num_labels, settings, compute)
    state = _resumed(learner, run)  # Before a frozen backbone looks at the pictures.
    feed = BatchEmbedder(encoder, train, settings, compute, on_features)
    validator = _make_validator(val, settings, compute, encoder)
    if state is None:
        state = TrainingState(mining=settings.loss.mining)
        if settings.model.init == "whitened":
            _whiten(encoder, feed.features, train)
    guard = Guard(settings.loss, state.watch)
    journal = History(run, state.step)
    seconds = _begin(learner, state, journal, validator, settings.train)
    reserved = spent + (time.monotonic() - started) + (0.0 if reserve is None else reserve(seconds))
    course = run_length(settings.train, sampler.steps_per_epoch, reserved)
    if course.seconds == 0:
        log.warning("the time budget leaves no time to learn: one step is done")
    if state.planned == 0:
        state.planned = _affordable(settings.train.validations, course, seconds)
    begun, saved = time.monotonic() - state.seconds, time.monotonic()
    progress = course.progress(state.step, state.seconds)
    interrupted = False
    try:
        while progress < 1:
            seed = _step_seed(settings.seed, state.step)
            torch.manual_seed(seed)
            share = schedule_factor(settings.optimizer.schedule, progress) * state.watch.rate_factor
            rate = settings.optimizer.rate * share
            batch = sampler.batch(state.step)
            learner.objective.mining = state.mining
            emb_BD = feed(batch, seed)
            loss = learner.objective(emb_BD, batch)
            loss_now = float(loss.detach())
            answer = guard.check(loss_now, relative_std(emb_BD.detach()), state.mining)
            if answer is None:
                learner.update(loss, rate, settings.optimizer.clip)
                state.loss_sum, state.loss_count = state.loss_sum + loss_now, state.loss_count + 1
            event = "" if answer is None else _answered(learner, answer, guard, state)
            given_up = answer is not None and guard.exhausted
            state.step += 1
            state.seconds = time.monotonic() - begun
            progress = course.progress(state.step, state.seconds)

            validate, write_row = _passed(state, progress, state.planned)
            metric = None
            if validate and validator is not None:
                metric = validator(encoder, comparator)
                _keep_best(learner, state, metric, validator.num_mated)
            if validate and not guard.suspicious and learner.finite():
                learner.good, state.good_step = learner.weights(), state.step
            if validate or write_row or event:
                journal.add(_row(state, course, rate, metric, event))
            if validate or event or time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(learner, state, journal, run)
                saved = time.monotonic()
            if on_step is not None:
                on_step(StepReport(state.step, progress, state.seconds, loss_now, metric))
            if given_up:
                break
    except KeyboardInterrupt:
        interrupted = True
        log.warning("interrupted at step %d: the best weights so far are kept", state.step)
    finally:
        journal.close()
    _finish(learner, state)
    return FitResult(
        state.step, state.seconds, state.best_metric, state.best_step, journal.rows, interrupted
    )


def _whiten(encoder: Encoder, features_VNF: Tensor | None, train: LabelledPixels) -> None:
    if features_VNF is None:
        log.warning(
            "model.init 'whitened' has no effect where views vary: the head begins with random "
            "weights; set augment and sampler.rotations to nothing, or optimizer.rate higher"
        )
        return
    head = encoder.head[-1]
    assert isinstance(head, nn.Linear)
    label_N = torch.from_numpy(np.where(train.forged, -1 - train.label, train.label))
    whiten(
        head, features_VNF.flatten(0, 1), label_N.to(features_VNF.device).repeat(len(features_VNF))
    )


def _make_learner(
    encoder: Encoder, comparator: Comparator, num_labels: int, settings: Settings, compute: Compute
) -> Learner:
    torch.manual_seed(settings.seed)  # A loss of the library may draw weights of its own.
    objective = Objective(settings.loss, comparator, num_labels, settings.model.embedding)
    objective.to(compute.device)
    return Learner(encoder, objective, make_optimizer(encoder, objective, settings.optimizer))


def _make_validator(
    val: LabelledPixels | None, settings: Settings, compute: Compute, encoder: Encoder
) -> Validator | None:
    if val is None:
        return None
    validator = Validator.make(val, settings, compute, encoder)
    if validator is None:
        log.warning("the validation pictures give no pairs to judge by: the last weights are kept")
    return validator


def _begin(
    learner: Learner,
    state: TrainingState,
    journal: History,
    validator: Validator | None,
    train: TrainSettings,
) -> float:
    """Validate what there is to begin with, if more than the end is; returns how long that took."""
    if state.step == 0:
        learner.good = learner.weights()
    # A time budget must know how long it takes.
    wanted = train.time_budget is not None or (state.step == 0 and train.validations > 1)
    if validator is None or not wanted:
        return 0.0
    started = time.monotonic()
    metric = validator(learner.encoder, learner.objective.comparator)
    if state.step == 0:
        journal.add(HistoryRow(0, 0.0, 0.0, math.nan, 0.0, metric))
    return time.monotonic() - started


def _resumed(learner: Learner, run: RunFolder | None) -> TrainingState | None:
    checkpoint = run.read_checkpoint() if run is not None else None
    if checkpoint is None or run is None:
        return None
    state = restore_checkpoint(learner, checkpoint)
    log.info("resumed at step %d of %s", state.step, run.path)
    return state


def _step_seed(seed: int, step: int) -> int:
    """A seed for the randomness of one step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _answered(learner: Learner, answer: Intervention, guard: Guard, state: TrainingState) -> str:
    """Do what the guard says: good weights again, a lower rate, easier negatives; say so.

    Raises:
        TrainingError: it has been done too often, and nothing was learned before.
    """
    if guard.exhausted:
        event = (
            f"{answer.reason}, for the third time. Going back to good weights with a lower rate "
            "did not help: try another loss (--loss supcon), a lower optimizer.rate, or look at "
            "the data with `twinlens inspect --montage`"
        )
        if not learner.best:
            raise TrainingError(f"step {state.step + 1}: {event}.")
        log.warning("step %d: %s; the best weights so far are kept", state.step + 1, event)
        return event
    learner.restore_good()
    eased = (
        f", {state.mining} -> {answer.mining} negatives" if answer.mining != state.mining else ""
    )
    state.mining = answer.mining
    event = (
        f"{answer.reason}; back to the weights of step {state.good_step}, "
        f"rate x {answer.rate_factor:.2g}{eased}"
    )
    log.warning("step %d: %s", state.step + 1, event)
    return event


def _affordable(wanted: int, course: RunLength, seconds: float) -> int:
    """How many validations, of so many seconds each, a time budget has room for; at least one."""
    if course.seconds is None:
        return wanted
    return max(1, min(wanted, int(LOOKING * course.seconds / max(seconds, 1e-9))))


def _passed(state: TrainingState, progress: float, validations: int) -> tuple[bool, bool]:
    """Whether progress has come to the next validation, and to the next row of the history."""
    reached, row = math.floor(progress * validations + 1e-9), math.floor(progress * ROWS + 1e-9)
    passed = reached > state.validations, row > state.rows
    state.validations, state.rows = reached, row
    return passed


def _keep_best(learner: Learner, state: TrainingState, metric: float, num_pictures: int) -> None:
    """Keep the latest weights within one standard error of the best metric so far.

    The last weights, with the rate run out, are better than a lucky look at earlier ones; the rule
    is that of Breiman 1984 for trees. The error is that of a share among `num_pictures`.
    """
    if not math.isfinite(metric):
        return
    state.top_metric = metric if state.top_metric is None else max(state.top_metric, metric)
    error = math.sqrt(state.top_metric * (1 - state.top_metric) / num_pictures)
    # A single picture tells nothing apart, nor does a lucky look at which there was no mistake.
    if metric >= state.top_metric - max(error, 1 / num_pictures) - 1e-9:
        state.best_metric, state.best_step = metric, state.step
        learner.best = learner.weights()


def _row(
    state: TrainingState, course: RunLength, rate: float, metric: float | None, event: str
) -> HistoryRow:
    # Rounded as the file has them, so that a resumed run's history is an unbroken one's.
    epoch, seconds = round(state.step / course.steps_per_epoch, 3), round(state.seconds, 3)
    return HistoryRow(state.step, epoch, seconds, state.mean_loss(), rate, metric, event)


def _save(learner: Learner, state: TrainingState, journal: History, run: RunFolder | None) -> None:
    if run is not None:
        journal.flush()
        run.write_checkpoint(make_checkpoint(learner, state))


def _finish(learner: Learner, state: TrainingState) -> None:
    """Leave the best weights in place; without validation the last ones, if they are numbers."""
    if learner.best:
        learner.load(learner.best)
    elif learner.finite():
        state.best_step = state.step
    else:
        learner.load(learner.good)
        state.best_step = state.good_step
    learner.encoder.eval()
    learner.objective.eval()
