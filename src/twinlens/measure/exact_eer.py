"""The equal error rate of all pairs, however many: 1.8 thousand million for 60,000 pictures.

A sample says between which two distances the rates cross. Of every pair it is then enough to count
on which side it lies, and only those between the two are kept, at most a few in a thousand: the
rate is exact, and no table of all pairs is built. The pairs are those of `measure.pairs`, and the
rate is that of `measure.error_rates.eer`.

Shapes: N pictures ordered by identity, forgeries last; M genuine ones among them; P of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.data.table import pair_masks
from twinlens.errors import DataError
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.distances import as_euclidean
from twinlens.measure.error_rates import SortedPairs, eer
from twinlens.measure.pairs import (
    Comparison,
    PairSet,
    blocks,
    count_pairs,
    draw_pairs,
    extract_genuine,
    pair_distances,
)
from twinlens.measure.parallel import available_cores, parallel_map

__all__ = ["ExactEer", "exact_eer"]

SAMPLE = 400_000
WIDTHS = (6.0, 60.0, np.inf)
"""Standard errors of the sample between which the crossing is looked for, one after the other."""

BYTES_EACH = 48
"""What a distance needs while its block is worked on, with all that is made on the way."""

FARTHEST = float(np.finfo(np.float32).max)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExactEer:
    """The equal error rate of every genuine and every impostor pair, and how many there are."""

    eer: float
    num_genuine: int
    num_impostor: int

    def as_json(self) -> dict[str, Any]:
        """`{"eer", "num_genuine", "num_impostor"}`; the rate has no interval."""
        counts = {"num_genuine": self.num_genuine, "num_impostor": self.num_impostor}
        return {"eer": Estimate(self.eer).as_json(), **counts}


@dataclass(frozen=True, eq=False)
class _Side:
    """Pairs of one kind: how many lie below the two distances, and which distances between."""

    below: int
    value: Floats
    count: Ints

    @classmethod
    def merged(cls, sides: list[_Side]) -> _Side:
        value, place = np.unique(np.concatenate([s.value for s in sides]), return_inverse=True)
        count = np.concatenate([s.count for s in sides])
        total = np.bincount(place, weights=count, minlength=len(value)).astype(np.int64)
        return cls(sum(s.below for s in sides), value, total)

    def weighed(self, low: float, total: int) -> tuple[NDArray[np.float64], Ints]:
        """Distances and how often each occurs; all below as `low`, all above as the farthest."""
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
    progress: Progress | None = None,
) -> ExactEer:
    """The equal error rate of all pairs, without a sample and without keeping them.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether a picture is a forgery, shape (N,).
        comparison: gives the distances.
        seed: draws the sample that says where to look; the rate does not depend on it.
        progress: called with the pictures done and all of them.
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
        genuine, w_genuine = sides[0].weighed(low, num_genuine)
        impostor, w_impostor = sides[1].weighed(low, num_impostor)
        curve = SortedPairs.of(genuine, impostor).curve(w_genuine, w_impostor)
        below = curve.at(low)
        above = curve.at(high)
        if below[0] < below[1] and above[0] >= above[1]:
            break
    return ExactEer(eer(curve), num_genuine, num_impostor)


@dataclass(frozen=True, eq=False)
class _Gap:
    """How far apart the sample's rates are at each threshold, in standard errors."""

    threshold: NDArray[np.float64]
    errors: NDArray[np.float64]

    def around(self, width: float) -> tuple[float, float]:
        """Two distances between which the rates of all pairs cross, if `width` is enough."""
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
    """The rates of a sample of both kinds, each drawn evenly."""
    drawn = draw_pairs(code_N, forged_N, num_pairs=SAMPLE, rng=rng)
    dist = pair_distances(emb_ND, drawn, comparison)
    genuine, impostor = dist[drawn.same], dist[~drawn.same]
    if forged_N.any() and len(impostor):
        # `draw_pairs` takes more forgeries than their share, which would say where they cross.
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
    """All pairs of a genuine picture and one that comes later, in blocks."""

    def __init__(self, emb_ND: Floats, relevant_M: Ints, comparison: Comparison) -> None:
        self._emb_ND, self._relevant_M, self._comparison = emb_ND, relevant_M, comparison
        self._plain = as_euclidean(comparison)
        self._folded = None if self._plain is None else self._plain.product_form(emb_ND)

    def sides(self, low: float, high: float, progress: Progress | None) -> tuple[_Side, _Side]:
        """Genuine and impostor pairs on either side of the two distances."""
        num = len(self._relevant_M)
        threads = 1 if self._folded is None else available_cores()
        parts = list(blocks(num, BYTES_EACH * len(self._emb_ND) * threads))
        found: list[tuple[_Side, _Side]] = []
        for part, two in zip(
            parts, parallel_map(lambda p: self._part(p, low, high), parts, threads), strict=True
        ):
            found.append(two)
            if progress is not None:
                progress(part.stop, num)
        genuine, impostor = ([two[kind] for two in found] for kind in (0, 1))
        return _Side.merged(genuine), _Side.merged(impostor)

    def _part(self, part: slice, low: float, high: float) -> tuple[_Side, _Side]:
        dist_PN = self._distances(part)
        if not np.isfinite(dist_PN.max()):
            raise DataError(
                "some distances between pictures are NaN or infinite; they must be finite numbers: "
                "the embeddings are broken, so train the model again, at a lower rate"
            )
        own_P = np.arange(len(dist_PN))
        genuine_PW = extract_genuine(dist_PN, own_P, own_P, self._relevant_M[part])
        # Each pair once: with the pictures that come later.
        dist_PN[np.tril_indices(len(dist_PN), -1)] = np.inf
        return _side(genuine_PW, low, high), _side(dist_PN, low, high)

    def _distances(self, part: slice) -> Floats:
        """Of the block's pictures to those from its first on."""
        emb_PD, emb_ND = self._emb_ND[part], self._emb_ND[part.start :]
        if self._folded is None or self._plain is None:
            return np.array(self._comparison.matrix(emb_PD, emb_ND), dtype=np.float32)
        square = self._folded.left[part] @ self._folded.right[part.start :].T
        square += self._folded.square[part, None]
        return self._plain.from_squared(np.maximum(square, 0, out=square))


def _side(dist: Floats, low: float, high: float) -> _Side:
    far, near = np.float32(high), np.float32(low)
    below = dist <= near
    between = dist[(dist <= far) ^ below]
    value, count = np.unique(between, return_counts=True)
    return _Side(int(np.count_nonzero(below)), value, count)
