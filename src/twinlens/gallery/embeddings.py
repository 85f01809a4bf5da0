"""Checks of embeddings: numbers of a finite length that is not zero.

Shapes: N embeddings, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.errors import GalleryError

__all__ = ["BROKEN_MODEL", "NOT_FINITE", "as_float32", "unusable_embeddings"]

NOT_FINITE = "NaN or infinity"
BROKEN_MODEL = "the model is broken, train it again"

SHORTEST, LONGEST = 1e-12, 1e12
"""Lengths whose squares, and those of their differences, are exact enough in 32 bits."""


def as_float32(emb: Any) -> NDArray[np.float32]:
    """Numbers as an array of 32-bit floats, in C order; any shape.

    Raises:
        GalleryError: no numbers, or rows of unequal lengths.
    """
    try:
        array = np.asarray(emb)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"found {array.dtype}")
        with np.errstate(over="ignore"):  # Beyond 32 bits: infinity, which is refused later.
            return np.ascontiguousarray(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise GalleryError(
            f"embeddings must be numbers, in an array of shape (N, D): {str(error).splitlines()[0]}"
        ) from error


def unusable_embeddings(emb_ND: NDArray[np.float32]) -> dict[int, str]:
    """The rows that no distance can be measured to, counted from 0, each with the reason.

    >>> unusable_embeddings(np.array([[1, 0], [0, 0], [np.nan, 1]], np.float32))
    {1: 'its embedding has length 0', 2: 'its embedding holds NaN or infinity'}
    """
    # Not as a copy in 64 bits.
    length_N = np.sqrt(np.einsum("nd,nd->n", emb_ND, emb_ND, dtype=np.float64))
    usable_N = (length_N >= SHORTEST) & (length_N <= LONGEST)
    return {
        row: f"its embedding has length {length_N[row]:g}"
        if np.isfinite(length_N[row])
        else f"its embedding holds {NOT_FINITE}"
        for row in np.flatnonzero(~usable_N).tolist()
    }
