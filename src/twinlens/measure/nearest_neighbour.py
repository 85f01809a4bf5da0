"""Nearest-neighbour classification: a probe gets the identity of the nearest gallery picture.

The siamese networks of many tutorials classify new pictures this way, with the training pictures as
the gallery. Top-5 counts a probe as right if one of the 5 nearest *pictures*, which may be of fewer
than 5 identities, shows its identity. A probe whose identity is not in the gallery counts as wrong.
Of equal distances the first row of the gallery comes first.

A matrix product gives all distances, but rounds them: it only chooses the candidates, whose
distances are then computed pair by pair. So a probe that equals a gallery picture is found, at
distance 0 exactly. Probes are compared in blocks, which bound the memory.

Shapes: P probes, M gallery pictures, D numbers in an embedding, B probes of a block, S candidates,
K = min(5, M) answers of each probe.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.display import Result
from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, mean_estimates
from twinlens.measure.pairs import Comparison, OnProgress, blocks, listed_distances

__all__ = ["NearestNeighbourResult", "nearest_neighbour"]

TOP = 5
CANDIDATES = 32
"""Pictures whose distance is computed again: far more than rounding confuses with one."""

BYTES_EACH = 48
"""Memory for a distance, with the intermediate arrays of a block."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class NearestNeighbourResult(Result):
    """Share of probes whose nearest gallery picture shows the same identity.

    Attributes:
        accuracy: share of probes with the right nearest picture (top-1).
        top_5: share of probes with a right one among the 5 nearest pictures.
        chance: expected accuracy of a random gallery picture.
        num_probes: P.
        num_gallery: M.
        num_identities: identities in the gallery.
        num_unknown: probes whose identity is not in the gallery, and which count as wrong.
        row: gallery rows, nearest first, (P, K).
        distance: their distances, (P, K).
        right: whether the nearest picture is right, (P,).
    """

    accuracy: Estimate
    top_5: Estimate
    chance: float
    num_probes: int
    num_gallery: int
    num_identities: int
    num_unknown: int
    row: Ints
    distance: Floats
    right: NDArray[np.bool_]

    def as_json(self) -> dict[str, Any]:
        """Estimates, chance and counts, without the answers."""
        counts = ("chance", "num_probes", "num_gallery", "num_identities", "num_unknown")
        return {
            "accuracy": self.accuracy.as_json(),
            "top_5": self.top_5.as_json(),
            **{name: getattr(self, name) for name in counts},
        }


def nearest_neighbour(
    probe_emb_PD: NDArray[Any],
    probe_label: ArrayLike,
    gallery_emb_MD: NDArray[Any],
    gallery_label: ArrayLike,
    comparison: Comparison,
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
    progress: OnProgress | None = None,
) -> NearestNeighbourResult:
    """Classify each probe by the nearest picture of a gallery.

    The bootstrap redraws the probes' identities and not the gallery: the interval covers other
    probes of this gallery.

    Args:
        probe_emb_PD: embeddings of the probes, shape (P, D).
        probe_label: identities of the probes, shape (P,).
        gallery_emb_MD: embeddings of the gallery, shape (M, D).
        gallery_label: identities of the gallery, in the same terms, shape (M,).
        comparison: distances between embeddings.
        seed: random seed of the bootstrap.
        replicates: number of bootstrap replicates.
        progress: called with the number of probes done and of all probes.
    Raises:
        DataError: no probes, no gallery, or a distance that is NaN.
    """
    probe_P, gallery_M = np.asarray(probe_label), np.asarray(gallery_label)
    if not len(probe_P) or not len(gallery_M):
        raise DataError(
            f"found {len(probe_P)} probes and {len(gallery_M)} gallery pictures; nearest-neighbour "
            "classification needs at least one of each"
        )
    row_PK, dist_PK = _answers(probe_emb_PD, gallery_emb_MD, comparison, progress)
    hit_PK = gallery_M[row_PK] == probe_P[:, None]
    score_2P = np.stack([hit_PK[:, 0], hit_PK.any(axis=1)]).astype(np.float64)
    names, code_P = np.unique(probe_P, return_inverse=True)
    accuracy, top_5 = mean_estimates(score_2P, code_P, len(names), seed=seed, replicates=replicates)
    num_same_P = _count_of(probe_P, gallery_M)
    return NearestNeighbourResult(
        accuracy,
        top_5,
        chance=float(num_same_P.mean() / len(gallery_M)),
        num_probes=len(probe_P),
        num_gallery=len(gallery_M),
        num_identities=len(np.unique(gallery_M)),
        num_unknown=int(np.count_nonzero(num_same_P == 0)),
        row=row_PK,
        distance=dist_PK,
        right=hit_PK[:, 0],
    )


def _count_of(probe_P: NDArray[Any], gallery_M: NDArray[Any]) -> Ints:
    """Number of gallery pictures of each probe's identity, shape (P,)."""
    names, count = np.unique(gallery_M, return_counts=True)
    place_P = np.searchsorted(names, probe_P).clip(max=len(names) - 1)
    return np.where(names[place_P] == probe_P, count[place_P], 0)


def _answers(
    probe_emb_PD: NDArray[Any],
    gallery_emb_MD: NDArray[Any],
    comparison: Comparison,
    progress: OnProgress | None,
) -> tuple[Ints, Floats]:
    """Rows of the K nearest gallery pictures of each probe, and their distances."""
    probe_emb_PD, gallery_emb_MD = (
        np.asarray(emb, dtype=np.float32) for emb in (probe_emb_PD, gallery_emb_MD)
    )
    num, depth = len(probe_emb_PD), min(TOP, len(gallery_emb_MD))
    equal_P = _first_equal(probe_emb_PD, gallery_emb_MD)
    row_PK = np.empty((num, depth), dtype=np.int64)
    dist_PK = np.empty((num, depth), dtype=np.float32)
    for part in blocks(num, BYTES_EACH * len(gallery_emb_MD), progress=progress):
        emb_BD = probe_emb_PD[part]
        row_BS = _candidates(emb_BD, equal_P[part], gallery_emb_MD, comparison)
        dist_BS = listed_distances(emb_BD, gallery_emb_MD, row_BS, comparison)
        _refuse_nan(dist_BS)
        # Rows ascend, so a stable sort puts the first of equally far ones first.
        order_BK = np.argsort(dist_BS, axis=1, kind="stable")[:, :depth]
        row_PK[part] = np.take_along_axis(row_BS, order_BK, axis=1)
        dist_PK[part] = np.take_along_axis(dist_BS, order_BK, axis=1)
    return row_PK, dist_PK


def _candidates(
    emb_BD: Floats, equal_B: Ints, gallery_emb_MD: Floats, comparison: Comparison
) -> Ints:
    """Rows of the gallery pictures that may be nearest, ascending, shape (B, S)."""
    dist_BM = np.array(comparison.matrix(emb_BD, gallery_emb_MD), dtype=np.float32)
    _refuse_nan(dist_BM)
    known = np.flatnonzero(equal_B >= 0)
    # More other pictures than candidates may round to the distance of an equal one.
    dist_BM[known, equal_B[known]] = -np.inf
    num = min(CANDIDATES, dist_BM.shape[1])
    edge_B1 = np.partition(dist_BM, num - 1, axis=1)[:, num - 1 : num]
    below_BM, level_BM = dist_BM < edge_B1, dist_BM == edge_B1
    room_B1 = num - np.count_nonzero(below_BM, axis=1, keepdims=True)
    taken_BM = below_BM | (level_BM & (np.cumsum(level_BM, axis=1, dtype=np.int32) <= room_B1))
    return np.nonzero(taken_BM)[1].reshape(len(emb_BD), num)


def _first_equal(probe_emb_PD: Floats, gallery_emb_MD: Floats) -> Ints:
    """First gallery row that equals each probe, -1 if missing, shape (P,)."""
    first: dict[bytes, int] = {}
    for row, emb_D in enumerate(gallery_emb_MD):
        first.setdefault(_digest(emb_D), row)
    return np.array([first.get(_digest(emb_D), -1) for emb_D in probe_emb_PD], dtype=np.int64)


def _digest(emb_D: Floats) -> bytes:
    # Adding 0 turns -0 into 0, which equals it but differs in bytes.
    return hashlib.blake2b((emb_D + np.float32(0)).tobytes(), digest_size=16).digest()


def _refuse_nan(dist: Floats) -> None:
    if np.isnan(dist).any():
        raise DataError(
            "found distances that are NaN, so the embeddings are broken: train the model again, at "
            "a lower learning rate"
        )
