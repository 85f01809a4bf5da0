"""Retrieval: does the nearest other picture show the same thing? Leave-one-out.

Each genuine picture is a probe against all other pictures. Forged pictures stand in the gallery
and are never right. A probe whose identity has no other genuine picture has nothing to find: it
is left out, and counted. Ties are settled against the model: of pictures equally far, the wrong
ones come first, so that collapsed embeddings do not look good by the order of the files.

This module knows nothing of thresholds. Memory is bounded: probes are compared in blocks.

Shapes: N pictures, D numbers in an embedding, P probes, K ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Figure, figures, replicate
from twinlens.measure.metrics import map_at_r, recall_at_k
from twinlens.measure.pairs import Comparison, blocks

__all__ = ["KS", "Retrieval", "nearest_correct", "retrieval"]

KS = (1, 5, 10)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Retrieval:
    """Recall at each k, and MAP@R, over `num_probes` pictures; `num_left_out` had no partner."""

    recall_at: Mapping[int, Figure]
    map_at_r: Figure
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
) -> Retrieval | None:
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
    _, code_N = np.unique(label_N, return_inverse=True)
    # Genuine pairs as `pair_masks` has them, in one comparison, which takes a third of the time.
    answer_N = np.where(forged_N, -1, code_N)
    num_real = np.bincount(code_N, weights=~forged_N)
    probe = np.flatnonzero(~forged_N & (num_real[code_N] >= 2))
    if not len(probe):
        return None
    relevant_P = num_real[code_N[probe]].astype(np.int64) - 1
    score_SP = np.empty((len(ks) + 1, len(probe)))
    # Without this every block would be as wide as the largest identity asks for.
    probe_order = np.argsort(relevant_P, kind="stable")
    for block in blocks(len(probe), 48 * len(label_N), progress=progress):
        part = probe_order[block]
        depth = min(max([int(relevant_P[part].max()), *ks]), len(label_N) - 1)
        correct = nearest_correct(emb_ND, answer_N, probe[part], comparison, depth)
        score_SP[:-1, part] = [recall_at_k(correct, k) for k in ks]
        score_SP[-1, part] = map_at_r(correct, relevant_P[part])
    names, code_P = np.unique(code_N[probe], return_inverse=True)

    def redrawn(count_I: Ints) -> NDArray[np.float64]:
        weight_P = count_I[code_P]
        return np.asarray(score_SP @ weight_P / weight_P.sum(), dtype=np.float64)

    drawn = replicate(redrawn, len(names), seed=seed, replicates=replicates)
    found = figures(score_SP.mean(axis=1).tolist(), drawn)
    num_left_out = int(np.count_nonzero(~forged_N)) - len(probe)
    return Retrieval(dict(zip(ks, found[:-1], strict=True)), found[-1], len(probe), num_left_out)


def nearest_correct(
    emb_ND: NDArray[Any],
    answer_N: Ints,
    probe_P: Ints,
    comparison: Comparison,
    depth: int,
) -> Bools:
    """Whether the `depth` nearest other pictures of each probe are right, nearest first.

    Args:
        emb_ND: embeddings of all pictures, shape (N, D).
        answer_N: the identity that each answers for, a number from 0, and -1 for forgeries, which
            are never right, shape (N,).
        probe_P: rows of the probes, genuine pictures, shape (P,).
        comparison: gives the distances, P x N of them at once.
        depth: at most N - 1.
    Returns:
        Shape (P, depth). Of equal distances the wrong pictures come first.
    Raises:
        DataError: a distance is NaN.
    """
    emb_ND = emb_ND.astype(np.float32, copy=False)
    dist_PN = np.asarray(comparison.matrix(emb_ND[probe_P], emb_ND), dtype=np.float32)
    if np.isnan(dist_PN).any():
        raise DataError(
            "some distances between pictures are NaN; they must be numbers: the embeddings are "
            "broken, so train the model again, at a lower rate"
        )
    key_PN = (_ascending(dist_PN).astype(np.int64) << 1) | (answer_N[probe_P][:, None] == answer_N)
    key_PN[np.arange(len(probe_P)), probe_P] = np.iinfo(np.int64).max
    if depth < key_PN.shape[1] - 1:
        key_PN = np.partition(key_PN, depth - 1, axis=1)[:, :depth]
    key_PN.sort(axis=1)
    return np.asarray(key_PN[:, :depth] & 1, dtype=bool)


def _ascending(dist: NDArray[np.float32]) -> NDArray[np.int32]:
    """Integers in the order of the floats, equal where these are equal.

    A float's bits read as an integer ascend with it, and descend where it is negative; both zeros
    become 0. Distance and rightness then fit in one number, and need no second sort to settle
    ties.
    """
    bits = dist.view(np.int32)
    return np.where(bits < 0, np.int32(np.iinfo(np.int32).min) - bits, bits)
