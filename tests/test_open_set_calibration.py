"""Reading a gallery's calibration: other targets, probabilities, and its file."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_people import Euclid, people

from twinlens.errors import CalibrationError, DataError, ModelError
from twinlens.measure.error_rates import threshold_at_far
from twinlens.measure.open_set_calibration import KEPT, OpenSetCalibration, kept_ranks, margins
from twinlens.measure.open_set_threshold import calibrate_open_set, calibrate_open_set_on_probes
from twinlens.measure.probability import Isotonic


@pytest.fixture(scope="module")
def calibration() -> OpenSetCalibration:
    return calibrate_open_set(*people(40, 4, 0.2), Euclid(), target_fpir=0.1, replicates=50)


def test_margins_by_hand():
    found = margins([1, 1, 1, 3], [2, 5, np.inf, 2], threshold=4)
    assert found.tolist() == [1, np.inf, np.inf, 0]


def of_strangers(distance, target):
    """A calibration with these strangers, on a line: gallery at 0, strangers at the distances."""
    distance = np.asarray(distance, np.float32)
    return calibrate_open_set_on_probes(
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
    found = replace(found, threshold=found.unadjusted)  # As on these strangers.
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


def test_nearer_is_never_less_likely(calibration):
    p = calibration.probability(np.linspace(-1, 9, 500))
    assert (np.diff(p) <= 1e-15).all()
    assert 1 / 162 <= p[-1] < 0.05 < 0.8 < p[0] <= 1 - 1 / 162
    with pytest.raises(DataError, match="NaN"):
        calibration.probability(np.nan)


# --- on disk --------------------------------------------------------------------------------


def test_the_keys_of_a_stored_calibration_keep_their_order(calibration):
    keys = "rule target_fpir threshold low high margin num_identities num_templates num_mated"
    keys += " num_strangers tpir rank_1 by_rule strangers curve"
    keys += " unadjusted fpir_limit"
    assert list(calibration.as_json()) == keys.split()
    assert list(calibration.as_json()["tpir"]) == ["value", "low", "high"]


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
        ("threshold", "near", "threshold: input should be a valid number, found 'near'"),
        ("threshold", math.nan, "threshold: input should be a finite number"),
        ("margin", -1.0, "margin: input should be greater than or equal to 0"),
        ("target_fpir", 0.0, "target_fpir: input should be greater than 0"),
        ("target_fpir", 1.0, "target_fpir: input should be less than 1"),
        ("rule", "best", "'best'"),
        ("by_rule", {"nearest": 2.0}, "by_rule.nearest: input should be less than or equal to 1"),
        ("by_rule", {"best": 0.5}, "'best'"),
        ("num_strangers", 0, "num_strangers: input should be greater than 0"),
        ("num_mated", True, "num_mated: input should be a valid integer, found True"),
        ("num_strangers", 47, "found 160 distances; 47 strangers need 47"),
        ("tpir", {"low": 1.0}, "tpir.value is missing"),
        ("tpir", {"value": "1"}, "tpir.value: input should be a valid number, found '1'"),
        ("curve", {"kind": "line"}, "curve: input tag 'line' found using 'kind'"),
        ("curve", {"kind": "platt", "a": -1.0, "b": 0.0}, "curve.platt.a: input should be greater"),
        ("curve", {"kind": "isotonic", "x": [1, 0], "y": [1, 0]}, "x must ascend"),
        ("strangers", [3.0] + [1.0] * 159, "the distances must ascend"),
        ("strangers", None, "strangers: "),
    ],
)
def test_what_is_damaged_is_named(calibration, key, value, said):
    values = calibration.as_json() | {key: value}
    with pytest.raises(ModelError, match="gallery's calibration is damaged") as caught:
        OpenSetCalibration.from_json(values)
    assert said in str(caught.value)
    assert "twinlens gallery calibrate GALLERY" in str(caught.value)


def test_what_is_missing_is_named(calibration):
    optional = {"unadjusted", "fpir_limit"}  # As in galleries of earlier versions.
    for key in calibration.as_json().keys() - optional:
        values = calibration.as_json()
        del values[key]
        with pytest.raises(ModelError, match=f"{key} is missing"):
            OpenSetCalibration.from_json(values)
    with pytest.raises(ModelError):
        OpenSetCalibration.from_json(["threshold"])
