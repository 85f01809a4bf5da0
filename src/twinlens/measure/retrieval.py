"""Retrieval, leave-one-out: whether the nearest other pictures show the same identity.

Each genuine picture is a probe against all other pictures. Forged pictures are in the gallery, and
never right. A probe whose identity has no other genuine picture is left out, and counted. Of
pictures equally far, the wrong ones come first, so that collapsed embeddings do not score well by
the order of the files.

For comparisons in numpy (`measure.distances`), `measure.half_matrix_knn` finds the nearest pictures
of most probes. All other probes are compared with all pictures, in blocks that bound the memory,
and on all cores unless the comparison is torch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.display import Result
from twinlens.errors import DataError
from twinlens.machine import available_cores
from twinlens.measure.bootstrap import REPLICATES, Estimate, mean_estimates
from twinlens.measure.distances import ProductForm, as_euclidean
from twinlens.measure.half_matrix_knn import NearestRanks, nearest_ranks, smallest
from twinlens.measure.pairs import Comparison, OnProgress, blocks, extract_genuine
from twinlens.measure.parallel import parallel_map

__all__ = ["KS", "RetrievalResult", "map_at_r", "recall_at_k", "retrieval"]

KS = (1, 5, 10)

BYTES_COMPARED = 48
"""Memory for a distance of any comparison, with the intermediate arrays of a block."""

BYTES_PRODUCT = 8
"""Memory for a distance from one matrix product."""

BYTES_RANKED = 48
"""Memory for a rank of a probe while its score is computed."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, repr=False)
class RetrievalResult(Result):
    """Recall at each k, and MAP@R, over `num_probes`; `num_left_out` had no right picture."""

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
    progress: OnProgress | None = None,
) -> RetrievalResult | None:
    """Recall at k and MAP@R, each with a bootstrap over the probes' identities.

    The gallery is not redrawn: the interval covers other probes of this gallery.

    Args:
        emb_ND: embeddings, shape (N, D).
        label: identities as integers, shape (N,).
        forged: whether each picture is a forgery, shape (N,).
        comparison: distances between embeddings.
        ks: values of k for recall; a k beyond the gallery's size means all of it.
        seed: random seed of the bootstrap.
        replicates: number of bootstrap replicates.
        progress: called with the number of probes done and of all probes.
    Returns:
        None if no identity has two genuine pictures.
    """
    label_N, forged_N = np.asarray(label), np.asarray(forged, dtype=bool)
    names, code_N = np.unique(label_N, return_inverse=True)
    # In this order the right pictures of a probe are adjacent; forgeries come last.
    order_N = np.argsort(np.where(forged_N, len(names), code_N), kind="stable")
    num_real = np.bincount(code_N, weights=~forged_N).astype(np.int64)
    code_P = np.repeat(np.arange(len(names)), num_real)
    probe = np.flatnonzero(num_real[code_P] >= 2)
    if not len(probe):
        return None
    # Otherwise every block would be as wide as the largest identity needs.
    probe = probe[np.argsort(num_real[code_P[probe]], kind="stable")]
    code_P = code_P[probe]
    leave_one_out = _LeaveOneOut(
        np.asarray(emb_ND)[order_N].astype(np.float32, copy=False),
        comparison,
        probe,
        (np.cumsum(num_real) - num_real)[code_P],
        num_real[code_P] - 1,
        ks,
    )
    score_SP = leave_one_out.scores(_silent if progress is None else progress)

    known, code_P = np.unique(code_P, return_inverse=True)
    *recalls, map_estimate = mean_estimates(
        score_SP, code_P, len(known), seed=seed, replicates=replicates
    )
    num_left_out = int(np.count_nonzero(~forged_N)) - len(probe)
    return RetrievalResult(
        dict(zip(ks, recalls, strict=True)), map_estimate, len(probe), num_left_out
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
    """Probes against all pictures, which are ordered by identity.

    `probe_P` are rows of `emb_ND`, `first_P` the first rows of the probes' identities, and
    `relevant_P` their numbers of right pictures.
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
        self._euclidean = as_euclidean(comparison)
        self._product: ProductForm | None = None
        self._scratch = local()

    def scores(self, progress: OnProgress) -> NDArray[np.float64]:
        """Recall at each k, and AP@R below, of each probe: shape (len(ks) + 1, P)."""
        num = len(self._probe_P)
        score_SP = np.empty((len(self._ks) + 1, num))
        ranks = self._ranks(progress)
        done_P = np.zeros(num, dtype=bool)
        if ranks is not None:
            done_P = ranks.complete[self._probe_P]
            complete = np.flatnonzero(done_P)
            for part in blocks(len(complete), BYTES_RANKED * int(self._depth_P.max())):
                some = complete[part]
                correct_PK = ranks.correct(self._probe_P[some], int(self._depth_P[some].max()))
                score_SP[:, some] = self._score(correct_PK, some)
        for some, score in self._compared_with_all(np.flatnonzero(~done_P)):
            score_SP[:, some] = score
            done_P[some] = True
            if ranks is None:
                progress(int(np.count_nonzero(done_P)), num)
        if ranks is not None:
            progress(num, num)
        return score_SP

    def _ranks(self, progress: OnProgress) -> NearestRanks | None:
        """The nearest pictures of most probes at once; None if that does not work."""
        if self._euclidean is None:
            return None
        num, size = len(self._probe_P), len(self._emb_ND)
        # Each identity has a code; pictures that are no probes have -1, which matches none.
        code_N, need_N = -np.ones(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        code_N[self._probe_P], need_N[self._probe_P] = self._first_P, self._depth_P
        return nearest_ranks(
            self._emb_ND,
            code_N,
            need_N,
            self._euclidean,
            lambda share: progress(min(num - 1, int(share * num)), num),
        )

    def _compared_with_all(self, some_P: Ints) -> Iterator[tuple[Ints, NDArray[np.float64]]]:
        """Scores of probes block by block, each against all pictures."""
        if not len(some_P):
            return
        size, threads, bytes_each = len(self._emb_ND), 1, BYTES_COMPARED
        if self._euclidean is not None:
            self._product = self._euclidean.product_form(self._emb_ND)
            # The blocks of all threads together take the memory of one.
            threads, bytes_each = available_cores(), BYTES_PRODUCT * available_cores()
        parts = [some_P[part] for part in blocks(len(some_P), bytes_each * size)]
        yield from zip(parts, parallel_map(self._score_of_block, parts, threads), strict=True)

    def _score_of_block(self, some: Ints) -> NDArray[np.float64]:
        return self._score(self._nearest_correct(some, int(self._depth_P[some].max())), some)

    def _score(self, correct_PK: Bools, some: Ints) -> NDArray[np.float64]:
        recalls = [recall_at_k(correct_PK, k) for k in self._ks]
        return np.stack([*recalls, map_at_r(correct_PK, self._relevant_P[some])])

    def _nearest_correct(self, some: Ints, depth: int) -> Bools:
        """Whether the `depth` nearest other pictures of each probe are right, nearest first.

        Of equal distances the wrong pictures come first. Right and wrong ones are selected apart
        and sorted together, so most of the pictures are never sorted.
        """
        dist_PN = self._distances(some)
        right_PW = extract_genuine(
            dist_PN, self._probe_P[some], self._first_P[some], self._relevant_P[some]
        )
        wrong_PK = smallest(dist_PN, depth)
        if np.isnan(wrong_PK).any() or np.isnan(right_PW).any():
            raise DataError(
                "found distances that are NaN, so the embeddings are broken: train the model "
                "again, at a lower learning rate"
            )
        key = np.concatenate([self._key(wrong_PK, some), self._key(right_PW, some) | 1], axis=1)
        # Padding is infinitely far, and not right.
        key[:, depth:][np.isposinf(right_PW)] &= ~key.dtype.type(1)
        key.sort(axis=1)
        return np.asarray(key[:, :depth] & 1, dtype=bool)

    def _distances(self, some: Ints) -> Floats:
        """Distances of each probe to all pictures, or numbers in their order, in reused memory."""
        probe = self._probe_P[some]
        if self._product is None:
            dist = self._comparison.matrix(self._emb_ND[probe], self._emb_ND)
            return np.array(dist, dtype=np.float32)
        # Fresh memory takes as long as the product, so each thread keeps its own.
        if not hasattr(self._scratch, "block"):
            self._scratch.block = np.empty((len(probe), len(self._emb_ND)), dtype=np.float32)
        if len(self._scratch.block) < len(probe):
            self._scratch.block = np.empty((len(probe), len(self._emb_ND)), dtype=np.float32)
        block: Floats = self._scratch.block[: len(probe)]
        return np.matmul(self._product.left[probe], self._product.right.T, out=block)

    def _key(self, dist: Floats, some: Ints) -> NDArray[Any]:
        """Even integers in the order of the distances, and equal for equal ones."""
        if self._product is None or self._euclidean is None:
            return _ascending(dist).astype(np.int64) << 1
        probe = self._probe_P[some]
        square = dist + self._product.square[probe][:, None]
        square[square <= self._product.error[probe][:, None]] = 0
        far = self._euclidean.from_squared(square)
        # No distance is negative, so the sign's bit is free, and half of the bytes suffice.
        return far.view(np.uint32) << np.uint32(1)


def _silent(done: int, total: int) -> None:
    """No progress."""


def _ascending(dist: NDArray[np.float32]) -> NDArray[np.int32]:
    """Integers in the order of the floats, equal for equal floats.

    The bits of a float, read as an integer, ascend with it, or descend if it is negative; both
    zeros become 0. Distance and rightness then fit into one number, so one sort orders ties too.
    """
    bits = dist.view(np.int32)
    return np.where(bits < 0, np.int32(np.iinfo(np.int32).min) - bits, bits)
