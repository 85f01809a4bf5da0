"""A small metric on top of a model: directions in which pictures of one identity vary count less.

The metric is within-class covariance normalization (WCCN; Hatch, Kajarekar & Stolcke 2006,
"Within-class covariance normalization for SVM-based speaker recognition"), of low rank and shrunk
strongly to the identity. It is fitted in closed form, without training.

Shapes: M templates, D dimensions, R directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.gallery.corrections import StoredMetric, packed, unpacked

__all__ = ["Metric", "fit_metric"]

RANK = 32
SHRINKAGE = 0.01
"""Share of the variance within identities at which a direction's weight is 1 / sqrt(2)."""
FEW = 30
"""Degrees of freedom at which the shrinkage is twice as strong as with very many."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Metric:
    """Linear map of embeddings: `scale * (x - damping * components along the directions)`.

    Attributes:
        directions: orthonormal, (R, D).
        damping: share of each component that is removed, in [0, 1), (R,).
        scale: keeps the mean squared distance of the templates.
    """

    directions: Floats
    damping: Floats
    scale: float

    @classmethod
    def of(cls, stored: StoredMetric) -> Metric:
        """From its stored form."""
        damping = np.array(stored.damping, dtype=np.float32)
        return cls(unpacked(stored.directions).reshape(len(damping), -1), damping, stored.scale)

    def stored(self) -> StoredMetric:
        """The stored form."""
        return StoredMetric(
            directions=packed(self.directions), damping=self.damping.tolist(), scale=self.scale
        )

    def apply(self, emb_ND: Floats) -> Floats:
        """Mapped embeddings, shape (N, D)."""
        along_NR = (emb_ND @ self.directions.T) * self.damping
        return np.asarray((emb_ND - along_NR @ self.directions) * np.float32(self.scale))


def fit_metric(emb_MD: NDArray[np.float32], code_M: ArrayLike) -> Metric | None:
    """Fit the metric to templates; deterministic.

    Args:
        emb_MD: templates, shape (M, D).
        code_M: identity codes, shape (M,).
    Returns:
        None if no identity has two different templates.
    """
    emb = np.asarray(emb_MD, dtype=np.float64)
    _, own_M, count_I = np.unique(code_M, return_inverse=True, return_counts=True)
    sum_ID = np.zeros((len(count_I), emb.shape[1]))
    np.add.at(sum_ID, own_M, emb)
    residual = (emb - (sum_ID / count_I[:, None])[own_M])[count_I[own_M] > 1]
    freedom = int((count_I - 1).sum())
    if not freedom or not np.square(residual).sum() > 0:
        return None
    _, deviation_R, direction_RD = np.linalg.svd(residual / np.sqrt(freedom), full_matrices=False)
    variance_R = np.square(deviation_R)
    share_R = (variance_R / variance_R.sum())[:RANK]
    weight_R = 1 / np.sqrt(1 + share_R / (SHRINKAGE * (1 + FEW / freedom)))
    metric = Metric(direction_RD[:RANK].astype(np.float32), (1 - weight_R).astype(np.float32), 1.0)
    before, after = (float(rows.var(axis=0).sum()) for rows in (emb, metric.apply(emb_MD)))
    return Metric(metric.directions, metric.damping, float(np.sqrt(before / after)))
