"""Example pairs and triplets of a training batch, varied in identities.

Shapes: B pictures in a batch, Q pairs, T triplets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinlens.data.batch import Batch
from twinlens.data.table import pair_masks

__all__ = ["example_pairs", "example_triplets"]

Examples = list[tuple[int, ...]]
"""Pairs or triplets of positions in the batch."""


def example_pairs(batch: Batch, num: int, rng: np.random.Generator) -> tuple[Examples, Examples]:
    """Choose up to `num` genuine and up to `num` impostor pairs of a batch.

    Pairs that the sampler drew are kept as they are; without them, the pairs of its triplets or of
    `pair_masks` are taken. Identities repeat as late as possible. With forgeries, every second
    impostor pair is a forgery and a genuine picture of the same identity.
    """
    genuine, impostor = (_choose(batch, pairs, num, rng) for pairs in _pairs(batch))
    return genuine, impostor


def example_triplets(batch: Batch, num: int, rng: np.random.Generator) -> Examples:
    """Choose up to `num` triplets (anchor, positive, negative) of a batch, as `example_pairs`."""
    if batch.triplets is not None:
        return _choose(batch, batch.triplets, num, rng)
    genuine_BB, impostor_BB = _masks(batch)
    if batch.pairs is not None:
        genuine_BB, impostor_BB = _sampled_masks(batch)
    candidates = [
        (anchor, rng.choice(np.flatnonzero(genuine_BB[anchor])), negative)
        for anchor in np.flatnonzero(genuine_BB.any(axis=1)).tolist()
        for negative in _two_negatives(batch, anchor, np.flatnonzero(impostor_BB[anchor]), rng)
    ]
    return _choose(batch, np.array(candidates, dtype=np.int64).reshape(-1, 3), num, rng)


def _pairs(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Genuine and impostor pairs, (Q, 2) each."""
    if batch.pairs is not None and batch.same is not None:
        return batch.pairs[batch.same], batch.pairs[~batch.same]
    if batch.triplets is not None:
        return batch.triplets[:, :2], batch.triplets[:, ::2]
    genuine_BB, impostor_BB = _masks(batch)
    return np.argwhere(np.triu(genuine_BB, 1)), np.argwhere(np.triu(impostor_BB, 1))


def _masks(batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    label, forged = batch.label, batch.forged
    genuine, impostor = pair_masks(label[:, None], forged[:, None], label[None], forged[None])
    off_diagonal = ~np.eye(len(label), dtype=np.bool_)
    return genuine & off_diagonal, impostor


def _is_forgery(batch: Batch, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a pair is a forgery and a picture of the imitated identity, (Q,)."""
    a, b = pairs.T
    forgery: NDArray[np.bool_] = batch.forged[pairs].any(axis=1) & (
        batch.label[a] == batch.label[b]
    )
    return forgery


def _choose(batch: Batch, pairs: NDArray[np.int64], num: int, rng: np.random.Generator) -> Examples:
    """Up to `num` of the pairs (or triplets), identities varied, forgeries alternating."""
    shuffled = rng.permutation(pairs)
    forgery = _is_forgery(batch, shuffled[:, [0, -1]])
    other = ~batch.forged[shuffled].any(axis=1)
    if not (forgery | other).any():
        other = ~forgery
    queues = [_varied(batch, shuffled[forgery]), _varied(batch, shuffled[other])]
    chosen: Examples = []
    while len(chosen) < num and any(queues):
        queue = queues[len(chosen) % 2] or queues[(len(chosen) + 1) % 2]
        chosen.append(queue.pop(0))
    return chosen


def _varied(batch: Batch, pairs: NDArray[np.int64]) -> Examples:
    """The same pairs, ordered so that identities repeat as late as possible."""
    seen: dict[int, int] = {}
    ranked = []
    for order, pair in enumerate(pairs.tolist()):
        labels = {int(label) for label in batch.label[pair]}
        ranked.append((max(seen.get(label, 0) for label in labels), order, tuple(pair)))
        for label in labels:
            seen[label] = seen.get(label, 0) + 1
    return [pair for _, _, pair in sorted(ranked)]


def _sampled_masks(batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The sampler's pairs as genuine and impostor masks, (B, B) each."""
    assert batch.pairs is not None
    assert batch.same is not None
    genuine_BB, impostor_BB = np.zeros((2, len(batch.row), len(batch.row)), dtype=np.bool_)
    for mask, pairs in (
        (genuine_BB, batch.pairs[batch.same]),
        (impostor_BB, batch.pairs[~batch.same]),
    ):
        mask[pairs[:, 0], pairs[:, 1]] = True
    return genuine_BB, impostor_BB


def _two_negatives(
    batch: Batch, anchor: int, negatives: NDArray[np.int64], rng: np.random.Generator
) -> list[int]:
    """A random forgery of the anchor and a random other negative, if any."""
    forgery = batch.forged[negatives] & (batch.label[negatives] == batch.label[anchor])
    genuine = ~batch.forged[negatives]
    kinds = (negatives[forgery], negatives[genuine])
    return [int(rng.choice(kind)) for kind in kinds if len(kind)]
