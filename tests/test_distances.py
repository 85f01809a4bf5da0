"""Distances without torch are those of the comparators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison, unit
from twinlens.model.comparators import COMPARATORS, Sigmoid, TorchComparison, make_comparator


def embeddings(num: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


@pytest.mark.parametrize("name", EUCLIDEAN_COMPARATORS)
def test_agrees_with_the_comparator(name: str) -> None:
    comparator = make_comparator(name, 6)
    scale = 1.0
    if isinstance(comparator, Sigmoid):
        with torch.no_grad():
            comparator.log_scale.fill_(0.7)
        scale = float(np.exp(0.7))
    ours, theirs = EuclideanComparison(name, scale), TorchComparison(comparator)
    a, b = embeddings(5), embeddings(7, seed=1)
    np.testing.assert_allclose(ours.matrix(a, b), theirs.matrix(a, b), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.pairwise(a, b[:5]), theirs.pairwise(a, b[:5]), rtol=1e-5)
    np.testing.assert_allclose(
        ours.matrix(a, b)[np.arange(5), np.arange(5)], ours.pairwise(a, b[:5]), rtol=1e-4
    )


def test_only_the_learned_network_is_missing() -> None:
    assert set(COMPARATORS) - set(EUCLIDEAN_COMPARATORS) == {"network"}


def test_values_by_hand() -> None:
    a, b = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])
    assert EuclideanComparison("euclidean").pairwise(a, b) == 5
    assert EuclideanComparison("squared-euclidean").pairwise(a, b) == 25
    assert EuclideanComparison("sigmoid", 2.0).pairwise(a, b) == 10
    assert EuclideanComparison("cosine").pairwise(a, b) == pytest.approx(1)
    assert EuclideanComparison("cosine").pairwise(a, -2 * a) == pytest.approx(2)


@pytest.mark.parametrize("name", EUCLIDEAN_COMPARATORS)
def test_an_embedding_is_no_distance_from_itself(name: str) -> None:
    a = embeddings(50, 33)
    assert not EuclideanComparison(name).pairwise(a, a).any()


def test_unit_vectors_and_zeros() -> None:
    np.testing.assert_allclose(np.linalg.norm(unit(embeddings(4)), axis=1), 1, rtol=1e-6)
    assert not unit(np.zeros((1, 3), dtype=np.float32)).any()


@pytest.mark.parametrize("dim", [2, 48, 1280])
def test_equal_vectors_are_within_the_error_of_products(dim: int) -> None:
    """Wherever they lie in a matrix: at its edges a BLAS may add up in another order."""
    emb_ND = 10 + np.random.default_rng(0).normal(size=(97, dim))
    form = EuclideanComparison("euclidean").product_form(emb_ND)
    square_N = np.diagonal(form.left[:70] @ form.right.T) + form.square[:70]
    assert (np.abs(square_N) < form.error[:70]).all()
