"""The threshold of a gallery, from its own templates or from other pictures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.errors import CalibrationError, ConfigError, DataError, ModelError
from twinlens.measure import asking
from twinlens.measure.asking import ask, ask_left_out, spread_sample
from twinlens.measure.fusion import RULES
from twinlens.measure.identification import (
    OpenSetCalibration,
    _smallest_margin,
    calibrate_open_set,
    calibrate_with_probes,
    margins,
)
from twinlens.measure.metrics import matches, threshold_at_far
from twinlens.measure.operating import KEPT, kept_ranks
from twinlens.measure.probability import Isotonic, Platt


class Euclid:
    """Distances as their definition has them."""

    def matrix(self, a_ND, b_MD, /):
        difference = a_ND[:, None].astype(np.float64) - b_MD
        return np.sqrt((difference**2).sum(axis=2)).astype(np.float32)

    def pairwise(self, a_ND, b_ND, /):
        difference = a_ND.astype(np.float64) - b_ND
        return np.sqrt((difference**2).sum(axis=1)).astype(np.float32)


def people(num=12, each=4, spread=0.5, seed=0, dim=3):
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(num), each)
    emb = rng.normal(size=(num, dim))[code] + rng.normal(size=(num * each, dim)) * spread
    return emb.astype(np.float32), code


@pytest.fixture(scope="module")
def calibration() -> OpenSetCalibration:
    return calibrate_open_set(*people(40, 4, 0.2), Euclid(), target_fpir=0.1, replicates=50)


# --- asking ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(0, 99))
def test_leaving_out_is_that_of_the_loop(code, seed):
    """Templates in any order, identities with one template, and galleries of one identity."""
    # Whole numbers: what ties for one ties for the other.
    emb = np.random.default_rng(seed).integers(-4, 5, size=(len(code), 2)).astype(np.float32)
    rows = np.arange(len(code))
    mated, stranger = ask_left_out(rows, emb, code, Euclid(), RULES)
    for rule in RULES:
        expected = reference.leave_one_out_gallery(emb.astype(float).tolist(), code, rule)
        for row, (own, others, without) in enumerate(expected):
            _same(stranger[rule], row, without)
            if rule != "mean" or code.count(own) > 1:
                _same(mated[rule], row, others)


def _same(asked, row, expected):
    """Equal to the loop's list; means are rounded, so places may change there between equals."""
    places = [*expected, (-1, math.inf), (-1, math.inf)][:2]
    assert asked.distance[row] == pytest.approx(places[0][1], abs=1e-5)
    assert asked.runner_up[row] == pytest.approx(places[1][1], abs=1e-5)
    if places[1][1] - places[0][1] > 1e-5 or places[0][0] == -1:
        assert asked.code[row] == places[0][0]


@pytest.mark.parametrize("rule", RULES)
def test_asking_with_other_pictures_is_that_of_the_loop(rule, monkeypatch):
    monkeypatch.setattr(asking, "BLOCK_BYTES", 1)
    monkeypatch.setattr(asking, "FEWEST_AT_ONCE", 3)
    rng = np.random.default_rng(4)
    emb, code = people(6, 3)
    order = rng.permutation(len(code))
    probe = rng.normal(size=(11, 3)).astype(np.float32)
    seen = []
    found = ask(probe, emb[order], code[order], Euclid(), (rule,),
                progress=lambda *at: seen.append(at))[rule]  # fmt: skip
    gallery = list(zip(emb.astype(float).tolist(), code.tolist(), strict=True))
    for row, one in enumerate(probe.astype(float).tolist()):
        _same(found, row, reference.rank_in_gallery_loop(one, gallery, rule))
    assert seen == [(3, 11), (6, 11), (9, 11), (11, 11)]


def test_a_sample_takes_as_many_identities_as_there_are_and_evenly_of_each():
    code = np.array([0] * 50 + [1] * 2 + [2] * 3 + [3])
    for seed in range(20):
        rows = spread_sample(code, 9, np.random.default_rng(seed))
        assert np.bincount(code[rows]).tolist() == [3, 2, 3, 1]
        assert len(set(rows.tolist())) == 9
        few = spread_sample(code, 3, np.random.default_rng(seed))
        assert len(set(code[few].tolist())) == 3
    drawn = {tuple(spread_sample(code, 4, np.random.default_rng(s)).tolist()) for s in range(40)}
    assert len(drawn) > 20
    assert spread_sample(code, 99, np.random.default_rng(0)).tolist() == list(range(len(code)))


# --- the calibration ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_its_figures_are_those_of_the_loop(rule):
    emb, code = people(8, 3, spread=0.7, seed=2)
    target = 0.1
    found = calibrate_open_set(emb, code, Euclid(), target_fpir=target, rule=rule, replicates=20)
    asked = reference.leave_one_out_gallery(emb.astype(float).tolist(), code.tolist(), rule)
    strangers = [without[0][1] for _, _, without in asked]
    threshold = reference.strictest_threshold(strangers, target)
    assert found.threshold == pytest.approx(threshold, abs=1e-5)
    assert found.strangers == pytest.approx(sorted(strangers), abs=1e-5)
    right = [others[0][0] == own for own, others, _ in asked]
    hit = [r and asked[i][1][0][1] <= threshold + 1e-5 for i, r in enumerate(right)]
    assert found.rank_1.value == pytest.approx(sum(right) / len(right))
    assert found.tpir.value == pytest.approx(sum(hit) / len(hit))
    assert found.by_rule == {rule: pytest.approx(sum(hit) / len(hit))}
    gap, wrong = [], []
    for r, (_, others, _) in zip(right, asked, strict=True):
        (_, best), (_, second) = others[:2]
        if best <= threshold + 1e-5:
            gap.append(max(second - best, 0) if second <= threshold + 1e-5 else math.inf)
            wrong.append(not r)
    assert any(wrong)
    expected = reference.smallest_margin_loop(gap, wrong, target)
    if expected is not None:
        assert found.margin == pytest.approx(expected, abs=1e-5)
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
    with pytest.raises(CalibrationError, match="without identities that have two templates"):
        found.probability(0.5)
    assert found.threshold_at(0.6) == 2
    assert found.threshold_at(0.85) == 3
    with pytest.raises(CalibrationError, match="share the smallest distance"):
        found.threshold_at(0.3)
    with pytest.raises(CalibrationError, match=r"found 5 pictures of strangers.*at least 10"):
        found.threshold_at(0.1)


def test_the_margin_by_hand():
    """Accepted: margins 1, 2 and 3, of which the first is wrong, and two without a runner-up."""
    gallery = np.array([[0], [5], [50], [80]], np.float32)
    probe = np.array([[2], [3.5], [1], [50], [80]], np.float32)
    strangers = np.array([[-4], [100], [110], [120]], np.float32)

    def margin(target):
        return calibrate_with_probes(
            np.concatenate([probe, strangers]), [1, 1, 0, 2, 3, -1, -1, -1, -1],
            gallery, [0, 1, 2, 3], Euclid(), target_fpir=target, rule="nearest", replicates=2,
        )  # fmt: skip

    found = margin(0.3)
    assert found.strangers == (4, 20, 30, 40)
    assert found.threshold == 4
    assert (found.rank_1.value, found.tpir.value) == (0.8, 0.8)
    assert found.margin == 0, "one wrong answer of five is within the target"
    gap, wrong = np.array([1, 2, 3, np.inf, np.inf]), np.array([1, 0, 0, 0, 0], bool)
    assert _smallest_margin(gap, wrong, 0.3) == 0
    assert _smallest_margin(np.tile(gap, 2), np.tile(wrong, 2), 0.15) == 2


def test_the_margin_rules_out_wrong_answers():
    rng = np.random.default_rng(0)
    gap = np.concatenate([rng.random(300), np.full(100, np.inf)])
    wrong = (gap < 0.3) & (rng.random(400) < 0.5)
    for target in (0.01, 0.05, 0.2):
        found = _smallest_margin(gap, wrong, target)
        assert found == reference.smallest_margin_loop(gap.tolist(), wrong.tolist(), target)
        assert wrong[gap >= found].mean() <= target
    # Only those without a runner-up are right: above the largest margin that was seen.
    gap = gap.round(1)
    found = _smallest_margin(gap, np.isfinite(gap), 0.01)
    assert np.isfinite(found)
    assert found > gap[np.isfinite(gap)].max()
    assert _smallest_margin(gap, np.ones(400, bool), 0.01) == 0, "nothing keeps to the target"
    assert _smallest_margin(gap[:50], wrong[:50], 0.01) == 0, "too few to tell"
    assert _smallest_margin(gap[:0], wrong[:0], 0.01) == 0


def test_margins_by_hand():
    found = margins([1, 1, 1, 3], [2, 5, np.inf, 2], threshold=4)
    assert found.tolist() == [1, np.inf, np.inf, 0]


def test_the_rule_is_the_best_one():
    """Identities of which some templates are far off: a mean is spoilt, the nearest is not."""
    emb, code = people(40, 5, spread=0.1, seed=1)
    emb[::5] += np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * 3
    found = calibrate_open_set(emb, code, Euclid(), target_fpir=0.05, replicates=20)
    assert list(found.by_rule) == list(RULES)
    assert found.by_rule[found.rule] == max(found.by_rule.values()) == found.tpir.value
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
    _, stranger = ask_left_out(np.arange(len(code)), emb, code, Euclid(), (calibration.rule,))
    best = stranger[calibration.rule].distance
    assert 0 < matches(best, calibration.threshold).mean() <= 0.1
    assert calibration.threshold == threshold_at_far(best, 0.1)
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
    with pytest.raises(CalibrationError, match="found 50 pictures of strangers"):
        calibrate_open_set(emb, code, Euclid(), target_fpir=0.01, most_probes=50)


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
    found = calibrate_with_probes(
        emb[asked], whom, emb[shown], code[shown], Euclid(), target_fpir=0.1, replicates=50
    )
    best = ask(emb[asked], emb[shown], code[shown], Euclid(), ("nearest",))["nearest"]
    strangers = best.distance[whom < 0]
    assert found.threshold == threshold_at_far(strangers, 0.1)
    assert (found.num_mated, found.num_strangers, found.num_identities) == (40, 50, 10)
    assert found.rank_1.value == np.mean(best.code[whom >= 0] == whom[whom >= 0])
    named = calibrate_with_probes(
        emb[asked], whom, emb[shown], code[shown], Euclid(), target_fpir=0.1, replicates=50,
        probe_identity_P=code[asked],
    )  # fmt: skip
    assert named.threshold == found.threshold
    assert named.high - named.low != found.high - found.low
    beyond = np.where(whom < 0, 99, whom)
    assert found == calibrate_with_probes(
        emb[asked], beyond, emb[shown], code[shown], Euclid(), target_fpir=0.1, replicates=50
    ), "a code that the gallery does not have is a stranger"


def test_what_cannot_be_calibrated_is_refused():
    emb, code = people(10, 2)
    with pytest.raises(
        CalibrationError, match=r"found 20 pictures of strangers.*needs at least 100"
    ):
        calibrate_open_set(emb, code, Euclid(), target_fpir=0.01)
    with pytest.raises(CalibrationError, match="found 0 pictures of strangers"):
        calibrate_open_set(emb, np.zeros(20, int), Euclid(), target_fpir=0.1)
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        calibrate_open_set(emb, code, Euclid(), target_fpir=1.0)
    with pytest.raises(CalibrationError, match="embeddings may have collapsed"):
        calibrate_open_set(emb * 0, code, Euclid(), target_fpir=0.1)
    with pytest.raises(ConfigError, match="unknown rule 'best'"):
        calibrate_open_set(emb, code, Euclid(), rule="best")
    with pytest.raises(CalibrationError, match="found 0 pictures of strangers"):
        calibrate_with_probes(emb, code, emb, code, Euclid(), target_fpir=0.1)
    with pytest.raises(CalibrationError, match="found 0 pictures of strangers"):
        calibrate_with_probes(emb, code, emb[:0], code[:0], Euclid(), target_fpir=0.1)
    broken = emb.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        calibrate_open_set(broken, code, Euclid(), target_fpir=0.1)


# --- what is read from it -------------------------------------------------------------------


def of_strangers(distance, target):
    """A calibration with these strangers, on a line: gallery at 0, strangers at the distances."""
    distance = np.asarray(distance, np.float32)
    return calibrate_with_probes(
        distance[:, None], np.full(len(distance), -1), np.zeros((1, 1), np.float32), [0],
        Euclid(), target_fpir=target, replicates=2,
    )  # fmt: skip


def threshold_or_none(read, *values):
    try:
        found = read(*values)
    except CalibrationError:
        return None
    return found if np.isfinite(found) else None


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 4.0]), min_size=3, max_size=40),
    st.lists(st.floats(0.001, 0.999), min_size=2, max_size=6),
)
def test_other_targets_are_exact_and_monotone(distance, targets):
    if threshold_or_none(threshold_at_far, distance, 0.5) is None:
        distance = [0.25, 0.3, *distance, 5.0, 6.0, 7.0, *([8.0] * len(distance))]
    found = of_strangers(distance, 0.5)
    values = np.array(distance, np.float32)
    read = [threshold_or_none(found.threshold_at, fpir) for fpir in sorted(targets)]
    assert read == [threshold_or_none(threshold_at_far, values, fpir) for fpir in sorted(targets)]
    given = [threshold for threshold in read if threshold is not None]
    assert given == sorted(given)
    assert found.threshold_at(0.5) == found.threshold


@pytest.mark.parametrize("ties", [False, True])
def test_of_many_strangers_a_stricter_threshold_is_read_never_a_looser_one(ties):
    rng = np.random.default_rng(0)
    distance = rng.random(5000).astype(np.float32) + 0.5
    distance = distance.round(2) if ties else distance
    found = of_strangers(distance, 0.3)
    assert len(found.strangers) <= KEPT
    assert found.strangers[-1] == distance.max()
    assert found.strangers[:256] == tuple(np.sort(distance)[:256].tolist())
    last = -math.inf
    for fpir in np.linspace(0.021 if ties else 0.001, 0.99, 300):
        threshold, exact = found.threshold_at(fpir), threshold_at_far(distance, fpir)
        assert last <= threshold <= exact
        assert threshold == exact or fpir > 0.05
        assert np.mean(distance <= exact) - np.mean(distance <= threshold) < 0.05
        last = threshold
    assert found.threshold_at(0.3) == found.threshold == threshold_at_far(distance, 0.3)


def test_kept_ranks_ascend_and_are_never_more_than_said():
    for num in (1, 2, 256, 512, 513, 600, 5000, 10**6):
        rank = kept_ranks(num)
        assert len(rank) <= min(num, KEPT)
        assert rank[0] == 0
        assert rank[-1] == num - 1
        assert (np.diff(rank) > 0).all()
        assert rank[: min(num, 256)].tolist() == list(range(min(num, 256)))


def test_a_larger_gallery_takes_more_strangers_in(calibration):
    at = calibration.fpir_at_size
    assert at(40) == pytest.approx(0.1)
    assert at(80) == pytest.approx(1 - 0.9**2)
    assert at(20) == pytest.approx(1 - 0.9**0.5)
    assert (at(0), at(10**9)) == (0, 1)


def test_the_probability_is_at_even_odds_of_enrolled_and_stranger():
    """Where distances say nothing, it is half of the share of mated probes that are right."""
    rng = np.random.default_rng(0)
    num = 4000
    gallery = np.array([[0.0, 0.0], [9.0, 0.0]], np.float32)
    # Wrong: shown as identity 1, and near identity 0.
    whom = np.concatenate([np.repeat([0, 1], [num * 3 // 4, num // 4]), np.full(num // 2, -1)])
    probe = np.zeros((len(whom), 2), np.float32)
    probe[:, 0] = rng.random(len(whom)) * 0.5 + 0.5
    found = calibrate_with_probes(
        probe, whom, gallery, [0, 1], Euclid(), target_fpir=0.5, rule="nearest", replicates=2
    )
    assert found.rank_1.value == 0.75
    assert found.probability([0.6, 0.75, 0.9]).tolist() == pytest.approx([0.375] * 3, abs=0.03)


def test_nearer_is_never_less_likely(calibration):
    p = calibration.probability(np.linspace(-1, 9, 500))
    assert (np.diff(p) <= 1e-15).all()
    assert 1 / 162 <= p[-1] < 0.05 < 0.8 < p[0] <= 1 - 1 / 162
    with pytest.raises(DataError, match="NaN"):
        calibration.probability(np.nan)


def test_the_better_curve_is_taken():
    """Steps in the probability, which no logistic curve follows."""
    rng = np.random.default_rng(1)
    distance = rng.random(3000) * 3
    mated = rng.random(3000) < np.select([distance < 1, distance < 2], [0.95, 0.5], 0.05)
    found = calibrate_with_probes(
        distance[:, None].astype(np.float32), np.where(mated, 0, -1),
        np.zeros((1, 1), np.float32), [0], Euclid(), target_fpir=0.1, replicates=2,
        probe_identity_P=np.arange(3000) % 50,
    )  # fmt: skip
    assert isinstance(found.curve, Isotonic)
    near, middle, far = found.probability([0.5, 1.5, 2.5])
    assert (near, middle, far) == pytest.approx((0.95, 0.5, 0.05), abs=0.05)


# --- on disk --------------------------------------------------------------------------------


def test_json_gives_back_the_same(calibration):
    knots = Isotonic((0.5, 1.0), (0.9, 0.1))
    bare = OpenSetCalibration(**{**calibration.__dict__, "curve": None, "low": None, "high": None})
    for one in (
        calibration,
        bare,
        OpenSetCalibration(**{**calibration.__dict__, "curve": knots}),
        of_strangers(np.arange(900) + 1.0, 0.1),
    ):
        text = json.dumps(one.as_json(), allow_nan=False)
        assert OpenSetCalibration.from_json(json.loads(text)) == one


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("threshold", "near", "threshold is 'near', not a finite number"),
        ("threshold", math.nan, "not a finite number"),
        ("margin", -1.0, "margin is below 0"),
        ("target_fpir", 0.0, "not between 0 and 1"),
        ("rule", "best", "its rule is 'best'"),
        ("by_rule", {"nearest": 2.0}, "nearest is 2.0, not between 0 and 1"),
        ("num_strangers", 0, "num_strangers is 0, not a count"),
        ("num_mated", True, "num_mated is True, not a count"),
        ("num_strangers", 47, "it has 160 distances of 47 strangers"),
        ("tpir", {"value": 1.0}, "there is no 'low'"),
        ("curve", {"kind": "line"}, "unknown kind 'line'"),
        ("curve", {"kind": "platt", "a": -1.0, "b": 0.0}, "rises with distance"),
        ("curve", {"kind": "isotonic", "x": [1, 0], "y": [1, 0]}, "do not ascend"),
        ("strangers", [3.0] + [1.0] * 159, "distances do not ascend"),
        ("strangers", None, "damaged"),
    ],
)
def test_what_is_damaged_is_named(calibration, key, value, said):
    values = calibration.as_json() | {key: value}
    with pytest.raises(ModelError, match="gallery's calibration is damaged") as caught:
        OpenSetCalibration.from_json(values)
    assert said in str(caught.value)
    assert "run `twinlens gallery calibrate GALLERY` again" in str(caught.value)


def test_what_is_missing_is_named(calibration):
    for key in calibration.as_json():
        values = calibration.as_json()
        del values[key]
        with pytest.raises(ModelError, match=f"there is no '{key}'"):
            OpenSetCalibration.from_json(values)
    with pytest.raises(ModelError):
        OpenSetCalibration.from_json(["threshold"])


def test_platt_is_taken_where_it_is_no_worse(calibration):
    assert isinstance(calibration.curve, Platt)
    assert calibration.curve.a > 0
