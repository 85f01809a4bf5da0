"""Genuine and impostor pairs: those of a loop, seeded samples, and their distances."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_people import Euclid, people_with_forgeries

from twinlens.data.table import pair_masks
from twinlens.errors import DataError
from twinlens.measure import pairs as pairs_module
from twinlens.measure.pairs import PairSet, draw_pairs, pair_distances


def as_sets(pairs: PairSet):
    return [
        {frozenset((i, j)) for i, j in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)}
        for pairs in (
            PairSet(pairs.a[pairs.same], pairs.b[pairs.same], pairs.same),
            PairSet(pairs.a[~pairs.same], pairs.b[~pairs.same], pairs.same),
        )
    ]


LABELS = st.lists(st.tuples(st.integers(-2, 4), st.booleans()), max_size=18)


@settings(max_examples=100, deadline=None)
@given(LABELS)
def test_all_pairs_are_those_of_the_loop(rows):
    label = np.array([row[0] for row in rows], dtype=np.int64)
    forged = np.array([row[1] for row in rows], dtype=bool)
    drawn = draw_pairs(label, forged, rng=np.random.default_rng(0))
    genuine, impostor = reference.all_pairs(label.tolist(), forged.tolist())
    assert as_sets(drawn) == [genuine, impostor]
    assert len(drawn) == len(genuine) + len(impostor)
    assert not forged[drawn.a].any()


@settings(max_examples=100, deadline=None)
@given(LABELS, st.integers(1, 12), st.integers(0, 5))
def test_samples_have_the_given_number_and_forgeries_first_up_to_half(rows, num, seed):
    label = np.array([row[0] for row in rows], dtype=np.int64)
    forged = np.array([row[1] for row in rows], dtype=bool)
    drawn = draw_pairs(label, forged, num_pairs=num, rng=np.random.default_rng(seed))
    genuine, impostor = reference.all_pairs(label.tolist(), forged.tolist())
    found_genuine, found_impostor = as_sets(drawn)
    assert found_genuine <= genuine
    assert found_impostor <= impostor
    assert len(found_genuine) == min(num, len(genuine))
    assert len(found_impostor) == min(num, len(impostor))
    assert len(drawn) == len(found_genuine) + len(found_impostor)
    own = {pair for pair in impostor if len({label[i] for i in pair}) == 1}
    assert len(found_impostor & own) == min(len(own), max(num // 2, num - len(impostor - own)))


def test_forgeries_do_not_crowd_strangers_out():
    """9 own forgeries of each of 4 people, and 6 * 9 + 12 * 9 pairs of strangers."""
    label = np.repeat(np.arange(4), 6)
    forged = np.tile([False] * 3 + [True] * 3, 4)
    for num, expected in ((10, 5), (36, 18), (71, 35), (72, 36), (90, 36), (162, 36), (198, 36)):
        drawn = draw_pairs(label, forged, num_pairs=num, rng=np.random.default_rng(0))
        own = forged[drawn.b] & (label[drawn.a] == label[drawn.b])
        assert own.sum() == expected
        assert (~drawn.same).sum() == num
    few = label < 1
    few[6] = True  # One stranger: there are 6 pairs with it, and 9 own forgeries.
    label, forged = label[few], forged[few]
    drawn = draw_pairs(label, forged, num_pairs=14, rng=np.random.default_rng(0))
    assert (~drawn.same).sum() == 14
    assert (forged[drawn.b] & (label[drawn.a] == label[drawn.b])).sum() == 8


def test_every_pair_is_drawn_equally_often():
    label = np.array([0, 0, 0, 1, 1, 2])
    forged = np.zeros(6, dtype=bool)
    seen: Counter[frozenset[int]] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(3000):
        for part in as_sets(draw_pairs(label, forged, num_pairs=2, rng=rng)):
            seen.update(part)
    genuine, impostor = reference.all_pairs(label, forged)
    assert set(seen) == genuine | impostor
    for kind in (genuine, impostor):
        expected = 3000 * 2 / len(kind)
        assert all(abs(seen[pair] - expected) < 5 * np.sqrt(expected) for pair in kind)


def test_a_sample_is_drawn_where_either_kind_is_many(monkeypatch):
    monkeypatch.setattr(pairs_module, "ALL_PAIRS_LIMIT", 30)
    monkeypatch.setattr(pairs_module, "SAMPLED_PAIRS", 20)
    for sizes, expected in (
        ((3, 3, 3), (9, 27)),  # all
        ((6, 6), (20, 20)),  # 30 genuine, 36 impostors
        ((9, 1), (20, 9)),  # 36 genuine, 9 impostors
    ):
        label = np.repeat(np.arange(len(sizes)), sizes)
        drawn = draw_pairs(label, np.zeros(len(label), bool), rng=np.random.default_rng(0))
        assert (drawn.same.sum(), (~drawn.same).sum()) == expected


def test_the_same_seed_draws_the_same_pairs():
    _, label, forged = people_with_forgeries(30, 5, forged_each=2)
    first, again, other = (
        draw_pairs(label, forged, num_pairs=50, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert first.a.tolist() == again.a.tolist()
    assert first.b.tolist() == again.b.tolist()
    assert as_sets(first) != as_sets(other)
    with pytest.raises(DataError, match="num_pairs must be at least 1, found 0"):
        draw_pairs(label, forged, num_pairs=0, rng=np.random.default_rng(0))


def test_distances_do_not_depend_on_the_blocks(monkeypatch):
    emb, label, forged = people_with_forgeries()
    drawn = draw_pairs(label, forged, rng=np.random.default_rng(0))
    whole = pair_distances(emb, drawn, Euclid())
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 8 * emb.shape[1] * 7)
    np.testing.assert_allclose(pair_distances(emb, drawn, Euclid()), whole, rtol=1e-6)
    expected = [np.linalg.norm(emb[i] - emb[j]) for i, j in zip(drawn.a, drawn.b, strict=True)]
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_pairs_equal_those_of_pair_masks():
    _, label, forged = people_with_forgeries(forged_each=2)
    drawn = draw_pairs(label, forged, num_pairs=70, rng=np.random.default_rng(0))
    genuine, impostor = pair_masks(label[drawn.a], forged[drawn.a], label[drawn.b], forged[drawn.b])
    assert (drawn.same == genuine).all()
    assert (~drawn.same == impostor).all()
