"""Exact equal error rate of all pairs: 1.8 billion for 60,000 pictures.

A sample tells between which two distances the FAR and FRR cross. Every pair is then counted on its
side of these, and only the distances between them are kept, at most a few in a thousand. So the
rate is exact, and no table of all pairs is built. The pairs are those of `measure.pairs`, and the
rate is `measure.error_rates.eer`.

Shapes: N pictures ordered by identity, forgeries last; M genuine ones among them; P of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.data.table import pair_masks
from twinlens.errors import DataError
from twinlens.machine import available_cores
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.distances import as_euclidean
from twinlens.measure.error_rates import SortedPairs, eer
from twinlens.measure.pairs import (
    Comparison,
    OnProgress,
    PairSet,
    blocks,
    count_pairs,
    draw_pairs,
    extract_genuine,
    pair_distances,
)
from twinlens.measure.parallel import parallel_map

__all__ = ["ExactEer", "exact_eer"]

SAMPLE = 400_000
WIDTHS = (6.0, 60.0, np.inf)
"""Widths of the searched gap, in standard errors of the sample, one after the other."""

BYTES_EACH = 48
"""Memory for a distance, with the intermediate arrays of a block."""

FARTHEST = float(np.finfo(np.float32).max)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExactEer:
    """Equal error rate of all genuine and impostor pairs, and their numbers."""

    eer: float
    num_genuine: int
    num_impostor: int

    def as_json(self) -> dict[str, Any]:
        """`{"eer", "num_genuine", "num_impostor"}`; the EER has no interval."""
        counts = {"num_genuine": self.num_genuine, "num_impostor": self.num_impostor}
        return {"eer": Estimate(self.eer).as_json(), **counts}


@dataclass(frozen=True, eq=False)
class _Side:
    """Pairs of one kind: number below both edges of the gap, and distances within it."""

    below: int
    value: Floats
    count: Ints

    @classmethod
    def merged(cls, sides: list[_Side]) -> _Side:
        value, place = np.unique(np.concatenate([s.value for s in sides]), return_inverse=True)
        count = np.concatenate([s.count for s in sides])
        total = np.bincount(place, weights=count, minlength=len(value)).astype(np.int64)
        return cls(sum(s.below for s in sides), value, total)

    def weighted(self, low: float, total: int) -> tuple[NDArray[np.float64], Ints]:
        """Distances and their counts; those below count as `low`, those above as `FARTHEST`."""
        value = np.concatenate([[low], self.value, [FARTHEST]])
        above = total - self.below - int(self.count.sum())
        return value.astype(np.float64), np.concatenate([[self.below], self.count, [above]])


def exact_eer(
    emb_ND: NDArray[Any],
    label: ArrayLike,
    forged: ArrayLike,
    comparison: Comparison,
    *,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> ExactEer:
    """Equal error rate of all pairs, without keeping them.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether each picture is a forgery, shape (N,).
        comparison: distances between embeddings.
        seed: random seed of the sample; the EER does not depend on it.
        progress: called with the number of pictures done and of all pictures.
    Raises:
        DataError: no pairs of one kind, or a distance that is not a finite number.
    """
    label_N, forged_N = np.asarray(label), np.asarray(forged, dtype=bool)
    names, code_N = np.unique(label_N, return_inverse=True)
    order_N = np.argsort(np.where(forged_N, len(names), code_N), kind="stable")
    emb_ND = np.asarray(emb_ND)[order_N].astype(np.float32, copy=False)
    code_N, forged_N = code_N[order_N], forged_N[order_N]
    num_real = np.bincount(code_N, weights=~forged_N).astype(np.int64)
    num_genuine, num_impostor = count_pairs(code_N, forged_N)
    gap = _sampled(emb_ND, code_N, forged_N, comparison, np.random.default_rng(seed))
    relevant_M = np.repeat(np.cumsum(num_real), num_real) - np.arange(num_real.sum()) - 1
    search = _AllPairs(emb_ND, relevant_M, comparison)
    for width in WIDTHS:
        low, high = gap.around(width)
        sides = search.sides(low, high, progress)
        genuine, w_genuine = sides[0].weighted(low, num_genuine)
        impostor, w_impostor = sides[1].weighted(low, num_impostor)
        curve = SortedPairs.of(genuine, impostor).curve(w_genuine, w_impostor)
        below = curve.at(low)
        above = curve.at(high)
        if below[0] < below[1] and above[0] >= above[1]:
            break
    return ExactEer(eer(curve), num_genuine, num_impostor)


@dataclass(frozen=True, eq=False)
class _Gap:
    """Difference of the sample's FAR and FRR at each threshold, in standard errors."""

    threshold: NDArray[np.float64]
    errors: NDArray[np.float64]

    def around(self, width: float) -> tuple[float, float]:
        """Edges of the gap in which the rates of all pairs cross, if `width` is enough."""
        before = int(np.searchsorted(self.errors, -width, side="left")) - 1
        after = int(np.searchsorted(self.errors, width, side="right"))
        low = float(self.threshold[before]) if before > 0 else -FARTHEST
        high = float(self.threshold[after]) if after < len(self.threshold) else FARTHEST
        return low, high


def _sampled(
    emb_ND: Floats,
    code_N: Ints,
    forged_N: NDArray[np.bool_],
    comparison: Comparison,
    rng: np.random.Generator,
) -> _Gap:
    """FAR and FRR of a uniform sample of both kinds of pairs."""
    drawn = draw_pairs(code_N, forged_N, num_pairs=SAMPLE, rng=rng)
    dist = pair_distances(emb_ND, drawn, comparison)
    genuine, impostor = dist[drawn.same], dist[~drawn.same]
    if forged_N.any() and len(impostor):
        # `draw_pairs` draws more forgeries than their share, which would move the crossing.
        a, b = (
            rng.integers(int(np.count_nonzero(~forged_N)), size=SAMPLE),
            rng.integers(len(code_N), size=SAMPLE),
        )
        _, other = pair_masks(code_N[a], forged_N[a], code_N[b], forged_N[b])
        pairs = PairSet(a[other], b[other], np.zeros(int(other.sum()), dtype=bool))
        impostor = pair_distances(emb_ND, pairs, comparison)
    curve = SortedPairs.of(genuine, impostor).curve()
    rate = max(eer(curve), 1 / len(genuine))
    error = np.sqrt(rate * (1 / len(genuine) + 1 / len(impostor)))
    return _Gap(curve.threshold, (curve.far - curve.frr) / error)


class _AllPairs:
    """All pairs of a genuine picture and a later one, in blocks."""

    def __init__(self, emb_ND: Floats, relevant_M: Ints, comparison: Comparison) -> None:
        self._emb_ND, self._relevant_M, self._comparison = emb_ND, relevant_M, comparison
        self._euclidean = as_euclidean(comparison)
        self._product = None if self._euclidean is None else self._euclidean.product_form(emb_ND)

    def sides(self, low: float, high: float, progress: OnProgress | None) -> tuple[_Side, _Side]:
        """Genuine and impostor pairs below and within the gap."""
        num = len(self._relevant_M)
        threads = 1 if self._product is None else available_cores()
        parts = list(blocks(num, BYTES_EACH * len(self._emb_ND) * threads))
        sides: list[tuple[_Side, _Side]] = []
        for part, two in zip(
            parts, parallel_map(lambda p: self._part(p, low, high), parts, threads), strict=True
        ):
            sides.append(two)
            if progress is not None:
                progress(part.stop, num)
        genuine, impostor = ([two[kind] for two in sides] for kind in (0, 1))
        return _Side.merged(genuine), _Side.merged(impostor)

    def _part(self, part: slice, low: float, high: float) -> tuple[_Side, _Side]:
        dist_PN = self._distances(part)
        if not np.isfinite(dist_PN.max()):
            raise DataError(
                "found distances that are NaN or infinite, so the embeddings are broken: train the "
                "model again, at a lower learning rate"
            )
        own_P = np.arange(len(dist_PN))
        genuine_PW = extract_genuine(dist_PN, own_P, own_P, self._relevant_M[part])
        # Each pair counts once: with the later picture.
        dist_PN[np.tril_indices(len(dist_PN), -1)] = np.inf
        return _side(genuine_PW, low, high), _side(dist_PN, low, high)

    def _distances(self, part: slice) -> Floats:
        """Distances of the block's pictures to its first picture and all later ones."""
        emb_PD, emb_ND = self._emb_ND[part], self._emb_ND[part.start :]
        if self._product is None or self._euclidean is None:
            return np.array(self._comparison.matrix(emb_PD, emb_ND), dtype=np.float32)
        square = self._product.left[part] @ self._product.right[part.start :].T
        square += self._product.square[part, None]
        return self._euclidean.from_squared(np.maximum(square, 0, out=square))


def _side(dist: Floats, low: float, high: float) -> _Side:
    far, near = np.float32(high), np.float32(low)
    below = dist <= near
    between = dist[(dist <= far) ^ below]
    value, count = np.unique(between, return_counts=True)
    return _Side(int(np.count_nonzero(below)), value, count)
