"""From prepared pictures to a fitted model: candidates, training, and a last fit to all of them."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from twinlens.commands.follow import share_training
from twinlens.commands.prepare import PreparedRun
from twinlens.config import ModelSettings, PictureSettings, Settings
from twinlens.data.pixels import DecodedTable
from twinlens.data.splits import is_closed_set
from twinlens.errors import ConfigError
from twinlens.learn.auto_facts import LONGEST
from twinlens.learn.callbacks import Callback, StepReport
from twinlens.learn.candidates import feature_candidates
from twinlens.learn.cross_validation import FeatureBank, train_network
from twinlens.learn.loop import FitResult, LabelledPixels, fit
from twinlens.learn.model_selection import MOST_PICTURES, ModelSelection
from twinlens.learn.race import Race, changed, entries_of
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.learn.records import CandidateRow, LearningPoint
from twinlens.learn.run_folder import RaceRecord, RunFolder
from twinlens.learn.validation import MAX_PICTURES
from twinlens.measure.domain import MOST_PICTURES as MOST_DESCRIBED
from twinlens.measure.held_out import HeldOutPairs, make_fold
from twinlens.measure.pairs import draw_pairs, pair_distances, sample_pictures
from twinlens.measure.picture_statistics import picture_statistics
from twinlens.model.comparators import TorchComparison, make_comparator
from twinlens.model.compute import Compute, choose_compute, deterministic
from twinlens.model.device import memory_explained, pick_device
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.layers import glorot
from twinlens.model.networks import Networks
from twinlens.model.pretrained import start_at_hand
from twinlens.model.timm_backbones import is_pretrained, pretrained_picture, stage_strides
from twinlens.progress import Progress, format_duration

__all__ = ["FittedModel", "fit_model", "frozen_network"]

log = logging.getLogger("twinlens")

ENLARGED = 96
"""The side to which small drawings are enlarged for a network for photographs: larger ones take
five times as long and are told apart no better (benchmarks/NOTES.md)."""
MOST_ENLARGED = 3000 * 224**2
"""Pixels, at most, of all drawings that such a network sees, which its time is proportional to."""

LEARNING_SHARE = 0.6
"""Share of a time budget, at least, for everything before the work after training."""

FEWEST = 100
"""Validation pictures, and test pictures, that are used in any case."""

FIXED_SECONDS, GRAPH_SECONDS = 4, 12
"""Of the work after training, whatever the pictures; and of a published network's graph."""

REFIT_SHARE = 0.3
"""Steps of the last fit as a share of those before; of a time budget, the same share."""

TIMED_PICTURES = 8  # for what takes a picture at a time on the CPU
REFIT_RATE = 0.5
"""Highest learning rate of the last fit, relative to the one before."""


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Networks, and what is known of them before they are evaluated.

    Attributes:
        prepared: the run, with the settings that the network was trained with.
        networks: the model.
        fit: steps, curves and kept step of the network that was trained.
        pairs: distances of held-out pictures by the model before its last fit; None if there were
            none, or if the model was not fitted to the validation pictures.
        candidates: every candidate on held-out pictures, the chosen model first.
        curve: learning curve over identities, by the best features.
        most: pictures of each split, for later, that a time budget has room for; None for all.
    """

    prepared: PreparedRun
    networks: Networks
    fit: FitResult
    pairs: HeldOutPairs | None = None
    candidates: list[CandidateRow] = field(default_factory=list)
    curve: list[LearningPoint] = field(default_factory=list)
    most: int | None = None


def fit_model(
    prepared: PreparedRun,
    run: RunFolder,
    started: float,
    callbacks: Sequence[Callback] = (),
    ranks: Ranks = ALONE,
) -> FittedModel:
    """Compare the candidates, train the network, and fit the result to all pictures.

    Args:
        prepared: pictures and settings.
        run: folder for the checkpoint.
        started: `time.monotonic()` at the start of the command, for a time budget.
        callbacks: told of each step and validation of the network's training.
        ranks: processes that share the network's training; candidates are compared on the first.
    Raises:
        TrainingError: the training collapses, or the GPU's memory is too small.
    """
    settings, decoded = prepared.settings, prepared.decoded
    rows = np.flatnonzero(np.isin(decoded.table.split.astype(str), ("train", "val")))
    part = decoded.table.select(rows)
    images = LabelledPixels(decoded.pixels, rows, part.labels(), part.forged)
    is_validation = np.asarray(part.split == "val")
    compute = _compute(run, prepared)
    is_compared = settings.train.candidates and _can_hold_out(images, is_validation)
    frozen = frozen_network(settings, len(images.row)) if is_compared else (None, settings.picture)
    is_published = is_pretrained(settings.model) or frozen[0] is not None
    fixed = FIXED_SECONDS + (GRAPH_SECONDS if is_published else 0)
    reserve = _Reserve(decoded, settings.train.time_budget, fixed, bfloat16=compute.bfloat16)
    clock = _Clock(settings.train.time_budget, started, reserve)
    with memory_explained(), deterministic():
        if is_compared:
            fitted = _fit_candidates(
                prepared, run, clock, images, is_validation, frozen, compute, callbacks, ranks
            )
            return replace(fitted, most=clock.reserve.most)
        networks, result = _fit(prepared, run, clock, compute, callbacks, ranks)
        most = clock.reserve.most
        if not settings.train.refit or not is_validation.any() or result.interrupted:
            return FittedModel(prepared, networks, result, most=most)
        rows = np.flatnonzero(is_validation)
        if most is not None:
            rng = np.random.default_rng(settings.seed)
            rows = rows[sample_pictures(images.label[rows], most, rng)]
        pairs = _validation_pairs(networks, images, rows, settings)
        encoder, result = _refit(
            networks.encoder, images, settings, result, compute, clock.left(), ranks
        )
        model = Networks(encoder, networks.comparator)
        return FittedModel(prepared, model, result, pairs, most=most)


def _can_hold_out(images: LabelledPixels, is_validation: NDArray[np.bool_]) -> bool:
    """Whether the validation pictures give pairs of both kinds, to compare candidates on."""
    rows = np.flatnonzero(is_validation)
    return make_fold(rows, images.label[rows], images.forged[rows], 0) is not None


class _Clock:
    """The time of a run, under a time budget or without."""

    def __init__(self, budget: float | None, started: float, reserve: _Reserve) -> None:
        self.budget, self.started, self.reserve = budget, started, reserve

    def spent(self) -> float:
        """Seconds since the start of the command."""
        return time.monotonic() - self.started

    def left(self) -> float | None:
        """Seconds that are left for learning; None without a budget."""
        if self.budget is None:
            return None
        return max(0.0, self.budget - self.spent() - self.reserve.seconds)


def _fit_candidates(
    prepared: PreparedRun,
    run: RunFolder,
    clock: _Clock,
    images: LabelledPixels,
    is_validation: NDArray[np.bool_],
    frozen: tuple[ModelSettings | None, PictureSettings],
    compute: Compute,
    callbacks: Sequence[Callback],
    ranks: Ranks,
) -> FittedModel:
    settings, table = prepared.settings, prepared.decoded.table
    most = MOST_PICTURES
    if clock.budget is not None:
        members = feature_candidates(settings.picture, *frozen)
        each = later = FeatureBank.seconds_each(members, settings.picture, images, compute)
        if compute.on_gpu:
            few = images.select(np.arange(min(TIMED_PICTURES, len(images.row))))
            later = FeatureBank.seconds_each(members, settings.picture, few, Compute("cpu"))
        clock.reserve.set_embedding(later * (2 if settings.model.mirrored else 1))
        seconds = clock.left() or 0.0
        most = ModelSelection.most_pictures(settings, len(images.row), seconds, each)
    kept = sample_pictures(images.label, most, np.random.default_rng(settings.seed))
    if len(kept) < len(images.row):
        log.info(
            "comparing on %d of %d pictures, for want of time or memory", len(kept), len(images.row)
        )
    part, is_validation = images.select(kept), is_validation[kept]
    selection = ModelSelection(
        settings, part, is_validation, closed=is_closed_set(table), frozen=frozen, compute=compute,
        seconds=clock.left(), progress=_progress,
    )  # fmt: skip
    raced = list[CandidateRow]()
    if not is_pretrained(settings.model) and settings.model.weights is None:
        prepared, raced = _race(prepared, run, selection, clock)
        settings = selection.settings = prepared.settings
    selection.add_features()
    curve = [] if is_closed_set(table) else selection.learning_curve()  # Before time is shared out.
    encoders = dict[str, Encoder]()
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    result = FitResult(0, 0.0, None, 0, [], False)
    if is_pretrained(settings.model):
        selection.add_tuned()
    else:
        networks, result = _fit(prepared, run, clock, compute, callbacks, ranks)
        if result.interrupted:
            return FittedModel(prepared, networks, result)
        began = "nothing" if settings.model.weights is None else "a start"
        name = f"{settings.model.backbone}, from {began}"
        encoders[name] = networks.encoder
        last = _for_steps(settings, result.best_step)
        selection.add_network(name, networks.encoder, last, result.seconds)
    weights, candidates, pairs = selection.choose()
    joined, best = candidates[:2]
    log.info(
        "compared %d candidates on held-out pictures; the best alone is %s, with an EER of %.1f %%",
        len(candidates) - 1, best.name, 100 * best.eer,
    )  # fmt: skip
    log.info(
        "chosen, with an EER of %.1f %%: %s", 100 * joined.eer,
        ", ".join(f"{w:.0%} {name}" for name, w in weights.items()),
    )  # fmt: skip
    rows = np.arange(len(kept)) if settings.train.refit else np.flatnonzero(~is_validation)
    used = {name: encoder for name, encoder in encoders.items() if name in weights}
    if settings.train.refit:
        for name, encoder in used.items():
            used[name], result = _refit(
                encoder, images, settings, result, compute, clock.left(), ranks
            )
    if set(weights) == set(used):
        (encoder,) = used.values()
    else:
        try:
            encoder = selection.refit(weights, rows, used)
        except KeyboardInterrupt:
            selection.leave_out_trained()
            weights, candidates, pairs = selection.choose()
            log.warning("interrupted in the last fit: the model has features without training only")
            result = replace(result, interrupted=True)
            encoder = selection.refit(weights, rows)
    encoder.to("cpu").to(memory_format=torch.contiguous_format)
    pairs = replace(pairs, a=kept[pairs.a], b=kept[pairs.b])
    held_out = pairs if settings.train.refit else None
    model = Networks(encoder, comparator)
    return FittedModel(prepared, model, result, held_out, candidates + raced, curve)


def _race(
    prepared: PreparedRun, run: RunFolder, selection: ModelSelection, clock: _Clock
) -> tuple[PreparedRun, list[CandidateRow]]:
    """The run with the settings that win a race, and the rows of that; a resumed run repeats none.

    Written before the training begins, since its length may depend on the machine.
    """
    record = run.read_race()
    if record is None:
        chosen = {choice.key for choice in prepared.choices}
        train = selection.rest(0)
        num = len(np.unique(selection.images.label[train]))
        race = Race(
            prepared.settings, selection.images, train, selection.folds[0], selection.compute
        )
        best, rows = race.run(entries_of(prepared.settings, chosen, num), clock.left())
        record = RaceRecord(updates=dict(best.updates), rows=rows)
        run.write_race(record)
    why = "the best in a race on held-out pictures"
    choices = [
        replace(choice, value=record.updates[choice.key], why=why)
        if choice.key in record.updates
        else choice
        for choice in prepared.choices
    ]
    settings = changed(prepared.settings, record.updates)
    if record.rows and not record.updates:
        log.info("none of the compared settings is better than those chosen")
    if record.updates:
        log.info("chosen by the race: %s", ", ".join(f"{k}={v}" for k, v in record.updates.items()))
        run.write_settings(settings)
        run.update_record(choices=choices)
    return replace(prepared, settings=settings, choices=choices), record.rows


def frozen_network(settings: Settings, num: int) -> tuple[ModelSettings | None, PictureSettings]:
    """The network with weights from elsewhere that gives features, and its pictures.

    Where a network learns from nothing, as for drawings, it is one for photographs, if there are
    not too many pictures: enlarged drawings are told apart by it as well. It may see other sizes
    than in its training if its layers are convolutions.
    """
    if is_pretrained(settings.model):
        return settings.model, settings.picture
    device, accept = pick_device(settings.train.device), settings.train.accept_licence
    start = start_at_hand(device, accept_licence=accept)
    if start is None:
        return None, settings.picture
    model = ModelSettings(backbone=start.name, pretrained=True)
    record = pretrained_picture(model)
    assert record is not None
    side = record["size"] if start.size is None else min(start.size, record["size"])
    if max(settings.picture.size) <= LONGEST and stage_strides(start.name):
        side = min(side, ENLARGED)
    if num * side**2 > MOST_ENLARGED:
        return None, settings.picture
    picture = PictureSettings(
        size=(side, side), color="rgb", mean=tuple(record["mean"]), std=tuple(record["std"])
    )
    return model, picture


def _fit(
    prepared: PreparedRun,
    run: RunFolder,
    clock: _Clock,
    compute: Compute,
    callbacks: Sequence[Callback],
    ranks: Ranks,
) -> tuple[Networks, FitResult]:
    """Train a network on the training pictures; the validation pictures choose its weights."""
    settings, decoded = prepared.settings, prepared.decoded
    torch.manual_seed(settings.seed)
    # A checkpoint holds all weights; the file of initial weights may be gone by now.
    encoder = Encoder(settings.model, settings.picture, load=not run.has_checkpoint)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    if prepared.initial is not None and not run.has_checkpoint:
        prepared.initial.load(encoder, comparator)
    elif settings.model.init == "glorot":
        comparator.apply(glorot)
    training, validation = _labelled_pixels(decoded, "train"), _labelled_pixels(decoded, "val")
    log.info(
        "training on %d pictures of %d identities (%s%s)",
        len(training.label), int(training.label.max()) + 1, compute,
        f", {ranks.size} processes" if ranks.size > 1 else "",
    )  # fmt: skip
    progress = Progress("training", "steps")
    share = REFIT_SHARE if settings.train.refit and len(validation.label) else 0.0
    val = validation if len(validation.label) else None
    share_training(ranks, settings, compute, training, val, 1 - share)
    reserve: Callable[[float], float] = clock.reserve
    if compute.on_gpu and clock.budget is not None:
        few = training.take(np.arange(min(TIMED_PICTURES, len(training.row))))
        each = _seconds_on_cpu(encoder, few)

        def reserve(_: float) -> float:
            return clock.reserve.set_embedding(each)

    result = fit(
        encoder, comparator, training, val, settings,
        compute=compute, run=run, spent=clock.spent(),
        on_step=partial(_show_step, progress, settings.train.metric),
        on_features=Progress("computing features"),
        reserve=reserve, share=1 - share, callbacks=callbacks, ranks=ranks,
    )  # fmt: skip
    progress.close()
    log.info(
        "trained %d steps in %s; the weights of step %d are kept",
        result.steps, format_duration(result.seconds), result.best_step,
    )  # fmt: skip
    encoder.to(memory_format=torch.contiguous_format)
    return Networks(encoder, comparator), result


def _refit(
    encoder: Encoder,
    images: LabelledPixels,
    settings: Settings,
    result: FitResult,
    compute: Compute,
    seconds: float | None,
    ranks: Ranks,
) -> tuple[Encoder, FitResult]:
    """Fit a trained network to all pictures: on from its weights, or again if it is soon fitted.

    Ctrl-C leaves the network as it was.

    Args:
        encoder: the trained network.
        images: pictures of training and validation.
        settings: of the training.
        result: of the training.
        compute: device and number format.
        seconds: time that is left; None for no limit.
        ranks: processes that share it.
    Returns:
        The network, and the result of the training, which says if there was an interrupt.
    """
    again = settings.model.init == "whitened"
    steps = round(result.best_step * (1 if again else REFIT_SHARE))
    if seconds is not None and result.steps:
        steps = min(steps, int(seconds * result.steps / max(result.seconds, 1e-9)))
    rate = settings.optimizer.rate * (1 if again else REFIT_RATE)
    log.info("fitting to all %d pictures, %d steps", len(images.row), max(1, steps))
    everything = np.arange(len(images.row))
    optimizer = settings.optimizer.model_copy(update={"rate": rate})
    last = _for_steps(settings, steps).model_copy(update={"optimizer": optimizer})
    before = copy.deepcopy(encoder)
    stored = result.stored if ranks.size == 1 else None  # Others would have to know it, too.
    result = replace(result, stored=None)
    try:
        start = None if again else encoder
        share_training(ranks, last, compute, images.select(everything))
        return train_network(last, images, everything, compute, stored, start, ranks), result
    except KeyboardInterrupt:
        log.warning("interrupted in the last fit: the model before it is kept")
        return before, replace(result, interrupted=True)


def _for_steps(settings: Settings, steps: int) -> Settings:
    """Settings of a training of so many steps, at least one."""
    update = {"steps": max(1, steps), "epochs": None, "time_budget": None}
    return settings.model_copy(update={"train": settings.train.model_copy(update=update)})


def _validation_pairs(
    networks: Networks, images: LabelledPixels, rows: NDArray[np.int64], settings: Settings
) -> HeldOutPairs:
    """Distances of the validation pictures by a model that was not fitted to them."""
    label, forged = images.label[rows], images.forged[rows]
    emb_ND = embed_pixels(networks.encoder, images.take(rows))
    pairs = draw_pairs(label, forged, rng=np.random.default_rng(settings.seed))
    distance = pair_distances(emb_ND, pairs, TorchComparison(networks.comparator))
    return HeldOutPairs(
        np.asarray(distance, dtype=np.float64), pairs.same, rows[pairs.a], rows[pairs.b]
    )


def _progress(title: str) -> Callable[[int, int], None]:
    return Progress(f"computing {title}")


def _labelled_pixels(decoded: DecodedTable, split: str) -> LabelledPixels:
    """The pictures of one split, labelled from 0."""
    rows = np.flatnonzero(decoded.table.split == split)
    part = decoded.table.select(rows)
    return LabelledPixels(decoded.pixels, rows, part.labels(), part.forged)


def _show_step(progress: Progress, metric: str, report: StepReport) -> None:
    progress.note = f"loss {report.loss:.3f}"
    progress(report.step, max(report.step, round(report.step / max(report.progress, 1e-9))))
    if report.metric is not None:
        log.info(
            "step %d (%s): loss %.4f, validation %s %.1f %%", report.step,
            format_duration(report.seconds), report.loss,
            {"eer": "EER", "eer_forged": "EER with forgeries"}.get(metric, "recall at 1"),
            100 * (report.metric if metric == "recall_at_1" else 1 - report.metric),
        )  # fmt: skip


def _seconds_on_cpu(encoder: Encoder, pixels_BCHW: NDArray[np.uint8]) -> float:
    """Seconds of the embedding of a picture on the CPU, by a copy of the network."""
    on_cpu = copy.deepcopy(encoder).cpu()
    for _ in range(2):  # The first pass prepares the second.
        started = time.monotonic()
        embed_pixels(on_cpu, pixels_BCHW)
    return (time.monotonic() - started) / len(pixels_BCHW)


class _Reserve:
    """Seconds of a time budget for the work after training: graph, calibration, evaluation, report.

    All of it is done on the CPU.
    Learning keeps `LEARNING_SHARE` of the budget. Where that is too much, fewer validation and test
    pictures are used after it.

    Attributes:
        most: validation pictures, and test pictures, that are used; None for all.
        seconds: the reserve, once a validation was timed.
    """

    def __init__(
        self, decoded: DecodedTable, budget: float | None, fixed: float, *, bfloat16: bool
    ) -> None:
        split = decoded.table.split.astype(str)
        self.counts = [int((split == name).sum()) for name in ("val", "test")]
        self.budget, self.bfloat16 = budget, bfloat16
        self.most: int | None = None
        self.each = self.seconds = 0.0
        few = decoded.pixels[np.arange(min(TIMED_PICTURES, len(split)))]
        started = time.monotonic()
        picture_statistics(few)
        each = (time.monotonic() - started) / len(few)
        described = int(np.isin(split, ("train", "val")).sum())
        self.fixed = fixed + each * min(MOST_DESCRIBED, described)
        self.set_embedding(0.0)

    def __call__(self, seconds: float) -> float:
        """The reserve, from the seconds of a validation."""
        validated = max(1, min(self.counts[0], MAX_PICTURES))
        # Later work embeds in float32, a quarter as fast as a validation in bfloat16.
        return self.set_embedding(seconds / validated * (4 if self.bfloat16 else 1))

    def set_embedding(self, each: float) -> float:
        """The reserve, from the seconds that the embedding of a picture takes.

        A network is followed by the slowest model that it may become a part of.
        """
        self.each = each = max(each, self.each)
        allowed = float("inf") if self.budget is None else self.budget * (1 - LEARNING_SHARE)
        most = max(self.counts)
        while most > FEWEST and self._needed(most, each) > allowed:
            most = max(FEWEST, most // 2)
        self.most = None if most == max(self.counts) else most
        self.seconds = self._needed(most, each)
        return self.seconds

    def _needed(self, most: int, each: float) -> float:
        # The last fit may embed the validation pictures, and the graph and torch do.
        val, test = (min(most, count) for count in self.counts)
        # Drawn pairs and their bootstrap are bounded; the EER on all pairs is not.
        pairs = 2.5 * min(1.0, (val + test) / 2000) + 8e-9 * test**2
        return self.fixed + pairs + each * (3 * val + test)


def _compute(run: RunFolder, prepared: PreparedRun) -> Compute:
    """Device and number format; those of the start for a resumed run, which must agree bitwise."""
    record = run.read_record()
    if record is not None and record.compute is not None:
        try:
            pick_device(record.compute.device)
        except ConfigError as error:  # The run has moved to another machine.
            raise ConfigError(f"{error}; --set train.device=auto resumes the run here") from error
        return record.compute
    compute = choose_compute(prepared.settings.model, prepared.settings.train)
    run.update_record(compute=compute)
    return compute
