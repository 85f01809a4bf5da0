"""Weights of a linear head in closed form: whitening within identities, and class logits.

With a frozen backbone the features are known before the first step, and so is their variance within
identities. With few pictures a head from random weights overfits before it learns as much.

Shapes: N pictures, C identities, F features, R singular values, K directions that are kept,
D dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from twinlens.model.layers import CONSTANT

__all__ = ["discriminant_head", "project_head", "whiten_head", "whitening_transform"]

EXACT, SPARE = 512, 32
"""Rows or columns up to which the SVD is complete; beyond, the first directions by Halko 2011."""

FEW_NUMBERS = 1 << 20
"""Features of all pictures for which one thread is faster than two."""

DISCRIMINANTS = 512
"""Directions in which classes are told apart; 128 told groceries apart worse."""

TEMPERATURE = 4.0
"""Of class probabilities; from 1 to 8 all errors differ little (benchmarks/NOTES.md)."""

NEVER = -1e4
"""Logit of a class without pictures."""

SHRINKAGE = 0.3
"""Share of the spherical covariance in the shrunk one (Ledoit 2004)."""


@torch.no_grad()
def whiten_head(layer: nn.Linear, features_NF: Tensor, label_N: Tensor) -> None:
    """Set the weights of a linear layer so that it whitens features within identities.

    If D exceeds the number of directions with variance, the other dimensions are zero.

    Args:
        layer: linear layer from F to D; the RMS length of its output becomes the root of D.
        features_NF: features of the training pictures.
        label_N: their identities.
    """
    with _fast_threads(features_NF):
        weight_KF, mean_F = whitening_transform(features_NF, label_N, layer.out_features)
        length = ((features_NF.double() - mean_F) @ weight_KF.T).square().sum(1).mean().sqrt()
    weight_KF = weight_KF * (layer.out_features**0.5 / length.clamp_min(1e-12))
    layer.weight.zero_()
    layer.weight[: len(weight_KF)] = weight_KF.to(layer.weight)
    if layer.bias is not None:
        layer.bias.zero_()
        layer.bias[: len(weight_KF)] = -(weight_KF @ mean_F).to(layer.bias)


@torch.no_grad()
def discriminant_head(layer: nn.Linear, features_NF: Tensor, label_N: Tensor) -> None:
    """Set the weights of a linear layer to the logits of a linear discriminant analysis.

    The features of each class are taken as normal with one covariance, and classes as equally
    frequent (Hastie 2009, section 4.3). Since that covariance is estimated, the probabilities are
    too sure: the logits are divided by `TEMPERATURE`.

    Args:
        layer: linear layer from F to C.
        features_NF: features of the training pictures.
        label_N: their classes, below C; one without pictures gets a probability of 0.
    """
    with _fast_threads(features_NF):
        weight_KF, mean_F = whitening_transform(features_NF, label_N, DISCRIMINANTS)
        z_NK = (features_NF.double() - mean_F) @ weight_KF.T
    num_C = label_N.bincount(minlength=layer.out_features)
    sum_CK = z_NK.new_zeros(layer.out_features, z_NK.shape[1]).index_add_(0, label_N, z_NK)
    center_CK = sum_CK / num_C.clamp_min(1)[:, None] / TEMPERATURE
    weight_CF = center_CK @ weight_KF
    bias_C = -TEMPERATURE * center_CK.square().sum(1) / 2 - weight_CF @ mean_F
    layer.weight.copy_(weight_CF)
    layer.bias.copy_(bias_C.where(num_C > 0, NEVER))


@torch.no_grad()
def project_head(layer: nn.Linear, features_NF: Tensor) -> None:
    """Set the weights of a linear layer so that it keeps the angles between features.

    It maps to their first singular vectors, without a shift.

    Args:
        layer: linear layer from F to D.
        features_NF: features of the training pictures.
    """
    with _fast_threads(features_NF):
        _, right_RF = _directions(features_NF.double(), layer.out_features)
    kept_KF = right_RF[: layer.out_features]
    layer.weight.zero_()
    layer.weight[: len(kept_KF)] = kept_KF.to(layer.weight)
    layer.bias.zero_()


def whitening_transform(
    features_NF: Tensor, label_N: Tensor, max_directions: int
) -> tuple[Tensor, Tensor]:
    """The map (K, F) and the mean (F,), float64, that whiten features within identities.

    Features are standardised and projected on at most `max_directions` principal directions. They
    are divided by the Cholesky factor of the covariance within identities, which is shrunk towards
    a spherical one of the same trace (Hatch 2006, within-class covariance normalisation; Ledoit
    2004 for the shrinkage).
    """
    x_NF = features_NF.double()
    mean_F, std_F = x_NF.mean(0), x_NF.std(0, correction=0)
    # Almost constant features become 0: enlarged, their rounding would decide.
    std_F = torch.where(std_F > CONSTANT * std_F.max(), std_F, torch.inf)
    x_NF = (x_NF - mean_F) / std_F
    singular_R, right_RF = _directions(x_NF, max_directions)
    rank = int((singular_R > 1e-6 * singular_R[0]).sum())
    kept_KF = right_RF[: min(max_directions, rank)]
    within_KK = _within(x_NF @ kept_KF.T, label_N)
    variance = within_KK.diagonal().mean()
    if variance <= 0:  # No identity has two different pictures.
        return kept_KF / std_F, mean_F
    eye_KK = torch.eye(len(within_KK), dtype=torch.float64, device=within_KK.device)
    root_KK = torch.linalg.cholesky((1 - SHRINKAGE) * within_KK + SHRINKAGE * variance * eye_KK)
    return torch.linalg.solve_triangular(root_KK, kept_KF, upper=False) / std_F, mean_F


def _directions(x_NF: Tensor, max_directions: int) -> tuple[Tensor, Tensor]:
    """Singular values (R,), descending, and right singular vectors (R, F): all, or the first."""
    if min(x_NF.shape) <= EXACT:
        _, singular_R, right_RF = torch.linalg.svd(x_NF, full_matrices=False)
        return singular_R, right_RF
    with torch.random.fork_rng(devices=[]):  # It draws from the caller's generator.
        torch.manual_seed(0)
        # In float32, twice as fast; the directions need be no more exact.
        _, singular_R, right_FR = torch.svd_lowrank(x_NF.float(), max_directions + SPARE, niter=4)
    return singular_R.double(), right_FR.T.double()


@contextmanager
def _fast_threads(features_NF: Tensor) -> Iterator[None]:
    """One thread for small matrices, whose decompositions take two to four times as long on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if features_NF.numel() <= FEW_NUMBERS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _within(z_NK: Tensor, label_N: Tensor) -> Tensor:
    """The covariance (K, K) within identities: of the differences from each identity's mean."""
    _, code_N = torch.unique(label_N, return_inverse=True)
    sum_CK = z_NK.new_zeros(int(code_N.max()) + 1, z_NK.shape[1]).index_add_(0, code_N, z_NK)
    mean_CK = sum_CK / code_N.bincount()[:, None]
    rest_NK = z_NK - mean_CK[code_N]
    within_KK: Tensor = rest_NK.T @ rest_NK / len(rest_NK)
    return within_KK
