"""Ranks from half of all distances: what a full table of distances gives, ties and all."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import reference

from twinlens.errors import DataError
from twinlens.measure import half_matrix_knn as ranks
from twinlens.measure import pairs
from twinlens.measure import retrieval as module
from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison
from twinlens.measure.half_matrix_knn import nearest_ranks
from twinlens.measure.retrieval import retrieval

EUCLIDEAN = EuclideanComparison("euclidean")


def people(num=500, identities=50, *, levels=None, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, identities, num)
    emb = rng.normal(size=(identities, dim))[label] + 0.8 * rng.normal(size=(num, dim))
    if levels is not None:
        emb = (emb * levels).round()
    return emb.astype(np.float32), label, rng.random(num) < 0.1


@pytest.fixture
def small(monkeypatch):
    """Many tiles and threads, however few the pictures."""
    monkeypatch.setattr(ranks, "FEWEST", 0)
    monkeypatch.setattr(ranks, "TILE", 70)
    monkeypatch.setattr(ranks, "SAMPLED", 40)
    monkeypatch.setattr(ranks, "AT_ONCE", 100)
    monkeypatch.setattr(ranks, "available_cores", lambda: 3)


def complete_shares(monkeypatch):
    """Of each search that follows, the share of the pictures that it settles, or None."""
    shares = []

    def watched(*args):
        found = nearest_ranks(*args)
        shares.append(None if found is None else float(found.complete.mean()))
        return found

    monkeypatch.setattr(module, "nearest_ranks", watched)
    return shares


def scores(data, comparison=EUCLIDEAN, ks=(5,)):
    found = retrieval(*data, comparison, ks=ks, replicates=0)
    return [*(found.recall_at[k].value for k in ks), found.map_at_r.value]


def looped(data, name, ks=(5,)):
    dist = EuclideanComparison(name).matrix(data[0], data[0]).tolist()
    both = [reference.leave_one_out(dist, *data[1:], k) for k in ks]
    return [*(recall for recall, _ in both), both[0][1]]


@pytest.mark.parametrize("name", EUCLIDEAN_COMPARATORS)
@pytest.mark.usefixtures("small")
def test_agrees_with_the_loop(name, monkeypatch):
    shares = complete_shares(monkeypatch)
    data = people()
    assert scores(data, EuclideanComparison(name)) == pytest.approx(looped(data, name))
    assert shares[0] > 0.85  # forgeries are never asked


@pytest.mark.parametrize("name", ["euclidean", "squared-euclidean", "sigmoid"])
@pytest.mark.usefixtures("small")
def test_ties_count_against_the_model(name, monkeypatch):
    shares = complete_shares(monkeypatch)
    data = people(levels=2)  # whole numbers, of which distances are exact
    assert scores(data, EuclideanComparison(name)) == pytest.approx(looped(data, name))
    assert shares[0] > 0.5


@pytest.mark.usefixtures("small")
def test_copies_of_other_identities_come_first():
    rng = np.random.default_rng(1)
    point = rng.normal(size=(400, 48)).astype(np.float32)
    # Two pictures of an identity and one of another, all three the same numbers.
    emb, label = (
        np.tile(point, (3, 1)),
        np.concatenate([np.arange(400)] * 2 + [np.arange(400, 800)]),
    )
    order = rng.permutation(1200)
    data = (emb[order], label[order], np.zeros(1200, dtype=bool))
    assert scores(data, ks=(1, 2)) == [0, 1, 0]


@pytest.mark.usefixtures("small")
def test_rounding_does_not_part_many_copies(monkeypatch):
    shares = complete_shares(monkeypatch)
    rng = np.random.default_rng(2)
    # At each point 10 pictures of one identity and 15 of another.
    emb = np.repeat(10 + rng.normal(size=(40, 48)), 25, axis=0).astype(np.float32)
    label = 2 * np.repeat(np.arange(40), 25) + np.tile(np.arange(25) >= 10, 40)
    order = rng.permutation(1000)
    found = scores((emb[order], label[order], np.zeros(1000, dtype=bool)))
    precision = 15 / 25 * sum((rank - 10) / rank for rank in range(11, 15)) / 14
    assert found == pytest.approx([0, precision])
    assert shares[0] > 0.5


@pytest.mark.usefixtures("small")
def test_identities_of_very_different_sizes(monkeypatch):
    shares = complete_shares(monkeypatch)
    emb, label, forged = people(levels=4)
    label = np.where(np.arange(500) % 3 == 0, 1000, label)
    label[:20] = np.arange(2000, 2020)  # alone: nothing to find
    data = (emb, label, forged)
    assert scores(data) == pytest.approx(looped(data, "euclidean"))
    assert 0.4 < shares[0] < 0.7  # the large one asks for too much


@pytest.mark.usefixtures("small")
def test_a_guess_that_is_too_short_is_noticed(monkeypatch):
    shares = complete_shares(monkeypatch)
    monkeypatch.setattr(ranks, "_sample_place", lambda need, room: np.minimum(need, 1))
    data = people()
    assert scores(data) == pytest.approx(looped(data, "euclidean"))
    assert 0 < shares[0] < 0.7


@pytest.mark.usefixtures("small")
def test_what_is_kept_is_what_is_nearest():
    emb, label, _ = people(levels=8)
    need = np.where(label < 30, 7, 3)
    found = nearest_ranks(emb, label, need, EUCLIDEAN)
    dist = EUCLIDEAN.matrix(emb, emb)
    np.fill_diagonal(dist, np.inf)
    same = label[:, None] == label
    order = np.lexsort((same, dist), axis=1)
    correct = found.correct(np.arange(500), 7)
    assert found.complete.mean() > 0.9
    for row in np.flatnonzero(found.complete):
        depth = need[row]
        assert (correct[row, :depth] == same[row, order[row, :depth]]).all()


@pytest.mark.parametrize("moved", [0, 10])  # 0: distances of 0; 10: rounded ones
@pytest.mark.usefixtures("small")
def test_collapsed_embeddings_do_not_look_good_and_need_no_memory(moved, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK_BYTES", 2**20)
    shares = complete_shares(monkeypatch)
    label = np.arange(3000) % 100
    emb = np.full((3000, 4), moved, dtype=np.float32)
    tracemalloc.start()
    found = scores((emb, label, np.zeros(3000, dtype=bool)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found, shares) == ([0, 0], [None])
    assert peak < 3000 * 3000 * 4  # the table of all distances


@pytest.mark.usefixtures("small")
def test_half_collapsed(monkeypatch):
    shares = complete_shares(monkeypatch)
    data = people()
    data[0][:60] = 0
    assert scores(data) == pytest.approx(looped(data, "euclidean"))
    assert shares[0] > 0.6


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.usefixtures("small")
def test_distances_that_are_no_numbers_are_refused(broken):
    emb, label, forged = people()
    emb[7] = broken
    with np.errstate(all="ignore"), pytest.raises(DataError, match="NaN"):
        retrieval(emb, label, forged, EUCLIDEAN)


@pytest.mark.usefixtures("small")
def test_what_is_left_to_the_full_table():
    emb, label, _ = people()
    need = np.where(np.arange(500) % 3 == 0, 5, 0)
    assert nearest_ranks(emb, label, need, EUCLIDEAN) is None
    assert nearest_ranks(emb[:100], label[:100], np.full(100, 5), EUCLIDEAN) is None
    assert nearest_ranks(emb, label, np.full(500, 5), EUCLIDEAN) is not None
    with np.errstate(over="ignore"):
        assert nearest_ranks(emb * np.float32(1e20), label, np.full(500, 5), EUCLIDEAN) is None


@pytest.mark.usefixtures("small")
def test_progress_ends_once_at_all():
    seen = []
    emb, label, forged = people()
    retrieval(emb, label, forged, EUCLIDEAN, progress=lambda *p: seen.append(p), replicates=0)
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[0]
