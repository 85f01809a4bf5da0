"""Which triplets of a batch to learn from: masks and distances in, positions or weights out.

Small functions without state or gradient. A batch is a pool of pairs: `genuine_BB` marks the
pairs of one thing, `impostor_BB` the pairs of two, and what is in neither (the diagonal, two
forged pictures) is in no triplet. No function needs memory beyond a few B x B matrices, though
there are up to B^3 triplets. This module knows nothing of embeddings, losses or batches' origin.

Shapes: B pictures, as anchors (rows) and as partners (columns); P the most positives that an
anchor has; T triplets of positions (anchor, positive, negative).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["active_triplets", "hardest", "positives_of", "semi_hard_negatives"]

# Up to so many positives an anchor, comparing with each in turn is faster than a binary search
# (measured on two cores: at 3 positives 10 times, at 32 about the same).
_FEW = 32


def positives_of(genuine_BB: Tensor) -> tuple[Tensor, Tensor]:
    """The positives of each anchor, as a table.

    Returns:
        Columns of the positives, (B, P), ascending, filled up with 0; and which of them are
        real, boolean, (B, P).
    """
    row_G, column_G = genuine_BB.nonzero(as_tuple=True)
    count_B = genuine_BB.sum(dim=1)
    most = int(count_B.max()) if count_B.numel() else 0
    slot_G = torch.arange(len(row_G), device=row_G.device)
    slot_G = slot_G - (count_B.cumsum(0) - count_B)[row_G]
    column_BP = genuine_BB.new_zeros((len(count_B), most), dtype=torch.int64)
    column_BP[row_G, slot_G] = column_G
    slots_P = torch.arange(most, device=row_G.device)
    return column_BP, slots_P < count_B[:, None]


@torch.no_grad()
def active_triplets(
    dist_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """In how many active triplets each pair stands, of all triplets there are.

    A triplet (a, p, n) is active when d_ap + margin - d_an > 0. The sum of the active terms is
    linear in the distances, so these counts are its whole gradient:
    sum = (weight_BB * dist_BB).sum() + margin * count, exactly, ties included.

    Time O(B^2 log P), memory O(B^2): each anchor's negatives are sorted into the gaps between its
    positives' distances and counted there.

    Args:
        dist_BB: distances, float32 or wider, (B, B).
        genuine_BB: boolean, (B, B).
        impostor_BB: boolean, (B, B).
        margin: in units of distance.

    Returns:
        weight_BB in `dist_BB`'s type: for a genuine pair the number of active triplets, for an
        impostor pair minus that number, else 0. And the number of active triplets, int64, ().
    """
    column_BP, real_BP = positives_of(genuine_BB)
    num, most = column_BP.shape
    # Absent positives reach nothing: their limit lies below every distance.
    limit_BP = (dist_BB.gather(1, column_BP) + margin).masked_fill(~real_BP, -torch.inf)
    limit_BP, order_BP = limit_BP.sort(dim=1)
    gap_BB = _num_below(limit_BP, dist_BB, ties=True)
    # Negatives in gap g lie below the limits g, g + 1, ... P - 1; gap P + 1 holds the others.
    bin_BB = gap_BB.masked_fill(~impostor_BB, most + 1)
    bin_BB = bin_BB + torch.arange(num, device=bin_BB.device)[:, None] * (most + 2)
    in_gap = torch.bincount(bin_BB.flatten(), minlength=num * (most + 2)).view(num, most + 2)
    active_BP = in_gap[:, :most].cumsum(dim=1)
    weight_BB = (gap_BB - most).masked_fill_(~impostor_BB, 0).to(dist_BB.dtype)
    partner_BP = column_BP.gather(1, order_BP)
    weight_BB.scatter_add_(1, partner_BP, active_BP.to(dist_BB.dtype))
    return weight_BB, active_BP.sum()


@torch.no_grad()
def semi_hard_negatives(
    dist_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor, margin: float
) -> Tensor:
    """For each (anchor, positive) pair the nearest negative that is farther than the positive.

    Schroff, Kalenichenko, Philbin 2015, "FaceNet": d_ap < d_an < d_ap + margin, chosen for each
    pair by itself. Pairs without such a negative are left out. Of equally near negatives the one
    in the first column is taken.

    Args:
        dist_BB: distances, float32 or wider, (B, B).
        genuine_BB: boolean, (B, B).
        impostor_BB: boolean, (B, B).
        margin: in units of distance.

    Returns:
        Positions (anchor, positive, negative), int64, (T, 3), T at most the genuine pairs.
    """
    column_BP, real_BP = positives_of(genuine_BB)
    near_BP = dist_BB.gather(1, column_BP).masked_fill(~real_BP, -torch.inf)
    near_BP, order_BP = near_BP.sort(dim=1)
    gap_BB = _num_below(near_BP, dist_BB, ties=False)
    value_BP, negative_BP = _nearest_beyond(dist_BB, impostor_BB, gap_BB, near_BP.shape[1])
    found_BP = (value_BP < near_BP + margin) & (near_BP > -torch.inf)
    row_T, slot_T = found_BP.nonzero(as_tuple=True)
    positive_T = column_BP.gather(1, order_BP)[row_T, slot_T]
    return torch.stack([row_T, positive_T, negative_BP[row_T, slot_T]], dim=1)


@torch.no_grad()
def hardest(dist_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor) -> Tensor:
    """For each anchor its farthest positive and its nearest negative.

    "Batch hard" of Hermans, Beyer, Leibe 2017, "In Defense of the Triplet Loss". Anchors without
    a positive or without a negative are left out.

    Args:
        dist_BB: distances, float32 or wider, (B, B).
        genuine_BB: boolean, (B, B).
        impostor_BB: boolean, (B, B).

    Returns:
        Positions (anchor, positive, negative), int64, (T, 3), T at most B.
    """
    anchor_T = (genuine_BB.any(dim=1) & impostor_BB.any(dim=1)).nonzero()[:, 0]
    if anchor_T.numel() == 0:
        return anchor_T.new_zeros((0, 3))
    dist_TB = dist_BB[anchor_T]
    positive_T = dist_TB.masked_fill(~genuine_BB[anchor_T], -torch.inf).argmax(dim=1)
    negative_T = dist_TB.masked_fill(~impostor_BB[anchor_T], torch.inf).argmin(dim=1)
    return torch.stack([anchor_T, positive_T, negative_T], dim=1)


def _num_below(limit_BP: Tensor, dist_BB: Tensor, *, ties: bool) -> Tensor:
    """How many of its row's sorted limits lie below each distance (or at it, with `ties`)."""
    if limit_BP.shape[1] > _FEW:
        return torch.searchsorted(limit_BP, dist_BB.contiguous(), right=ties)
    num_BB = torch.zeros_like(dist_BB, dtype=torch.uint8)
    for limit_B in limit_BP.unbind(dim=1):
        num_BB += (limit_B[:, None] <= dist_BB) if ties else (limit_B[:, None] < dist_BB)
    return num_BB.long()


def _nearest_beyond(
    dist_BB: Tensor, impostor_BB: Tensor, gap_BB: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """For each sorted positive its nearest impostor in a later gap: distance and column, (B, P)."""
    other_BB = dist_BB.masked_fill(~impostor_BB, torch.inf)
    least_BG = dist_BB.new_full((len(dist_BB), most + 1), torch.inf)
    least_BG.scatter_reduce_(1, gap_BB, other_BB, "amin")
    is_least_BB = (least_BG.gather(1, gap_BB) == dist_BB) & impostor_BB
    row_L, column_L = is_least_BB.nonzero(as_tuple=True)
    where_BG = torch.full_like(least_BG, dist_BB.shape[1], dtype=torch.int64)
    place_L = row_L * (most + 1) + gap_BB[row_L, column_L]
    where_BG.view(-1).scatter_reduce_(0, place_L, column_L, "amin")
    # The best of gap j + 1 and all later ones.
    value_BG, gap_BG = least_BG.flip(1).cummin(dim=1)
    value_BG, gap_BG = value_BG.flip(1), most - gap_BG.flip(1)
    return value_BG[:, 1:], where_BG.gather(1, gap_BG)[:, 1:]
