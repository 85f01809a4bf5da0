"""From distances to a threshold and a probability."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from twinlens.errors import CalibrationError, DataError, ModelError
from twinlens.measure.calibration import Calibration, fit_calibration
from twinlens.measure.error_rates import far_at
from twinlens.measure.probability import (
    Isotonic,
    Platt,
    fit_isotonic,
    fit_platt,
    held_out_losses,
)


def people(num: int = 12, each: int = 5, spread: float = 0.4, seed: int = 0):
    """Distances of all pairs of pictures of `num` identities on a plane."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(num), each)
    place = rng.normal(size=(num, 2))[label] * 2 + rng.normal(size=(num * each, 2)) * spread
    a, b = np.triu_indices(len(label), 1)
    dist = np.linalg.norm(place[a] - place[b], axis=1)
    return dist, label[a] == label[b], label[a], label[b]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fit_calibration(*people(), target_far=0.01, replicates=50)


def test_the_threshold_keeps_to_the_target(calibration):
    dist, same, _, _ = people()
    assert far_at(dist[~same], calibration.threshold) <= 0.01
    assert 0 < far_at(dist[~same], calibration.unadjusted) <= 0.01
    assert 0 < calibration.threshold < calibration.unadjusted
    assert (calibration.target_far, calibration.requested_far) == (0.01, 0.01)
    assert calibration.far_limit == pytest.approx(0.015)
    assert calibration.low <= calibration.threshold <= calibration.high
    assert (calibration.num_genuine, calibration.num_impostor) == (12 * 10, 66 * 25)
    assert calibration.num_identities == 12
    assert calibration.threshold_estimate().value == calibration.threshold


def test_nearer_is_never_less_likely(calibration):
    distance = np.linspace(-10, 20, 2000)
    for curve in (Platt(3.0, -4.0), Isotonic((0.5, 1.0, 4.0), (1.0, 0.7, 0.0))):
        p = Calibration(**{**calibration.__dict__, "curve": curve}).probability(distance)
        assert (np.diff(p) <= 1e-15).all()
        assert p[0] == 1 - 1 / (calibration.num_impostor + 2)
        assert p[-1] == 1 / (calibration.num_genuine + 2)
    assert calibration.probability(0) > 0.9
    assert calibration.probability(np.inf) < 0.1
    assert calibration.probability(np.zeros((2, 3), np.float16)).shape == (2, 3)
    with pytest.raises(DataError, match="NaN"):
        calibration.probability([0.5, np.nan])


def test_platt_by_hand():
    p = Platt(2.0, -3.0)(np.array([1.5, 1e9, -1e9]))
    assert p.tolist() == [0.5, 0.0, 1.0]
    assert Platt(2.0, -3.0)(np.array([1.0]))[0] == pytest.approx(1 / (1 + math.exp(-1)))


def test_platt_reaches_the_minimum_that_scipy_finds():
    dist, same, _, _ = people(spread=1.0)
    fitted = fit_platt(dist, same)
    n, m = same.sum(), (~same).sum()
    target = np.where(same, (n + 1) / (n + 2), 1 / (m + 2))
    weight = np.where(same, 0.5 / n, 0.5 / m)

    def loss(ab):
        z = ab[0] * dist + ab[1]
        return np.sum(weight * (target * np.logaddexp(0, z) + (1 - target) * np.logaddexp(0, -z)))

    best = minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-10})
    assert loss([fitted.a, fitted.b]) <= best.fun + 1e-12
    assert (fitted.a, fitted.b) == pytest.approx(tuple(best.x), rel=1e-3)


def test_separable_pairs_do_not_blow_up():
    dist = np.array([0.1, 0.2, 0.3, 5.0, 6.0, 7.0] * 20)
    same = dist < 1
    fitted = fit_platt(dist, same)
    assert 0 < fitted.a < 20
    assert 0.95 < fitted(np.array([0.2]))[0] < 1


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_platt_does_not_care_for_the_unit(scale):
    dist, same, _, _ = people()
    expected = fit_platt(dist, same)(dist)
    np.testing.assert_allclose(fit_platt(dist * scale, same)(dist * scale), expected, rtol=1e-6)


def test_what_rises_with_distance_becomes_level():
    dist = np.array([1.0, 2.0, 3.0, 4.0])
    same = np.array([False, False, True, True])
    for fitted in (fit_platt(dist, same), fit_isotonic(dist, same)):
        p = fitted(np.array([0.0, 2.5, 9.0]))
        assert p == pytest.approx([0.5] * 3)
    equal = fit_platt(np.ones(4), same)
    assert equal(np.array([1.0]))[0] == pytest.approx(0.5)
    assert math.isfinite(equal.a)


def test_isotonic_by_hand():
    # Pooled: 1 -> genuine; 2 and 3 in the wrong order; 4 -> impostor. Even numbers, even weights.
    fitted = fit_isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False]))
    assert fitted.x == (1.0, 2.0, 3.0, 4.0)
    assert fitted.y == (1.0, 0.5, 0.5, 0.0)
    assert fitted(np.array([0.0, 1.5, 9.0])).tolist() == [1.0, 0.75, 0.0]


def test_the_odds_are_even_however_many_impostors_there_are():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(1, 0.5, 4000), rng.normal(2, 0.5, 200)
    dist, same = np.concatenate([genuine, impostor]), np.repeat([True, False], [4000, 200])
    for fitted in (fit_platt(dist, same), fit_isotonic(dist, same)):
        # Two equal bells: p = 1/2 in the middle, and a slope of (2 - 1) / 0.5 ** 2.
        assert fitted(np.array([1.5]))[0] == pytest.approx(0.5, abs=0.12)
    assert fit_platt(dist, same).a == pytest.approx(4, rel=0.2)


def test_the_curve_is_chosen_on_identities_that_were_held_out():
    # A sigmoid truth favours Platt; a step in the middle of nowhere favours the isotonic curve.
    rng = np.random.default_rng(2)
    num = 40
    a, b = rng.integers(0, num, (2, 20_000))
    b[:10_000] = a[:10_000]
    dist = rng.uniform(0, 4, 20_000)
    for truth, kind in (
        (1 / (1 + np.exp(2 * (dist - 2))), Platt),
        (np.select([dist < 1, dist < 3], [0.95, 0.5], 0.05), Isotonic),
    ):
        same = rng.random(20_000) < truth
        found = fit_calibration(dist, same, a, b, target_far=0.1, replicates=2)
        assert isinstance(found.curve, kind)
        losses = found.log_loss_platt, found.log_loss_isotonic
        assert losses[kind is Isotonic] == min(losses)


def test_held_out_losses_do_not_see_the_judged_identities():
    # Each identity has a distance of its own that tells its kind: a curve fitted on the same
    # identities would be nearly perfect, one fitted on others knows nothing.
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(40), 30)
    own, kind = rng.random(40), rng.random(40) < 0.5
    dist, same = own[code], kind[code]
    platt, isotonic = held_out_losses(dist, same, code, code, 0)
    assert platt > 0.6
    assert isotonic > 0.6
    fitted = fit_isotonic(dist, same)(dist)
    assert np.mean(np.abs(fitted - same)) < 0.5


def test_held_out_impostors_weigh_as_in_all_pairs():
    # 20 identities with 10 genuine pairs and 10 forgeries each, and 190 strangers. Genuine pairs
    # and strangers lie at 1, forgeries at 9. Most strangers stand between two folds, unjudged.
    first, second = np.triu_indices(20, 1)
    code = np.repeat(np.arange(20), 20)
    code_a, code_b = np.concatenate([code, first]), np.concatenate([code, second])
    same = np.concatenate([np.tile(np.arange(20) < 10, 20), np.zeros(190, dtype=bool)])
    dist = np.concatenate([np.where(same[:400], 1.0, 9.0), np.ones(190)])
    _, isotonic = held_out_losses(dist, same, code_a, code_b, 0)
    share = 190 / 390  # of impostors that look genuine
    p = 1 / (1 + share)
    expected = (-math.log(p) - share * math.log(1 - p)) / 2
    assert isotonic == pytest.approx(expected, abs=0.03)


def test_few_identities_give_platt_and_no_held_out_loss():
    found = fit_calibration(*people(num=3), target_far=0.1, replicates=20)
    assert isinstance(found.curve, Platt)
    assert found.log_loss_platt is None
    one = fit_calibration(
        [0.1, 0.2, 0.9, 0.8, 0.7], [1, 1, 0, 0, 0], ["x"] * 5, ["x"] * 5, target_far=0.4
    )
    assert (one.low, one.high, one.num_identities) == (None, None, 1)
    assert one.threshold == 0.7


def test_the_same_seed_gives_the_same_calibration(calibration):
    assert fit_calibration(*people(), target_far=0.01, replicates=50) == calibration
    other = fit_calibration(*people(), target_far=0.01, replicates=50, seed=1)
    assert other.unadjusted == calibration.unadjusted
    assert other.threshold == pytest.approx(calibration.threshold, rel=0.1)
    assert (other.low, other.high) != (calibration.low, calibration.high)


def test_names_and_order_of_pairs_do_not_matter(calibration):
    dist, same, a, b = people()
    # Names that sort like the numbers, so that the same identities are redrawn.
    names = np.array([f"person {i:02d}" for i in range(12)], dtype=object)
    order = np.random.default_rng(0).permutation(len(dist))
    again = fit_calibration(
        dist[order], same[order], names[a[order]], names[b[order]], target_far=0.01, replicates=50
    )
    assert (again.threshold, again.low, again.high) == pytest.approx(
        (calibration.threshold, calibration.low, calibration.high)
    )
    assert again.log_loss_platt == pytest.approx(calibration.log_loss_platt)


def test_errors_of_calibration_give_the_reason():
    with pytest.raises(CalibrationError, match="no genuine pairs"):
        fit_calibration([1, 2], [0, 0], [0, 0], [1, 2], target_far=0.5)
    with pytest.raises(CalibrationError, match="found 1 impostor pairs"):
        fit_calibration([1, 2], [1, 0], [0, 0], [0, 2], target_far=0.1)
    with pytest.raises(CalibrationError, match="collapsed"):
        fit_calibration([0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 2, 2], target_far=0.5)
    with pytest.raises(DataError, match="NaN"):
        fit_calibration([np.nan, 1, 2], [1, 0, 0], [0, 0, 0], [0, 1, 2], target_far=0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), st.booleans())
def test_json_returns_every_bit(numbers, isotonic):
    a, b, c, d = numbers
    curve = Isotonic(tuple(sorted({a, b})), (0.1 + 0.2, 0.1)[: len({a, b})]) if isotonic else None
    original = Calibration(c, None, d, 0.01, 3, 200, 4, curve or Platt(abs(a), b), 0.1 + 0.2, None)
    assert Calibration.from_json(json.loads(json.dumps(original.as_json()))) == original


def test_fitted_calibrations_return_from_json(calibration):
    again = Calibration.from_json(json.loads(json.dumps(calibration.as_json())))
    assert again == calibration
    distance = np.linspace(0, 5, 50)
    assert again.probability(distance).tolist() == calibration.probability(distance).tolist()
    assert calibration.as_json()["curve"]["kind"] in ("platt", "isotonic")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": "0.5"}, "threshold: input should be a valid number, found '0.5'"),
        ({"threshold": float("nan")}, "threshold: input should be a finite number, found nan"),
        ({"target_far": 2.0}, "target_far: input should be less than 1, found 2.0"),
        ({"num_impostor": 1.5}, "num_impostor: input should be a valid integer, found 1.5"),
        ({"num_genuine": True}, "num_genuine: input should be a valid integer, found True"),
        ({"curve": {"kind": "spline"}}, "curve: input tag 'spline' found using 'kind'"),
        ({"curve": {"kind": "platt", "a": -1, "b": 0}}, "curve.platt.a: input should be greater"),
        ({"curve": {"kind": "platt", "a": 1}}, "curve.platt.b is missing"),
        ({"curve": {"kind": "isotonic", "x": [1, 0], "y": [1, 0]}}, "x must ascend"),
        ({"curve": {"kind": "isotonic", "x": [0, 1], "y": [0, 1]}}, "never rise"),
        ({"curve": {"kind": "isotonic", "x": [0, 1], "y": [2, 0]}}, "lie in [0, 1]"),
        ({"curve": {"kind": "isotonic", "x": [], "y": []}}, "knots"),
        ({"low": []}, "low: input should be a valid number, found []"),
    ],
)
def test_damaged_json_is_named(calibration, change, said):
    with pytest.raises(ModelError, match="damaged") as caught:
        Calibration.from_json({**calibration.as_json(), **change})
    assert said in str(caught.value)
    assert "twinlens calibrate MODEL DATA" in str(caught.value)


def test_all_damage_is_named_at_once(calibration):
    values = {**calibration.as_json(), "threshold": None, "num_genuine": -1}
    del values["high"]
    with pytest.raises(ModelError, match="high is missing") as caught:
        Calibration.from_json(values)
    for key in ("threshold", "num_genuine"):
        assert f"{key}: input should be" in str(caught.value)


def test_the_keys_of_a_stored_calibration_keep_their_order():
    curve = Isotonic((0.25, 0.5), (1.0, 0.0))
    stored = Calibration(0.5, None, 0.75, 0.01, 3, 200, 4, curve, 0.125, 0.25)
    assert json.dumps(stored.as_json()) == (
        '{"threshold": 0.5, "low": null, "high": 0.75, "target_far": 0.01, "num_genuine": 3, '
        '"num_impostor": 200, "num_identities": 4, "curve": {"kind": "isotonic", "x": [0.25, 0.5], '
        '"y": [1.0, 0.0]}, "log_loss_platt": 0.125, "log_loss_isotonic": 0.25, '
        '"requested_far": null, "unadjusted": null, "far_limit": null, "assumed_share": null}'
    )


@pytest.mark.parametrize("values", [None, [], "text", 3, {}])
def test_what_is_no_calibration_at_all(values):
    with pytest.raises(ModelError, match="damaged"):
        Calibration.from_json(values)
