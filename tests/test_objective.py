"""Every loss by name gives what its plain function gives on the batch's pairs."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from twinlens.config import LossSettings, OptimizerSettings
from twinlens.data.batch import Batch
from twinlens.data.table import pair_masks
from twinlens.errors import ConfigError
from twinlens.learn import blockwise as blocks
from twinlens.learn import losses
from twinlens.learn.objective import Objective
from twinlens.model.comparators import make_comparator

B, D = 8, 5
LABEL = np.array([0, 0, 0, 1, 1, 2, 0, 1])
FORGED = np.array([False] * 6 + [True] * 2)  # The last two imitate 0 and 1.


def emb() -> Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(B, D), dim=1).requires_grad_()


def batch(forged: bool = False, **drawn: object) -> Batch:
    roles = FORGED if forged else np.zeros(B, dtype=bool)
    return Batch(np.arange(B), LABEL, roles, np.zeros(B, dtype=np.int64), **drawn)  # type: ignore[arg-type]


def masks(forged: bool, given: set[frozenset[int]] | None = None) -> tuple[Tensor, Tensor]:
    """Genuine and impostor pairs one by one; a pair of two forged pictures is neither."""
    genuine, impostor = torch.zeros(2, B, B, dtype=torch.bool)
    roles = FORGED if forged else np.zeros(B, dtype=bool)
    for i in range(B):
        for j in range(B):
            if i == j or (roles[i] and roles[j]) or (given and frozenset((i, j)) not in given):
                continue
            same = LABEL[i] == LABEL[j] and not roles[i] and not roles[j]
            (genuine if same else impostor)[i, j] = True
    return genuine, impostor


def objective(name: str, comparator: str = "euclidean", **values: object) -> Objective:
    torch.manual_seed(1)
    settings = LossSettings.model_validate({"name": name} | values)
    return Objective(settings, make_comparator(comparator, D), 3, D)


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize("comparator", ["euclidean", "cosine", "squared-euclidean"])
def test_losses_by_name(comparator: str, forged: bool) -> None:
    dist_BB = make_comparator(comparator, D).matrix(emb(), emb())
    pool = masks(forged)
    expected = {
        ("contrastive", "all", False): losses.contrastive(dist_BB, *pool, 0.7),
        ("supcon", "all", False): losses.supcon(dist_BB, *pool, 0.2),
    } | {
        ("triplet", mining, soft): losses.triplet(dist_BB, *pool, 0.7, mining, soft)
        for mining in ("all", "semi-hard", "hardest")
        for soft in (False, True)
    }
    for (name, mining, soft), value in expected.items():
        made = objective(name, comparator, mining=mining, soft=soft, margin=0.7, temperature=0.2)
        assert value > 0
        torch.testing.assert_close(made(emb(), batch(forged)), value)


@pytest.mark.parametrize("given", [False, True])
def test_own_forgeries_count_more_than_others(given: bool) -> None:
    """The last but one imitates 0, 1 and 2; the last one 3 and 4."""
    pairs = [[0, 1], [3, 4], [0, 6], [7, 3], [4, 6], [1, 5]]
    genuine, impostor = masks(True, {frozenset(pair) for pair in pairs} if given else None)
    drawn: dict[str, object] = {}
    if given:
        drawn = {"pairs": np.array(pairs), "same": np.array([True, True] + 4 * [False])}
    own = torch.zeros(B, B, dtype=torch.bool)
    for genuine_one, forged_one in [(0, 6), (1, 6), (2, 6), (3, 7), (4, 7)]:
        own[genuine_one, forged_one] = own[forged_one, genuine_one] = True
    times = (impostor.float() + 7 * (impostor & own)).tolist()
    dist = euclidean(emb()).tolist()
    expected = reference.supcon_loss_loop(dist, genuine.tolist(), times, 0.2)
    made = objective("supcon", temperature=0.2, forged_weight=8.0)
    value = made(emb(), batch(True, **drawn))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    plain = objective("supcon", temperature=0.2)(emb(), batch(True, **drawn))
    assert value > plain
    even = objective("supcon", temperature=0.2, forged_weight=1.0)(emb(), batch(True, **drawn))
    torch.testing.assert_close(even, plain)


def test_a_batch_of_one_genuine_picture_and_its_forgery_teaches_nothing() -> None:
    made = objective("supcon", forged_weight=4.0)
    roles, zeros = np.array([False, True]), np.zeros(2, np.int64)
    some = emb()[:2].detach().requires_grad_()
    value = made(some, Batch(np.arange(2), zeros, roles, zeros))
    (grad,) = torch.autograd.grad(value, some)
    assert value.item() == 0
    assert not grad.any()


@pytest.mark.parametrize("forged", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("labels", [1, 3, 15])
@pytest.mark.parametrize("mining", ["semi-hard", "hardest"])
def test_mining_without_masks_is_mining_with_them(
    monkeypatch: pytest.MonkeyPatch, mining: str, labels: int, forged: float
) -> None:
    monkeypatch.setattr(blocks, "MINED_BLOCK", 7 * 30)  # Several blocks, the last one smaller.
    for number in range(5):
        rng = np.random.default_rng([number, labels])
        label, roles = rng.integers(0, labels, 30), rng.random(30) < forged
        some = torch.from_numpy(rng.normal(size=(30, D))).float().requires_grad_()
        label_B, roles_B = torch.from_numpy(label), torch.from_numpy(roles)
        genuine, impostor = pair_masks(label_B[:, None], roles_B[:, None], label_B, roles_B)
        pool = genuine.fill_diagonal_(False), impostor
        expected = losses.triplet(euclidean(some), *pool, 0.7, mining)
        drawn = Batch(np.arange(30), label, roles, np.zeros(30, dtype=np.int64))
        value = objective("triplet", mining=mining, margin=0.7)(some, drawn)
        torch.testing.assert_close(value, expected)
        (grad,) = torch.autograd.grad(value, some)
        torch.testing.assert_close(grad, torch.autograd.grad(expected, some)[0])
        assert bool(grad.any()) == (forged < 1 and (labels > 1 or forged > 0))


@pytest.mark.parametrize("mining", ["semi-hard", "hardest"])
def test_mining_among_given_pairs(mining: str) -> None:
    pairs = np.array([[0, 1], [3, 0], [4, 3], [5, 4], [1, 5]])
    drawn = batch(pairs=pairs, same=np.array([True, False, True, False, False]))
    pool = masks(False, {frozenset(p) for p in pairs.tolist()})
    expected = losses.triplet(euclidean(emb()), *pool, 2.0, mining)
    assert expected > 0
    torch.testing.assert_close(
        objective("triplet", mining=mining, margin=2.0)(emb(), drawn), expected
    )


@pytest.mark.parametrize("mining", ["semi-hard", "hardest"])
def test_mining_widens_half_precision(mining: str) -> None:
    half = emb().detach().bfloat16().requires_grad_()
    made = objective("triplet", mining=mining, margin=0.7)
    value = made(half, batch())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, made(half.float(), batch()))
    value.backward()  # type: ignore[no-untyped-call]
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert half.grad.any()


def euclidean(some: Tensor) -> Tensor:
    return make_comparator("euclidean", D).matrix(some, some)


@pytest.mark.parametrize("comparator", ["sigmoid", "network"])
@pytest.mark.parametrize("forged", [False, True])
def test_cross_entropy_on_each_pair_once(comparator: str, forged: bool) -> None:
    made = objective("bce", comparator)
    genuine, impostor = masks(forged)
    a, b = np.array([(i, j) for i in range(B) for j in range(i) if (genuine | impostor)[i, j]]).T
    logit = made.comparator.logits(emb()[a], emb()[b])
    value = made(emb(), batch(forged))
    torch.testing.assert_close(value, losses.bce(logit, genuine[a, b]))
    value.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("name", ["contrastive", "supcon", "bce"])
def test_given_pairs_are_all_that_counts(name: str) -> None:
    pairs = np.array([[0, 1], [3, 0], [4, 3], [5, 2]])
    drawn = batch(pairs=pairs, same=np.array([True, False, True, False]))
    pool = masks(False, {frozenset(p) for p in pairs.tolist()})
    assert pool[0].sum() == pool[1].sum() == 4
    made = objective(name, "sigmoid" if name == "bce" else "euclidean", margin=0.7)
    if name == "bce":
        logit = made.comparator.logits(emb()[pairs[:, 0]], emb()[pairs[:, 1]])
        expected = losses.bce(logit, torch.tensor([True, False, True, False]))
    else:
        dist_BB = made.comparator.matrix(emb(), emb())
        plain = {"contrastive": (losses.contrastive, 0.7), "supcon": (losses.supcon, 0.1)}
        function, constant = plain[name]
        expected = function(dist_BB, *pool, constant)
    torch.testing.assert_close(made(emb(), drawn), expected)


def test_given_triplets_are_all_that_counts() -> None:
    triplets = np.array([[0, 1, 3], [4, 3, 5]])
    made = objective("triplet", mining="given", margin=0.7)
    e = emb().detach()
    by_hand = [max((e[a] - e[p]).norm() - (e[a] - e[n]).norm() + 0.7, 0) for a, p, n in triplets]
    value = made(emb(), batch(triplets=triplets))
    assert value.item() == pytest.approx(float(sum(by_hand) / 2), rel=1e-4)


def test_mining_can_be_eased_on_the_way() -> None:
    made = objective("triplet", mining="hardest", margin=0.7)
    hard = made(emb(), batch())
    made.mining = "all"
    assert made(emb(), batch()) != hard
    assert made(emb(), batch()) == objective("triplet", mining="all", margin=0.7)(emb(), batch())


def test_a_forged_picture_is_never_pulled_closer() -> None:
    """A step down the gradient takes it farther from the identity that it imitates."""
    made = objective("contrastive", margin=5.0)
    only = Batch(
        np.arange(2), np.zeros(2, np.int64), np.array([False, True]), np.zeros(2, np.int64)
    )
    value = emb()[:2].detach().requires_grad_()
    made(value, only).backward()
    assert value.grad is not None
    apart = value.detach() - 0.01 * value.grad
    assert (apart[0] - apart[1]).norm() > (value[0] - value[1]).norm()


def test_a_loss_of_the_library_and_its_own_weights() -> None:
    from pytorch_metric_learning.losses import MultiSimilarityLoss

    made = objective("pml:MultiSimilarityLoss", args={"alpha": 3.0})
    expected = MultiSimilarityLoss(alpha=3.0)(emb(), torch.from_numpy(LABEL))
    torch.testing.assert_close(made(emb(), batch()), expected)

    from twinlens.learn.learner import make_optimizer

    arc = objective("pml:ArcFaceLoss")
    before = {k: v.clone() for k, v in arc.named_parameters()}
    assert before
    encoder = torch.nn.Linear(D, D)
    optimizer = make_optimizer(encoder, arc, OptimizerSettings())  # type: ignore[arg-type]
    arc(encoder(emb()), batch()).backward()
    optimizer.step()
    assert not any(torch.equal(v, before[k]) for k, v in arc.named_parameters())


def test_what_does_not_exist_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="did you mean triplet"):
        objective("triplets")
    with pytest.raises(ConfigError, match=r"loss\.args is for pml"):
        objective("triplet", args={"alpha": 1})


def test_classes_are_those_of_the_genuine_pictures() -> None:
    share = torch.softmax(torch.randn(B, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    actual = Objective(LossSettings(name="classes"), make_comparator("cosine", 3), 3, 3)(
        share.sqrt(), batch(forged=True)
    )
    right = share[torch.arange(6), torch.from_numpy(LABEL[:6])]
    assert torch.allclose(actual, -right.log().mean())


def test_classes_need_a_dimension_each() -> None:
    with pytest.raises(ConfigError, match=r"found 3 training identities .* set model.embedding=3"):
        Objective(LossSettings(name="classes"), make_comparator("cosine", 2), 3, 2)
