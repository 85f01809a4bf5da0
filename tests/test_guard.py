"""What the guard takes for a ruined run, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from twinlens.config import LossSettings
from twinlens.learn.guard import PATIENCE, SLOW_START, Guard, GuardState, Intervention, relative_std

TRIPLET = LossSettings(name="triplet", margin=0.5, mining="hardest")


def looks(
    guard: Guard, loss: float, std: float, times: int, mining: str = "hardest"
) -> list[Intervention | None]:
    return [guard.check(loss, std, mining) for _ in range(times)]


def begun(settings: LossSettings = TRIPLET, first_std: float = 0.8) -> Guard:
    """A guard that has seen one healthy step."""
    guard = Guard(settings, GuardState())
    assert guard.check(0.3, first_std, "hardest") is None
    return guard


def test_spread_by_hand() -> None:
    emb_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # 0.7071 from the middle, of length 1
    assert relative_std(emb_BD) == pytest.approx(math.sqrt(0.5))
    assert relative_std(5 * emb_BD) == pytest.approx(math.sqrt(0.5))
    assert relative_std(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    assert relative_std(torch.zeros(4, 3)) == 0
    assert relative_std(torch.tensor([[1.0], [-1.0]])) == pytest.approx(1)
    assert math.isnan(relative_std(torch.tensor([[1.0], [math.nan]])))
    assert relative_std(emb_BD.bfloat16()) == pytest.approx(math.sqrt(0.5), rel=1e-2)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_answered_at_once(loss: float) -> None:
    answer = begun().check(loss, 0.8, "all")
    assert answer == Intervention("the loss is not a number", "all", 0.3)
    answer = begun().check(0.3, math.nan, "all")
    assert answer is not None


def test_collapse_is_answered_after_a_few_looks() -> None:
    guard = begun()
    answers = looks(guard, 0.2, 0.001, PATIENCE)
    assert answers[:-1] == [None] * (PATIENCE - 1)
    assert answers[-1] is not None
    assert "collapsed: they differ by 0.10% of their length" in answers[-1].reason
    assert (answers[-1].mining, answers[-1].rate_factor) == ("semi-hard", 0.3)


def test_one_odd_batch_is_no_collapse() -> None:
    guard = begun()
    for _ in range(5):
        assert looks(guard, 0.2, 0.001, PATIENCE - 1) == [None] * (PATIENCE - 1)
        assert guard.suspicious
        assert guard.check(0.2, 0.5, "hardest") is None
        assert not guard.suspicious


@pytest.mark.parametrize(
    ("settings", "at_margin"),
    [
        (TRIPLET, 0.5),
        (LossSettings(name="triplet", margin=0.5, soft=True), math.log(2)),
        (LossSettings(name="contrastive", margin=1.0), 0.5),
    ],
)
def test_a_loss_at_the_margin_gives_a_collapse_away(
    settings: LossSettings, at_margin: float
) -> None:
    guard = begun(settings)
    assert looks(guard, at_margin * 1.01, 0.05, PATIENCE)[-1] is not None
    # Elsewhere, or with embeddings that differ, the same numbers are nothing odd.
    assert looks(begun(settings), at_margin * 0.9, 0.05, 50) == [None] * 50
    assert looks(begun(settings), at_margin, 0.3, 50) == [None] * 50
    assert looks(begun(LossSettings(name="supcon")), at_margin, 0.05, 50) == [None] * 50


def test_a_healthy_run_is_left_alone() -> None:
    guard = begun()
    for step in range(300):
        assert guard.check(0.5 * 0.97**step, 0.8, "hardest") is None
    assert guard.memory.answers == 0


def test_an_untrained_network_may_begin_with_little_spread() -> None:
    guard = Guard(TRIPLET, GuardState())
    spreads = [min(0.9, 0.005 * 1.05**step) for step in range(300)]
    assert [guard.check(0.5, s, "hardest") for s in spreads] == [None] * 300
    stuck = Guard(TRIPLET, GuardState())
    answers = looks(stuck, 0.5, 0.05, SLOW_START + PATIENCE)
    assert answers[:-1] == [None] * (SLOW_START + PATIENCE - 1)
    assert answers[-1] is not None


def test_negatives_become_easier_and_the_rate_lower_each_time() -> None:
    guard, mining, factors = begun(), "hardest", []
    for turn in range(3):
        assert guard.exhausted == (turn >= 3)
        answer = guard.check(math.nan, 0.5, mining)
        assert answer is not None
        mining = answer.mining
        factors.append(answer.rate_factor)
    assert mining == "semi-hard"
    assert factors == pytest.approx([0.3, 0.09, 0.027])
    assert guard.exhausted
    for kept in ("all", "given", "semi-hard"):
        answer = begun().check(math.nan, 0.5, kept)
        assert answer is not None
        assert answer.mining == kept


def test_after_an_answer_it_begins_anew() -> None:
    guard = begun()
    assert looks(guard, 0.2, 0.001, PATIENCE)[-1] is not None
    assert looks(guard, 0.2, 0.004, PATIENCE * 2) == [None] * PATIENCE * 2


def test_a_guard_goes_on_from_its_memory() -> None:
    whole, split = begun(), begun()
    numbers = [(0.3, 0.7)] * 3 + [(0.2, 0.001)] * (PATIENCE + 2)
    expected = [whole.check(*n, "hardest") for n in numbers]
    found = []
    for number in numbers:
        split = Guard(TRIPLET, GuardState(**vars(split.memory)))
        found.append(split.check(*number, "hardest"))
    assert found == expected
    assert any(expected)
