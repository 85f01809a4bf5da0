"""N-way K-shot episodes."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_people import Euclid, people_with_forgeries

from twinlens.errors import DataError
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.few_shot import one_shot, tied_credit


def test_episodes_of_a_perfect_and_a_collapsed_model():
    emb, label, forged = people_with_forgeries(12, 4, spread=0, forged_each=2)
    found = one_shot(emb, label, forged, Euclid(), episodes=50, replicates=10)
    assert (found.key, found.accuracy) == ("12-way-1-shot", Estimate(1.0, 1.0, 1.0))
    collapsed = one_shot(emb * 0, label, forged, Euclid(), way=5, shot=3, episodes=50)
    assert collapsed.key == "5-way-3-shot"
    assert collapsed.accuracy.value == pytest.approx(1 / 5)


def test_the_probe_is_never_shown_and_forgeries_take_no_part():
    _, label, forged = people_with_forgeries(6, 3, forged_each=2)
    asked = []

    class Spy(Euclid):
        """Embeddings are row numbers here, so that each pair can be looked at."""

        def pairwise(self, a_ND, b_ND, /):
            asked.append((a_ND[:, 0].astype(int), b_ND[:, 0].astype(int)))
            return np.abs(label[asked[-1][0]] - label[asked[-1][1]]).astype(np.float32)

    rows = np.arange(len(label), dtype=np.float32)[:, None]
    found = one_shot(rows, label, forged, Spy(), way=4, shot=2, episodes=200)
    assert found.accuracy.value == 1
    probe, shown = (np.concatenate(part).reshape(200, 4, 2) for part in zip(*asked, strict=True))
    assert (probe == probe[:, :1, :1]).all()
    assert not forged[probe].any()
    assert not forged[shown].any()
    assert (probe != shown).all()
    assert (shown[..., 0] != shown[..., 1]).all()
    assert (label[shown[..., 0]] == label[shown[..., 1]]).all()
    assert all(len(set(row)) == 4 for row in label[shown[..., 0]])
    assert set(label[probe[:, 0, 0]]) == set(range(6))


def test_more_shots_and_fewer_ways_are_easier():
    data = people_with_forgeries(30, 6, spread=0.7)
    by = {
        (way, shot): one_shot(
            *data, Euclid(), way=way, shot=shot, episodes=400, replicates=20
        ).accuracy
        for way, shot in ((20, 1), (20, 5), (5, 1))
    }
    assert by[20, 1].value < by[20, 5].value
    assert by[20, 1].value < by[5, 1].value
    assert by[20, 1].low < by[20, 1].value < by[20, 1].high


def test_ways_are_lowered_to_the_identities_that_have_enough():
    emb, label, forged = people_with_forgeries(6, 3)
    assert one_shot(emb, label, forged, Euclid(), shot=2, episodes=9).key == "6-way-2-shot"
    assert one_shot(emb, label, forged, Euclid(), shot=3, episodes=9) is None
    assert one_shot(*people_with_forgeries(1, 9), Euclid()) is None
    assert one_shot(emb[:0], label[:0], forged[:0], Euclid()) is None
    for wrong in ({"way": 1}, {"shot": 0}, {"episodes": 0}):
        with pytest.raises(DataError, match="ways"):
            one_shot(emb, label, forged, Euclid(), **wrong)


def test_ties_share_the_credit():
    dist = np.array([[1, 1, 2], [0, 1, 2], [3, 1, 2], [1, 1, 1.0]])
    right = np.array([[True, False, False]] * 3 + [[True, True, False]])
    assert tied_credit(dist, right) == pytest.approx([0.5, 1, 0, 2 / 3])
    with pytest.raises(DataError, match="NaN"):
        tied_credit(np.array([[np.nan, 1]]), np.array([[True, False]]))
