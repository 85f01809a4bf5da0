"""Error versus reject curves, by hand and beside a loop."""

from __future__ import annotations

import numpy as np
import pytest

from twinlens.measure.error_reject import SHARES, error_reject
from twinlens.measure.pairs import PairSet, draw_pairs
from twinlens.report.error_reject import error_reject_plot, error_reject_sentences


def scored(seed: int = 0) -> tuple[np.ndarray, np.ndarray, PairSet, np.ndarray]:
    """30 identities of 4 pictures; a genuine pair is far apart if one picture is bad."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(30), 4)
    quality = rng.random(len(label))
    pairs = draw_pairs(label, np.zeros(len(label), bool), num_pairs=None, rng=rng)
    worse = np.minimum(quality[pairs.a], quality[pairs.b])
    far = ~pairs.same | (worse < 0.2)
    return label, quality, pairs, np.where(far, 1.0, 0.1) + 0.01 * rng.random(len(pairs))


def test_a_quality_that_names_the_errors_gains_all() -> None:
    label, quality, pairs, distance = scored()
    result = error_reject(quality, pairs, distance, label)
    assert result is not None
    assert (distance[~pairs.same] <= result.threshold).mean() <= 0.01
    assert result.gain.value == pytest.approx(1, abs=0.05)
    assert result.fnmr[0.0].value == pytest.approx(0.35, abs=0.1)
    assert result.fnmr[0.5].value == 0
    low, high = result.fnmr[0.0].low, result.fnmr[0.0].high
    assert low is not None
    assert high is not None
    assert low < 0.35 < high


def test_quality_without_meaning_gains_nothing_and_reversed_loses() -> None:
    label, quality, pairs, distance = scored()
    chance = error_reject(np.random.default_rng(9).random(len(label)), pairs, distance, label)
    reverse = error_reject(-quality, pairs, distance, label)
    even = error_reject(np.ones(len(label)), pairs, distance, label)
    assert chance is not None
    assert reverse is not None
    assert even is not None
    assert abs(chance.gain.value or 0) < 0.3
    assert (reverse.gain.value or 0) < -0.2
    assert even.gain.value == pytest.approx(0, abs=1e-9)
    assert all(part.value == pytest.approx(even.fnmr[0.0].value) for part in even.fnmr.values())


def test_the_curve_is_that_of_a_loop() -> None:
    label, quality, pairs, distance = scored(3)
    result = error_reject(quality.round(2), pairs, distance, label)
    assert result is not None
    worse = np.minimum(quality.round(2)[pairs.a], quality.round(2)[pairs.b])[pairs.same]
    wrong = distance[pairs.same] > result.threshold
    for share in SHARES:
        # Ties are drawn at random: the mean over draws.
        means = []
        for seed in range(200):
            order = np.lexsort((np.random.default_rng(seed).random(len(worse)), worse))
            means.append(wrong[order][round(share * len(worse)) :].mean())
        assert result.fnmr[share].value == pytest.approx(np.mean(means), abs=0.01)


def test_too_few_impostors_and_no_errors() -> None:
    label, quality, pairs, distance = scored()
    few = np.isin(pairs.a, np.arange(8)) & np.isin(pairs.b, np.arange(8))
    some = PairSet(pairs.a[few], pairs.b[few], pairs.same[few])
    assert error_reject(quality, some, distance[few], label) is None
    collapsed = np.where(pairs.same, distance, 0.0)  # No threshold keeps to the rate.
    assert error_reject(quality, pairs, collapsed, label) is None
    apart = np.where(pairs.same, 0.1, distance)
    perfect = error_reject(quality, pairs, apart, label)
    assert perfect is not None
    assert perfect.gain.value is None
    assert perfect.fnmr[0.2].value == 0


def test_the_report_draws_and_says_it() -> None:
    label, quality, pairs, distance = scored()
    result = error_reject(quality, pairs, distance, label)
    assert result is not None
    entry = {"error_reject": result.as_json()}
    assert error_reject_plot(entry).startswith("<svg")
    (sentence,) = error_reject_sentences(entry)
    assert "once the fifth of lowest quality is rejected. The gain is 1.00" in sentence
    assert error_reject_plot({}) == ""
    assert list(error_reject_sentences({})) == []
