"""RetrievalResult: does the nearest other picture show the same thing? Leave-one-out.

Each genuine picture is a probe against all other pictures. Forged pictures stand in the gallery
and are never right. A probe whose identity has no other genuine picture has nothing to find: it
is left out, and counted. Ties are settled against the model: of pictures equally far, the wrong
ones come first, so that collapsed embeddings do not look good by the order of the files.

This module knows nothing of thresholds. Where distances come without torch
(`measure.distances`), `measure.half_matrix_knn` finds the nearest pictures of most probes. The
others, and all with other comparators, are compared with all pictures, in blocks that bound
memory, on all cores where torch is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, replicate
from twinlens.measure.distances import ProductForm, as_euclidean
from twinlens.measure.half_matrix_knn import NearestRanks, nearest_ranks, smallest
from twinlens.measure.pairs import Comparison, blocks, extract_genuine
from twinlens.measure.parallel import available_cores, parallel_map

__all__ = ["KS", "RetrievalResult", "map_at_r", "recall_at_k", "retrieval"]

KS = (1, 5, 10)

BYTES_ASKED = 48
"""What a distance needs while a comparison works on its block, with all it makes on the way."""

BYTES_FOLDED = 8
"""What it needs where one product gives it."""

BYTES_RANKED = 48
"""What a rank of a probe needs while its score is computed."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RetrievalResult:
    """Recall at each k, and MAP@R, over `num_probes` pictures; `num_left_out` had no partner."""

    recall_at: Mapping[int, Estimate]
    map_at_r: Estimate
    num_probes: int
    num_left_out: int

    def as_json(self) -> dict[str, Any]:
        """`{"recall_at_1", ..., "map_at_r", "num_probes", "num_left_out"}`."""
        recalls = {f"recall_at_{k}": figure.as_json() for k, figure in self.recall_at.items()}
        return {
            **recalls,
            "map_at_r": self.map_at_r.as_json(),
            "num_probes": self.num_probes,
            "num_left_out": self.num_left_out,
        }


def retrieval(
    emb_ND: NDArray[Any],
    label: ArrayLike,
    forged: ArrayLike,
    comparison: Comparison,
    *,
    ks: tuple[int, ...] = KS,
    seed: int = 0,
    replicates: int = REPLICATES,
    progress: Progress | None = None,
) -> RetrievalResult | None:
    """Recall at k and MAP@R, each with a bootstrap over the probes' identities.

    The gallery is not redrawn: the interval is for other people searching in this gallery.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether a picture is a forgery, shape (N,).
        comparison: gives the distances.
        ks: for which k to report recall; a k beyond the gallery's size asks for all of it.
        seed: draws the replicates.
        replicates: how many times the identities are redrawn.
        progress: called with the probes done and all probes.
    Returns:
        None where no identity has two genuine pictures.
    """
    label_N, forged_N = np.asarray(label), np.asarray(forged, dtype=bool)
    names, code_N = np.unique(label_N, return_inverse=True)
    # In this order the right pictures of a probe stand side by side; forgeries come last.
    order_N = np.argsort(np.where(forged_N, len(names), code_N), kind="stable")
    num_real = np.bincount(code_N, weights=~forged_N).astype(np.int64)
    code_P = np.repeat(np.arange(len(names)), num_real)
    probe = np.flatnonzero(num_real[code_P] >= 2)
    if not len(probe):
        return None
    # Without this every block would be as wide as the largest identity asks for.
    probe = probe[np.argsort(num_real[code_P[probe]], kind="stable")]
    code_P = code_P[probe]
    search = _LeaveOneOut(
        np.asarray(emb_ND)[order_N].astype(np.float32, copy=False),
        comparison,
        probe,
        (np.cumsum(num_real) - num_real)[code_P],
        num_real[code_P] - 1,
        ks,
    )
    score_SP = search.scores(progress or _silent)

    def redrawn(count_I: Ints) -> NDArray[np.float64]:
        weight_P = count_I[code_P]
        return np.asarray(score_SP @ weight_P / weight_P.sum(), dtype=np.float64)

    known, code_P = np.unique(code_P, return_inverse=True)
    drawn = replicate(redrawn, len(known), seed=seed, replicates=replicates)
    found = estimates(score_SP.mean(axis=1).tolist(), drawn)
    num_left_out = int(np.count_nonzero(~forged_N)) - len(probe)
    return RetrievalResult(
        dict(zip(ks, found[:-1], strict=True)), found[-1], len(probe), num_left_out
    )


def recall_at_k(correct_PK: ArrayLike, k: int) -> NDArray[np.float64]:
    """Whether the `k` nearest pictures of each probe hold a right one (Jegou et al. 2011).

    Metric learning's "recall at k"; at k = 1 it is the precision at 1 and rank-1 identification.

    Args:
        correct_PK: whether the gallery's pictures, nearest first, are right, shape (P, K). If
            K < k, the K nearest are the whole gallery.
        k: number of nearest pictures, at least 1.
    Returns:
        0 or 1 for each probe, shape (P,); their mean is the figure.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    hit_P: NDArray[np.bool_] = np.any(np.asarray(correct_PK, dtype=bool)[:, :k], axis=1)
    return hit_P.astype(np.float64)


def map_at_r(correct_PK: ArrayLike, num_relevant_P: ArrayLike) -> NDArray[np.float64]:
    """Average precision at R of each probe, R the number of right pictures in the gallery.

    AP@R = (1/R) sum over ranks i <= R of correct_i * precision at i (Musgrave et al. 2020,
    "A Metric Learning Reality Check", section 4.3): 1 only if the R nearest are all right.

    Args:
        correct_PK: whether the gallery's pictures, nearest first, are right, shape (P, K); K is at
            least the largest R.
        num_relevant_P: R of each probe, at least 1, shape (P,).
    Returns:
        A number in [0, 1] for each probe, shape (P,); their mean is MAP@R.
    """
    correct = np.asarray(correct_PK, dtype=bool)
    relevant = np.asarray(num_relevant_P, dtype=np.int64)
    if relevant.size and (relevant.min() < 1 or relevant.max() > correct.shape[1]):
        raise ValueError(
            f"each R must be in 1 to {correct.shape[1]}, the number of ranks; found "
            f"{relevant.min()} to {relevant.max()}"
        )
    rank_K = np.arange(1, correct.shape[1] + 1)
    counted = correct & (rank_K <= relevant[:, None])
    precision = np.cumsum(counted, axis=1) / rank_K
    return np.asarray((precision * counted).sum(axis=1) / relevant, dtype=np.float64)


class _LeaveOneOut:
    """Probes against all pictures, of which those of one identity stand side by side.

    `probe_P` are rows of `emb_ND`, `first_P` the first row of the probe's identity, `relevant_P`
    how many right pictures there are.
    """

    def __init__(
        self,
        emb_ND: Floats,
        comparison: Comparison,
        probe_P: Ints,
        first_P: Ints,
        relevant_P: Ints,
        ks: tuple[int, ...],
    ) -> None:
        self._emb_ND, self._comparison = emb_ND, comparison
        self._probe_P, self._first_P, self._relevant_P = probe_P, first_P, relevant_P
        self._ks = ks
        self._depth_P = np.minimum(relevant_P.clip(max((1, *ks))), len(emb_ND) - 1)
        self._plain = as_euclidean(comparison)
        self._folded: ProductForm | None = None
        self._scratch = local()

    def scores(self, progress: Progress) -> NDArray[np.float64]:
        """Recall at each k, and AP@R below, of each probe: shape (len(ks) + 1, P)."""
        num = len(self._probe_P)
        score_SP = np.empty((len(self._ks) + 1, num))
        ranks = self._ranks(progress)
        settled_P = np.zeros(num, dtype=bool)
        if ranks is not None:
            settled_P = ranks.settled[self._probe_P]
            settled = np.flatnonzero(settled_P)
            for part in blocks(len(settled), BYTES_RANKED * int(self._depth_P.max())):
                some = settled[part]
                correct_PK = ranks.correct(self._probe_P[some], int(self._depth_P[some].max()))
                score_SP[:, some] = self._score(correct_PK, some)
        for some, score in self._looked_up(np.flatnonzero(~settled_P)):
            score_SP[:, some] = score
            settled_P[some] = True
            if ranks is None:
                progress(int(np.count_nonzero(settled_P)), num)
        if ranks is not None:
            progress(num, num)
        return score_SP

    def _ranks(self, progress: Progress) -> NearestRanks | None:
        """The nearest pictures of most probes at once, where the comparison allows it."""
        if self._plain is None:
            return None
        num, size = len(self._probe_P), len(self._emb_ND)
        # A code for each identity; a picture that is no probe is like no other.
        code_N, need_N = -np.ones(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        code_N[self._probe_P], need_N[self._probe_P] = self._first_P, self._depth_P
        return nearest_ranks(
            self._emb_ND,
            code_N,
            need_N,
            self._plain,
            lambda share: progress(min(num - 1, int(share * num)), num),
        )

    def _looked_up(self, some_P: Ints) -> Iterator[tuple[Ints, NDArray[np.float64]]]:
        """Score probes block by block, each against all pictures."""
        if not len(some_P):
            return
        size, threads, bytes_each = len(self._emb_ND), 1, BYTES_ASKED
        if self._plain is not None:
            self._folded = self._plain.product_form(self._emb_ND)
            # A block for each thread, all of them together as large as one.
            threads, bytes_each = available_cores(), BYTES_FOLDED * available_cores()
        parts = [some_P[part] for part in blocks(len(some_P), bytes_each * size)]
        yield from zip(parts, parallel_map(self._looked_at, parts, threads), strict=True)

    def _looked_at(self, some: Ints) -> NDArray[np.float64]:
        return self._score(self._nearest_correct(some, int(self._depth_P[some].max())), some)

    def _score(self, correct_PK: Bools, some: Ints) -> NDArray[np.float64]:
        recalls = [recall_at_k(correct_PK, k) for k in self._ks]
        return np.stack([*recalls, map_at_r(correct_PK, self._relevant_P[some])])

    def _nearest_correct(self, some: Ints, depth: int) -> Bools:
        """Whether the `depth` nearest other pictures of each probe are right, nearest first.

        Of equal distances the wrong pictures come first. Right and wrong ones are ranked apart
        and then together, so that most of the pictures are never put in order.
        """
        dist_PN = self._distances(some)
        right_PW = extract_genuine(
            dist_PN, self._probe_P[some], self._first_P[some], self._relevant_P[some]
        )
        wrong_PK = smallest(dist_PN, depth)
        if np.isnan(wrong_PK).any() or np.isnan(right_PW).any():
            raise DataError(
                "some distances between pictures are NaN; they must be numbers: the embeddings "
                "are broken, so train the model again, at a lower rate"
            )
        key = np.concatenate([self._key(wrong_PK, some), self._key(right_PW, some) | 1], axis=1)
        # What is not there is infinitely far, and no answer.
        key[:, depth:][np.isposinf(right_PW)] &= ~key.dtype.type(1)
        key.sort(axis=1)
        return np.asarray(key[:, :depth] & 1, dtype=bool)

    def _distances(self, some: Ints) -> Floats:
        """Of each probe to all pictures, or what is in their order: a block to be written over."""
        probe = self._probe_P[some]
        if self._folded is None:
            dist = self._comparison.matrix(self._emb_ND[probe], self._emb_ND)
            return np.array(dist, dtype=np.float32)
        # Memory that is new costs as much as the product: each thread keeps its own.
        if not hasattr(self._scratch, "block"):
            self._scratch.block = np.empty((len(probe), len(self._emb_ND)), dtype=np.float32)
        if len(self._scratch.block) < len(probe):
            self._scratch.block = np.empty((len(probe), len(self._emb_ND)), dtype=np.float32)
        block: Floats = self._scratch.block[: len(probe)]
        return np.matmul(self._folded.left[probe], self._folded.right.T, out=block)

    def _key(self, dist: Floats, some: Ints) -> NDArray[Any]:
        """Twice a whole number in the order of the distances, and equal where they are."""
        if self._folded is None or self._plain is None:
            return _ascending(dist).astype(np.int64) << 1
        square = dist + self._folded.square[self._probe_P[some]][:, None]
        far = self._plain.from_squared(np.maximum(square, 0, out=square))
        # None is negative, so that the sign's bit is free and a half of the bytes will do.
        return far.view(np.uint32) << np.uint32(1)


def _silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def _ascending(dist: NDArray[np.float32]) -> NDArray[np.int32]:
    """Integers in the order of the floats, equal where these are equal.

    A float's bits read as an integer ascend with it, and descend where it is negative; both zeros
    become 0. Distance and rightness then fit in one number, and need no second sort to settle
    ties.
    """
    bits = dist.view(np.int32)
    return np.where(bits < 0, np.int32(np.iinfo(np.int32).min) - bits, bits)
