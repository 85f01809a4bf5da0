"""fit() on real digits: it learns, is repeatable, resumes, recovers, and keeps a time budget."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from digits_run import CPU, TRAIN, VAL, digest, digit_settings, start

from twinlens.config import LossSettings, OptimizerSettings, Settings
from twinlens.data.samplers import make_sampler
from twinlens.errors import DataError, TrainingError
from twinlens.learn import loop as training
from twinlens.learn.callbacks import RunStart, StepReport
from twinlens.learn.embed_batch import BatchEmbedder, LabelledPixels
from twinlens.learn.features import FrozenPart, can_precompute
from twinlens.learn.learner import (
    Learner,
    TrainingState,
    make_checkpoint,
    make_optimizer,
    restore_checkpoint,
)
from twinlens.learn.objective import Objective
from twinlens.learn.records import HistoryRow
from twinlens.learn.run_folder import RunFolder
from twinlens.learn.schedule import RunLength
from twinlens.learn.trackers import TensorBoard
from twinlens.learn.validation import MAX_PICTURES, Validator
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder, embed_pixels

GOLDEN = Path(__file__).parent / "golden" / "loss_curve.csv"
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for two, and a busy neighbour would make them crawl."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StoppedError(Exception):
    """As if the process were gone."""


def timeless(history: list[HistoryRow]) -> list[tuple[Any, ...]]:
    """Rows without the clock, and with NaN as something that equals itself."""
    return [(r.step, r.epoch, repr(r.loss), r.rate, r.metric, r.event) for r in history]


def resumed(settings: Settings, run: RunFolder, stops: tuple[int, ...], **more: Any) -> Any:
    """Train, stop after some steps, and resume each time."""
    for stop in stops:

        def stopper(encoder: Encoder, report: StepReport, stop: int = stop) -> None:
            if report.step == stop:
                raise StoppedError

        with pytest.raises(StoppedError):
            start(settings, run=run, on_step=stopper, **more)
    return start(settings, run=run, **more)


def test_it_learns_to_tell_digits_apart() -> None:
    *_, fitted = start(digit_settings(train__steps=90))
    first, last = fitted.history[0], fitted.history[-1]
    assert first.metric is not None
    assert first.metric < 0.8  # An untrained network's.
    assert fitted.best_metric is not None
    assert fitted.best_metric > 0.92
    assert last.loss < 0.7 * fitted.history[1].loss
    assert fitted.steps == last.step == 90
    assert not fitted.interrupted


def test_the_weights_that_are_left_are_the_best() -> None:
    encoder, comparator, fitted = start(digit_settings(optimizer__rate=0.1, train__steps=30))
    metrics = {r.step: r.metric for r in fitted.history if r.metric is not None and r.step}
    assert fitted.best_metric == metrics[fitted.best_step]
    # Within a standard error of the highest, which is largest for a share of a half.
    assert fitted.best_metric > max(metrics.values()) - 0.5 / len(VAL.label) ** 0.5
    validator = Validator.make(VAL, digit_settings(), CPU, encoder)
    assert validator is not None
    assert validator(encoder, comparator) == pytest.approx(fitted.best_metric, abs=1e-3)
    assert not encoder.training


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (
        digest(*start(digit_settings(seed=seed, train__steps=12))[:2]) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_the_views_of_a_step_hang_on_its_seed_alone() -> None:
    settings = digit_settings()
    embed = BatchEmbedder(Encoder(settings.model, settings.picture), TRAIN, settings, CPU)
    batch = make_sampler(TRAIN.label, TRAIN.forged, settings.sampler, 0).batch(3)
    torch.manual_seed(1)
    views = embed.pictures(batch, 5)
    torch.manual_seed(2)
    assert torch.equal(embed.pictures(batch, 5), views)
    assert not torch.equal(embed.pictures(batch, 6), views)
    assert views.min() >= 0
    assert views.max() <= 1


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "muon": {"optimizer__name": "muon"},
    "sgd-triplet": {
        "optimizer__name": "sgd", "loss": {"name": "triplet", "mining": "hardest"},
        "sampler__rotations": True,
    },
    "rmsprop-pairs": {
        "optimizer__name": "rmsprop", "optimizer__clip": 1.0, "loss": {"name": "bce"},
        "model__comparator": "network", "sampler": {"kind": "pairs", "batch": 40},
    },
    "library": {"loss": {"name": "pml:ArcFaceLoss"}, "train__metric": "recall_at_1"},
    "given-triplets": {
        "loss": {"name": "triplet", "mining": "given"}, "optimizer__schedule": "cosine",
        "sampler": {"kind": "triplets", "batch": 40}, "optimizer__name": "adam",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_resumed_run_comes_to_the_weights_of_an_unbroken_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)  # A checkpoint each step.
    settings = digit_settings(train__steps=14, train__validations=4, **KINDS[kind])
    encoder, comparator, whole = start(settings, run=RunFolder(tmp_path / "whole"))
    *parts, broken = resumed(settings, RunFolder(tmp_path / "broken"), (2, 7, 13))
    assert digest(*parts) == digest(encoder, comparator)
    assert timeless(broken.history) == timeless(whole.history)
    assert (broken.steps, broken.best_metric, broken.best_step) == (
        14, whole.best_metric, whole.best_step,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "steps"),
    [
        ((0.8, 0.9, 0.95, 0.9502), 10),  # The third further round gains less than a hundredth.
        ((0.8, 0.8), 6),
        ((1.0,), 4),  # Nothing is left to gain.
        ((math.nan,), 4),
        ([1 - 0.9**n for n in range(20)], 4 + 8 * 2),
    ],
)
def test_a_run_goes_on_while_the_error_falls(
    metrics: Sequence[float], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(metrics)
    monkeypatch.setattr(Validator, "__call__", lambda *_: next(left))
    settings = digit_settings(train__steps=4, train__validations=1, train__extend=True)
    shares = []
    *_, fitted = start(settings, on_step=lambda _, report: shares.append(report.progress))
    assert fitted.steps == steps
    assert [row.step for row in fitted.history if row.metric is not None] == [
        *range(4, steps + 1, 2)
    ]
    assert shares[-1] == 1
    rates = {row.step: row.rate / settings.optimizer.rate for row in fitted.history}
    assert rates[4] < 0.3
    assert all(rates[step] == pytest.approx(0.25, abs=0.01) for step in range(6, steps + 1, 2))


@pytest.mark.parametrize("length", [{"time_budget": 0.4}, {"steps": 4, "extend": False}])
def test_a_length_of_the_user_is_kept(length: dict[str, Any]) -> None:
    train = {"validations": 1, "extend": True, **length}
    *_, fitted = start(digit_settings(train=train), reserve=lambda _: 0.0)
    assert fitted.steps == 4 or (fitted.seconds < 5 and "time_budget" in length)


@pytest.mark.parametrize(
    ("schedule", "metrics", "steps"),
    [
        ("one-cycle", (0.5, 0.8, 0.8, 0.801), 10),  # From step 6 (of 20) on, four more.
        ("constant", (0.5, 0.8, 0.8, 0.801), 6),
        ("one-cycle", [1 - 0.9**n for n in range(11)], 20),
        ("one-cycle", (0.5, 0.6, 0.7, 0.8, 0.9, 0.91, 0.92, 0.93, 0.94, 0.94, 0.94), 20),
    ],
)
def test_a_run_ends_early_when_validation_stops_improving(
    schedule: str, metrics: Sequence[float], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter(metrics)
    monkeypatch.setattr(Validator, "__call__", lambda *_: next(values, metrics[-1]))
    train = {"steps": 20, "validations": 10, "patience": 2}
    settings = digit_settings(train=train, optimizer__schedule=schedule)
    *_, fitted = start(settings)
    assert fitted.steps == steps
    events = [row.event for row in fitted.history if row.event]
    ended = f"no gain in 2 validations: training ends early, at step {steps} of 20"
    assert events == ([ended] if steps < 20 else [])
    if steps == 10:  # The last fifth of the schedule, from a low rate down.
        assert all(
            (row.rate < 0.2 * settings.optimizer.rate) == (row.step > 6)
            for row in fitted.history
            if row.step > 3  # The rate has risen.
        )


def test_a_run_that_ended_early_is_resumed_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    train = {"steps": 20, "validations": 10, "patience": 1, "extend": True}
    settings = digit_settings(train=train, optimizer__rate=1e-6)  # It learns nothing.
    encoder, comparator, whole = start(settings, run=RunFolder(tmp_path / "whole"))
    *parts, broken = resumed(settings, RunFolder(tmp_path / "broken"), (2, 5))
    assert whole.steps == broken.steps < 16
    assert digest(*parts) == digest(encoder, comparator)
    assert timeless(broken.history) == timeless(whole.history)


def test_a_run_that_went_on_is_resumed_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first round, at the end of it, in a further one, and at its end."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "MOST_ROUNDS", 2)
    settings = digit_settings(train__steps=5, train__validations=1, train__extend=True)
    encoder, comparator, whole = start(settings, run=RunFolder(tmp_path / "whole"))
    stops = (3, 5, 7, 8) if whole.steps > 8 else (3, 5, 7)
    *parts, broken = resumed(settings, RunFolder(tmp_path / "broken"), stops)
    assert whole.steps >= 8
    assert digest(*parts) == digest(encoder, comparator)
    assert timeless(broken.history) == timeless(whole.history)
    assert (broken.steps, broken.best_step) == (whole.steps, whole.best_step)


def test_a_frozen_backbone_is_the_checkpoints_when_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The initial weights of an encoder may have changed meanwhile; they are not used."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    settings = digit_settings(train__steps=12, model__freeze="all", augment={})
    assert can_precompute(settings)
    whole = start(settings, run=RunFolder(tmp_path / "whole"))
    run = RunFolder(tmp_path / "broken")

    def stopper(encoder: Encoder, report: StepReport) -> None:
        if report.step == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        start(settings, run=run, on_step=stopper)
    broken = start(settings, run=run, begin=1)
    assert digest(*broken[:2]) == digest(*whole[:2])


@pytest.mark.parametrize("compute", [Compute("cpu", False, True), Compute("cpu", True, True)])
def test_resuming_with_channels_last(
    compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused optimiser must find its moments in the layout of the weights again."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    settings = digit_settings(train__steps=12)
    whole = start(settings, compute=compute, run=RunFolder(tmp_path / "whole"))
    broken = resumed(settings, RunFolder(tmp_path / "broken"), (5,), compute=compute)
    assert digest(*broken[:2]) == digest(*whole[:2])


def test_a_run_between_two_checkpoints_is_done_again(tmp_path: Path) -> None:
    settings = digit_settings(train__steps=24, train__validations=4)
    whole = start(settings, run=RunFolder(tmp_path / "whole"))
    run = RunFolder(tmp_path / "broken")  # Its checkpoints are of steps 6, 12, 18 and 24.
    broken = resumed(settings, run, (3, 10, 11, 20))
    assert digest(*broken[:2]) == digest(*whole[:2])
    assert timeless(broken[2].history) == timeless(whole[2].history)
    text = [(RunFolder(tmp_path / n).path / "history.csv").read_text() for n in ("whole", "broken")]
    rows = [[{**r, "seconds": ""} for r in csv.DictReader(t.splitlines())] for t in text]
    assert rows[0] == rows[1]


def test_a_run_that_is_over_stays_as_it_is(tmp_path: Path) -> None:
    settings, run = digit_settings(train__steps=10), RunFolder(tmp_path / "run")
    first = start(settings, run=run)
    again = start(settings, run=run)
    assert digest(*again[:2]) == digest(*first[:2])
    assert timeless(again[2].history) == timeless(first[2].history)


def kill_and_compare(folder: Path, kills: int, seed: int) -> None:
    command = [sys.executable, str(HERE / "digits_run.py"), str(folder), str(kills), str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= kills // 2  # A fast run may be over before the last.
    assert (folder / "broken" / "digest").read_text() == (folder / "whole" / "digest").read_text()
    whole, broken = (RunFolder(folder / n).read_history(10**6) for n in ("whole", "broken"))
    assert timeless(broken) == timeless(whole)


@pytest.mark.slow
def test_kill_9_at_any_moment_and_resume(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_kill_9_again_and_again(seed: int, tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=12, seed=seed)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    start(digit_settings(train__steps=4), run=run)
    with pytest.raises(TrainingError, match="does not fit this run"):
        start(digit_settings(train__steps=8, model__embedding=7), run=run)


def test_a_snapshot_restores_everything() -> None:
    settings = digit_settings()

    def made(seed: int) -> Learner:
        torch.manual_seed(seed)
        encoder = Encoder(settings.model, settings.picture)
        objective = Objective(settings.loss, make_comparator("cosine", 16), 10, 16)
        return Learner(encoder, objective, make_optimizer(encoder, objective, settings.optimizer))

    learner, other = made(0), made(1)
    learner.good = learner.weights()
    learner.update(learner.encoder(torch.rand(4, 1, 8, 8)).sum(), 1e-2, 0.0)
    learner.best = learner.weights()
    learner.update(learner.encoder(torch.rand(4, 1, 8, 8)).sum(), 1e-2, 0.5)
    state = TrainingState(
        step=2, best_metric=0.7, best_step=1, good_step=0, loss_sum=0.1, loss_count=1
    )
    taken = make_checkpoint(learner, state)
    assert restore_checkpoint(other, taken) == state
    assert digest(other.encoder) == digest(learner.encoder)
    for mine, theirs in ((learner.best, other.best), (learner.good, other.good)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    again = make_checkpoint(other, state)
    assert again.tensors.keys() == taken.tensors.keys()
    assert all(torch.equal(again.tensors[k], v) for k, v in taken.tensors.items())
    other.restore_good()
    assert digest(other.encoder) != digest(learner.encoder)
    assert not other.optimizer.state


@pytest.mark.parametrize("name", ["adamw", "muon", "adam", "rmsprop", "sgd"])
def test_weight_decay_spares_biases_and_norms(name: str) -> None:
    settings = digit_settings(optimizer__name=name, optimizer__weight_decay=0.3)
    encoder = Encoder(settings.model, settings.picture)
    learned = make_comparator("sigmoid", 16)
    optimizer = make_optimizer(encoder, learned, settings.optimizer)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len([*encoder.parameters(), *learned.parameters()])
    for parameter in (*encoder.parameters(), *learned.parameters()):
        assert decay[id(parameter)] == (0.3 if parameter.dim() > 1 else 0.0)


def poison(at: int, how_often: int = 1) -> Any:
    """Make the weights NaN after a step, as a gradient that overflows does."""
    left = [how_often]

    def spoil(encoder: Encoder, report: StepReport) -> None:
        if report.step >= at and left[0]:
            left[0] -= 1
            with torch.no_grad():
                next(encoder.parameters()).fill_(math.nan)

    return spoil


@pytest.mark.parametrize("at", [21, 19, 20])  # Validations are at 10, 20, 30 ...
@pytest.mark.parametrize("validated", [True, False])
def test_a_loss_that_is_not_finite_costs_little(at: int, validated: bool, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    encoder, _, fitted = start(
        digit_settings(), run=run, val=VAL if validated else None, on_step=poison(at)
    )
    events = [row for row in run.read_history(10**6) if row.event]
    assert [row.step for row in events] == [at + 1]
    good = 10 if at == 19 else 20
    assert (
        events[0].event
        == f"the loss is NaN or infinite; back to the weights of step {good}, rate x 0.3"
    )
    validator = Validator.make(VAL, digit_settings(), CPU, encoder)
    assert validator is not None
    assert validator(encoder, make_comparator("cosine", 16)) > 0.85
    assert not any(math.isnan(row.loss) for row in fitted.history[1:] if not row.event)


def test_weights_that_are_not_finite_are_neither_best_nor_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gradient that overflows right before a validation."""
    update, steps = Learner.update, iter(range(1, 100))

    def overflowing(learner: Learner, *arguments: Any) -> None:
        update(learner, *arguments)
        if next(steps) == 20:
            with torch.no_grad():
                next(learner.encoder.parameters()).fill_(math.nan)

    monkeypatch.setattr(Learner, "update", overflowing)
    encoder, _, fitted = start(digit_settings(train__steps=40, train__validations=4))
    assert [
        r.metric is None or math.isfinite(r.metric) for r in fitted.history if r.step == 20
    ] == [False]
    assert "back to the weights of step 10" in next(r.event for r in fitted.history if r.event)
    assert fitted.best_metric is not None
    assert math.isfinite(fitted.best_metric)
    assert all(p.isfinite().all() for p in encoder.parameters())


def test_nan_at_the_very_end_leaves_the_last_good_weights() -> None:
    encoder, _, fitted = start(digit_settings(train__steps=20), val=None, on_step=poison(20))
    assert all(p.isfinite().all() for p in encoder.parameters())
    assert fitted.best_step == 20


def test_a_run_that_is_ruined_again_and_again_is_given_up() -> None:
    with pytest.raises(TrainingError, match=r"step 13: the loss is NaN or infinite, for the third"):
        start(digit_settings(), val=None, on_step=poison(10, how_often=10))


def test_what_was_learned_before_the_ruin_is_kept() -> None:
    encoder, _, fitted = start(digit_settings(), on_step=poison(10, how_often=10))
    assert (fitted.steps, fitted.best_step) == (13, 10)
    assert "for the third time" in fitted.history[-1].event
    assert all(p.isfinite().all() for p in encoder.parameters())


def test_the_latest_weights_within_an_error_of_the_best_are_kept() -> None:
    """Of 100 pictures at 0.9, one standard error is 0.03."""
    learner = SimpleNamespace(best={}, weights=lambda: {"at": state.step})
    state = TrainingState()
    kept = []
    for state.step, metric in enumerate((0.8, 0.9, 0.88, 0.86, 0.89, float("nan"), 0.85)):
        training._keep_best(learner, state, metric, 100)  # type: ignore[arg-type]
        kept.append(learner.best["at"])
    assert kept == [0, 1, 2, 2, 4, 4, 4]
    assert (state.top_metric, state.best_metric, state.best_step) == (0.9, 0.89, 4)


def test_one_picture_makes_no_weights_better() -> None:
    learner = SimpleNamespace(best={}, weights=dict)
    state = TrainingState()
    for state.step, metric in enumerate((1.0, 0.99, 0.98)):
        training._keep_best(learner, state, metric, 100)  # type: ignore[arg-type]
    assert (state.top_metric, state.best_step) == (1.0, 1)


def test_a_run_that_collapses_is_brought_back(tmp_path: Path) -> None:
    """Batch-hard triplets at far too high a rate: all pictures fall into one point."""
    settings = digit_settings(
        loss={"name": "triplet", "mining": "hardest", "margin": 0.5},
        model__comparator="euclidean", model__normalize=False, train__steps=100,
        optimizer={"name": "sgd", "rate": 0.3},
    )  # fmt: skip
    run = RunFolder(tmp_path / "run")
    *_, fitted = start(settings, run=run)
    events = [row.event for row in run.read_history(10**6) if row.event]
    assert events
    assert "the embeddings have collapsed" in "".join(events)
    assert "hardest -> semi-hard negatives" in events[0]
    metrics = [row.metric for row in fitted.history if row.metric is not None]
    assert fitted.best_metric is not None
    assert fitted.best_metric > metrics[0]  # Better than the untrained network.


def test_collapse_and_resume_give_the_same_as_collapse_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = digit_settings(
        loss={"name": "triplet", "mining": "hardest", "margin": 0.5},
        model__comparator="euclidean", model__normalize=False, train__steps=60,
        optimizer={"name": "sgd", "rate": 0.3, "schedule": "constant"},
    )  # fmt: skip
    whole = start(settings, val=None)
    interventions = [row.step for row in whole[2].history if row.event]
    assert interventions
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    # Stopped while the guard was counting, and right after it intervened.
    first = interventions[0]
    stops = (first - 3, first - 1, first, first + 2)
    broken = resumed(settings, RunFolder(tmp_path / "broken"), stops, val=None)
    assert timeless(broken[2].history) == timeless(whole[2].history)
    assert digest(*broken[:2]) == digest(*whole[:2])


@pytest.mark.slow
def test_a_time_budget_is_kept() -> None:
    """Of an hour, all but five seconds are reserved for what comes after."""
    settings = digit_settings(train={"time_budget": 3600.0, "validations": 3})
    calls = []

    def reserve(seconds: float) -> float:
        calls.append(seconds)
        return 3595.0

    *_, fitted = start(settings, reserve=reserve)
    assert fitted.steps >= 1
    assert fitted.seconds < 600
    assert len(calls) == 1
    assert calls[0] > 0
    assert fitted.best_metric is not None
    assert fitted.history[-1].step == fitted.steps


@pytest.mark.parametrize(
    ("budget", "seconds", "planned"),
    [(None, 9.0, 10), (50.0, 0.5, 10), (50.0, 2.0, 2), (50.0, 9.0, 1)],
)
def test_validations_take_a_tenth_of_a_budget(
    budget: float | None, seconds: float, planned: int
) -> None:
    length = RunLength(100 if budget is None else None, budget, 10)
    assert training._affordable_validations(10, length, seconds) == planned


def test_ctrl_c_keeps_the_best_so_far() -> None:
    def interrupt(encoder: Encoder, report: StepReport) -> None:
        if report.step == 25:
            raise KeyboardInterrupt

    encoder, comparator, fitted = start(digit_settings(), on_step=interrupt)
    assert fitted.interrupted
    assert fitted.steps == 25
    metrics = {row.step: row.metric for row in fitted.history if row.metric is not None}
    assert metrics.keys() == {0, 10, 20}
    assert fitted.best_metric == metrics[fitted.best_step] > metrics[0]
    validator = Validator.make(VAL, digit_settings(), CPU, encoder)
    assert validator is not None
    assert validator(encoder, comparator) == pytest.approx(fitted.best_metric, abs=1e-3)


def test_without_validation_the_last_weights_stay(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "HISTORY_ROWS", 7)
    *_, fitted = start(digit_settings(train__steps=35), val=None)
    assert (fitted.best_metric, fitted.best_step) == (None, 35)
    assert all(row.metric is None for row in fitted.history)
    assert {row.step for row in fitted.history} >= {5, 10, 15, 20, 25, 30, 35}
    assert len(fitted.history) <= 7 + 6  # A row where one is due or a validation would be.
    singles = LabelledPixels.of(VAL.pixels[:1], VAL.label[:1], VAL.forged[:1])
    assert start(digit_settings(train__steps=2), val=singles)[2].best_metric is None
    assert "lack pairs of both kinds" in caplog.text


def test_tensorboard_and_history_agree(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path / "run")
    run.start(resume=True)
    writer = TensorBoard()
    writer.on_start(RunStart(run.path, "digits", digit_settings(), 0))
    *_, fitted = start(digit_settings(), run=run, on_step=poison(21), callbacks=[writer])
    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    history = run.read_history(10**6)
    assert timeless(history) == timeless(fitted.history)
    losses = {s.step: s.value for s in board.Scalars("loss")}
    assert losses == pytest.approx({r.step: r.loss for r in history if not math.isnan(r.loss)})
    metrics = {s.step: s.value for s in board.Scalars("validation")}
    assert metrics == pytest.approx({r.step: r.metric for r in history if r.metric is not None})
    assert "event/text_summary" in board.Tags()["tensors"]


def frozen_settings(**more: Any) -> Settings:
    return digit_settings(augment={}, model__freeze="all", model__head=(8,), **more)


def test_mirrored_pictures_of_a_batch_are_mirrored() -> None:
    settings = digit_settings(augment={})
    embed = BatchEmbedder(Encoder(settings.model, settings.picture), TRAIN, settings, CPU)
    plain = make_sampler(TRAIN.label, TRAIN.forged, settings.sampler, 0).batch(0)
    mirrored = np.arange(len(plain.row)) % 3 == 0
    seen = embed.pictures(replace(plain, mirrored=mirrored), 1)
    expected = embed.pictures(plain, 1)
    expected[mirrored] = expected[mirrored].flip(3)
    assert torch.equal(seen, expected)
    assert not torch.equal(seen, embed.pictures(plain, 1))


def test_the_optimisers_constants_are_the_settings() -> None:
    net = torch.nn.Linear(2, 2)
    for name, keys in (("rmsprop", {"alpha": 0.8}), ("sgd", {"momentum": 0.7})):
        settings = OptimizerSettings(name=name, rate=0.3, rho=0.8, momentum=0.7, weight_decay=0.1)
        groups = make_optimizer(net, torch.nn.Identity(), settings).param_groups
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        for group in groups:
            assert group.items() >= ({"lr": 0.3} | keys).items()


def test_features_of_a_frozen_backbone_are_its_forward_pass() -> None:
    settings = frozen_settings()
    encoder = Encoder(settings.model, settings.picture)
    assert can_precompute(settings)
    for other in (
        digit_settings(model__freeze="all"),
        digit_settings(augment={}),
        frozen_settings(sampler__rotations=True),
        frozen_settings(sampler__mirror=True),
    ):
        assert not can_precompute(other)
    features = FrozenPart(encoder.train(), CPU).compute_all(TRAIN.pixels, np.arange(70))
    plain = encoder.eval().features(torch.from_numpy(TRAIN.pixels[:70]))
    torch.testing.assert_close(features, plain)
    embed = BatchEmbedder(encoder, TRAIN, settings.model_copy(update={"seed": 1}), CPU)
    batch = make_sampler(TRAIN.label, TRAIN.forged, settings.sampler, 0).batch(0)
    torch.manual_seed(0)
    quick = embed(batch, 1)
    embed.stored = None
    torch.manual_seed(0)
    torch.testing.assert_close(embed(batch, 1), quick)
    assert quick.requires_grad


def test_features_that_are_known_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = frozen_settings(augment__flip=True, train__steps=3, train__refit=True)
    seen = list[np.ndarray]()
    compute_all = FrozenPart.compute_all

    def counted(self: FrozenPart, pixels: Any, rows: Any, *args: Any, **more: Any) -> Any:
        seen.append(rows)
        return compute_all(self, pixels, rows, *args, **more)

    monkeypatch.setattr(FrozenPart, "compute_all", counted)
    few = np.flatnonzero(np.isin(TRAIN.row, TRAIN.row[::3]))
    encoder, _, fitted = start(settings, train=TRAIN.select(few), val=None)
    assert fitted.stored is not None
    seen.clear()
    embed = BatchEmbedder(encoder, TRAIN, settings, CPU, stored=fitted.stored)
    others = np.setdiff1d(TRAIN.row, TRAIN.row[few])
    assert [rows.tolist() for rows in seen] == [others.tolist()] * 2  # Of both views.
    anew = BatchEmbedder(encoder, TRAIN, settings, CPU)
    assert embed.stored is not None
    assert anew.stored is not None
    for view in range(2):
        torch.testing.assert_close(
            embed.stored.rows(view, TRAIN.row), anew.stored.rows(view, TRAIN.row)
        )


def test_the_work_after_training_has_time_for_frozen_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_stored, calls = BatchEmbedder._compute_stored, list[float]()

    def slow(self: BatchEmbedder, *args: Any) -> Any:
        stored = compute_stored(self, *args)
        self.frozen_seconds = 10.0
        return stored

    def reserve(seconds: float) -> float:
        calls.append(seconds)
        return 0.0

    monkeypatch.setattr(BatchEmbedder, "_compute_stored", slow)
    start(frozen_settings(train__steps=1), reserve=reserve)
    (seconds,) = calls
    assert seconds > 10 * min(len(VAL.row), MAX_PICTURES)


def test_mirrored_features_are_those_of_the_mirrored_pictures() -> None:
    settings = frozen_settings(augment__flip=True, model__dropout=0.0, model__head_norm="none")
    assert can_precompute(settings)
    encoder = Encoder(settings.model, settings.picture).eval()
    embed = BatchEmbedder(encoder, TRAIN, settings, CPU)
    assert embed.stored is not None
    flipped = torch.from_numpy(TRAIN.pixels[TRAIN.row[:20]][..., ::-1].copy())
    torch.testing.assert_close(embed.stored.views[1][:20], encoder.features(flipped))
    batch = make_sampler(TRAIN.label, TRAIN.forged, settings.sampler, 0).batch(0)
    seen = embed(batch, 3)
    assert torch.equal(embed(batch, 3), seen)  # The seed alone decides which are mirrored.
    plain, mirrored = (encoder.project(view[batch.row]) for view in embed.stored.views)
    is_plain = (seen == plain).all(1)
    assert 0 < int(is_plain.sum()) < len(batch.row)
    assert torch.equal(seen[~is_plain], mirrored[~is_plain])


def test_a_whitened_head_is_better_before_the_first_step() -> None:
    first = {}
    for init, clip in (("own", 0.0), ("whitened", 0.0), ("whitened", 3.0)):
        settings = digit_settings(
            augment={}, model__freeze="all", model__init=init, model__clip=clip, train__steps=1
        )
        encoder, _, fitted = start(settings)
        first[init, clip] = fitted.history[0].metric
    assert min(first["whitened", 0.0], first["whitened", 3.0]) > first["own", 0.0]
    clipped = encoder.head[:-1](encoder.features(torch.from_numpy(TRAIN.pixels[:9])))
    assert clipped.abs().max() <= 3


def test_a_frozen_backbone_trains_its_head_only() -> None:
    settings = frozen_settings(train__steps=40)
    torch.manual_seed(settings.seed)
    before = Encoder(settings.model, settings.picture)
    encoder, _, fitted = start(settings)
    assert digest(encoder.backbone) == digest(before.backbone)
    assert digest(encoder.head) != digest(before.head)
    first = fitted.history[0].metric
    assert first is not None
    assert fitted.best_metric is not None
    assert fitted.best_metric > first + 0.05
    emb_ND = embed_pixels(encoder, VAL.pixels)
    validator = Validator.make(VAL, settings, CPU, encoder)
    assert validator is not None
    assert validator.stored is not None
    np.testing.assert_allclose(
        emb_ND[:9], encoder.project(validator.stored[:9]).detach().numpy(), atol=1e-5
    )


def test_batches_with_forgeries_train(tmp_path: Path) -> None:
    """Every third picture as if it were a forgery: never pulled to the others."""
    forged = np.arange(len(TRAIN.label)) % 3 == 0
    *_, fitted = start(digit_settings(), train=replace(TRAIN, forged=forged))
    assert fitted.best_metric is not None
    assert fitted.best_metric > 0.8
    with pytest.raises(DataError):
        start(digit_settings(), train=replace(TRAIN, forged=np.ones(len(forged), dtype=bool)))


def test_progress_is_reported_after_each_step() -> None:
    reports: list[StepReport] = []
    start(digit_settings(train__steps=12), on_step=lambda encoder, report: reports.append(report))
    assert [r.step for r in reports] == list(range(1, 13))
    assert [r.progress for r in reports] == pytest.approx([s / 12 for s in range(1, 13)])
    assert [r.step for r in reports if r.metric is not None] == [2, 4, 6, 8, 10, 12]


def golden_settings() -> Settings:
    return digit_settings(
        train__steps=20, model__dropout=0.0, loss=LossSettings().model_dump(), seed=1
    )


def loss_curve() -> list[float]:
    """The loss of each of the first 20 steps, in float32."""
    losses: list[float] = []
    start(golden_settings(), val=None, on_step=lambda encoder, m: losses.append(m.loss))
    return losses


def test_the_golden_loss_curve() -> None:
    """Machines round differently; a change of the mathematics shows all the same."""
    golden = [float(line) for line in GOLDEN.read_text().split()[1:]]
    assert len(golden) == 20
    np.testing.assert_allclose(loss_curve(), golden, rtol=1e-2)
