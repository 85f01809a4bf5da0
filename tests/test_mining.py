"""Mining against loops that visit every triplet, on random, tied and empty pools."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, miners
from torch import Tensor

from twinlens.learn import mining
from twinlens.learn.mining import (
    Candidates,
    active_triplets,
    hardest,
    positives_of,
    semi_hard_negatives,
)

MARGIN = 0.3


def pool(number: int, size: int = 14, *, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Distances and masks with singletons and forgeries; with `ties` few different distances."""
    rng = np.random.default_rng([5, number])
    label, forged = rng.integers(0, 4, size), rng.random(size) < 0.2
    dist = rng.random((size, size))
    dist = np.round(dist * 10) / 10 if ties else dist
    same = label[:, None] == label[None, :]
    genuine = same & ~forged[:, None] & ~forged[None, :] & ~np.eye(size, dtype=bool)
    impostor = ~(same & ~forged[:, None] & ~forged[None, :]) & ~(forged[:, None] & forged[None, :])
    impostor &= ~np.eye(size, dtype=bool)
    return torch.from_numpy(dist), torch.from_numpy(genuine), torch.from_numpy(impostor)


def by_hand() -> tuple[Tensor, Tensor, Tensor]:
    """Pictures 0, 1, 2 of one thing, 3 and 4 of others."""
    dist = torch.tensor(
        [
            [0.0, 0.2, 0.5, 0.3, 0.7],
            [0.2, 0.0, 0.4, 0.4, 0.1],
            [0.5, 0.4, 0.0, 0.9, 0.8],
            [0.3, 0.4, 0.9, 0.0, 0.6],
            [0.7, 0.1, 0.8, 0.6, 0.0],
        ],
        dtype=torch.float64,
    )
    label = torch.tensor([0, 0, 0, 1, 2])
    same = label[:, None] == label
    return dist, same & ~torch.eye(5, dtype=torch.bool), ~same


def test_positives_by_hand():
    column, real = positives_of(by_hand()[1])
    assert column[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert real.tolist() == [[True, True]] * 3 + [[False, False]] * 2


def test_semi_hard_by_hand():
    # 0: past 1 (.2) comes 3 (.3); past 2 (.5) comes 4 (.7). 1: past 0 (.2) comes 3 (.4); past 2
    # (.4) comes none, since 3 is as near as 2. 2: past 0 (.5) 4 (.8) is not within .3 of it; past
    # 1 (.4) comes 4 (.8), too far.
    actual = semi_hard_negatives(Candidates.of(*by_hand()), margin=0.3 - 1e-9)
    assert sorted(actual.tolist()) == [[0, 1, 3], [0, 2, 4], [1, 0, 3]]


def test_hardest_by_hand():
    assert hardest(Candidates.of(*by_hand())).tolist() == [[0, 2, 3], [1, 2, 4], [2, 0, 4]]


def test_active_by_hand():
    # Margin .25. 0: limits .45 (1) and .75 (2): 3 under both, 4 under the second. 1: limits .45
    # and .65: both under both. 2: limits .75 and .65: none.
    weight, count = active_triplets(*by_hand(), margin=0.25)
    assert weight.tolist() == [
        [0, 1, 2, -2, -1],
        [2, 0, 2, -2, -2],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert int(count) == 7


@pytest.mark.parametrize("few", [0, 32])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("number", range(20))
def test_active_triplets_are_the_loops(monkeypatch, number, ties, few):
    monkeypatch.setattr(mining, "_FEW_POSITIVES", few)
    dist, genuine, impostor = pool(number, ties=ties)
    weight, count = active_triplets(dist, genuine, impostor, MARGIN)
    expected, active = torch.zeros_like(dist), 0
    for a, p, n in reference.all_triplets_loop(genuine.tolist(), impostor.tolist()):
        if float(dist[a, p] + MARGIN) > float(dist[a, n]):
            expected[a, p] += 1
            expected[a, n] -= 1
            active += 1
    assert torch.equal(weight, expected)
    assert int(count) == active


@pytest.mark.parametrize("few", [0, 32])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("number", range(20))
def test_semi_hard_are_the_loops(monkeypatch, number, ties, few):
    monkeypatch.setattr(mining, "_FEW_POSITIVES", few)
    dist, genuine, impostor = pool(number, ties=ties)
    actual = semi_hard_negatives(Candidates.of(dist, genuine, impostor), MARGIN)
    expected = reference.semi_hard_loop(dist.tolist(), genuine.tolist(), impostor.tolist(), MARGIN)
    assert sorted(map(tuple, actual.tolist())) == expected


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("number", range(20))
def test_hardest_are_the_loops(number, ties):
    dist, genuine, impostor = pool(number, ties=ties)
    actual = hardest(Candidates.of(dist, genuine, impostor))
    expected = reference.hardest_loop(dist.tolist(), genuine.tolist(), impostor.tolist())
    assert list(map(tuple, actual.tolist())) == expected


def test_of_equally_far_and_near_ones_the_first_is_taken():
    # All at distance 0: a positive is no farther for that, and a negative none the nearer.
    label = torch.tensor([0, 1, 0, 0, 1])
    same = label[:, None] == label
    pool = torch.zeros(5, 5), same & ~torch.eye(5, dtype=torch.bool), ~same
    assert hardest(Candidates.of(*pool)).tolist() == [
        [0, 2, 1],
        [1, 4, 0],
        [2, 0, 1],
        [3, 0, 1],
        [4, 1, 0],
    ]
    assert semi_hard_negatives(Candidates.of(*pool), 1.0).shape == (0, 3)
    pool = (1 - same.float(), *pool[1:])
    assert semi_hard_negatives(Candidates.of(*pool), 2.0).tolist() == [
        [0, 2, 1], [0, 3, 1], [1, 4, 0], [2, 0, 1], [2, 3, 1], [3, 0, 1], [3, 2, 1], [4, 1, 0],
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20), st.booleans())
def test_permuting_the_batch_permutes_the_answers(number, size, ties):
    dist, genuine, impostor = pool(number, size, ties=ties)
    order = torch.from_numpy(np.random.default_rng(number).permutation(size))
    moved = [matrix[order][:, order] for matrix in (dist, genuine, impostor)]
    weight, count = active_triplets(dist, genuine, impostor, MARGIN)
    moved_weight, moved_count = active_triplets(*moved, MARGIN)
    assert torch.equal(weight[order][:, order], moved_weight)
    assert count == moved_count
    if not ties:  # Among equally near negatives the column decides.
        actual = semi_hard_negatives(Candidates.of(dist, genuine, impostor), MARGIN).tolist()
        back = order[semi_hard_negatives(Candidates.of(*moved), MARGIN)].tolist()
        assert sorted(actual) == sorted(back)
        assert sorted(hardest(Candidates.of(*moved)).tolist()) == sorted(
            order.argsort()[hardest(Candidates.of(dist, genuine, impostor))].tolist()
        )


def test_semi_hard_are_the_nearest_of_the_librarys():
    generator = torch.Generator().manual_seed(1)
    emb = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 6, (40,), generator=generator)
    metric = distances.LpDistance(normalize_embeddings=False)
    miner = miners.TripletMarginMiner(margin=1.0, type_of_triplets="semihard", distance=metric)
    dist, same = metric(emb), label[:, None] == label
    nearest: dict[tuple[int, int], float] = {}
    for a, p, n in torch.stack(miner(emb, label), dim=1).tolist():
        nearest[a, p] = min(nearest.get((a, p), torch.inf), float(dist[a, n]))
    genuine = same & ~torch.eye(40, dtype=torch.bool)
    actual = semi_hard_negatives(Candidates.of(dist, genuine, ~same), 1.0).tolist()
    assert len(actual) > 50
    assert {(a, p): float(dist[a, n]) for a, p, n in actual} == nearest


@pytest.mark.parametrize("size", [0, 1, 4])
def test_pools_without_triplets(size):
    dist, nothing = torch.rand(size, size), torch.zeros(size, size, dtype=torch.bool)
    pairs = ~torch.eye(size, dtype=torch.bool)
    for genuine, impostor in [(nothing, nothing), (pairs, nothing), (nothing, pairs)]:
        weight, count = active_triplets(dist, genuine, impostor, MARGIN)
        assert not weight.any()
        assert int(count) == 0
        assert semi_hard_negatives(Candidates.of(dist, genuine, impostor), MARGIN).shape == (0, 3)
        assert hardest(Candidates.of(dist, genuine, impostor)).shape == (0, 3)


def test_large_batches_take_no_cubic_memory():
    # All triplets of 3,000 pictures of 10 things, 2.4e9 of them, would take 58 GB as indices.
    generator = torch.Generator().manual_seed(0)
    dist = torch.rand(3000, 3000, generator=generator)
    label = torch.arange(3000) % 10
    same = label[:, None] == label
    genuine = same & ~torch.eye(3000, dtype=torch.bool)
    _, count = active_triplets(dist, genuine, ~same, 2.0)
    assert int(count) == 3000 * 299 * 2700
    assert len(semi_hard_negatives(Candidates.of(dist, genuine, ~same), 2.0)) > 0.9 * 3000 * 299
