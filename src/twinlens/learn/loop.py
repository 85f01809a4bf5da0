"""The training loop: from pictures to weights.

Step t draws its batch, its views and its dropout from (seed, t) alone. A run that is killed and
resumed from any checkpoint therefore reaches the same weights as an unbroken one. Reading pictures,
calibration and reports are no part of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from twinlens._version import __version__
from twinlens.config import Settings, TrainSettings
from twinlens.data.samplers import make_sampler
from twinlens.errors import TrainingError
from twinlens.learn.callbacks import Callback, StepReport, notify
from twinlens.learn.embed_batch import BatchEmbedder, LabelledPixels, StoredInputs
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
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.learn.records import HistoryRow
from twinlens.learn.run_folder import RunFolder
from twinlens.learn.schedule import COOL_DOWN, RunLength, end_after, run_length, schedule_factor
from twinlens.learn.validation import Validator
from twinlens.learn.whitening import whiten_head
from twinlens.measure.held_out import LEAST_GAIN
from twinlens.model.comparators import Comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder
from twinlens.model.layers import Clipped

__all__ = ["FitResult", "LabelledPixels", "fit"]

log = logging.getLogger("twinlens")

HISTORY_ROWS = 100  # evenly over the run
CHECKPOINT_SECONDS = 60.0
VALIDATION_SHARE = 0.1  # largest share of a time budget for validations
MOST_ROUNDS = 8  # further ones, if each of them helps


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes:
        steps: steps done.
        seconds: seconds spent in them.
        best_metric: 1 - EER or recall at 1 on the validation pictures; None without any.
        best_step: step of the weights that were kept.
        history: rows of the history.
        interrupted: whether Ctrl-C ended the run.
        stored: what frozen layers give for the pictures, if a last fit to more of them follows.
    """

    steps: int
    seconds: float
    best_metric: float | None
    best_step: int
    history: list[HistoryRow]
    interrupted: bool
    stored: StoredInputs | None = field(default=None, repr=False)


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
    stored: StoredInputs | None = None,
    share: float = 1.0,
    callbacks: Sequence[Callback] = (),
    ranks: Ranks = ALONE,
) -> FitResult:
    """Train the encoder and the comparator in place, and leave the best weights in them.

    Several ranks call it together, with the same pictures and settings, and end with equal weights.

    torch's global generator is seeded at each step, since dropout draws from no other.

    Args:
        encoder: network with its initial weights.
        comparator: comparator; a learned one is trained as well.
        train: pictures to train on.
        val: other pictures, which choose the best weights; None keeps the last weights.
        settings: settings, all but `data` and `picture`.
        compute: device and format of the arithmetic.
        run: folder for checkpoints and curves; its checkpoint, if any, is resumed from. Of several
            ranks the first one's is used.
        spent: seconds of the time budget that are used already.
        reserve: function from the seconds of a validation, with those of frozen layers, to the
            seconds of the time budget that the work after training needs.
        on_step: called after each step.
        on_features: called with (done, all) while a frozen backbone computes features.
        share: of the time that a time budget leaves, for this training.
        callbacks: told of each step and validation.
        stored: what frozen layers give for these pictures, or some of them, if it is known.
        ranks: processes that train together.
    Raises:
        DataError: the pictures cannot make a batch.
        TrainingError: the run keeps collapsing before a validation, its checkpoint is damaged, or
            ranks have different pictures or settings.
    """
    started = time.monotonic()
    if ranks.size > 1:
        ranks.check_same(_facts(train, val, settings))
    sampler = make_sampler(train.label, train.forged, settings.sampler, settings.seed, train.shards)
    compute.place(encoder)
    if settings.train.sync_batch_norm:
        ranks.synchronise_norms(encoder)
    learner = _make_learner(encoder, comparator, sampler.num_labels, settings, compute)
    learner.ranks = ranks
    run = run if ranks.is_first else None
    state = _resume(learner, run)  # Before a frozen backbone computes features.
    embed = BatchEmbedder(encoder, train, settings, compute, on_features, stored, ranks)
    validator = _make_validator(val, settings, compute, encoder, ranks)
    if state is None:
        state = TrainingState(mining=settings.loss.mining)
        if settings.model.init == "whitened":
            _whiten(encoder, embed, train)
            ranks.copy_first([encoder])
    if not settings.train.extend:  # A resumed run may have been given a length.
        state.rounds, state.round_metric = 0, None
    if not settings.train.patience:
        state.skipped = 0.0
    guard = Guard(settings.loss, state.guard)
    history = History(run, state.step)
    seconds = _validate_first(learner, state, history, validator, settings, callbacks)
    frozen = 0.0 if validator is None else embed.frozen_seconds * len(validator.label)
    reserved = 0.0 if reserve is None else reserve(seconds + frozen)
    reserved += spent + (time.monotonic() - started)
    reserved, seconds = ranks.from_first(reserved, seconds)
    length = run_length(settings.train, sampler.steps_per_epoch, reserved, share)
    if length.seconds == 0:
        log.warning("the time budget leaves no time to train: one step is done")
    if state.planned == 0:
        state.planned = _affordable_validations(settings.train.validations, length, seconds)
    begun, saved = time.monotonic() - state.seconds, time.monotonic()
    progress = _progress(length, state)
    interrupted = False
    try:
        while progress < end_after(state.rounds):
            seed = _step_seed(settings.seed, state.step)
            torch.manual_seed(seed + ranks.rank)
            factor = schedule_factor(settings.optimizer.schedule, progress)
            rate = settings.optimizer.rate * (factor * state.guard.rate_factor)
            batch = sampler.batch(state.step)
            learner.objective.mining = state.mining
            emb_BD = embed(batch, seed)
            if embed.reader is not None:
                embed.begin(sampler.batch(state.step + 1))
            if ranks.size > 1:  # A loss may draw, and dropout differs.
                torch.manual_seed(seed)
            loss = learner.objective(emb_BD, batch)
            loss_value, std = ranks.from_first(float(loss.detach()), relative_std(emb_BD.detach()))
            intervention = guard.check(loss_value, std, state.mining)
            if intervention is None:
                learner.update(loss, rate, settings.optimizer.clip)
                state.loss_sum += loss_value
                state.loss_count += 1
            event = "" if intervention is None else _intervene(learner, intervention, guard, state)
            give_up = intervention is not None and guard.exhausted
            del emb_BD, loss  # A graph that was not passed backwards holds its memory.
            state.step += 1
            (state.seconds,) = ranks.from_first(time.monotonic() - begun)
            progress = _progress(length, state)

            ends = progress >= end_after(state.rounds)
            validate, write_row = _due(state, progress)
            validate = validate or ends
            metric = None
            if validate and validator is not None:
                metric = validator(encoder, comparator)
                state.stale = 0 if _is_gain(state, metric) else state.stale + 1
                _keep_best(learner, state, metric, validator.num_mated)
            if validate and not guard.suspicious and learner.is_finite():
                learner.good, state.good_step = learner.weights(), state.step
            if not ends and _is_stale(state, settings.train, length):
                event = _end_early(state, progress, settings, length)
                progress = _progress(length, state)
                _due(state, progress)  # Those of the part that is left out are not due.
            if ends and metric is not None and settings.train.extend and length.steps is not None:
                _extend(state, metric, settings.train.patience)
                progress = _progress(length, state)
            row = None
            if validate or write_row or event:
                row = _row(state, length, rate, metric, event)
                history.add(row)
            if validate or event or time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(learner, state, run)
                saved = time.monotonic()
            done = progress / end_after(state.rounds)
            report = StepReport(state.step, done, state.seconds, loss_value, rate, metric, row)
            if on_step is not None:
                on_step(report)
            notify(callbacks, "on_step", report)
            if metric is not None:
                notify(callbacks, "on_validation", row)
            if give_up:
                break
    except KeyboardInterrupt:
        interrupted = True
        log.warning(
            "interrupted at step %d: finishing with the best weights so far; a second interrupt "
            "ends at once", state.step,
        )  # fmt: skip
    _finish(learner, state)
    kept = embed.stored if settings.train.refit else None
    return FitResult(
        state.step, state.seconds, state.best_metric, state.best_step, history.rows, interrupted,
        kept,
    )  # fmt: skip


def _whiten(encoder: Encoder, embed: BatchEmbedder, train: LabelledPixels) -> None:
    """Begin with a linear head that whitens the features of the training pictures."""
    *layers, head = encoder.head
    assert isinstance(head, nn.Linear)
    features_NF = embed.initial_features()
    for layer in layers:
        if isinstance(layer, Clipped):
            layer.measure(features_NF)
            features_NF = layer(features_NF)
    label_N = torch.from_numpy(np.where(train.forged, -1 - train.label, train.label))
    repeated = label_N.to(features_NF.device).repeat(len(features_NF) // len(label_N))
    whiten_head(head, features_NF, repeated)


def _make_learner(
    encoder: Encoder, comparator: Comparator, num_labels: int, settings: Settings, compute: Compute
) -> Learner:
    torch.manual_seed(settings.seed)  # A loss of pytorch-metric-learning may have weights.
    objective = Objective(settings.loss, comparator, num_labels, settings.model.embedding)
    objective.to(compute.device)
    return Learner(encoder, objective, make_optimizer(encoder, objective, settings.optimizer))


def _facts(train: LabelledPixels, val: LabelledPixels | None, settings: Settings) -> dict[str, str]:
    """All that ranks must have in common, by name."""
    facts = {
        "versions": f"{__version__} with torch {torch.__version__}",
        "settings": settings.model_dump_json(exclude={"train": {"device"}}),
        "training pictures": train.digest(),
        "room for decoded pictures": "all" if train.shards is None else "a part, in shards",
    }
    return facts if val is None else facts | {"validation pictures": val.digest()}


def _make_validator(
    val: LabelledPixels | None,
    settings: Settings,
    compute: Compute,
    encoder: Encoder,
    ranks: Ranks,
) -> Validator | None:
    if val is None:
        return None
    validator = Validator.make(val, settings, compute, encoder, ranks)
    if validator is None:
        log.warning("the validation pictures lack pairs of both kinds: the last weights are kept")
    return validator


def _validate_first(
    learner: Learner,
    state: TrainingState,
    history: History,
    validator: Validator | None,
    settings: Settings,
    callbacks: Sequence[Callback],
) -> float:
    """Validate the initial weights, unless only the final ones are validated.

    Those of a trained model are kept, unless better ones follow.

    Returns:
        Seconds of a validation, which a time budget needs; 0 without a validation.
    """
    if state.step == 0:
        learner.good = learner.weights()
    train, is_trained = settings.train, settings.model.init == "given"
    needed = train.time_budget is not None or (state.step == 0 and train.validations > 1)
    if validator is None or not needed:
        return 0.0
    started = time.monotonic()
    metric = validator(learner.encoder, learner.objective.comparator)
    if state.step == 0:
        row = HistoryRow(0, 0.0, 0.0, math.nan, 0.0, metric)
        history.add(row)
        notify(callbacks, "on_validation", row)
        if is_trained:
            _keep_best(learner, state, metric, validator.num_mated)
    return time.monotonic() - started


def _resume(learner: Learner, run: RunFolder | None) -> TrainingState | None:
    """Load the checkpoint of the first rank on all ranks; without one, its initial weights."""
    ranks = learner.ranks
    checkpoint = ranks.object_of_first(None if run is None else run.read_checkpoint())
    if checkpoint is None:
        ranks.copy_first([learner.encoder, learner.objective])
        return None
    state = restore_checkpoint(learner, checkpoint)
    if run is not None:
        log.info("resumed at step %d of %s", state.step, run.path)
    return state


def _step_seed(seed: int, step: int) -> int:
    """A seed for the randomness of one step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _intervene(
    learner: Learner, intervention: Intervention, guard: Guard, state: TrainingState
) -> str:
    """Return to the good weights with a lower rate and easier negatives.

    Returns:
        The event for the history.
    Raises:
        TrainingError: it has been done too often, and no weights were validated before.
    """
    if guard.exhausted:
        event = (
            f"{intervention.reason}, for the third time. The last good weights with a lower rate "
            "did not help: try another loss (--loss supcon) or a lower optimizer.rate, or check "
            "the data with `twinlens inspect --montage`"
        )
        if not learner.best:
            raise TrainingError(f"step {state.step + 1}: {event}.")
        log.warning("step %d: %s; the best weights so far are kept", state.step + 1, event)
        return event
    learner.restore_good()
    eased = intervention.mining != state.mining
    event = (
        f"{intervention.reason}; back to the weights of step {state.good_step}, "
        f"rate x {intervention.rate_factor:.2g}"
        + (f", {state.mining} -> {intervention.mining} negatives" if eased else "")
    )
    state.mining = intervention.mining
    log.warning("step %d: %s", state.step + 1, event)
    return event


def _affordable_validations(planned: int, length: RunLength, seconds: float) -> int:
    """As many of the planned validations, `seconds` each, as a time budget allows; at least one."""
    if length.seconds is None:
        return planned
    return max(1, min(planned, int(VALIDATION_SHARE * length.seconds / max(seconds, 1e-9))))


def _due(state: TrainingState, progress: float) -> tuple[bool, bool]:
    """Whether a validation is due, and whether a row of the history is; counts both."""
    validations = math.floor(progress * state.planned + 1e-9)
    rows = math.floor(progress * HISTORY_ROWS + 1e-9)
    due = validations > state.validations, rows > state.rows
    state.validations, state.rows = validations, rows
    return due


def _progress(length: RunLength, state: TrainingState) -> float:
    return length.progress(state.step, state.seconds, state.rounds, state.skipped)


def _is_gain(state: TrainingState, metric: float) -> bool:
    """Whether the error is lower than the lowest so far by a hundredth."""
    top = state.top_metric
    return top is None or 1 - metric < (1 - LEAST_GAIN) * (1 - top)


def _is_stale(state: TrainingState, train: TrainSettings, length: RunLength) -> bool:
    """Whether validation has stopped improving in the first round of a run."""
    is_first = length.steps is not None and not state.rounds and not state.skipped
    return is_first and 0 < train.patience <= state.stale


def _end_early(state: TrainingState, progress: float, settings: Settings, length: RunLength) -> str:
    """Skip to the end of the schedule, where the learning rate is low.

    Returns:
        The event for the history.
    """
    assert length.steps is not None
    at = 1.0 if settings.optimizer.schedule == "constant" else COOL_DOWN
    state.skipped = max(0.0, at - progress)
    if not state.skipped:  # The end is near.
        return ""
    last = state.step + math.ceil((1 - at) * length.steps)
    event = (
        f"no gain in {state.stale} validations: training ends early, at step {last} of "
        f"{length.steps}"
    )
    log.info("step %d: %s", state.step, event)
    return event


def _extend(state: TrainingState, metric: float, patience: int) -> None:
    """Add a round after the first one, and as long as the error falls by a hundredth.

    None is added where validation has stopped improving before.
    """
    if 0 < patience <= state.stale:
        return
    before = state.round_metric
    helped = before is None or 1 - metric < (1 - LEAST_GAIN) * (1 - before)
    if metric < 1 and helped and not state.skipped and state.rounds < MOST_ROUNDS:
        state.round_metric, state.rounds = metric, state.rounds + 1


def _keep_best(learner: Learner, state: TrainingState, metric: float, num_pictures: int) -> None:
    """Keep the latest weights within one standard error of the highest metric so far.

    Late weights at a low learning rate are better than earlier ones with a lucky validation; the
    rule is Breiman's for trees (1984). The error is that of a share among `num_pictures`.
    """
    if not math.isfinite(metric):
        return
    state.top_metric = metric if state.top_metric is None else max(state.top_metric, metric)
    error = math.sqrt(state.top_metric * (1 - state.top_metric) / num_pictures)
    # At least one picture's worth: at a metric of 1 the standard error is 0.
    if metric >= state.top_metric - max(error, 1 / num_pictures) - 1e-9:
        state.best_metric, state.best_step = metric, state.step
        learner.best = learner.weights()


def _row(
    state: TrainingState, length: RunLength, rate: float, metric: float | None, event: str
) -> HistoryRow:
    # Rounded as in the file, so that the history of a resumed run equals an unbroken one's.
    epoch, seconds = round(state.step / length.steps_per_epoch, 3), round(state.seconds, 3)
    return HistoryRow(state.step, epoch, seconds, state.take_mean_loss(), rate, metric, event)


def _save(learner: Learner, state: TrainingState, run: RunFolder | None) -> None:
    if run is not None:
        run.write_checkpoint(make_checkpoint(learner, state))


def _finish(learner: Learner, state: TrainingState) -> None:
    """Load the best weights; without validation keep the last ones, if they are finite."""
    if learner.best:
        learner.load(learner.best)
    elif learner.is_finite():
        state.best_step = state.step
    else:
        learner.load(learner.good)
        state.best_step = state.good_step
    learner.encoder.eval()
    learner.objective.eval()
