"""Dividing identities into enrolled ones and strangers."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_people import Euclid, people

from twinlens.measure import open_set_split as module
from twinlens.measure.open_set_split import OpenSetSplit


def division(label, num_enrolled, shot, seed):
    _, code, count = np.unique(label, return_inverse=True, return_counts=True)
    return OpenSetSplit.draw(code, count, num_enrolled, shot, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_every_picture_has_one_part(seed):
    label = np.repeat(np.arange(11), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2])
    drawn = division(label, 5, 2, seed)
    rows = np.concatenate([drawn.template, drawn.mated, drawn.nonmated])
    assert sorted(rows.tolist()) == list(range(len(label)))
    enrolled = label[drawn.template]
    assert len(set(enrolled)) == 5
    assert np.bincount(drawn.template_code).tolist() == [2] * 5
    assert (np.diff(drawn.template_code) >= 0).all()
    named = dict(zip(enrolled, drawn.template_code, strict=True))
    assert [named[one] for one in label[drawn.mated]] == drawn.mated_code.tolist()
    assert not set(label[drawn.nonmated]) & set(enrolled)
    assert {0, 1, 10} <= set(label[drawn.nonmated]), "two pictures leave none to ask about"
    halves = [set(label[drawn.nonmated][drawn.odd == odd]) for odd in (True, False)]
    assert not halves[0] & halves[1]
    assert sorted(map(len, halves)) == [3, 3]


def test_splits_differ_and_everyone_is_enrolled_at_times():
    label = np.repeat(np.arange(8), 3)
    drawn = [division(label, 4, 1, seed) for seed in range(60)]
    times = np.bincount(np.concatenate([label[one.template] for one in drawn]), minlength=8)
    assert times.min() >= 15
    assert len({tuple(one.template) for one in drawn}) > 50


def test_probes_are_bounded_and_of_all_identities(monkeypatch):
    monkeypatch.setattr(module, "MOST_PROBES", 12)
    label = np.repeat(np.arange(12), 9)
    drawn = division(label, 6, 1, 0)
    assert np.bincount(drawn.mated_code).tolist() == [2] * 6
    assert np.unique(label[drawn.nonmated], return_counts=True)[1].tolist() == [2] * 6


def test_a_smaller_gallery_asks_about_its_own_and_all_strangers():
    emb, label = people(10, 4, spread=0.2)
    drawn = division(label, 5, 1, 0)
    whole, small = (drawn.search(emb, label, size, Euclid(), "nearest") for size in (5, 2))
    assert (len(whole.right), len(small.right)) == (15, 6)
    assert len(whole.stranger) == len(small.stranger) == 20
    assert (small.stranger >= whole.stranger).all(), "fewer are enrolled, and farther away"
    assert (small.mated[small.right] < 10).all()
    first, second = whole.halves
    assert sorted([*first.stranger, *second.stranger]) == sorted(whole.stranger)
    assert not set(first.stranger_own) & set(second.stranger_own)


def test_copies_of_an_identity_count_as_often():
    emb, label = people(8, 3, spread=0.6)
    trial = division(label, 4, 1, 3).search(emb, label, 4, Euclid(), "nearest")
    count = np.arange(8) % 3
    repeat = lambda values, own: np.repeat(values, count[own])  # noqa: E731
    right = repeat(trial.right, trial.mated_own)
    assert trial.rank_1(count) == np.mean(right)
    near, strangers = (
        repeat(trial.mated, trial.mated_own),
        repeat(trial.stranger, trial.stranger_own),
    )
    for threshold in (0.2, 0.6, 1.0):
        fpir, missed = trial.curve(count).at(threshold)
        assert fpir == np.mean(strangers <= threshold)
        assert 1 - missed == np.mean(near <= threshold)
    assert trial.curve(np.zeros(8, int)) is None
