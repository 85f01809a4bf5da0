"""Duplicate pictures: exact copies, and near copies (saved again, resized, a little brighter).

Exact duplicates share a digest of their pixels. Near copies are judged by thumbnails: they differ
by far less than the pictures of the same set do, so that handwritten digits of one shape are no
copies. This module works on pictures and thumbnails only: no tables, labels or splits.

Shapes: N, M pictures, T side of a thumbnail, P = T * T, S pictures of a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["THUMBNAIL", "equal_pictures", "groups_of_equal", "near_copies", "near_duplicates",
           "pixel_digest", "thumbnail"]  # fmt: skip

THUMBNAIL = 16

# Chosen on MNIST, Fashion-MNIST, CIFAR-10, Omniglot, faces, signatures and photographs. Pictures
# saved again differ by less than the least limit. The largest one admits CIFAR-10 at 80 % size.
LEAST_LIMIT, LARGEST_LIMIT = 0.005, 0.05
SHARE_OF_SPACING = 0.1
NEIGHBOUR = 5  # A picture may have a few copies, which say nothing of its distance to others.
SAMPLE = 1000
LEAST_CONTRAST = 4.0  # Grey levels; the pattern of a flatter picture is noise.
MAX_BRIGHTER = 32.0  # Grey levels of the mean.
MAX_CONTRAST_RATIO = 1.5

COARSE = 32  # Coordinates of the cheap bound.
BLOCK_ROWS = 512
BLOCK_SIZE = 2**23
ROUNDING = 1e-4

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def pixel_digest(picture: Image.Image) -> bytes:
    """BLAKE2b of size and pixels; an RGB picture without colour has the digest of its grey one.

    Args:
        picture: picture of mode "L" or "RGB".
    """
    if picture.mode == "RGB":
        red, green, blue = (channel.tobytes() for channel in picture.split())
        if red == green == blue:
            picture = picture.getchannel(0)
    digest = hashlib.blake2b(f"{picture.mode} {picture.size}".encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()


def thumbnail(picture: Image.Image) -> NDArray[np.uint8]:
    """A grey thumbnail, uint8 (T, T), proportions ignored."""
    small = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.array(small, dtype=np.uint8)


def groups_of_equal(values: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """Rows with equal values, two or more in each group, ascending by their first row.

    >>> groups_of_equal(["a", "b", "a", "c", "b"])
    [(0, 2), (1, 4)]
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, value in enumerate(values):
        rows_of.setdefault(value, []).append(row)
    return [tuple(rows) for rows in rows_of.values() if len(rows) > 1]


def equal_pictures(pixels_NCHW: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """Groups of pictures with equal pixels, as in `groups_of_equal`.

    Four lines of each picture are compared first, so that little is read of a large array.

    Args:
        pixels_NCHW: pictures of one size.
    """
    height = pixels_NCHW.shape[2]
    lines = [height * k // 5 for k in range(1, 5)]
    alike = groups_of_equal([picture[:, lines].tobytes() for picture in pixels_NCHW])
    rows = [row for group in alike for row in group]
    digests = [hashlib.blake2b(pixels_NCHW[row].tobytes(), digest_size=16).digest() for row in rows]
    return sorted(tuple(rows[index] for index in group) for group in groups_of_equal(digests))


def near_duplicates(thumb_NTT: NDArray[np.uint8]) -> tuple[tuple[int, ...], ...]:
    """Groups of pictures that are all near copies of each other (greedy cliques).

    The difference of two pictures is the squared distance of their patterns: thumbnails without
    their mean, scaled to length 1. So it is 2 (1 - correlation), and neither brightness nor
    contrast change it. Two pictures are near copies if

    - their difference is at most a tenth of the spacing of either, which is its difference from
      the fifth nearest of 1,000 other pictures, drawn at random. The limit is at least 0.005 and
      at most 0.05;
    - their means differ by at most 32 of 255 grey levels, and their contrasts by a factor of at
      most 1.5.

    Each picture in turn starts a group. It takes the nearest pictures that are in no group yet and
    are near copies of all that it has. Every pair is compared, by a bound of 32 coordinates first.

    Args:
        thumb_NTT: thumbnails of one size, uint8.
    Returns:
        Ascending rows of each group, at least two; groups ascend by their first row. They do not
        depend on the order of the pictures.
    """
    if len(thumb_NTT) < 2:
        return ()
    # Sorted by their bytes, so that neither the sample nor the groups depend on the order.
    thumb, copy_of = _distinct(thumb_NTT)
    pattern, _ = _patterns(thumb)
    order = np.argsort(pattern.vector[:, 0], kind="stable")
    pattern = pattern.select(order)
    taken = np.zeros(len(order), np.bool_)
    group_of = np.arange(len(order))
    for row, others in _near_rows(pattern, pattern, taken):
        members = pattern.clique(row, others)
        taken[members] = True
        group_of[order[members]] = order[row]
    return tuple(groups_of_equal(group_of[copy_of].tolist()))


def near_copies(a_NTT: NDArray[np.uint8], b_MTT: NDArray[np.uint8]) -> Rows:
    """The nearest near copy of each picture B among pictures A, as in `near_duplicates`.

    The spacing of a picture, of A or B, is measured among those of A.

    Args:
        a_NTT: thumbnails of one size, uint8.
        b_MTT: thumbnails of the same size.
    Returns:
        (M,) rows of A, or -1.

    >>> a = np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8)
    >>> near_copies(a, np.stack([a[7], 255 - a[7]]))
    array([ 7, -1])
    """
    copy = np.full(len(b_MTT), -1, np.int64)
    if not len(a_NTT) or not len(b_MTT):
        return copy
    a, b = _patterns(a_NTT, b_MTT)
    order, b_order = (np.argsort(x.vector[:, 0], kind="stable") for x in (a, b))
    a, b = a.select(order), b.select(b_order)
    for row, others in _near_rows(b, a):
        nearest = b.difference(np.array([row]), a, others).argmin()
        copy[b_order[row]] = order[others[nearest]]
    return copy


@dataclass(frozen=True, eq=False)
class _Patterns:
    """N pictures: vectors of length 1 (less if flat), and what they leave out."""

    vector: Floats  # (N, P), the coordinates of the largest variance first
    mean: Floats  # (N,) grey levels
    contrast: Floats  # (N,) standard deviation in grey levels
    limit: Floats  # (N,) largest difference of a near copy

    def select(self, rows: Rows) -> _Patterns:
        return _Patterns(self.vector[rows], self.mean[rows], self.contrast[rows], self.limit[rows])

    def difference(self, rows: Rows, other: _Patterns, columns: Rows) -> Floats:
        """(R, C) squared distances of some rows to some rows of another."""
        x, y = self.vector[rows], other.vector[columns]
        apart: Floats = _squared(x)[:, None] + _squared(y) - 2 * (x @ y.T)
        return apart

    def near(self, rows: Rows, other: _Patterns, columns: Rows) -> NDArray[np.bool_]:
        """(R, C) whether some rows are near copies of some rows of another."""
        ratio = self.contrast[rows][:, None] / other.contrast[columns]
        apart = np.abs(self.mean[rows][:, None] - other.mean[columns])
        limit = np.minimum(self.limit[rows][:, None], other.limit[columns])
        alike = (apart <= MAX_BRIGHTER) & (ratio <= MAX_CONTRAST_RATIO)
        alike &= ratio >= 1 / MAX_CONTRAST_RATIO
        return np.asarray(alike & (self.difference(rows, other, columns) <= limit))

    def clique(self, row: int, others: Rows) -> Rows:
        """Near copies of a row that are near copies of each other, the nearest first."""
        apart = self.difference(np.array([row]), self, others)[0]
        others = others[np.argsort(apart, kind="stable")]
        members = np.empty(0, np.int64)
        for start in range(0, len(others), BLOCK_ROWS):
            block = others[start : start + BLOCK_ROWS]
            block = block[self.near(block, self, members).all(axis=1)]
            near = self.near(block, self, block)
            alike = np.ones(len(block), np.bool_)
            for index in range(len(block)):
                if alike[index]:
                    alike[index + 1 :] &= near[index, index + 1 :]
            members = np.concatenate([members, block[alike]])
        return members


def _squared(vector_NP: Floats) -> Floats:
    """(N,) squared lengths."""
    squared: Floats = np.einsum("np,np->n", vector_NP, vector_NP)
    return squared


def _distinct(thumb_NTT: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Rows]:
    """The distinct thumbnails, sorted by their bytes, and the position there of each row."""
    flat = np.ascontiguousarray(thumb_NTT.reshape(len(thumb_NTT), -1))
    as_bytes = flat.view(np.dtype((np.void, flat.shape[1]))).ravel()
    _, first, copy_of = np.unique(as_bytes, return_index=True, return_inverse=True)
    return thumb_NTT[first], copy_of.astype(np.int64)


def _patterns(
    a_NTT: NDArray[np.uint8], b_MTT: NDArray[np.uint8] | None = None
) -> tuple[_Patterns, _Patterns]:
    """Patterns of A and B (A by default), in the principal axes and with the spacing of A."""
    vector, mean, contrast = _vectors(a_NTT)
    sample = np.sort(np.random.default_rng(0).permutation(len(vector))[:SAMPLE])
    axes = np.linalg.eigh(vector[sample].T @ vector[sample])[1][:, ::-1]
    vector = vector @ axes
    a = _Patterns(vector, mean, contrast, _limits(vector, vector[sample], sample))
    if b_MTT is None:
        return a, a
    b_vector, b_mean, b_contrast = _vectors(b_MTT)
    b_vector = b_vector @ axes
    return a, _Patterns(b_vector, b_mean, b_contrast, _limits(b_vector, vector[sample], None))


def _vectors(thumb_NTT: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """Vectors (N, P), means and contrasts (N,)."""
    vector = thumb_NTT.reshape(len(thumb_NTT), -1).astype(np.float32)
    mean = vector.mean(axis=1)
    vector -= mean[:, None]
    contrast = np.sqrt(_squared(vector) / vector.shape[1])
    contrast = np.maximum(contrast, LEAST_CONTRAST)
    vector /= contrast[:, None] * np.sqrt(vector.shape[1], dtype=np.float32)
    return vector, mean, contrast


def _limits(vector_NP: Floats, sample_SP: Floats, sample: Rows | None) -> Floats:
    """(N,) largest differences; `sample` holds the rows of the sample if it is of the vectors."""
    limit = np.full(len(vector_NP), LEAST_LIMIT, np.float32)
    neighbour = min(NEIGHBOUR, len(sample_SP) - (sample is not None)) - 1
    if neighbour < 0:
        return limit
    for start in range(0, len(vector_NP), BLOCK_ROWS):
        block = vector_NP[start : start + BLOCK_ROWS]
        apart = _squared(block)[:, None] + _squared(sample_SP) - 2 * (block @ sample_SP.T)
        if sample is not None:
            own = np.flatnonzero((sample >= start) & (sample < start + len(block)))
            apart[sample[own] - start, own] = np.inf
        spacing = np.partition(apart, neighbour, axis=1)[:, neighbour]
        limit[start : start + BLOCK_ROWS] = SHARE_OF_SPACING * spacing
    return limit.clip(LEAST_LIMIT, LARGEST_LIMIT)


def _near_rows(
    a: _Patterns, b: _Patterns, taken: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Rows]]:
    """Each row of A that has near copies in B, and their rows; both ascend by coordinate 0.

    Args:
        taken: (N,) if B is A: rows that no longer count, which the caller may add to. Only later
            rows are compared.
    """
    coarse_a, coarse_b = a.vector[:, :COARSE], b.vector[:, :COARSE]
    # Differences of a few coordinates are a lower bound, and one product computes it:
    # |x - y|^2 <= limit  if  2 x y - y^2 >= x^2 - limit
    left = np.c_[2 * coarse_a, np.full(len(coarse_a), -1, np.float32)]
    right = np.c_[coarse_b, _squared(coarse_b)]
    least = _squared(coarse_a) - a.limit - ROUNDING
    reach = float(np.sqrt(LARGEST_LIMIT)) + ROUNDING
    first = np.searchsorted(b.vector[:, 0], a.vector[:, 0] - reach)
    last = np.searchsorted(b.vector[:, 0], a.vector[:, 0] + reach)
    start = 0
    while start < len(left):
        low = start if taken is not None else int(first[start])
        num = max(1, min(BLOCK_ROWS, BLOCK_SIZE // max(1, int(last[start]) - low)))
        stop = min(start + num, len(left))
        near = left[start:stop] @ right[low : last[stop - 1]].T >= least[start:stop, None]
        for row in np.flatnonzero(near.any(axis=1)) + start:
            others = np.flatnonzero(near[row - start]) + low
            if taken is not None:
                if taken[row]:
                    continue
                others = others[(others > row) & ~taken[others]]
            others = others[a.near(np.array([row]), b, others)[0]]
            if len(others):
                yield int(row), others
        start = stop
