"""The race of losses and views: what enters, what survives, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from twinlens.config import (
    LossSettings,
    ModelSettings,
    PictureSettings,
    SamplerSettings,
    Settings,
    TrainSettings,
)
from twinlens.errors import TrainingError
from twinlens.learn import race as racing
from twinlens.learn.auto import RULES as KEYS
from twinlens.learn.embed_batch import LabelledPixels
from twinlens.learn.race import Entry, Race, changed, entries_of
from twinlens.measure.held_out import make_fold
from twinlens.model.compute import Compute

SETTINGS = Settings(
    model=ModelSettings(backbone="mlp", channels=(8,), embedding=8),
    picture=PictureSettings(size=(8, 8), color="grey", mean=(0.5,), std=(0.25,)),
    train=TrainSettings(steps=1000, extend=True),
)
RULES = racing.RULES
ERRORS = {"a": 0.2, "b": 0.3, "c": 0.5, "d": 0.6}
ENTRIES = [
    Entry(RULES),
    Entry("d", "loss", {"loss.temperature": 0.4}),
    Entry("b", "turns", {"sampler.rotations": True}),
    Entry("a", "loss", {"loss.temperature": 0.2}),
    Entry("c", "optimizer", {"optimizer.name": "muon"}),
]


class Timed(Race):
    """A step takes a tenth of a second, embedding a second; errors are as given."""

    def __init__(self, errors: dict[str, float]) -> None:
        self.settings, self.errors, self.tried = SETTINGS, errors, list[tuple[str, int]]()

    def _try(self, entry: Entry, steps: int) -> racing._Result:
        self.tried.append((entry.name, steps))
        error = self.errors.get(entry.name, 0.4)
        own = racing.Scores(error, error, error, error)
        return racing._Result(entry, steps, own, 1 + 0.1 * steps)

    def _is_better(self, best: racing._Result, rules: racing._Result) -> bool:
        return best.error < rules.error


def names(entries: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_each_entry_changes_one_thing_that_the_rules_chose() -> None:
    entries = entries_of(SETTINGS, KEYS, 12)
    assert entries[0] == Entry(RULES)
    assert {one.kind for one in entries[1:]} == {"loss", "turns", "flip", "optimizer"}
    for one in entries[1:]:
        assert changed(SETTINGS, one.updates) != SETTINGS
    keys = {key for one in entries for key in one.updates}
    assert keys <= set(KEYS)
    without = entries_of(SETTINGS, set(KEYS) - {"loss.name", "sampler.rotations"}, 12)
    assert {one.kind for one in without} == {"", "loss", "flip", "optimizer"}
    assert [one.updates for one in without if one.kind == "loss"] == [{"loss.temperature": 0.05}]
    assert entries_of(SETTINGS, set(), 12) == [Entry(RULES)]


def test_only_square_pictures_are_turned() -> None:
    wide = changed(SETTINGS, {"picture.size": (8, 12)})
    assert "turns" not in {one.kind for one in entries_of(wide, KEYS, 12)}


@pytest.mark.parametrize("turned", [False, True])
def test_batches_with_and_without_turns_are_as_large(turned: bool) -> None:
    """12 identities count as 48 with their turns, of which 32 are in a batch."""
    sampler = SamplerSettings(
        rotations=turned, labels_per_batch=32 if turned else 12,
        images_per_label=3 if turned else 8,
    )  # fmt: skip
    settings = SETTINGS.model_copy(update={"sampler": sampler})
    (turns,) = (one for one in entries_of(settings, KEYS, 12) if one.kind == "turns")
    other = changed(settings, turns.updates).sampler
    assert other.rotations is not turned
    assert (other.labels_per_batch, other.images_per_label) == ((12, 8) if turned else (32, 3))


def test_another_loss_has_no_classes_to_race_against() -> None:
    triplet = SETTINGS.model_copy(update={"loss": LossSettings(name="triplet")})
    assert "loss" not in {one.kind for one in entries_of(triplet, KEYS, 12)}


def test_the_better_half_and_the_best_changes_together_start_again() -> None:
    """Of two losses the better is joined with the turns; the rules stay in the race."""
    both = {"a, b": 0.1}
    race = Timed(ERRORS | both)
    best, rows = race.run(ENTRIES, None)
    first, second = race.tried[:5], race.tried[5:]
    assert first == [(one.name, 50) for one in ENTRIES]
    assert second == [(RULES, 100), ("a", 100), ("b", 100), ("a, b", 100)]
    assert best.updates == {"loss.temperature": 0.2, "sampler.rotations": True}
    assert len(rows) == 9
    assert rows[-1].name == "race, 100 steps: a, b"
    assert rows[-1].eer == 0.1


def test_the_settings_of_the_rules_stay_unless_others_are_clearly_better() -> None:
    label = np.repeat(np.arange(12), 4)
    fold = make_fold(np.arange(48), label, np.zeros(48, bool), 0)
    assert fold is not None
    race = Race(SETTINGS, LabelledPixels.of(np.zeros((48, 1, 8, 8), np.uint8), label, label < 0),
                np.arange(48), fold, Compute("cpu"))  # fmt: skip
    rng = np.random.default_rng(0)
    truth = (label[:, None] != label).astype(np.float32)
    near, far, other = (
        racing._Result(Entry(""), 9, None, 1.0, truth + rng.normal(0, noise, (48, 48)))
        for noise in (0.2, 0.8, 0.8)
    )
    assert race._is_better(near, far)
    assert not race._is_better(far, other)
    assert not race._is_better(near, near)
    failed = racing._Result(Entry(""), 9, None, 1.0)
    assert race._is_better(near, failed)
    assert not race._is_better(failed, near)


@pytest.mark.parametrize("seconds", [10.0, 120.0, 600.0, 3600.0])
def test_a_race_keeps_its_share_of_the_time_or_is_left_out(seconds: float) -> None:
    race = Timed(ERRORS)
    _, rows = race.run(ENTRIES, seconds)
    timed = len(racing.TIMED_STEPS)
    spent = sum(1 + 0.1 * steps for _, steps in race.tried)
    if rows:
        assert spent <= racing.SHARE * seconds
    else:
        assert len(race.tried) in (0, timed)
    assert bool(rows) == (seconds >= 600)


@pytest.mark.parametrize(("length", "steps"), [(20, 0), (2000, 0), (10_000, 115)])
def test_a_race_keeps_its_share_of_the_steps_that_a_user_sets(length: int, steps: int) -> None:
    race = Timed(ERRORS)
    race.settings = changed(SETTINGS, {"train.steps": length, "train.extend": False})
    race.run(ENTRIES, None)
    assert (race.tried[0][1] if race.tried else 0) == steps
    assert sum(steps for _, steps in race.tried) <= racing.SHARE * length


def test_without_a_choice_nothing_is_tried() -> None:
    race = Timed({})
    assert race.run(ENTRIES[:1], 1000.0) == (Entry(RULES), [])
    assert not race.tried


def test_a_real_race_is_repeatable_and_survives_a_collapse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(8), 4)
    level = rng.integers(40, 216, (8, 1, 8, 8))[label]
    pixels = (level + rng.integers(-30, 31, (32, 1, 8, 8))).clip(0, 255).astype(np.uint8)
    images = LabelledPixels.of(pixels, label, np.zeros(32, bool))
    held_out = np.flatnonzero(label < 3)
    fold = make_fold(held_out, label[held_out], images.forged[held_out], 0)
    assert fold is not None
    monkeypatch.setattr(racing, "LEAST_STEPS", 2)
    settings = changed(SETTINGS, {"train.steps": 20})
    race = Race(settings, images, np.flatnonzero(label >= 3), fold, Compute("cpu"))
    entries = entries_of(settings, KEYS, 5)[:3]
    best, rows = race.run(entries, None)
    again, rows_again = race.run(entries, None)
    assert best == again
    assert [(row.name, row.eer) for row in rows] == [(row.name, row.eer) for row in rows_again]
    assert {row.folds for row in rows} == {1}

    network = racing.held_out_network

    def collapsing(settings: Settings, *more: object) -> object:
        if settings.loss.temperature != 0.1:
            raise TrainingError("collapsed")
        return network(settings, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(racing, "held_out_network", collapsing)
    _, rows = race.run(entries, None)
    assert rows
    assert not any("temperature" in row.name for row in rows)
