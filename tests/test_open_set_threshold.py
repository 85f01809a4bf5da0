"""The threshold of a gallery, from its own templates or from other pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import reference
from made_up_people import Euclid, people

from twinlens.errors import CalibrationError, ConfigError, DataError
from twinlens.measure.error_rates import matches, threshold_at_far
from twinlens.measure.fusion import RULES
from twinlens.measure.open_set_threshold import (
    OpenSetCalibration,
    _at_odds,
    _smallest_margin,
    calibrate_open_set,
    calibrate_open_set_on_probes,
)
from twinlens.measure.probability import Isotonic, Platt
from twinlens.measure.rank_probes import rank_left_out, rank_probes


@pytest.fixture(scope="module")
def calibration() -> OpenSetCalibration:
    return calibrate_open_set(*people(40, 4, 0.2), Euclid(), target_fpir=0.1, replicates=50)


@pytest.mark.parametrize("rule", RULES)
def test_its_figures_are_those_of_the_loop(rule):
    emb, code = people(8, 3, spread=0.7, seed=2)
    target = 0.1
    found = calibrate_open_set(emb, code, Euclid(), target_fpir=target, rule=rule, replicates=20)
    asked = reference.leave_one_out_gallery(emb.astype(float).tolist(), code.tolist(), rule)
    strangers = [without[0][1] for _, _, without in asked]
    threshold = reference.strictest_threshold(strangers, target)
    assert found.unadjusted == pytest.approx(threshold, abs=1e-5)
    assert found.threshold <= found.unadjusted
    assert found.strangers == pytest.approx(sorted(strangers), abs=1e-5)
    right = [others[0][0] == own for own, others, _ in asked]

    def share(limit):
        hit = [r and asked[i][1][0][1] <= limit + 1e-5 for i, r in enumerate(right)]
        return pytest.approx(sum(hit) / len(hit))

    assert found.rank_1.value == pytest.approx(sum(right) / len(right))
    assert found.tpir.value == share(found.threshold)
    assert found.by_rule == {rule: share(threshold)}
    assert (found.num_identities, found.num_templates) == (8, 24)
    assert (found.num_mated, found.num_strangers) == (24, 24)


def test_the_threshold_by_hand():
    """On a line: the nearest other identities are 1, 1, 2, 3 and 4 away."""
    emb = np.array([[0], [1], [3], [6], [10]], np.float32)
    found = calibrate_open_set(emb, np.arange(5), Euclid(), target_fpir=0.45)
    assert found.strangers == (1, 1, 2, 3, 4)
    assert found.threshold == 1
    assert found.rule == "nearest"
    assert found.by_rule == {}
    assert (found.num_mated, found.tpir.value, found.rank_1.value) == (0, None, None)
    assert found.curve is None
    with pytest.raises(CalibrationError, match="no identity had two templates"):
        found.probability(0.5)
    assert found.threshold_at(0.6) == 2
    assert found.threshold_at(0.85) == 3
    with pytest.raises(CalibrationError, match="share the smallest distance"):
        found.threshold_at(0.3)
    with pytest.raises(CalibrationError, match=r"found 5 non-mated probes.*at least 10"):
        found.threshold_at(0.1)


def test_the_margin_by_hand():
    """The three narrowest of twenty are wrong, and one of the other seventeen."""
    gap = np.arange(1.0, 21.0)
    wrong = np.isin(gap, [1, 2, 3, 9])
    assert _smallest_margin(gap, wrong) == 4, "2 of 18 would be too many at 3, 1 of 17 is not"
    assert _smallest_margin(gap, gap <= 2) == 0, "two of twenty are one in ten"
    assert _smallest_margin(gap[:9], gap[:9] < 5) == 0, "too few to tell"
    above = _smallest_margin(gap, np.ones(20, bool))
    assert 20 < above < 20.001, "nobody can be told apart"


@pytest.mark.parametrize("rule", RULES)
def test_the_margin_of_look_alikes_is_that_of_the_loop(rule):
    """Identities in pairs side by side, and strangers far from all of them."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(6) * 20.0, 2) + np.tile([0, 1], 6)
    code = np.repeat(np.arange(12), 3)
    gallery = (place[code] + rng.normal(size=36) * 0.1)[:, None].astype(np.float32)
    whom = np.repeat(np.arange(12), 20)
    probe = place[whom] + rng.normal(size=240) * 0.4
    far = 300 + rng.random(60) * 100
    everyone = np.concatenate([probe, far])[:, None].astype(np.float32)
    found = calibrate_open_set_on_probes(
        everyone, np.concatenate([whom, np.full(60, -1)]), gallery, code, Euclid(),
        target_fpir=0.02, rule=rule, replicates=2,
    )  # fmt: skip
    templates = list(zip(gallery.astype(float).tolist(), code.tolist(), strict=True))
    gap, wrong = [], []
    for one, own in zip(everyone.astype(float).tolist(), whom.tolist(), strict=False):
        (best, near), (_, second) = reference.rank_in_gallery_loop(one, templates, rule)[:2]
        if near <= found.threshold and second <= found.threshold:
            gap.append(max(second - near, 0.0))
            wrong.append(best != own)
    assert sum(wrong) > 0.1 * len(wrong)
    expected = reference.smallest_margin_loop(gap, wrong)
    assert expected > 0
    assert found.margin == pytest.approx(expected, abs=1e-4)


def test_the_margin_rules_out_wrong_answers():
    rng = np.random.default_rng(0)
    for _ in range(20):
        gap = rng.random(60).round(int(rng.integers(1, 4)))
        wrong = (gap < 0.5) & (rng.random(60) < 0.7)
        found = _smallest_margin(gap, wrong)
        assert found == reference.smallest_margin_loop(gap.tolist(), wrong.tolist())
        assert wrong[gap >= found].mean() <= 0.1
    assert _smallest_margin(gap[:0], wrong[:0]) == 0


def test_the_rule_is_the_best_one():
    """Identities of which some templates are far off: a mean is spoilt, the nearest is not."""
    emb, code = people(40, 5, spread=0.1, seed=1)
    emb[::5] += np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * 3
    found = calibrate_open_set(emb, code, Euclid(), target_fpir=0.05, replicates=20)
    assert list(found.by_rule) == list(RULES)
    assert found.by_rule[found.rule] == max(found.by_rule.values()) >= found.tpir.value
    assert found.by_rule["nearest"] > found.by_rule["mean"]
    alone = calibrate_open_set(emb, code, Euclid(), target_fpir=0.05, rule="mean", replicates=20)
    assert alone.by_rule == {"mean": found.by_rule["mean"]}


def test_with_one_template_each_the_rules_are_one():
    emb, code = people(30, 1)
    found = [
        calibrate_open_set(emb, code, Euclid(), target_fpir=0.1, rule=rule, replicates=20)
        for rule in ("auto", *RULES)
    ]
    assert {f.threshold for f in found} == {found[0].threshold}
    assert [f.rule for f in found] == ["nearest", *RULES]


def test_the_threshold_keeps_to_the_target_and_the_interval_holds_it(calibration):
    emb, code = people(40, 4, 0.2)
    _, stranger = rank_left_out(np.arange(len(code)), emb, code, Euclid(), (calibration.rule,))
    best = stranger[calibration.rule].distance
    assert 0 < matches(best, calibration.threshold).mean() <= 0.1
    assert calibration.unadjusted == threshold_at_far(best, 0.1)
    assert calibration.threshold <= calibration.unadjusted
    assert calibration.fpir_limit == pytest.approx(0.15)
    assert calibration.low <= calibration.threshold <= calibration.high
    assert calibration.tpir.low <= calibration.tpir.value <= calibration.tpir.high
    assert calibration.tpir.value <= calibration.rank_1.value


def test_new_names_and_a_new_order_change_nothing():
    emb, code = people(9, 3, spread=0.6, seed=3)
    found = calibrate_open_set(emb, code, Euclid(), target_fpir=0.1, replicates=20)
    order = np.random.default_rng(0).permutation(len(code))
    names = np.random.default_rng(1).permutation(50)
    other = calibrate_open_set(
        emb[order], names[code[order]], Euclid(), target_fpir=0.1, replicates=20
    )
    assert other.by_rule == pytest.approx(found.by_rule)
    assert other.rule == found.rule
    for name in ("threshold", "margin"):
        assert getattr(other, name) == pytest.approx(getattr(found, name), abs=1e-6)
    assert other.strangers == pytest.approx(found.strangers, abs=1e-6)
    assert (other.tpir.value, other.rank_1.value) == (found.tpir.value, found.rank_1.value)


def test_a_sample_of_probes_is_seeded_and_bounded():
    emb, code = people(30, 4)
    kept = {"target_fpir": 0.1, "most_probes": 50, "replicates": 20}
    found = calibrate_open_set(emb, code, Euclid(), seed=5, **kept)
    assert (found.num_mated, found.num_strangers) == (50, 50)
    assert found == calibrate_open_set(emb, code, Euclid(), seed=5, **kept)
    assert found != calibrate_open_set(emb, code, Euclid(), seed=6, **kept)
    with pytest.raises(CalibrationError, match="found 50 non-mated probes"):
        calibrate_open_set(emb, code, Euclid(), target_fpir=0.01, most_probes=50)


@pytest.mark.parametrize(("target", "num"), [(0.01, 2000), (0.009, 2223), (0.005, 2500)])
def test_a_small_target_asks_about_more_templates(target, num):
    """20 / target of them, of the 2,500 that there are."""
    emb, code = people(500, 5)
    kept = {"target_fpir": target, "rule": "nearest", "replicates": 2}
    found = calibrate_open_set(emb, code, Euclid(), **kept)
    assert (found.num_mated, found.num_strangers) == (num, num)
    assert found == calibrate_open_set(emb, code, Euclid(), most_probes=num, **kept)


def test_a_small_target_is_reached_by_enrolling_more():
    """0.0009 of 2,000 is one stranger, and two that are each other's nearest are equally near."""
    emb, code = people(500, 5)
    kept = {"target_fpir": 0.0009, "rule": "nearest", "replicates": 2}
    with pytest.raises(CalibrationError, match=r"more than 0\.09 % of strangers"):
        calibrate_open_set(emb[:2000], code[:2000], Euclid(), **kept)
    found = calibrate_open_set(emb, code, Euclid(), **kept)
    assert found.num_strangers == 2500
    assert sum(one <= found.threshold for one in found.strangers) == 2


def test_mated_probes_are_drawn_where_few_identities_have_two_templates():
    emb, code = people(40, 2)
    kept = np.concatenate([np.arange(10), np.arange(10, 80, 2)])
    found = calibrate_open_set(
        emb[kept], code[kept], Euclid(), target_fpir=0.1, most_probes=20, replicates=20
    )
    assert (found.num_mated, found.num_strangers) == (10, 20)
    assert found.num_templates == 45


def test_pictures_given_for_it():
    emb, code = people(20, 5, spread=0.3, seed=7)
    shown = (np.arange(len(code)) % 5 == 0) & (code < 10)
    asked = ~shown
    whom = np.where(code < 10, code, -1)[asked]
    found = calibrate_open_set_on_probes(
        emb[asked], whom, emb[shown], code[shown], Euclid(), target_fpir=0.1, replicates=50
    )
    best = rank_probes(emb[asked], emb[shown], code[shown], Euclid(), ("nearest",))["nearest"]
    strangers = best.distance[whom < 0]
    assert found.unadjusted == threshold_at_far(strangers, 0.1)
    assert (found.num_mated, found.num_strangers, found.num_identities) == (40, 50, 10)
    assert found.rank_1.value == np.mean(best.code[whom >= 0] == whom[whom >= 0])
    named = calibrate_open_set_on_probes(
        emb[asked], whom, emb[shown], code[shown], Euclid(), target_fpir=0.1, replicates=50,
        probe_identity_P=code[asked],
    )  # fmt: skip
    assert named.threshold == found.threshold
    assert named.high - named.low != found.high - found.low
    beyond = np.where(whom < 0, 99, whom)
    assert found == calibrate_open_set_on_probes(
        emb[asked], beyond, emb[shown], code[shown], Euclid(), target_fpir=0.1, replicates=50
    ), "a code that the gallery does not have is a stranger"


def test_what_cannot_be_calibrated_is_refused():
    emb, code = people(10, 2)
    with pytest.raises(CalibrationError, match=r"found 20 non-mated probes.*needs at least 100"):
        calibrate_open_set(emb, code, Euclid(), target_fpir=0.01)
    with pytest.raises(CalibrationError, match="found 0 non-mated probes"):
        calibrate_open_set(emb, np.zeros(20, int), Euclid(), target_fpir=0.1)
    with pytest.raises(CalibrationError, match=r"must be in \(0, 1\), found"):
        calibrate_open_set(emb, code, Euclid(), target_fpir=1.0)
    with pytest.raises(CalibrationError, match="embeddings have collapsed"):
        calibrate_open_set(emb * 0, code, Euclid(), target_fpir=0.1)
    with pytest.raises(ConfigError, match="unknown rule 'best'"):
        calibrate_open_set(emb, code, Euclid(), rule="best")
    with pytest.raises(CalibrationError, match="found 0 non-mated probes"):
        calibrate_open_set_on_probes(emb, code, emb, code, Euclid(), target_fpir=0.1)
    with pytest.raises(CalibrationError, match="found 0 non-mated probes"):
        calibrate_open_set_on_probes(emb, code, emb[:0], code[:0], Euclid(), target_fpir=0.1)
    broken = emb.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        calibrate_open_set(broken, code, Euclid(), target_fpir=0.1)


def test_the_probability_is_at_even_odds_of_enrolled_and_stranger():
    """With uninformative distances it is half of the share of correct mated probes."""
    rng = np.random.default_rng(0)
    num = 4000
    gallery = np.array([[0.0, 0.0], [9.0, 0.0]], np.float32)
    # Wrong: shown as identity 1, and near identity 0.
    whom = np.concatenate([np.repeat([0, 1], [num * 3 // 4, num // 4]), np.full(num // 2, -1)])
    probe = np.zeros((len(whom), 2), np.float32)
    probe[:, 0] = rng.random(len(whom)) * 0.5 + 0.5
    found = calibrate_open_set_on_probes(
        probe, whom, gallery, [0, 1], Euclid(), target_fpir=0.5, rule="nearest", replicates=2
    )
    assert found.rank_1.value == 0.75
    assert found.probability([0.6, 0.75, 0.9]).tolist() == pytest.approx([0.375] * 3, abs=0.03)


def test_the_better_curve_is_taken():
    """Steps in the probability, which no logistic curve follows."""
    rng = np.random.default_rng(1)
    distance = rng.random(3000) * 3
    mated = rng.random(3000) < np.select([distance < 1, distance < 2], [0.95, 0.5], 0.05)
    found = calibrate_open_set_on_probes(
        distance[:, None].astype(np.float32), np.where(mated, 0, -1),
        np.zeros((1, 1), np.float32), [0], Euclid(), target_fpir=0.1, replicates=2,
        probe_identity_P=np.arange(3000) % 50,
    )  # fmt: skip
    assert isinstance(found.curve, Isotonic)
    near, middle, far = found.probability([0.5, 1.5, 2.5])
    assert (near, middle, far) == pytest.approx((0.95, 0.5, 0.05), abs=0.05)


def test_platt_is_taken_where_it_is_no_worse(calibration):
    assert isinstance(calibration.curve, Platt)
    assert calibration.curve.a > 0


@pytest.mark.parametrize("seed", range(10))
def test_what_is_calibrated_can_be_read_again(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(5, 15))
    code = np.repeat(np.arange(num), int(rng.integers(2, 9)))
    emb = rng.normal(size=(num, 4))[code] + rng.normal(size=(len(code), 4)) * rng.uniform(0.1, 0.6)
    found = calibrate_open_set(
        emb.astype(np.float32), code, Euclid(), target_fpir=0.3, replicates=2, seed=seed
    )
    assert OpenSetCalibration.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_odds_turn_a_curve_and_keep_its_ends():
    """1 of 2 at odds of one to three is 1 of 4; certainty stays, to the last bit."""
    assert _at_odds(Isotonic((0.0, 1.0), (0.5, 0.0)), 1 / 3).y == (pytest.approx(0.25), 0.0)
    for odds in np.linspace(0.01, 1, 500):
        turned = _at_odds(Isotonic((0.0, 1.0, 2.0), (1.0, np.nextafter(1, 0), 0.0)), odds)
        assert turned.y[0] == 1
        assert turned.y[2] == 0
        assert turned.y[1] <= 1
