"""Every comparator against a plain loop, its sign, its gradients and its precision.

Shapes: N, M embeddings of D dimensions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import distance_of
from torch import Tensor

from twinlens.errors import ConfigError
from twinlens.model import comparators
from twinlens.model.comparators import (
    COMPARATORS,
    Comparator,
    Network,
    Sigmoid,
    TorchComparison,
    make_comparator,
    safe_sqrt,
)

D = 6


def made(name: str, seed: int = 0) -> Comparator:
    """A comparator whose learned parts, if any, are away from where they begin."""
    torch.manual_seed(seed)
    comparator = make_comparator(name, D)
    if isinstance(comparator, Sigmoid):
        comparator.log_scale.data.fill_(0.7)
        comparator.bias.data.fill_(2.0)
    if isinstance(comparator, Network):
        # A network that has learned the right direction: differences speak against "same".
        comparator.hidden.weight.data.abs_()
        comparator.out.weight.data.abs_().neg_()
    return comparator


def embeddings(num: int, seed: int) -> Tensor:
    return torch.randn(num, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", COMPARATORS)
def test_matrix_and_pairwise_agree_with_a_loop(name: str) -> None:
    comparator, a_ND, b_MD = made(name), embeddings(5, 1), embeddings(4, 2)
    parts = {k: v.double().numpy() for k, v in comparator.state_dict().items()}
    expected = [[distance_of(name, a, b, parts) for b in b_MD.tolist()] for a in a_ND.tolist()]
    with torch.no_grad():
        np.testing.assert_allclose(comparator.matrix(a_ND, b_MD), expected, rtol=1e-4, atol=1e-5)
        pairs = comparator.pairwise(a_ND[:4], b_MD)
    np.testing.assert_allclose(pairs, np.diag(np.array(expected)[:4]), rtol=1e-4, atol=1e-5)


def test_values_by_hand() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    expected = {"euclidean": 5.0, "squared-euclidean": 25.0, "cosine": 1.0, "sigmoid": 5.0}
    for name, distance in expected.items():
        assert make_comparator(name, 2).pairwise(a, b).item() == pytest.approx(distance)
        assert make_comparator(name, 2).matrix(a, b).item() == pytest.approx(distance)
    opposite = make_comparator("cosine", 2).pairwise(a, -a)
    assert opposite.item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("num", [1, 2, 7, 33, 1001])
def test_an_embedding_is_exactly_no_distance_from_itself(name: str, num: int) -> None:
    torch.manual_seed(num)
    comparator = make_comparator(name, D)  # As it begins: a network knows no direction yet.
    a_ND = embeddings(num, num) * 10
    with torch.no_grad():
        assert (comparator.pairwise(a_ND, a_ND.clone()) == 0).all()


@pytest.mark.parametrize("name", COMPARATORS)
def test_a_closer_pair_has_a_smaller_distance(name: str) -> None:
    comparator = made(name)
    a_ND = embeddings(50, 3)
    step_ND = embeddings(50, 4) * 0.1
    with torch.no_grad():
        near_N = comparator.pairwise(a_ND, a_ND + step_ND)
        far_N = comparator.pairwise(a_ND, a_ND + 3 * step_ND)
    assert (near_N < far_N).all()
    assert (near_N > 0).all()


@pytest.mark.parametrize("name", COMPARATORS)
def test_distances_are_symmetric_and_never_negative(name: str) -> None:
    torch.manual_seed(5)
    comparator, a_ND, b_ND = make_comparator(name, D), embeddings(20, 5), embeddings(20, 6)
    with torch.no_grad():
        there, back = comparator.matrix(a_ND, b_ND), comparator.matrix(b_ND, a_ND).T
    torch.testing.assert_close(there, back)
    assert (there >= 0).all()


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("form", ["matrix", "pairwise"])
def test_gradients_are_finite_where_two_embeddings_coincide(name: str, form: str) -> None:
    emb_ND = embeddings(4, 7)
    emb_ND[1] = emb_ND[0]
    emb_ND.requires_grad_()
    comparator = made(name)
    dist = getattr(comparator, form)(emb_ND, emb_ND[[1, 0, 2, 3]])
    dist.sum().backward()
    assert emb_ND.grad is not None
    assert emb_ND.grad.isfinite().all()


@pytest.mark.parametrize("name", ["sigmoid", "network"])
def test_gradients_of_logits_are_finite_where_two_embeddings_coincide(name: str) -> None:
    emb_ND = embeddings(3, 7).requires_grad_()
    made(name).logits(emb_ND, emb_ND).sum().backward()
    assert emb_ND.grad is not None
    assert emb_ND.grad.isfinite().all()


def test_the_plain_root_of_the_squares_is_why() -> None:
    a = torch.ones(1, 2, requires_grad=True)
    (a - a.detach()).square().sum(1).sqrt().sum().backward()
    assert a.grad is not None
    assert a.grad.isnan().all()
    zero = torch.zeros(2, requires_grad=True)
    safe_sqrt(zero).sum().backward()
    assert zero.grad is not None
    assert (zero.grad == 0).all()
    four = torch.tensor(4.0, requires_grad=True)
    root = safe_sqrt(four)
    root.backward()
    assert (root.item(), four.grad.item()) == (2.0, 0.25)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", COMPARATORS)
def test_autocast_does_not_touch_the_distances(name: str) -> None:
    comparator, a_ND, b_ND = made(name), embeddings(40, 8), embeddings(40, 9)
    with torch.no_grad():
        plain = [comparator.matrix(a_ND, b_ND), comparator.pairwise(a_ND, b_ND)]
        with torch.autocast("cpu", torch.bfloat16):
            cast = [comparator.matrix(a_ND, b_ND), comparator.pairwise(a_ND, b_ND)]
    for expected, dist in zip(plain, cast, strict=True):
        assert dist.dtype == torch.float32
        torch.testing.assert_close(dist, expected)  # Products in bfloat16 would differ by 1e-2.


@pytest.mark.parametrize("name", ["sigmoid", "network"])
def test_logits_and_distances_have_one_order(name: str) -> None:
    torch.manual_seed(1)
    comparator = made(name) if name == "sigmoid" else make_comparator(name, D)
    a_ND, b_ND = embeddings(200, 10), embeddings(200, 11)
    with torch.no_grad():
        logit_N, dist_N = comparator.logits(a_ND, b_ND), comparator.pairwise(a_ND, b_ND)
        same = comparator.logits(a_ND[:1], a_ND[:1])
    # The network's distance stops at 0: what looks more alike than a copy is no closer than it.
    torch.testing.assert_close(dist_N, (same - logit_N).clamp_min(0), rtol=1e-4, atol=1e-5)
    if name == "sigmoid":
        assert (dist_N > 0).all()


def test_the_matrix_of_a_network_does_not_depend_on_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comparator, a_ND, b_MD = made("network"), embeddings(23, 12), embeddings(9, 13)
    with torch.no_grad():
        whole = comparator.matrix(a_ND, b_MD)
        for block in (1, 512 * 9 * 4, 512 * 9 * 5 + 3):
            monkeypatch.setattr(comparators, "BLOCK", block)
            torch.testing.assert_close(comparator.matrix(a_ND, b_MD), whole)
        assert comparator.matrix(a_ND[:0], b_MD).shape == (0, 9)


def test_cosine_ignores_lengths_and_handles_zero() -> None:
    cosine, a_ND, b_ND = make_comparator("cosine", D), embeddings(9, 14), embeddings(9, 15)
    torch.testing.assert_close(cosine.matrix(a_ND * 7, b_ND), cosine.matrix(a_ND, b_ND))
    zero_ND = torch.zeros(9, D)
    torch.testing.assert_close(cosine.matrix(zero_ND, b_ND)[0], cosine.pairwise(zero_ND, b_ND))


def test_numpy_in_and_out() -> None:
    comparison = TorchComparison(made("network"))
    a_ND = embeddings(5, 16).numpy()
    a_ND.flags.writeable = False
    for dist in (comparison.matrix(a_ND, a_ND), comparison.pairwise(a_ND, a_ND[::-1])):
        assert dist.dtype == np.float32
        assert not dist.flags.owndata or dist.flags.writeable
    assert comparison.pairwise(a_ND.astype(np.float64), a_ND).max() == 0


def test_making_one_draws_no_random_numbers_for_another() -> None:
    torch.manual_seed(3)
    make_comparator("cosine", D)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)


def test_an_unknown_comparator_names_the_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean cosine"):
        make_comparator("cosinus", D)
