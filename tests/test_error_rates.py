"""Error rates and thresholds: by hand, by loops, by scikit-learn, and by their laws."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import det_curve as sklearn_det_curve
from sklearn.metrics import roc_auc_score

from twinlens.errors import CalibrationError, DataError
from twinlens.measure.error_rates import (
    SortedPairs,
    auc,
    best_accuracy,
    det_curve,
    eer,
    far_at,
    frr_at,
    matches,
    point_at_far,
    tar_at_far,
    threshold_at_far,
)

# Few distinct values, so that ties are common; all are exact in half precision too.
DISTANCES = st.lists(st.integers(0, 12).map(lambda n: n / 4), min_size=1, max_size=30)


def some_pairs(seed: int = 0, genuine: int = 60, impostor: int = 90):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 0.5, genuine).round(1), rng.normal(2, 0.5, impostor).round(1)


def test_a_curve_worked_by_hand():
    # 1: one genuine; 2: one genuine and one impostor; 3: impostor; 4: genuine.
    curve = det_curve([1, 2, 4, 4], [2, 3])
    assert curve.threshold.tolist() == [-np.inf, 1, 2, 3, 4]
    assert curve.far.tolist() == [0, 0, 0.5, 1, 1]
    assert curve.frr.tolist() == [1, 0.75, 0.5, 0.5, 0]
    assert eer(curve) == 0.5
    assert auc(curve) == (2 + 1.5 + 0 + 0) / 8
    assert best_accuracy(curve) == (0.625, 1.5)  # (1 - (0 + 0.75) / 2), between 1 and 2
    assert curve.at(2.5) == (0.5, 0.5)
    assert curve.at(-1) == (0, 1)


def test_the_crossing_lies_between_two_points():
    # From (far 0, frr 0.5) to (far 1, frr 0): they meet a third of the way.
    assert eer(det_curve([1, 2], [2])) == pytest.approx(1 / 3)


def test_all_alike_is_chance():
    curve = det_curve([1, 1], [1, 1, 1])
    assert (eer(curve), auc(curve)) == (0.5, 0.5)
    assert best_accuracy(curve) == (0.5, -np.inf)


def test_threshold_of_separated_pairs_is_the_middle_of_the_gap():
    curve = det_curve([0.1, 0.2], [0.6, 0.9])
    assert (eer(curve), auc(curve)) == (0, 1)
    accuracy, threshold = best_accuracy(curve)
    assert accuracy == 1
    assert threshold == pytest.approx(0.4)


def test_the_wrong_way_round_is_worse_than_chance():
    curve = det_curve([3, 4], [1, 2])
    assert (eer(curve), auc(curve)) == (1, 0)
    assert best_accuracy(curve) == (0.5, -np.inf)


def test_the_middle_of_the_gap_skips_pairs_without_weight():
    accuracy, threshold = best_accuracy(det_curve([1], [2, 5], None, [0, 1]))
    assert (accuracy, threshold) == (1, 3)


def test_neighbouring_numbers_leave_no_middle():
    low = 1.0
    accuracy, threshold = best_accuracy(det_curve([low], [np.nextafter(low, 2)]))
    assert (accuracy, threshold) == (1, low)


def test_matching_compares_in_float64():
    distance = np.float32(0.1)  # a little more than the float64 0.1
    assert not matches(distance, 0.1)
    assert matches(distance, float(distance))
    assert matches([0.1, 0.2, 0.3], 0.2).tolist() == [True, True, False]
    assert not matches([0.0, -5.0], -np.inf).any()


@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_loop(weighted):
    genuine, impostor = some_pairs()
    rng = np.random.default_rng(1)
    weights = (rng.integers(0, 4, 60), rng.integers(0, 4, 90)) if weighted else (None, None)
    curve = det_curve(genuine, impostor, *weights)
    expected = reference.curve_points(genuine.tolist(), impostor.tolist(), *weights)
    np.testing.assert_allclose(
        np.stack([curve.threshold, curve.far, curve.frr], axis=1), expected, atol=1e-12
    )
    accuracy = max(1 - (far + frr) / 2 for _, far, frr in expected)
    found, threshold = best_accuracy(curve)
    assert found == pytest.approx(accuracy)
    far, frr = reference.error_rates(genuine, impostor, threshold, *weights)
    assert 1 - (far + frr) / 2 == pytest.approx(accuracy)
    assert far_at(impostor, 1.5, weights[1]) == pytest.approx(
        reference.error_rates(genuine, impostor, 1.5, *weights)[0]
    )
    assert frr_at(genuine, 1.5, weights[0]) == pytest.approx(
        reference.error_rates(genuine, impostor, 1.5, *weights)[1]
    )


@settings(max_examples=60, deadline=None)
@given(genuine=DISTANCES, impostor=DISTANCES)
def test_laws_of_the_curve(genuine, impostor):
    curve = det_curve(genuine, impostor)
    assert (np.diff(curve.threshold) > 0).all()
    assert (np.diff(curve.far) >= 0).all()
    assert (np.diff(curve.frr) <= 0).all()
    assert (curve.threshold[0], curve.far[0], curve.frr[0]) == (-np.inf, 0, 1)
    assert (curve.far[-1], curve.frr[-1]) == (1, 0)
    assert eer(curve) == pytest.approx(reference.equal_error_rate(genuine, impostor))
    assert auc(curve) == pytest.approx(reference.area_under_roc(genuine, impostor))
    again = det_curve(genuine[::-1], impostor[::-1])
    assert (eer(again), auc(again), best_accuracy(again)) == (
        eer(curve), auc(curve), best_accuracy(curve),
    )  # fmt: skip
    accuracy, threshold = best_accuracy(curve)
    far, frr = curve.at(threshold)
    assert 1 - (far + frr) / 2 == accuracy
    assert (far_at(impostor, threshold), frr_at(genuine, threshold)) == (far, frr)


@settings(max_examples=60, deadline=None)
@given(genuine=DISTANCES, impostor=DISTANCES, data=st.data())
def test_a_weight_is_a_number_of_copies(genuine, impostor, data):
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(impostor), max_size=len(impostor)))
    counts[0] += 1
    weighted = det_curve(genuine, impostor, None, counts)
    copied = det_curve(genuine, np.repeat(impostor, counts))
    assert eer(weighted) == pytest.approx(eer(copied))
    assert auc(weighted) == pytest.approx(auc(copied))
    assert best_accuracy(weighted) == pytest.approx(best_accuracy(copied))


@settings(max_examples=100, deadline=None)
@given(impostor=DISTANCES, target=st.floats(0.01, 0.99))
def test_the_threshold_keeps_to_the_target_and_is_the_largest(impostor, target):
    if 1 / len(impostor) > target:
        with pytest.raises(CalibrationError, match="impostor pairs"):
            threshold_at_far(impostor, target)
        return
    threshold = threshold_at_far(impostor, target)
    assert far_at(impostor, threshold) <= target
    assert all(far_at(impostor, d) > target for d in impostor if d > threshold)
    assert threshold == reference.strictest_threshold(impostor, target)
    curve = det_curve([1.0], impostor)
    assert curve.threshold[point_at_far(curve, target)] == threshold


def test_threshold_by_hand():
    impostor = np.arange(1, 101)  # 1 .. 100
    assert threshold_at_far(impostor, 0.01) == 1
    assert threshold_at_far(impostor, 0.05) == 5
    assert threshold_at_far(impostor, 0.0599) == 5
    assert threshold_at_far([1, 1, 1, 2], 0.5) == -np.inf
    assert threshold_at_far([1, 2, 3, 4], 0.5, [1, 1, 1, 5]) == 3
    assert threshold_at_far([1, 2, 3, 4], 0.5, [1, 0, 0, 1]) == 1
    assert tar_at_far([0.5, 1, 1.5, 7], impostor, 0.01) == 0.5


def test_error_of_too_few_impostors_gives_the_needed_number():
    with pytest.raises(CalibrationError, match=r"found 99 impostor pairs.*at least 100"):
        threshold_at_far(np.arange(99), 0.01)
    with pytest.raises(CalibrationError, match="found 0 impostor"):
        threshold_at_far([], 0.5)
    for target in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(CalibrationError, match=r"must be in \(0, 1\), found"):
            threshold_at_far([1, 2], target)


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(3)
    genuine, impostor = rng.normal(1, 1, 300), rng.normal(2, 1, 500)
    for g, i in ((genuine, impostor), (genuine.round(1), impostor.round(1))):
        curve = det_curve(g, i)
        truth = np.repeat([1, 0], [300, 500])
        score = -np.concatenate([g, i])
        assert auc(curve) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        far, frr, threshold = sklearn_det_curve(truth, score)
        for far_t, frr_t, t in zip(far, frr, threshold, strict=True):
            if np.isfinite(t):
                assert curve.at(-t) == pytest.approx((far_t, frr_t))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_half_precision_neither_overflows_nor_underflows(dtype):
    genuine = (np.arange(3000) % 7 / 8).astype(dtype)
    impostor = (np.arange(3000) % 9 / 8 + 0.25).astype(dtype)
    expected = det_curve(genuine.astype(np.float64), impostor.astype(np.float64))
    found = det_curve(genuine, impostor, np.ones(3000, dtype), np.ones(3000, dtype))
    assert found.far.dtype == np.float64
    assert (eer(found), auc(found)) == (eer(expected), auc(expected))
    assert best_accuracy(found) == best_accuracy(expected)
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    accuracy, threshold = best_accuracy(det_curve([tiny], [huge]))
    assert accuracy == 1
    assert float(tiny) < threshold < float(huge)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_distances_are_counted(bad):
    with pytest.raises(DataError, match="1 of 2 genuine distances"):
        det_curve([1, bad], [1])
    with pytest.raises(ValueError, match="2 of 3 impostor distances"):
        threshold_at_far([bad, 1, bad], 0.5)
    with pytest.raises(DataError, match="impostor distances"):
        far_at([bad], 1)


def test_one_kind_of_pair_is_refused():
    with pytest.raises(DataError, match="0 genuine and 2 impostor pairs"):
        det_curve([], [1, 2])
    with pytest.raises(DataError, match="1 genuine and 0 impostor pairs"):
        det_curve([1], [])
    with pytest.raises(DataError, match="no genuine pairs"):
        frr_at([], 1)


@pytest.mark.parametrize("weight", [[1], [1, -1], [0, 0], [1, np.nan], [1, np.inf]])
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match="weights"):
        det_curve([1, 2], [3], weight)


def test_ranking_once_serves_many_weightings():
    genuine, impostor = some_pairs(5)
    ranked = SortedPairs.of(genuine, impostor)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        weights = rng.random(60), rng.random(90)
        a, b = ranked.curve(*weights), det_curve(genuine, impostor, *weights)
        assert a.far.tolist() == b.far.tolist()
        assert a.frr.tolist() == b.frr.tolist()
