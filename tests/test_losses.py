"""Losses: by hand, against plain loops and pytorch-metric-learning, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from peer_libraries import agree, embedded
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning import losses as library
from torch import Tensor

from twinlens.config import LossSettings
from twinlens.errors import ConfigError
from twinlens.learn import losses as module
from twinlens.learn.losses import (
    LOSSES,
    bce,
    check_loss,
    contrastive,
    supcon,
    supcon_terms,
    triplet,
    triplet_given,
)
from twinlens.learn.mining import Candidates, semi_hard_negatives

MININGS = ("all", "semi-hard", "hardest")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

POOL_LOSSES = {
    "contrastive": lambda d, g, i: contrastive(d, g, i, 0.7),
    "supcon": lambda d, g, i: supcon(d, g, i, 0.2),
    "supcon, weighted": lambda d, g, i: supcon(d, g, i * 4.0, 0.2),
    "bce": lambda d, g, i: bce((0.5 - d)[g | i], g[g | i]),
    **{
        f"{mining}, soft={soft}": lambda d, g, i, m=mining, s=soft: triplet(d, g, i, 0.3, m, s)
        for mining in MININGS
        for soft in (False, True)
    },
}
every_loss = pytest.mark.parametrize("loss", POOL_LOSSES.values(), ids=POOL_LOSSES.keys())


def masks(label: Tensor, forged: Tensor | None = None) -> tuple[Tensor, Tensor]:
    forged = torch.zeros_like(label, dtype=torch.bool) if forged is None else forged
    both = ~forged[:, None] & ~forged
    genuine = (label[:, None] == label) & both
    impostor = ~genuine & (~forged[:, None] | ~forged)
    return genuine & ~torch.eye(len(label), dtype=torch.bool), impostor


def euclid(emb: Tensor) -> Tensor:
    """Distances whose gradient is 0, not NaN, where two embeddings coincide."""
    square = (emb[:, None] - emb[None, :]).square().sum(dim=2)
    return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)


def sample(
    number: int, size: int = 12, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances and masks with a few forgeries."""
    rng = np.random.default_rng([9, number])
    emb = torch.from_numpy(rng.normal(size=(size, 3))) / 3
    label = torch.from_numpy(rng.integers(0, 4, size))
    forged = torch.from_numpy(rng.random(size) < 0.2)
    return euclid(emb).to(dtype), *masks(label, forged)


def by_hand() -> tuple[Tensor, Tensor, Tensor]:
    """0 and 1 are of one thing, 2 of another."""
    dist = torch.tensor([[0.0, 0.4, 0.6], [0.4, 0.0, 0.9], [0.6, 0.9, 0.0]])
    return dist, *masks(torch.tensor([0, 0, 1]))


def close(value: Tensor, expected: float, dtype: torch.dtype = torch.float64) -> None:
    # The loops start from the rounded distances; what is left is the rounding of the arithmetic.
    rel = 1e-12 if dtype == torch.float64 else 2e-5
    assert float(value) == pytest.approx(expected, rel=rel, abs=1e-6)


# values worked by hand


def test_contrastive_by_hand():
    # (.4^2) / 2, and (.4^2 + .1^2) / 2 / 2.
    close(contrastive(*by_hand(), margin=1.0), 0.08 + 0.0425)


def test_triplets_by_hand():
    # From 0: .4 - .6 + .3 = .1; from 1: .4 - .9 + .3 < 0.
    close(triplet(*by_hand(), 0.3, "all"), 0.1)
    close(triplet(*by_hand(), 0.3, "semi-hard"), 0.1)
    close(triplet(*by_hand(), 0.3, "hardest"), 0.05)
    soft = (math.log1p(math.exp(-0.2)) + math.log1p(math.exp(-0.5))) / 2
    close(triplet(*by_hand(), 0.3, "all", soft=True), soft)
    close(triplet(*by_hand(), 0.3, "hardest", soft=True), soft)
    given = torch.tensor([[0, 1, 2], [1, 0, 2], [0, 1, 2]])
    close(triplet_given(by_hand()[0], given, 0.3), 0.2 / 3)


def test_supcon_by_hand():
    # From 0: -log(e^-4 / (e^-4 + e^-6)); from 1: -log(e^-4 / (e^-4 + e^-9)); 2 is no anchor.
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-5))) / 2
    close(supcon(*by_hand(), temperature=0.1), expected, torch.float32)


def test_bce_by_hand():
    logit = torch.tensor([0.0, math.log(3), math.log(3)])
    same = torch.tensor([True, True, False])
    # Probabilities 1/2 and 3/4 of a same pair, 3/4 of a different one.
    expected = (math.log(2) + math.log(4 / 3)) / 4 + math.log(4) / 2
    close(bce(logit, same), expected, torch.float32)


# the loops


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(8))
def test_losses_are_the_loops(number, dtype):
    dist, genuine, impostor = sample(number, dtype=dtype)
    plain = (dist.tolist(), genuine.tolist(), impostor.tolist())
    close(
        contrastive(dist, genuine, impostor, 0.7),
        reference.contrastive_loss_loop(*plain, 0.7),
        dtype,
    )
    close(supcon(dist, genuine, impostor, 0.2), reference.supcon_loss_loop(*plain, 0.2), dtype)
    logit, same = (1 - 3 * dist)[genuine | impostor], genuine[genuine | impostor]
    close(bce(logit, same), reference.bce_loss_loop(logit.tolist(), same.tolist()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("number", range(8))
def test_triplets_are_the_loops(monkeypatch, number, soft, dtype):
    monkeypatch.setattr(module, "_BLOCK", 150)  # Several blocks of a few anchors.
    dist, genuine, impostor = sample(number, dtype=dtype)
    plain = (dist.tolist(), genuine.tolist(), impostor.tolist())
    everything = reference.all_triplets_loop(*plain[1:])
    expected = {
        "all": reference.triplet_loss_loop(
            plain[0], everything, 0.3, soft=soft, active_only=not soft
        ),
        "semi-hard": reference.triplet_loss_loop(
            plain[0], reference.semi_hard_loop(*plain, 0.3), 0.3, soft=soft
        ),
        "hardest": reference.triplet_loss_loop(
            plain[0], reference.hardest_loop(*plain), 0.3, soft=soft
        ),
    }
    for mining in MININGS:
        value = triplet(dist, genuine, impostor, 0.3, mining, soft)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(value, expected[mining], dtype)


def weighted(impostor: Tensor, number: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Impostors that count some number of times; one in five not at all."""
    times = torch.tensor([0.0, 0.3, 1.0, 4.0, 1e4], dtype=dtype)
    drawn = np.random.default_rng([3, number]).integers(0, 5, impostor.shape)
    return impostor * times[torch.from_numpy(drawn)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(4))
def test_supcon_weights_of_impostors(number, dtype):
    dist, genuine, impostor = sample(number, dtype=dtype)
    times = weighted(impostor, number)
    expected = reference.supcon_loss_loop(dist.tolist(), genuine.tolist(), times.tolist(), 0.2)
    close(supcon(dist, genuine, times, 0.2), expected, dtype)
    # A weight of two is an impostor that is there twice.
    twice = torch.cat([torch.arange(len(dist)), torch.where(impostor.any(0))[0]])
    there = [part[:, twice].clone() for part in (dist, genuine, impostor)]
    there[1][:, len(dist) :] = False
    more = supcon_terms(*there, 0.2)[0]
    torch.testing.assert_close(supcon_terms(dist, genuine, 2.0 * impostor, 0.2)[0], more)


@pytest.mark.parametrize("dtype", DTYPES)
def test_supcon_with_a_weight_of_one_is_the_unweighted_loss(dtype):
    for number in range(4):
        dist, genuine, impostor = sample(number, 30, dtype)
        results = []
        for mask in (impostor, impostor.float()):
            leaf = dist.clone().requires_grad_()
            value = supcon(leaf, genuine, mask, 0.05)
            results.append((value, torch.autograd.grad(value, leaf)[0]))
        torch.testing.assert_close(results[0], results[1])


# pytorch-metric-learning


EUCLID = distances.LpDistance(normalize_embeddings=False)


@pytest.mark.parametrize("number", range(3))
def test_contrastive_is_the_librarys(number):
    emb, label = embedded(number)
    square = distances.LpDistance(normalize_embeddings=False, power=2)
    pull = library.ContrastiveLoss(
        pos_margin=0, neg_margin=0, distance=square, reducer=reducers.MeanReducer()
    )(emb, label)
    dist, (genuine, impostor) = euclid(emb), masks(label)
    # Theirs has no square of the hinge, so only the pulling half is the same loss.
    agree(contrastive(dist, genuine, impostor & False, 1.0), 0.5 * pull, emb)
    push = library.ContrastiveLoss(
        pos_margin=1e9, neg_margin=4.0, distance=EUCLID, reducer=reducers.MeanReducer()
    )(emb, label)
    hinge = (4.0 - dist).clamp_min(0)[impostor]
    torch.testing.assert_close(push, hinge.mean())
    ours = contrastive(dist, genuine & False, impostor, 4.0)
    torch.testing.assert_close(ours, 0.5 * hinge.square().mean())


@pytest.mark.parametrize("number", range(3))
def test_all_triplets_are_the_librarys(number):
    emb, label = embedded(number)
    theirs = library.TripletMarginLoss(margin=0.5, distance=EUCLID)(emb, label)
    agree(triplet(euclid(emb), *masks(label), 0.5, "all"), theirs, emb)


@pytest.mark.parametrize("number", range(3))
def test_soft_triplets_are_the_librarys(number):
    emb, label = embedded(number)
    theirs = library.TripletMarginLoss(margin=0.0, smooth_loss=True, distance=EUCLID)(emb, label)
    agree(triplet(euclid(emb), *masks(label), 0.5, "all", soft=True), theirs, emb)


@pytest.mark.parametrize("number", range(3))
def test_hardest_triplets_are_the_librarys(number):
    emb, label = embedded(number)
    loss = library.TripletMarginLoss(margin=0.5, distance=EUCLID, reducer=reducers.MeanReducer())
    theirs = loss(emb, label, miners.BatchHardMiner(distance=EUCLID)(emb, label))
    agree(triplet(euclid(emb), *masks(label), 0.5, "hardest"), theirs, emb)


@pytest.mark.parametrize("number", range(3))
def test_semi_hard_triplets_with_one_positive_are_the_librarys(number):
    # With one positive an anchor there is nothing to choose of; negatives beyond the margin, which
    # theirs takes too, are 0, and their mean leaves those out.
    emb, label = embedded(number, classes=16)
    miner = miners.BatchEasyHardMiner("hard", "semihard", distance=EUCLID)
    theirs = library.TripletMarginLoss(margin=0.5, distance=EUCLID)(emb, label, miner(emb, label))
    agree(triplet(euclid(emb), *masks(label), 0.5, "semi-hard"), theirs, emb)


def test_semi_hard_triplets_of_nearly_equal_distances_are_the_librarys():
    # Enough pictures that float32 rounds some negatives to the other side of a positive than the
    # library's does; in float64 both choose the same.
    emb = torch.randn(1024, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.arange(1024) // 2
    miner = miners.BatchEasyHardMiner("hard", "semihard", distance=EUCLID)
    anchor, positive, _, negative = miner(emb, label)
    dist = torch.cdist(emb, emb, compute_mode="donot_use_mm_for_euclid_dist")
    actual = semi_hard_negatives(Candidates.of(dist, *masks(label)), 1e9)
    assert actual.tolist() == torch.stack([anchor, positive, negative], dim=1).tolist()


@pytest.mark.parametrize("number", range(3))
def test_supcon_is_the_librarys(number):
    emb, label = embedded(number)
    label = torch.where(torch.arange(len(label)) == 3, 99, label)  # One that is no anchor.
    unit = torch.nn.functional.normalize(emb, dim=1)
    theirs = library.SupConLoss(temperature=0.1)(emb, label)
    agree(supcon(1 - unit @ unit.T, *masks(label), 0.1), theirs, emb)


def test_bce_with_smooth_labels_is_torchs_with_soft_targets():
    logit, same = torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor([True, False, True, False])
    soft = torch.where(same, 0.95, 0.05)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logit, soft)
    torch.testing.assert_close(bce(logit, same, smoothing=0.1), theirs)
    sure = torch.tensor([9.0, -9.0, 9.0, -9.0])  # Too sure is worse than sure enough.
    assert bce(sure, same, smoothing=0.1) > bce(sure / 3, same, smoothing=0.1)
    assert bce(sure, same) < bce(sure / 3, same)


def test_bce_of_equal_numbers_is_torchs():
    logit = torch.randn(20, generator=torch.Generator().manual_seed(0))
    same = torch.arange(20) < 10
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logit, same.float())
    torch.testing.assert_close(bce(logit, same), theirs)


# properties


@every_loss
@pytest.mark.parametrize("number", range(5))
def test_order_and_names_of_labels_change_nothing(loss, number):
    rng = np.random.default_rng(number)
    emb = torch.from_numpy(rng.normal(size=(15, 4))) / 3
    label = torch.from_numpy(rng.integers(0, 4, 15))
    forged = torch.from_numpy(rng.random(15) < 0.2)
    value = loss(euclid(emb), *masks(label, forged))
    order = torch.from_numpy(rng.permutation(15))
    names = torch.from_numpy(rng.permutation(4)) * 10 + 3
    moved = loss(euclid(emb[order]), *masks(names[label[order]], forged[order]))
    torch.testing.assert_close(value, moved)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    turned = loss(euclid(emb @ torch.from_numpy(turn)), *masks(label, forged))
    torch.testing.assert_close(value, turned)


@every_loss
def test_gradients_are_exact(loss):
    for number in range(4):
        dist, genuine, impostor = sample(number, 9)
        noise = torch.rand(9, 9, generator=torch.Generator().manual_seed(number)).double() / 10
        dist = (dist + noise).requires_grad_()  # So that no two distances tie.
        assert torch.autograd.gradcheck(lambda d: loss(d, genuine, impostor), dist)  # noqa: B023


@every_loss
def test_gradients_are_finite_where_embeddings_coincide(loss):
    emb = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) / 3
    emb[1], emb[2] = emb[0], emb[0]
    emb.requires_grad_()
    value = loss(euclid(emb), *masks(torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])))
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(emb.grad).all())
    assert float(emb.grad.abs().sum()) > 0


@every_loss
def test_a_collapsed_batch_has_finite_gradients(loss):
    emb = torch.zeros(6, 4, requires_grad=True)
    loss(euclid(emb), *masks(torch.tensor([0, 0, 1, 1, 2, 2]))).backward()
    assert bool(torch.isfinite(emb.grad).all())


@every_loss
@pytest.mark.parametrize("size", [0, 1, 5])
def test_an_empty_pool_is_zero_with_a_gradient_of_zeros(loss, size):
    dist = torch.rand(size, size, requires_grad=True)
    nothing = torch.zeros(size, size, dtype=torch.bool)
    value = loss(dist, nothing, nothing)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(dist.grad, torch.zeros(size, size))


@every_loss
@pytest.mark.parametrize("kind", ["genuine", "impostor"])
def test_pairs_of_one_kind_are_finite(loss, kind):
    dist = torch.rand(5, 5, requires_grad=True)
    pairs = ~torch.eye(5, dtype=torch.bool)
    nothing = torch.zeros_like(pairs)
    value = loss(dist, *((pairs, nothing) if kind == "genuine" else (nothing, pairs)))
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(dist.grad).all())


@every_loss
def test_forged_pairs_and_the_diagonal_are_left_alone(loss):
    dist, genuine, impostor = sample(1)
    dist = dist.requires_grad_()
    loss(dist, genuine, impostor).backward()
    assert not dist.grad[~(genuine | impostor)].any()
    assert dist.grad[genuine | impostor].any()


@every_loss
def test_half_precision_is_widened_inside_autocast(loss):
    dist, genuine, impostor = sample(2, dtype=torch.bfloat16)
    dist = dist.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(dist, genuine, impostor)
    value.backward()
    torch.testing.assert_close(value, loss(dist.float(), genuine, impostor))
    # bce's logits are made in the test, in bfloat16, before it sees them.
    assert value.dtype == torch.float32
    assert dist.grad.dtype == torch.bfloat16


def test_contrastive_of_as_many_pairs_of_each_kind_is_the_mean_of_all():
    dist = torch.tensor([0.1, 0.5, 0.3, 2.0], dtype=torch.float64)
    same = torch.tensor([True, True, False, False])
    mean = torch.where(same, dist**2, (1 - dist).clamp_min(0) ** 2).mean()
    torch.testing.assert_close(contrastive(dist, same, ~same, 1.0), mean)


def test_all_triplets_keep_their_digits_in_large_batches():
    generator = torch.Generator().manual_seed(0)
    emb = torch.nn.functional.normalize(torch.randn(1024, 64, generator=generator), dim=1)
    pool = masks(torch.arange(1024) // 4)
    dist = euclid(emb[:, :3] / emb[:, :3].norm(dim=1, keepdim=True))
    exact = triplet(dist.double(), *pool, 0.1, "all")
    assert float(triplet(dist, *pool, 0.1, "all")) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("classes", [10, 512])
def test_all_triplets_of_a_large_batch_take_no_cube_of_memory(classes):
    # B^3 numbers would be 34 GB.
    emb = torch.randn(2048, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pool = masks(torch.arange(2048) % classes)
    triplet(torch.cdist(emb, emb), *pool, 0.5, "all").backward()
    assert bool(torch.isfinite(emb.grad).all())


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("tripplet", {}, "unknown loss 'tripplet': did you mean triplet"),
        ("zzzz", {}, "bce, classes, contrastive, pml:ClassName, supcon, triplet"),
        ("pml:MultiSimilartyLoss", {}, "did you mean pml:MultiSimilarityLoss"),
        ("pml:BaseMetricLossFunction", {}, "unknown loss"),
        ("pml:MultiSimilarityLoss", {"alfa": 2}, "unknown argument 'alfa': did you mean alpha"),
        ("pml:CircleLoss", {"zzzz": 2}, "choose from distance, embedding_reg_weight, "),
        ("pml:RankedListLoss", {}, "needs loss.args.margin and loss.args.Tn; it takes Tn, "),
        ("pml:ArcFaceLoss", {"distance": "LpDistance"}, "refuses its arguments"),
        ("pml:TripletMarginLoss", {"distance": "LpDistnce"}, "did you mean LpDistance"),
        ("pml:TripletMarginLoss", {"distance": {"name": "LpDistance", "q": 1}}, "refuses"),
        ("contrastive", {"margin": 1.0}, "loss.args is for pml: losses, found margin"),
    ],
)
def test_check_loss_refuses(name, args, message):
    with pytest.raises(ConfigError, match=message):
        check_loss(LossSettings(name=name, args=args))


@pytest.mark.parametrize("name", [*LOSSES, "pml:ArcFaceLoss", "pml:NTXentLoss"])
def test_check_loss_accepts_and_moves_no_randomness(name):
    before = torch.get_rng_state()
    check_loss(LossSettings(name=name))
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_mining():
    with pytest.raises(ConfigError, match="did you mean semi-hard"):
        triplet(*by_hand(), 0.3, "semihard")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classes_are_the_cross_entropy_of_torch(smoothing: float) -> None:
    logits = 5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    theirs = torch.nn.functional.cross_entropy(logits, label, label_smoothing=smoothing)
    roots = logits.log_softmax(1).div(2).exp()
    torch.testing.assert_close(module.classes(roots, label, smoothing), theirs)


def test_classes_by_hand() -> None:
    # p of the right identity: 0.64 and 0.25.
    emb = torch.tensor([[0.8, 0.6], [0.5, 0.75**0.5]], requires_grad=True)
    value = module.classes(emb, torch.tensor([0, 0]))
    assert float(value.detach()) == pytest.approx(-(math.log(0.64) + math.log(0.25)) / 2)


def test_classes_are_cross_entropy_of_the_probabilities() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    ours = module.classes(logits.log_softmax(1).div(2).exp(), label)
    theirs = torch.nn.functional.cross_entropy(logits, label)
    assert torch.allclose(ours, theirs)
    got, wanted = (torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (ours, theirs))
    assert torch.allclose(got, wanted, atol=1e-6)


def test_classes_of_no_picture_have_a_gradient() -> None:
    emb = torch.zeros((0, 3), requires_grad=True)
    value = module.classes(emb, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert float(value.detach()) == 0
