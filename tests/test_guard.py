"""The guard: which runs it intervenes in, and which it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from twinlens.config import LossSettings
from twinlens.learn.guard import PATIENCE, SLOW_START, Guard, GuardState, Intervention, relative_std

TRIPLET = LossSettings(name="triplet", margin=0.5, mining="hardest")


def checks(
    guard: Guard, loss: float, std: float, times: int, mining: str = "hardest"
) -> list[Intervention | None]:
    return [guard.check(loss, std, mining) for _ in range(times)]


def healthy_guard(settings: LossSettings = TRIPLET, first_std: float = 0.8) -> Guard:
    """A guard after one healthy step."""
    guard = Guard(settings, GuardState())
    assert guard.check(0.3, first_std, "hardest") is None
    return guard


def test_relative_std_by_hand() -> None:
    emb_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # 0.7071 from the middle, of length 1
    assert relative_std(emb_BD) == pytest.approx(math.sqrt(0.5))
    assert relative_std(5 * emb_BD) == pytest.approx(math.sqrt(0.5))
    assert relative_std(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    assert relative_std(torch.zeros(4, 3)) == 0
    assert relative_std(torch.tensor([[1.0], [-1.0]])) == pytest.approx(1)
    assert math.isnan(relative_std(torch.tensor([[1.0], [math.nan]])))
    assert relative_std(emb_BD.bfloat16()) == pytest.approx(math.sqrt(0.5), rel=1e-2)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_answered_at_once(loss: float) -> None:
    intervention = healthy_guard().check(loss, 0.8, "all")
    assert intervention == Intervention("the loss is NaN or infinite", "all", 0.3)
    intervention = healthy_guard().check(0.3, math.nan, "all")
    assert intervention is not None


def test_collapse_is_answered_after_a_few_batches() -> None:
    guard = healthy_guard()
    interventions = checks(guard, 0.2, 0.001, PATIENCE)
    assert interventions[:-1] == [None] * (PATIENCE - 1)
    assert interventions[-1] is not None
    assert (
        "collapsed (their standard deviation is 0.1 % of their length" in interventions[-1].reason
    )
    assert (interventions[-1].mining, interventions[-1].rate_factor) == ("semi-hard", 0.3)


def test_one_odd_batch_is_no_collapse() -> None:
    guard = healthy_guard()
    for _ in range(5):
        assert checks(guard, 0.2, 0.001, PATIENCE - 1) == [None] * (PATIENCE - 1)
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
    guard = healthy_guard(settings)
    assert checks(guard, at_margin * 1.01, 0.05, PATIENCE)[-1] is not None
    # The same numbers away from the margin, or with embeddings that differ, are no collapse.
    assert checks(healthy_guard(settings), at_margin * 0.9, 0.05, 50) == [None] * 50
    assert checks(healthy_guard(settings), at_margin, 0.3, 50) == [None] * 50
    assert checks(healthy_guard(LossSettings(name="supcon")), at_margin, 0.05, 50) == [None] * 50


def test_a_healthy_run_is_left_alone() -> None:
    guard = healthy_guard()
    for step in range(300):
        assert guard.check(0.5 * 0.97**step, 0.8, "hardest") is None
    assert guard.state.interventions == 0


def test_an_untrained_network_may_begin_with_similar_embeddings() -> None:
    guard = Guard(TRIPLET, GuardState())
    stds = [min(0.9, 0.005 * 1.05**step) for step in range(300)]
    assert [guard.check(0.5, std, "hardest") for std in stds] == [None] * 300
    stuck = Guard(TRIPLET, GuardState())
    interventions = checks(stuck, 0.5, 0.05, SLOW_START + PATIENCE)
    assert interventions[:-1] == [None] * (SLOW_START + PATIENCE - 1)
    assert interventions[-1] is not None


def test_negatives_become_easier_and_the_rate_lower_each_time() -> None:
    guard, mining, factors = healthy_guard(), "hardest", []
    for turn in range(3):
        assert guard.exhausted == (turn >= 3)
        intervention = guard.check(math.nan, 0.5, mining)
        assert intervention is not None
        mining = intervention.mining
        factors.append(intervention.rate_factor)
    assert mining == "semi-hard"
    assert factors == pytest.approx([0.3, 0.09, 0.027])
    assert guard.exhausted
    for kept in ("all", "given", "semi-hard"):
        intervention = healthy_guard().check(math.nan, 0.5, kept)
        assert intervention is not None
        assert intervention.mining == kept


def test_after_an_answer_it_begins_anew() -> None:
    guard = healthy_guard()
    assert checks(guard, 0.2, 0.001, PATIENCE)[-1] is not None
    assert checks(guard, 0.2, 0.004, PATIENCE * 2) == [None] * PATIENCE * 2


def test_a_guard_resumes_from_its_state() -> None:
    whole, split = healthy_guard(), healthy_guard()
    numbers = [(0.3, 0.7)] * 3 + [(0.2, 0.001)] * (PATIENCE + 2)
    expected = [whole.check(*n, "hardest") for n in numbers]
    resumed = []
    for number in numbers:
        split = Guard(TRIPLET, GuardState.model_validate(split.state.model_dump(by_alias=True)))
        resumed.append(split.check(*number, "hardest"))
    assert resumed == expected
    assert any(expected)


def test_the_state_in_a_checkpoint_has_its_first_names() -> None:
    state = {"answers": 1, "rate_factor": 0.3, "looks": 7, "suspicious": 2, "first_spread": 0.8}
    assert GuardState.model_validate(state).model_dump(by_alias=True) == state
