"""A loss in blocks of anchors is the loss on the whole matrix, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from twinlens.data.table import pair_masks
from twinlens.learn import blockwise as blocks
from twinlens.learn import losses
from twinlens.learn.blockwise import mean_over_blocks, mean_over_mined
from twinlens.learn.mining import Candidates
from twinlens.model.comparators import Comparator, make_comparator

B = 23


def batch(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and masks, with forged pictures and pictures that are alone."""
    generator = torch.Generator().manual_seed(number)
    emb = torch.randn(B, 5, generator=generator, dtype=torch.float32)
    label = torch.randint(0, 6, (B,), generator=generator)
    forged = torch.rand(B, generator=generator) < 0.2
    genuine, impostor = pair_masks(label[:, None], forged[:, None], label, forged)
    return emb.requires_grad_(), genuine.fill_diagonal_(False), impostor


Whole = Callable[[Tensor, Tensor, Tensor], Tensor]


def rows_of(genuine: Tensor, impostor: Tensor) -> blocks.PairMasks:
    return lambda part: (genuine[part], impostor[part])


def pair_of(name: str, genuine: Tensor, impostor: Tensor) -> tuple[Whole, blocks.RowLoss]:
    """The loss on a whole matrix, and its terms by rows."""
    if name == "contrastive":
        num = int(genuine.sum()), int(impostor.sum())
        return (
            partial(losses.contrastive, margin=1.0),
            partial(losses.contrastive_terms, margin=1.0, num=num),
        )
    if name == "supcon":
        return (
            partial(losses.supcon, temperature=0.2),
            partial(losses.supcon_terms, temperature=0.2),
        )
    settings = {"margin": 0.3, "soft": name == "all soft"}
    return partial(losses.triplet, **settings), partial(losses.triplet_terms, **settings)


NAMES = ["contrastive", "supcon", "all", "all soft"]


@pytest.mark.parametrize("anchors", [1, 4, B])
@pytest.mark.parametrize("comparator", ["euclidean", "squared-euclidean", "cosine"])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, name: str, comparator: str, anchors: int
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", anchors * B)
    made: Comparator = make_comparator(comparator, 5)
    for number in range(3):
        emb, genuine, impostor = batch(number)
        whole, terms = pair_of(name, genuine, impostor)
        expected = whole(made.matrix(emb, emb), genuine, impostor)
        value = mean_over_blocks(
            made.prepare(emb), made.prepared_matrix, rows_of(genuine, impostor), terms
        )
        assert float(expected.detach()) > 0
        torch.testing.assert_close(value, expected)
        (grad,) = torch.autograd.grad(3 * value, emb)
        torch.testing.assert_close(grad, 3 * torch.autograd.grad(expected, emb)[0])


@pytest.mark.parametrize("num", [0, 1, 4])
def test_a_batch_without_pairs_is_zero_with_a_gradient_of_zeros(num: int) -> None:
    emb = torch.randn(num, 3, requires_grad=True)
    nothing = torch.zeros(num, num, dtype=torch.bool)
    made = make_comparator("euclidean", 3)
    for name in NAMES:
        _, terms = pair_of(name, nothing, nothing)
        value = mean_over_blocks(emb, made.prepared_matrix, rows_of(nothing, nothing), terms)
        assert value.item() == 0
        assert not torch.autograd.grad(value, emb)[0].any()


def test_without_a_gradient_only_the_value_is_computed() -> None:
    emb, genuine, impostor = batch(0)
    made = make_comparator("euclidean", 5)
    whole, terms = pair_of("supcon", genuine, impostor)
    value = mean_over_blocks(emb.detach(), made.prepared_matrix, rows_of(genuine, impostor), terms)
    assert not value.requires_grad
    torch.testing.assert_close(value, whole(made.matrix(emb, emb), genuine, impostor).detach())


def mined_mean(
    made: Comparator, emb: Tensor, genuine: Tensor, impostor: Tensor, mining: str, soft: bool
) -> Tensor:
    choose = losses.miner(mining, 0.3)
    return mean_over_mined(
        made.prepare(emb),
        made.prepared_matrix,
        made.pairwise,
        lambda dist, part: choose(Candidates.of(dist, genuine[part], impostor[part])),
        partial(losses.hinge, margin=0.3, soft=soft),
    )


MINED = [("semi-hard", False), ("semi-hard", True), ("hardest", False), ("hardest", True)]


@pytest.mark.parametrize("anchors", [1, 4, B])
@pytest.mark.parametrize("many", [0, 20, 28, 10**9])
@pytest.mark.parametrize("comparator", ["euclidean", "squared-euclidean", "cosine", "sigmoid"])
@pytest.mark.parametrize(("mining", "soft"), MINED)
def test_mined_triplets_are_the_whole(
    monkeypatch: pytest.MonkeyPatch,
    mining: str,
    soft: bool,
    comparator: str,
    many: int,
    anchors: int,
) -> None:
    """Row by row, as products of blocks, and some of both; bundles of several blocks."""
    monkeypatch.setattr(blocks, "MINED_BLOCK", anchors * B)
    monkeypatch.setattr(blocks, "TRIPLETS_AT_ONCE", 7)
    # Triplets are at most a row's 23 distances: 0 never takes the products, 1e9 always does.
    monkeypatch.setattr(blocks, "DISTANCES_PER_TRIPLET", many)
    made = make_comparator(comparator, 5)
    for number in range(3):
        emb, genuine, impostor = batch(number)
        expected = losses.triplet(made.matrix(emb, emb), genuine, impostor, 0.3, mining, soft)
        value = mined_mean(made, emb, genuine, impostor, mining, soft)
        assert float(expected.detach()) > 0
        torch.testing.assert_close(value, expected)
        (grad,) = torch.autograd.grad(3 * value, emb)
        torch.testing.assert_close(grad, 3 * torch.autograd.grad(expected, emb)[0])


def test_mined_triplets_of_a_network_of_distances() -> None:
    torch.manual_seed(0)
    made, (emb, genuine, impostor) = make_comparator("network", 5), batch(0)
    expected = losses.triplet(made.matrix(emb, emb), genuine, impostor, 0.3, "hardest")
    value = mined_mean(made, emb, genuine, impostor, "hardest", False)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, emb)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, emb)[0])


@pytest.mark.parametrize("many", [0, 10**9])
@pytest.mark.parametrize(("mining", "soft"), MINED)
def test_mined_triplets_of_embeddings_that_coincide(
    monkeypatch: pytest.MonkeyPatch, mining: str, soft: bool, many: int
) -> None:
    monkeypatch.setattr(blocks, "DISTANCES_PER_TRIPLET", many)
    # Of whole numbers, so that a distance of 0 is 0 by a product too.
    emb = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 2], [1, 2], [3, 0]], requires_grad=True)
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    same, made = label[:, None] == label, make_comparator("euclidean", 2)
    pairs = same & ~torch.eye(6, dtype=torch.bool), ~same
    expected = losses.triplet(made.matrix(emb, emb), *pairs, 0.3, mining, soft)
    value = mined_mean(made, emb, *pairs, mining, soft)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, emb)
    assert bool(grad.isfinite().all())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, emb)[0])


@pytest.mark.parametrize("num", [0, 1, 4])
@pytest.mark.parametrize("mining", ["semi-hard", "hardest"])
def test_nothing_to_mine_is_zero_with_a_gradient_of_zeros(mining: str, num: int) -> None:
    emb = torch.randn(num, 3, requires_grad=True)
    nothing, pairs = torch.zeros(num, num, dtype=torch.bool), ~torch.eye(num, dtype=torch.bool)
    for genuine, impostor in [(nothing, nothing), (pairs, nothing), (nothing, pairs)]:
        made = make_comparator("euclidean", 3)
        value = mined_mean(made, emb, genuine, impostor, mining, False)
        assert value.item() == 0
        assert not torch.autograd.grad(value, emb)[0].any()


def test_mining_without_a_gradient() -> None:
    emb, genuine, impostor = batch(0)
    made = make_comparator("euclidean", 5)
    value = mined_mean(made, emb.detach(), genuine, impostor, "hardest", False)
    assert not value.requires_grad
    torch.testing.assert_close(
        value, mined_mean(made, emb, genuine, impostor, "hardest", False).detach()
    )
