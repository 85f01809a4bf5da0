"""Losses: from the distances of a batch to a scalar.

A batch is a pool of pairs. `genuine_BB` and `impostor_BB` are masks of its pairs, both symmetric
and without the diagonal; a pair of two forged pictures is in neither. Half precision is widened to
float32. Without pairs a loss is 0 with a gradient of zeros, never NaN. Other losses come by name
from pytorch-metric-learning (`pml`).

Shapes: B pictures, A of them as anchors, D dimensions, Q pairs and T triplets drawn literally,
P most positives of an anchor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from twinlens.config import LossSettings
from twinlens.errors import ConfigError, unknown_name
from twinlens.learn.mining import (
    Candidates,
    active_triplets,
    hardest,
    positives_of,
    semi_hard_negatives,
)
from twinlens.learn.pml import PML, pml_loss
from twinlens.model.comparators import at_least_float32
from twinlens.model.plugged_in import is_plugged_in, plugged

__all__ = [
    "LOSSES",
    "bce",
    "check_loss",
    "classes",
    "contrastive",
    "contrastive_terms",
    "hinge",
    "miner",
    "supcon",
    "supcon_terms",
    "triplet",
    "triplet_given",
    "triplet_terms",
]

# Triplets in memory at once for the soft margin over all triplets.
_BLOCK = 1 << 22
# Subtracted from a logit, it makes its share 0.
_NEVER = 1e30


def contrastive(dist: Tensor, genuine: Tensor, impostor: Tensor, margin: float) -> Tensor:
    """Half the mean of d^2 over genuine, plus half the mean of max(margin - d, 0)^2 over impostor.

    Hadsell, Chopra, LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping".
    Genuine and impostor pairs have the same total weight, whatever their numbers. With equal
    numbers this is the mean over all pairs of y d^2 + (1 - y) max(margin - d, 0)^2: twice the mean
    of the paper's terms, which have a factor of 1/2.

    Args:
        dist: distances of any shape, (B, B) or (Q,).
        genuine: mask, shape of `dist`.
        impostor: mask, shape of `dist`.
        margin: distance from which on an impostor pair has no gradient.

    >>> dist, genuine = torch.tensor([0.5, 0.2]), torch.tensor([True, False])
    >>> round(contrastive(dist, genuine, ~genuine, margin=1.0).item(), 3)
    0.445
    """
    dist = at_least_float32(dist)
    gap = (margin - dist).clamp_min(0)
    return 0.5 * (_mean_of(dist.square(), genuine) + _mean_of(gap.square(), impostor))


def contrastive_terms(
    dist: Tensor, genuine: Tensor, impostor: Tensor, margin: float, num: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The sum of the terms of some pairs, and their number.

    `num` holds the numbers of all genuine and impostor pairs; the mean of all terms is the loss.
    """
    dist = at_least_float32(dist)
    pull, push = (sum(num) / (2 * max(count, 1)) for count in num)
    # Masks as numbers, and ReLU as a clamp: several times as fast in torch as the others.
    genuine, impostor = genuine.to(dist.dtype), impostor.to(dist.dtype)
    weighted = genuine * (pull * dist.square()) + impostor * (push * F.relu(margin - dist).square())
    return weighted.sum(), (genuine.sum() + impostor.sum()).long()


def triplet(
    dist_BB: Tensor,
    genuine_BB: Tensor,
    impostor_BB: Tensor,
    margin: float,
    mining: str = "all",
    soft: bool = False,
) -> Tensor:
    """The mean of max(d_ap - d_an + margin, 0) over the triplets of a mining.

    "all": every triplet of the pool. The mean is over the active (non-zero) ones; a mean over all
        of them vanishes when few are active (Hermans, Beyer, Leibe 2017 compare both). Exact,
        without B^3 memory.
    "semi-hard": for each (anchor, positive) the nearest negative with d_ap < d_an < d_ap + margin
        (Schroff, Kalenichenko, Philbin 2015); all of these are active.
    "hardest": for each anchor the farthest positive and the nearest negative (Hermans 2017, batch
        hard); the mean is over all anchors, active or not, as in the paper.

    With `soft` the term is softplus(d_ap - d_an) = log(1 + exp(d_ap - d_an)) (Hermans 2017). It is
    never 0, so "all" is then the mean over all triplets, computed in blocks of anchors so that
    memory stays near B^2. The margin then only chooses semi-hard triplets.

    Args:
        dist_BB: distances, (B, B).
        genuine_BB: mask, (B, B).
        impostor_BB: mask, (B, B).
        margin: margin in units of distance.
        mining: "all", "semi-hard" or "hardest".
        soft: soft margin instead of the hinge.

    Raises:
        ConfigError: an unknown `mining`.
    """
    if mining == "all":
        total, count = triplet_terms(dist_BB, genuine_BB, impostor_BB, margin, soft)
        return total / count.clamp_min(1)
    candidates = Candidates.of(at_least_float32(dist_BB.detach()), genuine_BB, impostor_BB)
    return triplet_given(dist_BB, miner(mining, margin)(candidates), margin, soft)


def triplet_terms(
    dist_AB: Tensor, genuine_AB: Tensor, impostor_AB: Tensor, margin: float, soft: bool = False
) -> tuple[Tensor, Tensor]:
    """The sum of the terms of all triplets of some anchors, (A, B), and their number."""
    over_all = _soft_over_all if soft else partial(_hinge_over_all, margin=margin)
    return over_all(at_least_float32(dist_AB), genuine_AB, impostor_AB)


def miner(mining: str, margin: float) -> Callable[[Candidates], Tensor]:
    """The function from candidates to "semi-hard" or "hardest" triplets: positions, (T, 3).

    Raises:
        ConfigError: an unknown `mining`.
    """
    if mining == "semi-hard":
        return partial(semi_hard_negatives, margin=margin)
    if mining == "hardest":
        return hardest
    raise ConfigError(unknown_name("loss.mining", mining, ["all", "semi-hard", "hardest"]))


def triplet_given(
    dist_BB: Tensor, triplets_T3: Tensor, margin: float, soft: bool = False
) -> Tensor:
    """The mean of max(d_ap - d_an + margin, 0) over literal triplets, active or not.

    Args:
        dist_BB: distances, (B, B).
        triplets_T3: positions of anchor, positive and negative, int64, (T, 3).
        margin: margin in units of distance; unused with `soft`.
        soft: softplus(d_ap - d_an) instead of the hinge.
    """
    anchor_T, positive_T, negative_T = triplets_T3.unbind(dim=1)
    dist_BB = at_least_float32(dist_BB)
    value_T = hinge(dist_BB[anchor_T, positive_T], dist_BB[anchor_T, negative_T], margin, soft)
    return value_T.sum() / max(len(triplets_T3), 1)


def hinge(positive_T: Tensor, negative_T: Tensor, margin: float, soft: bool = False) -> Tensor:
    """The terms of `triplet`, from the distances of positives and of negatives, (T,)."""
    difference_T = positive_T - negative_T
    return F.softplus(difference_T) if soft else (difference_T + margin).clamp_min(0)


def bce(logit: Tensor, same: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of pairs; genuine and impostor pairs have the same total weight.

    Half the mean of -log(sigmoid(logit)) over genuine pairs plus half the mean of
    -log(1 - sigmoid(logit)) over impostor pairs; with equal numbers the mean over all pairs.

    Args:
        logit: log-odds that a pair is genuine, any shape, such as (Q,).
        same: mask of genuine pairs, shape of `logit`.
        smoothing: label smoothing (Szegedy 2016, arXiv 1512.00567): the target of a genuine pair is
            1 - smoothing / 2, that of an impostor pair smoothing / 2.
    """
    logit = at_least_float32(logit)
    as_genuine, as_impostor = F.softplus(-logit), F.softplus(logit)
    if smoothing:
        as_genuine, as_impostor = (
            torch.lerp(as_genuine, as_impostor, smoothing / 2),
            torch.lerp(as_impostor, as_genuine, smoothing / 2),
        )
    return 0.5 * (_mean_of(as_genuine, same) + _mean_of(as_impostor, ~same))


def supcon(dist_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out) on distances.

    The mean over anchors of -1/|P(a)| sum over p in P(a) of log(exp(l_ap) / sum over n in A(a) of
    exp(l_an)), l = -dist / temperature. For the cosine distance 1 - s this is the paper's loss,
    since a shift of all logits cancels. P(a) are the positives of an anchor, and A(a) its positives
    and impostors; a pair of two forged pictures is in neither. Anchors have a positive.

    Impostors may have weights in the sum over A(a), which the paper does not have.

    Args:
        dist_BB: distances, (B, B).
        genuine_BB: mask, (B, B).
        impostor_BB: mask, or weights of at least 0, (B, B).
        temperature: temperature in units of distance; at a low one the nearest impostors dominate.
    """
    total, count = supcon_terms(dist_BB, genuine_BB, impostor_BB, temperature)
    return total / count.clamp_min(1)


def supcon_terms(
    dist_AB: Tensor, genuine_AB: Tensor, impostor_AB: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The sum of the terms of `supcon` for some anchors, (A, B), and their number."""
    logit_AB = at_least_float32(dist_AB) / -temperature
    weighted = impostor_AB.is_floating_point()
    genuine_AB, impostor_AB = genuine_AB.to(logit_AB.dtype), impostor_AB.to(logit_AB.dtype)
    num_genuine_A = genuine_AB.sum(dim=1)
    anchor_A = (num_genuine_A > 0).to(logit_AB.dtype)
    # Finite, so that rows without a pair have no NaN in their gradient.
    if weighted:
        counted_AB = logit_AB + (genuine_AB + impostor_AB).log().clamp_min(-_NEVER)
    else:
        counted_AB = logit_AB.sub(1 - genuine_AB - impostor_AB, alpha=_NEVER)
    all_A = counted_AB.logsumexp(dim=1)
    genuine_A = (logit_AB * genuine_AB).sum(dim=1) / num_genuine_A.clamp_min(1)
    return ((all_A - genuine_A) * anchor_A).sum(), anchor_A.sum().long()


def classes(emb_BD: Tensor, label_B: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, for embeddings that are square roots of the identities' probabilities.

    The cosine similarity of two such embeddings is the sum of sqrt(p q) over the identities, the
    affinity of Bhattacharyya 1943: near 1 if both pictures have the same probable identities. For
    closed sets.

    Args:
        emb_BD: embeddings of length 1 without negative numbers, (B, D).
        label_B: identities, int64 below D, (B,).
        smoothing: label smoothing: the share of the target that is spread over all D identities.
    Returns:
        The mean of -log p of the true identity, (); 0 with a gradient without pictures.
    """
    log_BD = 2 * at_least_float32(emb_BD).clamp_min(1e-30).log()
    true_B = log_BD.gather(1, label_B[:, None])[:, 0]
    target_B = torch.lerp(true_B, log_BD.mean(1), smoothing) if smoothing else true_B
    return -target_B.sum() / max(len(label_B), 1)


LOSSES = ("classes", "contrastive", "triplet", "bce", "supcon")


def check_loss(settings: LossSettings) -> None:
    """Refuse an unknown loss or unknown arguments before any work is done.

    Raises:
        ConfigError: the message lists similar names.
        MissingExtraError: the loss needs an optional dependency.
    """
    if settings.name.startswith(PML):
        with torch.random.fork_rng(devices=[]):  # A loss may draw its weights.
            pml_loss(settings.name, settings.args, num_classes=2, embedding_size=2)
    elif is_plugged_in(settings.name):
        plugged("loss", settings.name)
    elif settings.name not in LOSSES:
        raise ConfigError(unknown_name("loss", settings.name, [*LOSSES, "pml:ClassName"]))
    elif settings.args:
        raise ConfigError(
            f"loss.args is for pml: losses, found {', '.join(sorted(settings.args))} with "
            f"'{settings.name}': set loss.margin, loss.temperature, loss.mining or loss.soft"
        )


def _mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over a mask; 0 with a gradient if it is empty."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def _hinge_over_all(
    dist_AB: Tensor, genuine_AB: Tensor, impostor_AB: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    weight_AB, count = active_triplets(dist_AB.detach(), genuine_AB, impostor_AB, margin)
    # Rows first: their weights cancel, which keeps digits that one sum would lose.
    total = (weight_AB * dist_AB).sum(dim=1).sum()
    return total + margin * count, count


def _soft_over_all(
    dist_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of softplus(d_ap - d_an) over all triplets; value and gradient in one pass."""
    with torch.no_grad():
        column_BP, real_BP = positives_of(genuine_BB)
        weight_BB = torch.zeros_like(dist_BB)
        total = dist_BB.new_zeros((), dtype=torch.float64)
        rows = max(1, _BLOCK // max(1, column_BP.shape[1] * dist_BB.shape[1]))
        for low in range(0, len(dist_BB), rows):
            part = slice(low, low + rows)
            positive_AP = dist_BB[part].gather(1, column_BP[part])
            difference_APB = positive_AP[:, :, None] - dist_BB[part, None, :]
            valid_APB = real_BP[part, :, None] & impostor_BB[part, None, :]
            total += F.softplus(difference_APB).masked_fill_(~valid_APB, 0).sum(dtype=torch.float64)
            slope_APB = difference_APB.sigmoid_().masked_fill_(~valid_APB, 0)
            weight_BB[part] -= slope_APB.sum(dim=1)
            weight_BB[part].scatter_add_(1, column_BP[part], slope_APB.sum(dim=2))
        count = (genuine_BB.sum(dim=1) * impostor_BB.sum(dim=1)).sum()
    # Its value is 0, its gradient the weights.
    slope = (weight_BB * (dist_BB - dist_BB.detach())).sum()
    return total.to(dist_BB.dtype) + slope, count
