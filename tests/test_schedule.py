"""The length of a run and the learning rate along it, at points worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.config import TrainSettings
from twinlens.learn.schedule import RunLength, run_length, schedule_factor

SCHEDULES = ("one-cycle", "cosine", "constant")


@pytest.mark.parametrize(
    ("schedule", "progress", "share"),
    [
        ("one-cycle", 0.0, 1 / 25),
        ("one-cycle", 0.1, (1 / 25 + 1) / 2),  # Half way up.
        ("one-cycle", 0.2, 1.0),
        ("one-cycle", 0.6, (1 + 1e-3) / 2),  # Half way down.
        ("one-cycle", 1.0, 1e-3),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, (1 + 1e-3) / 2),
        ("cosine", 1.0, 1e-3),
        ("constant", 0.0, 1.0),
        ("constant", 0.7, 1.0),
    ],
)
def test_rates_by_hand(schedule: str, progress: float, share: float) -> None:
    assert schedule_factor(schedule, progress) == pytest.approx(share, rel=1e-9)


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.floats(0, 1))
def test_a_rate_is_positive_and_falls_after_its_top(schedule: str, a: float, b: float) -> None:
    early, late = sorted((a, b))
    for progress in (early, late):
        assert 0 < schedule_factor(schedule, progress) <= 1
    if schedule != "one-cycle" or early >= 0.2:
        assert schedule_factor(schedule, early) >= schedule_factor(schedule, late)
    elif late <= 0.2:
        assert schedule_factor(schedule, early) <= schedule_factor(schedule, late)


def test_lengths_by_steps_by_epochs_and_by_default() -> None:
    def steps(**length: float) -> int | None:
        return run_length(TrainSettings.model_validate(length), 7, reserved=100).steps

    assert steps(steps=30) == 30
    assert steps(epochs=3) == 21
    assert steps(epochs=0.5) == 4
    assert steps(epochs=0.01) == 1
    assert steps() == 70


def test_a_time_budget_keeps_something_back() -> None:
    course = run_length(TrainSettings(time_budget=60), 7, reserved=20)
    assert (course.steps, course.seconds) == (None, 40)
    assert course.progress(5, 10) == 0.25
    assert course.progress(5, 41) == 1
    assert course.progress(0, 30) == 0  # Whatever the time, something is learnt.
    spent = run_length(TrainSettings(time_budget=5), 7, reserved=20)
    assert (spent.progress(0, 0), spent.progress(1, 0.1)) == (0, 1)


def test_steps_do_not_look_at_the_clock() -> None:
    course = RunLength(10, None, 7)
    assert [course.progress(s, 1e9) for s in (0, 5, 10, 12)] == [0, 0.5, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 100)), min_size=2), st.booleans())
def test_progress_never_goes_back(points: list[tuple[int, float]], timed: bool) -> None:
    course = RunLength(None, 50.0, 7) if timed else RunLength(60, None, 7)
    steps, seconds = sorted(p[0] for p in points), sorted(p[1] for p in points)
    along = [course.progress(a, b) for a, b in zip(steps, seconds, strict=True)]
    assert along == sorted(along)
    assert all(0 <= p <= 1 for p in along)
