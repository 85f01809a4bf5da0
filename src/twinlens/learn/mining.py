"""Mining: from masks and distances of a batch to triplets, as positions or as weights of pairs.

Functions without state or gradient. `genuine_BB` and `impostor_BB` are masks of pairs; pairs in
neither (the diagonal, two forged pictures) are in no triplet. Memory is a few B x B matrices,
though there are up to B^3 triplets.

Shapes: B pictures as anchors (rows, or A of them) and as partners (columns); P most positives of an
anchor; G genuine pairs; T triplets of positions (anchor, positive, negative).
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

# Positives of an anchor up to which comparing with each is faster than a binary search (on two
# cores: 10 times with 3 positives, about equal with 32).
_FEW_POSITIVES = 32
# The distance of a pair that is not in the mask: beyond all others, and finite in a sum.
NO_PAIR = 1e30


def positives_of(genuine_BB: Tensor) -> tuple[Tensor, Tensor]:
    """The positives of each anchor, as a table.

    Returns:
        Columns of the positives, (B, P), ascending and padded with 0; and the mask of those that
        are no padding, (B, P).
    """
    row_G, column_G = genuine_BB.nonzero(as_tuple=True)
    count_B = genuine_BB.sum(dim=1)
    width = int(count_B.max()) if count_B.numel() else 0
    slot_G = torch.arange(len(row_G), device=row_G.device)
    slot_G = slot_G - (count_B.cumsum(0) - count_B)[row_G]
    column_BP = genuine_BB.new_zeros((len(count_B), width), dtype=torch.int64)
    column_BP[row_G, slot_G] = column_G
    slots_P = torch.arange(width, device=row_G.device)
    return column_BP, slots_P < count_B[:, None]


@torch.no_grad()
def active_triplets(
    dist_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """The number of active triplets of each pair, among all triplets.

    A triplet (a, p, n) is active if d_ap + margin - d_an > 0. The sum of the active terms is
    linear in the distances, so these counts are its gradient:
    sum = (weight_BB * dist_BB).sum() + margin * count, exactly, ties included.

    Time O(B^2 log P), memory O(B^2): an anchor's negatives are compared with each of few positives,
    or sorted into the gaps between many.

    Args:
        dist_BB: distances, float32 or wider, (B, B).
        genuine_BB: mask, (B, B).
        impostor_BB: mask, (B, B).
        margin: margin in units of distance.

    Returns:
        weight_BB in `dist_BB`'s type: for a genuine pair the number of active triplets, for an
        impostor pair minus that number, else 0. And the number of active triplets, int64, ().
    """
    column_BP, real_BP = positives_of(genuine_BB)
    # Padding has no active triplets: its limit is below every distance.
    limit_BP = (dist_BB.gather(1, column_BP) + margin).masked_fill_(~real_BP, -torch.inf)
    count = _count_one_by_one if limit_BP.shape[1] <= _FEW_POSITIVES else _count_by_gaps
    weight_BB, active_BP = count(limit_BP, _masked(impostor_BB, dist_BB))
    weight_BB.scatter_add_(1, column_BP, active_BP)
    return weight_BB, active_BP.sum(dtype=torch.float64).long()


def _count_one_by_one(limit_BP: Tensor, impostor_dist_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the limits above each distance, (B, B), and the distances below each limit, (B, P)."""
    weight_BB, below_BB = torch.zeros_like(impostor_dist_BB), torch.empty_like(impostor_dist_BB)
    active_BP = torch.empty_like(limit_BP)
    for slot, limit_B in enumerate(limit_BP.unbind(dim=1)):
        # As numbers: torch is several times slower with masks.
        torch.lt(impostor_dist_BB, limit_B[:, None], out=below_BB)
        weight_BB -= below_BB
        active_BP[:, slot] = below_BB.sum(dim=1)
    return weight_BB, active_BP


def _count_by_gaps(limit_BP: Tensor, impostor_dist_BB: Tensor) -> tuple[Tensor, Tensor]:
    """As `_count_one_by_one`, by sorting each row's distances into the gaps between its limits."""
    num, width = limit_BP.shape
    sorted_BP, order_BP = limit_BP.sort(dim=1)
    gap_BB = torch.searchsorted(sorted_BP, impostor_dist_BB, right=True)
    # Distances in gap g lie below the limits g, g + 1, ... P - 1.
    bin_BB = gap_BB + torch.arange(num, device=gap_BB.device)[:, None] * (width + 1)
    in_gap = torch.bincount(bin_BB.flatten(), minlength=num * (width + 1)).view(num, width + 1)
    below_BP = in_gap[:, :width].cumsum(dim=1).to(limit_BP.dtype)
    return (gap_BB - width).to(impostor_dist_BB.dtype), torch.empty_like(limit_BP).scatter_(
        1, order_BP, below_BP
    )


@dataclass(frozen=True, eq=False)
class Candidates:
    """Positives and negatives of some anchors.

    Attributes:
        column: columns of the positives, ascending, int64, (A, P).
        positive: their distances, (A, P).
        real: mask of the positives that are no padding, (A, P).
        negative: distances of the negatives, (A, B); `NO_PAIR` or more for all other pictures.
    """

    column: Tensor
    positive: Tensor
    real: Tensor
    negative: Tensor

    @classmethod
    def of(cls, dist_AB: Tensor, genuine_AB: Tensor, impostor_AB: Tensor) -> Candidates:
        """The candidates of two masks, (A, B)."""
        column_AP, real_AP = positives_of(genuine_AB)
        positive_AP = dist_AB.gather(1, column_AP)
        return cls(column_AP, positive_AP, real_AP, _masked(impostor_AB, dist_AB))


@torch.no_grad()
def semi_hard_negatives(candidates: Candidates, margin: float) -> Tensor:
    """For each (anchor, positive) pair the nearest negative that is farther than the positive.

    Schroff, Kalenichenko, Philbin 2015, "FaceNet": d_ap < d_an < d_ap + margin, for each pair by
    itself. Pairs without such a negative are left out. Ties take the first column.

    Args:
        candidates: positives and negatives of some anchors.
        margin: margin in units of distance.

    Returns:
        Positions (anchor, positive, negative), int64, (T, 3), T at most the genuine pairs.
    """
    positive_AP = candidates.positive.masked_fill(~candidates.real, torch.inf)
    find = _next_one_by_one if positive_AP.shape[1] <= _FEW_POSITIVES else _next_by_gaps
    value_AP, negative_AP = find(positive_AP, candidates.negative)
    # The limit of padding, and the distance of a missing negative, are `NO_PAIR` or more.
    row_T, slot_T = (value_AP < (positive_AP + margin).clamp_max_(NO_PAIR)).nonzero(as_tuple=True)
    column_T, negative_T = candidates.column[row_T, slot_T], negative_AP[row_T, slot_T]
    return torch.stack([row_T, column_T, negative_T], dim=1)


@torch.no_grad()
def hardest(candidates: Candidates) -> Tensor:
    """For each anchor its farthest positive and its nearest negative.

    "Batch hard" of Hermans, Beyer, Leibe 2017, "In Defense of the Triplet Loss". Anchors without
    a positive or without a negative are left out. Ties take the first column.

    Returns:
        Positions (anchor, positive, negative), int64, (T, 3), T at most A.
    """
    if candidates.positive.numel() == 0:
        return candidates.column.new_zeros((0, 3))
    far_A, slot_A = candidates.positive.masked_fill(~candidates.real, -1).max(dim=1)
    near_A, negative_A = _row_minimum(candidates.negative)
    positive_A = candidates.column.gather(1, slot_A[:, None])[:, 0]
    anchor_T = ((far_A >= 0) & (near_A < NO_PAIR)).nonzero()[:, 0]
    return torch.stack([anchor_T, positive_A[anchor_T], negative_A[anchor_T]], dim=1)


def _next_one_by_one(positive_BP: Tensor, impostor_dist_BB: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest impostor beyond each positive: distance and column, (B, P)."""
    not_beyond_BB = torch.empty_like(impostor_dist_BB)
    value_BP = torch.empty_like(positive_BP)
    column_BP = torch.empty_like(positive_BP, dtype=torch.int64)
    for slot, positive_B in enumerate(positive_BP.unbind(dim=1)):
        torch.le(impostor_dist_BB, positive_B[:, None], out=not_beyond_BB)
        value_BP[:, slot], column_BP[:, slot] = _row_minimum(
            impostor_dist_BB.add(not_beyond_BB, alpha=NO_PAIR)
        )
    return value_BP, column_BP


def _next_by_gaps(positive_BP: Tensor, impostor_dist_BB: Tensor) -> tuple[Tensor, Tensor]:
    """As `_next_one_by_one`, by sorting each row's distances into the gaps between positives."""
    sorted_BP, order_BP = positive_BP.sort(dim=1)
    gap_BB = torch.searchsorted(sorted_BP, impostor_dist_BB)
    value_BP, column_BP = _nearest_beyond(impostor_dist_BB, gap_BB, positive_BP.shape[1])
    value_BP = torch.empty_like(value_BP).scatter_(1, order_BP, value_BP)
    return value_BP, torch.empty_like(column_BP).scatter_(1, order_BP, column_BP)


def _masked(mask_BB: Tensor, dist_BB: Tensor) -> Tensor:
    """The distances of a mask; all others become at least `NO_PAIR`."""
    # By arithmetic: torch's fill by a mask is several times slower than an addition.
    return torch.add(dist_BB, 1 - mask_BB.to(dist_BB.dtype), alpha=NO_PAIR)


def _row_minimum(value_BB: Tensor) -> tuple[Tensor, Tensor]:
    """The least value of each row, and its first column."""
    if value_BB.device.type == "cpu":  # NumPy's is 15 times as fast as torch's.
        column_B = torch.from_numpy(value_BB.numpy().argmin(axis=1))
    else:
        column_B = value_BB.argmin(dim=1)
    return value_BB.gather(1, column_B[:, None])[:, 0], column_B


def _nearest_beyond(impostor_dist_BB: Tensor, gap_BB: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The nearest impostor in a later gap than each positive: distance and column, (B, P)."""
    num = impostor_dist_BB.shape[1]
    least_BG = impostor_dist_BB.new_full((len(impostor_dist_BB), width + 1), torch.inf)
    least_BG.scatter_reduce_(1, gap_BB, impostor_dist_BB, "amin")
    row_L, column_L = (least_BG.gather(1, gap_BB) == impostor_dist_BB).nonzero(as_tuple=True)
    where_BG = torch.full_like(least_BG, num, dtype=torch.int64)
    place_L = row_L * (width + 1) + gap_BB[row_L, column_L]
    where_BG.view(-1).scatter_reduce_(0, place_L, column_L, "amin")
    # The minimum of gap j + 1 and all later ones.
    value_BG, gap_BG = least_BG.flip(1).cummin(dim=1)
    value_BG, gap_BG = value_BG.flip(1), width - gap_BG.flip(1)
    return value_BG[:, 1:], where_BG.gather(1, gap_BG)[:, 1:]
