"""Comparators that are functions of the Euclidean distance, in numpy.

A gallery compares stored vectors, and importing torch takes longer and more memory than comparing a
hundred thousand of them. `twinlens.model.comparators` defines all comparators; a test compares both
forms. The learned network is missing here, since it is no function of a distance.

Shapes: N, M embeddings of D dimensions, B of them in a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EUCLIDEAN_COMPARATORS", "EuclideanComparison", "ProductForm", "as_euclidean",
           "product_error", "unit"]  # fmt: skip

EUCLIDEAN_COMPARATORS = ("euclidean", "squared-euclidean", "cosine", "sigmoid")
"""Comparators that order pairs as the Euclidean distance does (for the cosine, of unit vectors)."""

Floats = NDArray[np.float32]


def unit(emb_ND: Floats) -> Floats:
    """Embeddings of length 1, shape (N, D); zeros stay zeros."""
    length_N1 = np.linalg.norm(emb_ND, axis=1, keepdims=True)
    return np.asarray(emb_ND / np.maximum(length_N1, 1e-12), dtype=np.float32)


def product_error(square_N: Floats, dim: int) -> Floats:
    """Squared distance up to which vectors count as equal, if it comes from matrix products, (N,).

    The products of equal vectors differ from the squared length by up to 1.3 times the square root
    of D, in float32's precision: where OpenBLAS has AVX2 alone, other numbers at the edges of a
    matrix than within.

    Args:
        square_N: squared lengths.
        dim: D.
    """
    return square_N * np.float32(4 * np.finfo(np.float32).eps * math.sqrt(dim))


@dataclass(frozen=True)
class EuclideanComparison:
    """A `measure.pairs.Comparison` for a comparator in `EUCLIDEAN_COMPARATORS`.

    >>> EuclideanComparison("euclidean").matrix(np.zeros((1, 2)), np.array([[3.0, 4.0]])).tolist()
    [[5.0]]

    Attributes:
        name: name of the comparator.
        scale: factor of the Euclidean distance for "sigmoid"; 1 for the others.
    """

    name: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        assert self.name in EUCLIDEAN_COMPARATORS, self.name

    def prepared(self, emb_ND: NDArray[Any]) -> Floats:
        """Vectors whose squared distances `from_squared` takes: for the cosine, of length 1."""
        emb_ND = np.asarray(emb_ND, dtype=np.float32)
        return unit(emb_ND) if self.name == "cosine" else emb_ND

    def from_squared(self, square: NDArray[np.float32]) -> Floats:
        """Distances from squared Euclidean distances of `prepared` vectors, any shape."""
        if self.name == "squared-euclidean":
            return square
        if self.name == "cosine":
            return square / np.float32(2)
        return np.sqrt(square) * np.float32(self.scale)

    def matrix(self, a_ND: NDArray[Any], b_MD: NDArray[Any]) -> Floats:
        """`res[i, j]` = distance of a[i] and b[j], shape (N, M)."""
        a_ND, b_MD = self.prepared(a_ND), self.prepared(b_MD)
        square_NM = np.square(a_ND).sum(1)[:, None] + np.square(b_MD).sum(1)
        square_NM -= 2 * (a_ND @ b_MD.T)
        return self.from_squared(np.maximum(square_NM, 0, out=square_NM))

    def pairwise(self, a_ND: NDArray[Any], b_ND: NDArray[Any]) -> Floats:
        """`res[i]` = distance of a[i] and b[i], shape (N,); exactly 0 for equal vectors."""
        difference_ND = self.prepared(a_ND) - self.prepared(b_ND)
        return self.from_squared(np.asarray(np.square(difference_ND).sum(1), dtype=np.float32))

    def product_form(self, emb_ND: NDArray[Any]) -> ProductForm:
        """Embeddings prepared for squared distances by matrix products."""
        emb_ND = self.prepared(emb_ND)
        square_N = np.square(emb_ND).sum(1)
        left_NE = np.column_stack([-2 * emb_ND, np.ones_like(square_N)])
        error_N = product_error(square_N, emb_ND.shape[1])
        return ProductForm(left_NE, np.column_stack([emb_ND, square_N]), square_N, error_N)


@dataclass(frozen=True, eq=False)
class ProductForm:
    """Embeddings whose matrix product gives squared distances, without a pass over the result.

    `left[i] @ right[j]` = |a[j]|^2 - 2 a[i] a[j]: the squared distance less |a[i]|^2, which keeps
    the order of the distances within a row.

    Attributes:
        left: (N, D + 1).
        right: (N, D + 1).
        square: squared lengths (N,).
        error: squared distances of equal vectors are at most this, (N,).
    """

    left: Floats
    right: Floats
    square: Floats
    error: Floats


def as_euclidean(comparison: object) -> EuclideanComparison | None:
    """The numpy form of a comparison; None if it is no function of the Euclidean distance."""
    if isinstance(comparison, EuclideanComparison):
        return comparison
    name, scale = getattr(comparison, "name", None), getattr(comparison, "scale", None)
    return (
        EuclideanComparison(name, scale)
        if name in EUCLIDEAN_COMPARATORS and isinstance(scale, float)
        else None
    )
