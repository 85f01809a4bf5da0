"""A linear head's first weights in closed form: what varies within an identity counts for less.

Features of a frozen backbone are known before the first step, and so is how much each direction of
them varies between two pictures of one identity. Where pictures are few, a head from random weights
learns them by heart before it knows as much. This module knows features and labels only.

Shapes: N pictures, F features, K directions that are kept, D dimensions of the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["whiten", "whitened"]

EXACT, SPARE = 2048, 32
"""Rows or columns up to which all directions are computed; beyond, the first by Halko 2011."""

SHRINKAGE = 0.3
"""The share of the even covariance that stands in for the pictures that there are not."""


@torch.no_grad()
def whiten(layer: nn.Linear, features_NF: Tensor, label_N: Tensor) -> None:
    """Give a linear layer the weights that whiten its features within identities.

    Where D is more than the directions that can be known, the dimensions left over are zero.

    Args:
        layer: from F to D; its length of output is on average the square root of D.
        features_NF: of the training pictures.
        label_N: their identities.
    """
    weight_KF, mean_F = whitened(features_NF, label_N, layer.out_features)
    length = ((features_NF.double() - mean_F) @ weight_KF.T).square().sum(1).mean().sqrt()
    weight_KF = weight_KF * (layer.out_features**0.5 / length.clamp_min(1e-12))
    layer.weight.zero_()
    layer.weight[: len(weight_KF)] = weight_KF.to(layer.weight)
    if layer.bias is not None:
        layer.bias.zero_()
        layer.bias[: len(weight_KF)] = -(weight_KF @ mean_F).to(layer.bias)


def whitened(features_NF: Tensor, label_N: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The map (K, F) and the mean (F,), in float64, that whiten features within identities.

    Features are standardised, their `most` principal directions kept, and divided by the Cholesky
    factor of the covariance within identities, of which `SHRINKAGE` is an even one of the same
    trace (Hatch 2006, within-class covariance normalisation; Ledoit 2004 for the shrinkage).
    """
    x_NF = features_NF.double()
    mean_F, std_F = x_NF.mean(0), x_NF.std(0, correction=0)
    std_F = torch.where(
        std_F > 1e-6 * std_F.max(), std_F, torch.inf
    )  # What is constant says nothing.
    x_NF = (x_NF - mean_F) / std_F
    strength_R, right_RF = _directions(x_NF, most)
    known = int((strength_R > 1e-6 * strength_R[0]).sum())
    kept_KF = right_RF[: min(most, known)]
    within_KK = _within(x_NF @ kept_KF.T, label_N)
    even = within_KK.diagonal().mean()
    if even <= 0:  # No identity has two different pictures.
        return kept_KF / std_F, mean_F
    eye_KK = torch.eye(len(within_KK), dtype=torch.float64, device=within_KK.device)
    root_KK = torch.linalg.cholesky((1 - SHRINKAGE) * within_KK + SHRINKAGE * even * eye_KK)
    return torch.linalg.solve_triangular(root_KK, kept_KF, upper=False) / std_F, mean_F


def _directions(x_NF: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Singular values (R,), falling, and right vectors (R, F): all, or of many only the first."""
    if min(x_NF.shape) <= EXACT:
        _, strength_R, right_RF = torch.linalg.svd(x_NF, full_matrices=False)
        return strength_R, right_RF
    with torch.random.fork_rng(devices=[]):  # It draws where to look; the caller's must not move.
        torch.manual_seed(0)
        _, strength_R, right_FR = torch.svd_lowrank(x_NF, q=most + SPARE, niter=6)
    return strength_R, right_FR.T


def _within(z_NK: Tensor, label_N: Tensor) -> Tensor:
    """The covariance (K, K) of what is left when each identity's mean is taken off."""
    _, place_N = torch.unique(label_N, return_inverse=True)
    sum_CK = z_NK.new_zeros(int(place_N.max()) + 1, z_NK.shape[1]).index_add_(0, place_N, z_NK)
    mean_CK = sum_CK / place_N.bincount()[:, None]
    rest_NK = z_NK - mean_CK[place_N]
    within_KK: Tensor = rest_NK.T @ rest_NK / len(rest_NK)
    return within_KK
