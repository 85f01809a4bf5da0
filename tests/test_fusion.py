"""From distances of templates to a rank list of identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from twinlens.errors import ConfigError, DataError
from twinlens.measure.fusion import (
    RULES,
    VOTERS,
    TemplateGroups,
    identity_means,
    rank_identities,
)


def ranked(dist, code, rule="nearest", depth=10):
    found = rank_identities(np.atleast_2d(np.asarray(dist, np.float32)), code, rule, depth)
    return found.code.tolist(), found.distance.tolist()


def test_nearest_by_hand():
    code = [7, 3, 7, 9]
    assert ranked([0.4, 0.2, 0.1, 0.3], code) == (
        [[7, 3, 9]],
        [pytest.approx([0.1, 0.2, 0.3])],
    )
    assert ranked([0.4, 0.2, 0.1, 0.3], code, depth=1)[0] == [[7]]
    assert ranked([[4, 2, 1, 3], [1, 5, 9, 1]], code, depth=2) == (
        [[7, 3], [7, 9]],
        [[1, 2], [1, 1]],
    )


def test_votes_by_hand():
    """Identity 1 has the nearest template, identity 2 three of the nearest five."""
    code = [1, 2, 2, 2, 3, 4, 1]
    dist = [1, 2, 3, 4, 5, 6, 7]
    assert VOTERS == 5
    assert ranked(dist, code, "vote") == ([[2, 1, 3, 4]], [[2, 1, 5, 6]])
    assert ranked(dist, code, "vote", depth=1) == ([[2]], [[2]])
    assert ranked(dist, code)[0] == [[1, 2, 3, 4]]


def test_equal_votes_go_to_the_nearer():
    assert ranked([3, 1, 4, 2, 5], [1, 2, 1, 2, 0], "vote") == ([[2, 1, 0]], [[1, 3, 5]])


def test_of_equally_far_templates_those_of_lower_codes_vote():
    code = [5, 5, 4, 4, 4, 3, 3]
    assert ranked([1, 1, 1, 1, 1, 1, 1], code, "vote")[0] == [[4, 3, 5]]
    assert ranked([1] * 7, code)[0] == [[3, 4, 5]]


def test_what_is_infinitely_far_is_not_there():
    code, dist = [0, 0, 1, 2, 2], [math.inf, math.inf, 2, math.inf, 3]
    for rule in RULES:
        assert ranked(dist, code, rule) == ([[1, 2, -1]], [[2, 3, math.inf]])
    assert ranked([math.inf], [4]) == ([[-1]], [[math.inf]])


def test_an_empty_gallery_has_nobody():
    for rule in RULES:
        found = rank_identities(np.empty((3, 0), np.float32), [], rule, 5)
        assert found.code.shape == found.distance.shape == (3, 0)
    means, code = identity_means(np.empty((0, 4), np.float32), [])
    assert (means.shape, code.shape) == ((0, 4), (0,))


def test_more_places_than_identities():
    assert ranked([3, 1, 2], [0, 1, 1], depth=99)[0] == [[1, 0]]
    assert ranked([3, 1, 2], [0, 1, 1], "vote", depth=99)[0] == [[1, 0]]


galleries = st.integers(1, 30).flatmap(
    lambda num: st.tuples(
        st.lists(st.integers(0, 6), min_size=num, max_size=num),
        st.lists(
            st.lists(
                st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, math.inf]), min_size=num, max_size=num
            ),
            min_size=1,
            max_size=4,
        ),
    )
)


@given(galleries, st.sampled_from(RULES), st.integers(1, 9))
def test_every_rule_is_that_of_the_loop(gallery, rule, depth):
    """With many ties, templates that are left out, and galleries smaller than the list."""
    code, dist = gallery
    found = rank_identities(np.array(dist, np.float32), code, rule, depth)
    places = min(depth, len(set(code)))
    for row, line in enumerate(dist):
        expected = reference.rank_list_loop(line, code, rule)[:depth]
        expected += [(-1, math.inf)] * (places - len(expected))
        pairs = zip(found.code[row].tolist(), found.distance[row].tolist(), strict=True)
        assert list(pairs) == expected


@given(galleries, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_the_order_of_templates_and_new_names_change_nothing(gallery, rule, random):
    code, dist = np.array(gallery[0]), np.array(gallery[1], np.float32)
    found = rank_identities(dist, code, rule, 4)
    order = list(range(len(code)))
    random.shuffle(order)
    again = rank_identities(dist[:, order], code[order], rule, 4)
    assert (again.code.tolist(), again.distance.tolist()) == (
        found.code.tolist(),
        found.distance.tolist(),
    )
    renamed = rank_identities(dist, code * 3 + 11, rule, 4)
    assert np.where(renamed.code < 0, -1, (renamed.code - 11) // 3).tolist() == found.code.tolist()


def test_with_one_template_each_the_rules_are_one():
    rng = np.random.default_rng(0)
    emb, code = rng.normal(size=(40, 3)).astype(np.float32), rng.permutation(40)
    means, mean_code = identity_means(emb, code)
    probe = rng.normal(size=(25, 3))
    dist = np.linalg.norm(probe[:, None] - emb, axis=2).astype(np.float32)
    to_means = np.linalg.norm(probe[:, None] - means, axis=2).astype(np.float32)
    nearest = rank_identities(dist, code, "nearest", 7)
    for other in (
        rank_identities(dist, code, "vote", 7),
        rank_identities(to_means, mean_code, "mean", 7),
    ):
        assert np.array_equal(nearest.code, other.code)
        assert np.array_equal(nearest.distance, other.distance)


@pytest.mark.parametrize("rule", ["nearest", "vote"])
def test_a_shortlist_gives_the_same_list(rule):
    rng = np.random.default_rng(1)
    code, dist = rng.integers(0, 50, 600), rng.random((20, 600)).astype(np.float32)
    whole = rank_identities(dist, code, rule, 6)
    for row in range(20):
        near = np.argsort(dist[row])[:60]
        short = rank_identities(dist[row : row + 1, near], code[near], rule, 6)
        assert np.array_equal(short.code[0], whole.code[row])
        assert np.array_equal(short.distance[0], whole.distance[row])


def test_codes_sorted_beforehand_give_the_same():
    rng = np.random.default_rng(2)
    code, dist = rng.integers(0, 9, 70), rng.random((5, 70)).astype(np.float32)
    grouped = TemplateGroups.of(code)
    assert grouped.count().tolist() == np.bincount(code).tolist()
    assert TemplateGroups.of(np.sort(code)).order is None
    for rule in RULES:
        plain = rank_identities(dist, code, rule, 4)
        again = rank_identities(dist, code, rule, 4, grouped=grouped)
        assert np.array_equal(plain.code, again.code)
        assert np.array_equal(plain.distance, again.distance)


def test_means_are_those_of_the_loop():
    rng = np.random.default_rng(3)
    emb, code = rng.normal(size=(30, 5)).astype(np.float32), rng.integers(2, 8, 30)
    means, codes = identity_means(emb, code)
    assert codes.tolist() == sorted(set(code.tolist()))
    for mean, c in zip(means, codes, strict=True):
        assert mean.tolist() == pytest.approx(
            reference.mean_loop(emb[code == c].tolist()), abs=1e-6
        )
    assert means.dtype == np.float32


def test_what_cannot_be_is_refused():
    dist = np.zeros((1, 2), np.float32)
    with pytest.raises(ConfigError, match="unknown rule 'nearset': did you mean nearest"):
        rank_identities(dist, [0, 1], "nearset", 1)
    with pytest.raises(DataError, match="NaN"):
        rank_identities(np.array([[0, np.nan]]), [0, 1], "nearest", 1)
    with pytest.raises(ValueError, match="needed are distances"):
        rank_identities(dist, [0, 1, 2], "nearest", 1)
    with pytest.raises(ValueError, match="needed are distances"):
        rank_identities(dist, [0, 1], "nearest", 0)
    with pytest.raises(ValueError, match="must start at 0, found -1"):
        TemplateGroups.of([0, -1])
