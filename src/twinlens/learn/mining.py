"""Which triplets of a batch to learn from: masks and distances in, positions or weights out.

Small functions without state or gradient. A batch is a pool of pairs: `genuine_BB` marks the
pairs of one thing, `impostor_BB` the pairs of two, and what is in neither (the diagonal, two
forged pictures) is in no triplet. No function needs memory beyond a few B x B matrices, though
there are up to B^3 triplets. This module knows nothing of embeddings, losses or batches' origin.

Shapes: B pictures, as anchors (rows, which may be A of them only) and as partners (columns); P the
most positives that an anchor has; T triplets of positions (anchor, positive, negative).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "NO_PAIR",
    "Candidates",
    "active_triplets",
    "hardest",
    "positives_of",
    "semi_hard_negatives",
]

# Up to so many positives an anchor, comparing with each in turn is faster than a binary search
# (measured on two cores: at 3 positives 10 times, at 32 about the same).
_FEW = 32
# Stands for "no such pair": beyond every distance, and still a number when it is added.
NO_PAIR = 1e30


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

    Time O(B^2 log P), memory O(B^2): an anchor's negatives are compared with each of its positives
    where these are few, else sorted into the gaps between them.

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
    # Absent positives reach nothing: their limit lies below every distance.
    limit_BP = (dist_BB.gather(1, column_BP) + margin).masked_fill_(~real_BP, -torch.inf)
    count = _count_one_by_one if limit_BP.shape[1] <= _FEW else _count_by_gaps
    weight_BB, active_BP = count(limit_BP, _only(impostor_BB, dist_BB))
    weight_BB.scatter_add_(1, column_BP, active_BP)
    return weight_BB, active_BP.sum(dtype=torch.float64).long()


def _count_one_by_one(limit_BP: Tensor, other_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the limits above each distance, (B, B), and the distances below each limit, (B, P)."""
    weight_BB, below_BB = torch.zeros_like(other_BB), torch.empty_like(other_BB)
    active_BP = torch.empty_like(limit_BP)
    for slot, limit_B in enumerate(limit_BP.unbind(dim=1)):
        # As numbers, since torch is several times slower at masks.
        torch.lt(other_BB, limit_B[:, None], out=below_BB)
        weight_BB -= below_BB
        active_BP[:, slot] = below_BB.sum(dim=1)
    return weight_BB, active_BP


def _count_by_gaps(limit_BP: Tensor, other_BB: Tensor) -> tuple[Tensor, Tensor]:
    """The same, by sorting each row's distances into the gaps between its sorted limits."""
    num, most = limit_BP.shape
    sorted_BP, order_BP = limit_BP.sort(dim=1)
    gap_BB = torch.searchsorted(sorted_BP, other_BB, right=True)
    # Distances in gap g lie below the limits g, g + 1, ... P - 1.
    bin_BB = gap_BB + torch.arange(num, device=gap_BB.device)[:, None] * (most + 1)
    in_gap = torch.bincount(bin_BB.flatten(), minlength=num * (most + 1)).view(num, most + 1)
    below_BP = in_gap[:, :most].cumsum(dim=1).to(limit_BP.dtype)
    return (gap_BB - most).to(other_BB.dtype), torch.empty_like(limit_BP).scatter_(
        1, order_BP, below_BP
    )


@dataclass(frozen=True, eq=False)
class Candidates:
    """What each of some anchors may choose from: a table of positives, a row of negatives.

    Attributes:
        column: the positives, ascending, int64, (A, P); anything where they are not real.
        near: their distances, (A, P).
        real: which of them there are, boolean, (A, P).
        other: distances, (A, B); `NO_PAIR` or more for all that are no impostors.
    """

    column: Tensor
    near: Tensor
    real: Tensor
    other: Tensor

    @classmethod
    def of(cls, dist_AB: Tensor, genuine_AB: Tensor, impostor_AB: Tensor) -> Candidates:
        """Those that two masks mark."""
        column_AP, real_AP = positives_of(genuine_AB)
        near_AP = dist_AB.gather(1, column_AP)
        return cls(column_AP, near_AP, real_AP, _only(impostor_AB, dist_AB))


@torch.no_grad()
def semi_hard_negatives(found: Candidates, margin: float) -> Tensor:
    """For each (anchor, positive) pair the nearest negative that is farther than the positive.

    Schroff, Kalenichenko, Philbin 2015, "FaceNet": d_ap < d_an < d_ap + margin, chosen for each
    pair by itself. Pairs without such a negative are left out. Of equally near negatives the one
    in the first column is taken.

    Args:
        found: what there is to choose from.
        margin: in units of distance.

    Returns:
        Positions (anchor, positive, negative), int64, (T, 3), T at most the genuine pairs.
    """
    near_AP = found.near.masked_fill(~found.real, torch.inf)
    find = _next_one_by_one if near_AP.shape[1] <= _FEW else _next_by_gaps
    value_AP, negative_AP = find(near_AP, found.other)
    # An absent positive's limit, and an absent negative's distance, is `NO_PAIR` or more.
    row_T, slot_T = (value_AP < (near_AP + margin).clamp_max_(NO_PAIR)).nonzero(as_tuple=True)
    column_T, negative_T = found.column[row_T, slot_T], negative_AP[row_T, slot_T]
    return torch.stack([row_T, column_T, negative_T], dim=1)


@torch.no_grad()
def hardest(found: Candidates) -> Tensor:
    """For each anchor its farthest positive and its nearest negative.

    "Batch hard" of Hermans, Beyer, Leibe 2017, "In Defense of the Triplet Loss". Anchors without
    a positive or without a negative are left out. Of equally far or near ones the first column is
    taken.

    Returns:
        Positions (anchor, positive, negative), int64, (T, 3), T at most A.
    """
    if found.near.numel() == 0:
        return found.column.new_zeros((0, 3))
    far_A, slot_A = found.near.masked_fill(~found.real, -1).max(dim=1)
    near_A, negative_A = _least(found.other)
    positive_A = found.column.gather(1, slot_A[:, None])[:, 0]
    anchor_T = ((far_A >= 0) & (near_A < NO_PAIR)).nonzero()[:, 0]
    return torch.stack([anchor_T, positive_A[anchor_T], negative_A[anchor_T]], dim=1)


def _next_one_by_one(near_BP: Tensor, other_BB: Tensor) -> tuple[Tensor, Tensor]:
    """For each positive its nearest impostor beyond it: distance and column, (B, P)."""
    nearer_BB = torch.empty_like(other_BB)
    value_BP = torch.empty_like(near_BP)
    column_BP = torch.empty_like(near_BP, dtype=torch.int64)
    for slot, near_B in enumerate(near_BP.unbind(dim=1)):
        torch.le(other_BB, near_B[:, None], out=nearer_BB)
        value_BP[:, slot], column_BP[:, slot] = _least(other_BB.add(nearer_BB, alpha=NO_PAIR))
    return value_BP, column_BP


def _next_by_gaps(near_BP: Tensor, other_BB: Tensor) -> tuple[Tensor, Tensor]:
    """The same, by sorting each row's distances into the gaps between its sorted positives."""
    sorted_BP, order_BP = near_BP.sort(dim=1)
    gap_BB = torch.searchsorted(sorted_BP, other_BB)
    value_BP, column_BP = _nearest_beyond(other_BB, gap_BB, near_BP.shape[1])
    value_BP = torch.empty_like(value_BP).scatter_(1, order_BP, value_BP)
    return value_BP, torch.empty_like(column_BP).scatter_(1, order_BP, column_BP)


def _only(mask_BB: Tensor, dist_BB: Tensor) -> Tensor:
    """The distances of a mask; the others are far beyond all."""
    # By arithmetic: torch fills by a mask several times as slowly as it adds.
    return torch.add(dist_BB, 1 - mask_BB.to(dist_BB.dtype), alpha=NO_PAIR)


def _least(value_BB: Tensor) -> tuple[Tensor, Tensor]:
    """The least of each row and the first column where it stands."""
    if value_BB.device.type == "cpu":  # numpy's is 15 times as fast as torch's.
        column_B = torch.from_numpy(value_BB.numpy().argmin(axis=1))
    else:
        column_B = value_BB.argmin(dim=1)
    return value_BB.gather(1, column_B[:, None])[:, 0], column_B


def _nearest_beyond(other_BB: Tensor, gap_BB: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """For each sorted positive its nearest impostor in a later gap: distance and column, (B, P)."""
    num = other_BB.shape[1]
    least_BG = other_BB.new_full((len(other_BB), most + 1), torch.inf)
    least_BG.scatter_reduce_(1, gap_BB, other_BB, "amin")
    row_L, column_L = (least_BG.gather(1, gap_BB) == other_BB).nonzero(as_tuple=True)
    where_BG = torch.full_like(least_BG, num, dtype=torch.int64)
    place_L = row_L * (most + 1) + gap_BB[row_L, column_L]
    where_BG.view(-1).scatter_reduce_(0, place_L, column_L, "amin")
    # The best of gap j + 1 and all later ones.
    value_BG, gap_BG = least_BG.flip(1).cummin(dim=1)
    value_BG, gap_BG = value_BG.flip(1), most - gap_BG.flip(1)
    return value_BG[:, 1:], where_BG.gather(1, gap_BG)[:, 1:]
