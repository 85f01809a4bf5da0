"""Verdicts by distance and margin: identified, nobody, ambiguous."""

from __future__ import annotations

import dataclasses

import pytest

from twinlens.gallery.decide import Threshold, decide
from twinlens.gallery.search import RankedIdentity
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.open_set_calibration import OpenSetCalibration
from twinlens.measure.probability import Platt

CALIBRATION = OpenSetCalibration(
    rule="nearest", target_fpir=0.1, threshold=0.5, low=None, high=None, margin=0.2,
    num_identities=10, num_templates=20, num_mated=20, num_strangers=2, tpir=Estimate(0.9),
    rank_1=Estimate(1.0), by_rule={"nearest": 0.9}, strangers=(0.5, 0.6), curve=Platt(10.0, -5.0),
)  # fmt: skip
OWN = Threshold(0.5, "gallery", 0.1)


def near(*distances: float) -> list[RankedIdentity]:
    return [RankedIdentity(f"person {n}", d, f"{n}.png") for n, d in enumerate(distances)]


@pytest.mark.parametrize(
    ("distances", "verdict"),
    [
        ((), "nobody"),
        ((0.51,), "nobody"),
        ((0.5,), "identified"),
        ((0.1, 0.2), "ambiguous"),  # 0.1 apart, and 0.2 is asked for
        ((0.1, 0.31), "identified"),
        ((0.45, 0.55), "identified"),  # the second is nobody anyway
    ],
)
def test_verdicts(distances: tuple[float, ...], verdict: str) -> None:
    answer = decide(near(*distances), 5, OWN, CALIBRATION)
    assert answer.verdict == verdict
    assert (answer.identity == "person 0") == (verdict == "identified")
    assert len(answer.candidates) == len(distances)
    assert answer.margin == (distances[1] - distances[0] if len(distances) > 1 else None)


def test_equally_near_is_ambiguous_without_a_calibration_but_not_where_votes_decide() -> None:
    assert decide(near(0.1, 0.1), 5, OWN, None).verdict == "ambiguous"
    votes = dataclasses.replace(CALIBRATION, rule="vote", margin=0.0)
    assert decide(near(0.1, 0.1), 5, OWN, votes).verdict == "identified"


def test_by_votes_the_best_need_not_be_the_nearest() -> None:
    votes = dataclasses.replace(CALIBRATION, rule="vote", margin=0.0)
    answer = decide(near(0.6, 0.2), 5, OWN, votes)
    assert answer.verdict == "nobody"
    assert answer.reason.startswith("the best by votes, 'person 0'")
    assert answer.margin == pytest.approx(-0.4)


def test_a_threshold_for_pairs_gives_its_fpir() -> None:
    pairs = Threshold(0.5, "pairs", 0.634)
    answer = decide(near(0.1, 0.9), 5, pairs, None)
    assert "may falsely identify up to about 63 % of strangers" in answer.explain()
    assert "twinlens gallery calibrate" in answer.explain()
    assert answer.probability is None
    assert "strangers" not in decide(near(0.1, 0.9), 5, OWN, CALIBRATION).explain()


def test_probabilities_are_of_the_distance_and_candidates_are_cut() -> None:
    answer = decide(near(0.4, 0.7, 0.8), 2, OWN, CALIBRATION)
    assert [one.identity for one in answer.candidates] == ["person 0", "person 1"]
    assert answer.probability == answer.candidates[0].probability
    assert answer.candidates[1].probability is None  # That of the best is what was measured.
    # 1 / (1 + exp(10 * 0.4 - 5))
    assert answer.probability == pytest.approx(0.7311, abs=1e-4)


def test_a_verdict_that_is_not_the_more_probable_answer_says_why() -> None:
    doubtful = dataclasses.replace(CALIBRATION, curve=Platt(10.0, -2.0))
    named = decide(near(0.4), 5, OWN, doubtful)
    assert named.verdict == "identified"
    assert "nobody is more probable (88.1 %" in named.reason
    assert "within the threshold for an FPIR of 10 %" in named.reason
    strict = decide(near(0.55), 5, OWN, dataclasses.replace(CALIBRATION, curve=Platt(10.0, -8.0)))
    assert strict.verdict == "nobody"
    assert "'person 0' is more probable (" in strict.reason
    assert decide(near(0.4), 5, OWN, CALIBRATION).doubt is None


def test_long_and_odd_names_are_shown_short_and_given_whole() -> None:
    name = "line\nbreak" + "x" * 4000
    answer = decide(
        [RankedIdentity(name, 0.1, ""), RankedIdentity("b", 0.4, "")], 5, OWN, CALIBRATION
    )
    assert answer.identity == name
    nobody = decide([RankedIdentity(name, 0.9, "")], 5, OWN, CALIBRATION)
    assert len(nobody.reason) < 300
    assert "\n" not in nobody.reason
