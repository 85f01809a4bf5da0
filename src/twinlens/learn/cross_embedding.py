"""Distances of all pictures by maps that learned from neither of the two identities.

An audit of the labels needs them, and a threshold from few identities: folds hold few of their
pairs.

The identities are divided into folds. Pictures of the folds i and j are compared by maps that were
fitted to the other folds, so that neither of two labels shaped the distance of their pictures.

Shapes: N pictures, V views, F features, D dimensions, M members, B rows of a block, K folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twinlens.config import Member
from twinlens.learn.cross_validation import mapped_embeddings

__all__ = ["CrossEmbeddings", "count_folds"]

FEWEST_TO_FIT = 3
"""Identities that a whitening is fitted to, at least."""

FEWEST_FOLDS, MOST_FOLDS = 5, 8


def count_folds(num_identities: int) -> int:
    """Number of folds for a threshold: two to three identities each, so that maps lack few."""
    return min(MOST_FOLDS, max(FEWEST_FOLDS, 2 * num_identities // 5))


class CrossEmbeddings:
    """Distances of N pictures by maps of other identities; a `measure.identity_evidence.Distances`.

    Args:
        members: candidates, by name; whitened ones are left out if there are too few identities.
        features: (V, N, F) of each member, by name.
        label: identities, (N,).
        seed: random seed of the folds.
        folds: number of folds, at most.
        mirrored: whether an embedding is the mean over all views, not the first one alone.
        progress: called with (maps done, all maps).
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        features: Mapping[str, Tensor],
        label: NDArray[np.int64],
        *,
        seed: int = 0,
        folds: int = FEWEST_FOLDS,
        mirrored: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        identities, code_N = np.unique(label, return_inverse=True)
        fold_I = np.arange(len(identities)) % folds
        self.fold_N = np.random.default_rng([seed, 5]).permutation(fold_I)[code_N]
        numbers = [int(number) for number in np.unique(self.fold_N)]
        pairs = list(combinations(numbers, 2)) or [(0, 0)]
        fewest = min(len(np.unique(label[self._rest(*pair)])) for pair in pairs)
        self.names = [
            name for name, member in members.items()
            if member.model.init != "whitened" or fewest >= FEWEST_TO_FIT
        ]  # fmt: skip
        self.rows: dict[tuple[int, int], NDArray[np.int64]] = {}
        self.emb: dict[tuple[int, int], NDArray[np.float32]] = {}
        for done, pair in enumerate(pairs, 1):
            rest = self._rest(*pair)
            rows = np.flatnonzero(np.isin(self.fold_N, pair))
            parts = [
                mapped_embeddings(
                    members[name], features[name], label, rows, rest if len(rest) else rows,
                    mirrored=mirrored,
                )
                for name in self.names
            ]  # fmt: skip
            self.rows[pair], self.emb[pair] = rows, np.stack(parts)
            if progress is not None:
                progress(done, len(pairs))

    def _rest(self, i: int, j: int) -> NDArray[np.int64]:
        return np.flatnonzero(~np.isin(self.fold_N, (i, j)))

    @property
    def num(self) -> int:
        """Number of pictures."""
        return len(self.fold_N)

    def blocks(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Rows (B,) and their cosine distances (M, B, N) to all pictures, B at most `size`."""
        for number in np.unique(self.fold_N):
            rows = np.flatnonzero(self.fold_N == number)
            for start in range(0, len(rows), size):
                block = rows[start : start + size]
                yield block, self._distances(int(number), block)

    def fused(self, weights: Mapping[str, float]) -> NDArray[np.float32]:
        """The weighted sum of the members' distances, (N, N)."""
        share_M = np.array([weights[name] for name in self.names], dtype=np.float32)
        dist_NN = np.empty((self.num, self.num), dtype=np.float32)
        for rows, dist_MBN in self.blocks(self.num):
            dist_NN[rows] = np.tensordot(share_M, dist_MBN, 1)
        return dist_NN

    def _distances(self, number: int, block: NDArray[np.int64]) -> NDArray[np.float32]:
        dist_MBN = np.empty((len(self.names), len(block), self.num), dtype=np.float32)
        own: Any = self.fold_N == number
        for pair, rows in self.rows.items():
            if number not in pair:
                continue
            emb_MnD = self.emb[pair]
            probe_MBD = emb_MnD[:, np.searchsorted(rows, block)]
            other = pair[1] if pair[0] == number else pair[0]
            wanted = (self.fold_N[rows] == other) | own[rows]
            dist_MBN[:, :, rows[wanted]] = 1 - probe_MBD @ emb_MnD[:, wanted].transpose(0, 2, 1)
        return dist_MBN
