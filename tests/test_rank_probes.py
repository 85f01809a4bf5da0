"""Asking a gallery who probes are, and about its own templates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_people import Euclid, people

from twinlens.measure import pairs
from twinlens.measure import rank_probes as module
from twinlens.measure.fusion import RULES
from twinlens.measure.rank_probes import balanced_sample, random_rounds, rank_left_out, rank_probes


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(0, 99))
def test_leaving_out_is_that_of_the_loop(code, seed):
    """Templates in any order, identities with one template, and galleries of one identity."""
    # Whole numbers: what ties for one ties for the other.
    emb = np.random.default_rng(seed).integers(-4, 5, size=(len(code), 2)).astype(np.float32)
    rows = np.arange(len(code))
    mated, stranger = rank_left_out(rows, emb, code, Euclid(), RULES)
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
def test_other_pictures_rank_as_in_the_loop(rule, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK_BYTES", 1)
    monkeypatch.setattr(module, "FEWEST_AT_ONCE", 3)
    rng = np.random.default_rng(4)
    emb, code = people(6, 3)
    order = rng.permutation(len(code))
    probe = rng.normal(size=(11, 3)).astype(np.float32)
    seen = []
    found = rank_probes(probe, emb[order], code[order], Euclid(), (rule,),
                progress=lambda *at: seen.append(at))[rule]  # fmt: skip
    gallery = list(zip(emb.astype(float).tolist(), code.tolist(), strict=True))
    for row, one in enumerate(probe.astype(float).tolist()):
        _same(found, row, reference.rank_in_gallery_loop(one, gallery, rule))
    assert seen == [(3, 11), (6, 11), (9, 11), (11, 11)]


def test_a_sample_takes_as_many_identities_as_there_are_and_evenly_of_each():
    code = np.array([0] * 50 + [1] * 2 + [2] * 3 + [3])
    for seed in range(20):
        rows = balanced_sample(code, 9, np.random.default_rng(seed))
        assert np.bincount(code[rows]).tolist() == [3, 2, 3, 1]
        assert len(set(rows.tolist())) == 9
        few = balanced_sample(code, 3, np.random.default_rng(seed))
        assert len(set(code[few].tolist())) == 3
    drawn = {tuple(balanced_sample(code, 4, np.random.default_rng(s)).tolist()) for s in range(40)}
    assert len(drawn) > 20
    assert balanced_sample(code, 99, np.random.default_rng(0)).tolist() == list(range(len(code)))


def test_each_round_has_one_of_each_identity_in_a_random_order():
    code = np.array([4, 4, 9, 4, 9, 2])
    for seed in range(20):
        found = random_rounds(code, np.random.default_rng(seed))
        assert [sorted(found[code == c].tolist()) for c in (2, 4, 9)] == [[0], [0, 1, 2], [0, 1]]
    first = {int(random_rounds(code, np.random.default_rng(s))[0]) for s in range(40)}
    assert first == {0, 1, 2}


def test_without_probes():
    none = np.empty((0, 2), np.float32)
    found = rank_probes(np.zeros((3, 2), np.float32), none, [], Euclid(), RULES)
    for rule in RULES:
        assert found[rule].code.tolist() == [-1] * 3
        assert np.isposinf(found[rule].distance).all()
    assert (
        len(
            rank_probes(none, np.zeros((3, 2), np.float32), [0, 1, 1], Euclid(), RULES)["vote"].code
        )
        == 0
    )
