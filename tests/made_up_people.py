"""Generated identities: embeddings around a point for each, and Euclidean distances."""

from __future__ import annotations

import numpy as np


class Euclid:
    """Euclidean distances by differences: exactly 0 for equal vectors."""

    def matrix(self, a_ND, b_MD, /):
        difference = a_ND[:, None].astype(np.float64) - b_MD
        return np.sqrt((difference**2).sum(axis=2)).astype(np.float32)

    def pairwise(self, a_ND, b_ND, /):
        difference = a_ND.astype(np.float64) - b_ND
        return np.sqrt((difference**2).sum(axis=1)).astype(np.float32)


def people(num=12, each=4, spread=0.5, seed=0, dim=3):
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(num), each)
    emb = rng.normal(size=(num, dim))[code] + rng.normal(size=(num * each, dim)) * spread
    return emb.astype(np.float32), code


def people_with_forgeries(num=10, each=4, dim=3, spread=0.5, seed=0, forged_each=0):
    """Embeddings, labels and forged marks; forgeries lie near their identity. Rows are shuffled."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(num), each + forged_each)
    forged = np.tile(np.repeat([False, True], [each, forged_each]), num)
    emb = rng.normal(size=(num, dim))[label] + rng.normal(size=(len(label), dim)) * spread
    order = rng.permutation(len(label))
    return emb[order].astype(np.float32), label[order], forged[order]
