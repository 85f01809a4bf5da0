"""Duplicate pictures: exact copies, and near copies (saved again, resized, a little brighter).

Exact duplicates share a digest of their pixels. Candidates for near duplicates share part of a
perceptual hash (low frequencies); comparing grey thumbnails confirms them. Time grows about
linearly with the number of pictures; nothing is N x N. This module works on pictures and
thumbnails only: no tables, labels or splits.

Shapes: N pictures, T side of a thumbnail, Q pairs, F frequencies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "MAX_DIFFERENCE",
    "MAX_INK_SHARE",
    "THUMBNAIL",
    "NearDuplicates",
    "groups_of_equal",
    "near_duplicates",
    "pixel_digest",
    "thumbnail",
]

THUMBNAIL = 32
MAX_DIFFERENCE = 3.0
MAX_INK_SHARE = 0.2
BAND_BITS = 16
NUM_BANDS = 4
WINDOW = 32
# All pairs up to this many pictures: medians over a handful are not meaningful.
ALL_PAIRS_UP_TO = 400
CHUNK = 16384

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of pictures that look the same.

    Attributes:
        groups: ascending rows, at least two in each; groups ascend by their first row. A group is
            a connected component: two of its members may differ by more than the limit.
        capped: whether a band of the hash was so full that each picture was compared only with
            those nearest in brightness. Some near duplicates may then be missing.
    """

    groups: tuple[tuple[int, ...], ...]
    capped: bool


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


def near_duplicates(
    thumb_NTT: NDArray[np.uint8],
    *,
    max_difference: float = MAX_DIFFERENCE,
    max_ink_share: float = MAX_INK_SHARE,
) -> NearDuplicates:
    """Find groups of near duplicates.

    Two thumbnails are near duplicates if their mean absolute difference is at most
    `max_difference` grey levels, and at most `max_ink_share` of the larger ink. The ink of a
    thumbnail is its mean absolute deviation from its median level. The second condition separates
    different drawings that are nearly all paper: they differ by their whole ink.

    Candidates come from a perceptual hash. The 64 lowest frequencies of each thumbnail (DCT-II
    without the mean) become bits in two ways: thresholded at 0, and at their median over all
    pictures. Each 64 bits are split into 4 bands. Bits that differ in at most 3 places share a
    band (pigeonhole). Pictures that share a band are compared, each with the 32 next in brightness
    if the band is very full. Up to 400 pictures are all compared.

    Args:
        thumb_NTT: thumbnails made by `thumbnail`, uint8 (N, T, T).
        max_difference: largest mean absolute difference, in grey levels of 255.
        max_ink_share: largest difference as a fraction of the ink.
    """
    first, copy_of = _distinct(thumb_NTT)
    thumbs = _Thumbnails.of(thumb_NTT[first], max_difference, max_ink_share)
    num, capped = len(first), False
    edges = [np.stack([first[copy_of], np.arange(len(thumb_NTT))], axis=1)]
    if num <= ALL_PAIRS_UP_TO:
        pairs = np.stack(np.triu_indices(num, 1), axis=1).astype(np.int64)
        edges.append(first[thumbs.near(pairs)])
    else:
        for key_N in _band_keys(thumbs.thumb):
            order = np.lexsort((thumbs.brightness, key_N))
            capped = capped or bool(_equal_at(key_N[order], WINDOW + 1).any())
            edges.extend(first[thumbs.near(pairs)] for pairs in _bucket_pairs(key_N, order))
    return NearDuplicates(_connected_groups(np.concatenate(edges), len(thumb_NTT)), capped)


@dataclass(frozen=True, eq=False)
class _Thumbnails:
    """Thumbnails with precomputed bounds, so that comparing many pairs is cheap."""

    thumb: NDArray[np.uint8]
    coarse: NDArray[np.float32]  # (N, 16) block means
    fine: NDArray[np.float32]  # (N, 64) block means
    ink: NDArray[np.float32]  # (N,)
    max_difference: float
    max_ink_share: float

    @classmethod
    def of(
        cls, thumb_NTT: NDArray[np.uint8], max_difference: float, max_ink_share: float
    ) -> _Thumbnails:
        parts = [thumb_NTT[i : i + CHUNK] for i in range(0, max(len(thumb_NTT), 1), CHUNK)]
        ink = np.concatenate([_ink(_flat(part)) for part in parts])
        coarse, fine = _block_means(thumb_NTT, 4), _block_means(thumb_NTT, 8)
        return cls(thumb_NTT, coarse, fine, ink, max_difference, max_ink_share)

    @property
    def brightness(self) -> NDArray[np.float32]:
        brightness: NDArray[np.float32] = self.coarse.mean(axis=1)
        return brightness

    def near(self, pairs_Q2: Pairs) -> Pairs:
        """Those pairs that are near duplicates."""
        kept = [np.empty((0, 2), dtype=np.int64)]
        for start in range(0, len(pairs_Q2), CHUNK):
            pairs = pairs_Q2[start : start + CHUNK]
            # Block means never differ by more than the pixels do on average: cheap bounds first.
            for level in (self.coarse, self.fine, self.thumb.reshape(len(self.thumb), -1)):
                a, b = pairs.T
                ink = np.maximum(self.ink[a], self.ink[b])
                limit = np.minimum(self.max_difference, self.max_ink_share * ink)
                difference = level[a].astype(np.float32) - level[b]
                pairs = pairs[np.abs(difference, out=difference).mean(axis=1) <= limit]
            kept.append(pairs)
        return np.concatenate(kept)


def _distinct(thumb_NTT: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each distinct thumbnail, and the position there of each row's copy."""
    position_of: dict[bytes, int] = {}
    copy_of = np.array(
        [position_of.setdefault(thumb.tobytes(), len(position_of)) for thumb in thumb_NTT], np.int64
    )
    return np.unique(copy_of, return_index=True)[1].astype(np.int64), copy_of


def _flat(thumb_QTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    return thumb_QTT.reshape(-1, THUMBNAIL * THUMBNAIL).astype(np.float32)


def _ink(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    ink: NDArray[np.float32] = np.abs(flat - np.median(flat, axis=1, keepdims=True)).mean(axis=1)
    return ink


def _block_means(thumb_NTT: NDArray[np.uint8], num: int) -> NDArray[np.float32]:
    """(N, num^2): means of num x num blocks."""
    side = THUMBNAIL // num
    blocks = thumb_NTT.reshape(len(thumb_NTT), num, side, num, side)
    means: NDArray[np.float32] = blocks.mean(axis=(2, 4), dtype=np.float32)
    return means.reshape(-1, num * num)


def _band_keys(thumb_NTT: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """(N,) hash keys, one band after the other."""
    coef_NF = _low_frequencies(thumb_NTT)
    weights = 1 << np.arange(BAND_BITS, dtype=np.int64)
    for cut in (np.zeros(coef_NF.shape[1], np.float32), np.median(coef_NF, axis=0)):
        bits = coef_NF > cut
        for band in range(NUM_BANDS):  # Every fourth frequency: each band has low and high ones.
            yield bits[:, band::NUM_BANDS] @ weights


def _low_frequencies(thumb_NTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, F): the lowest frequencies of the cosine transform (DCT-II), without the mean."""
    from scipy.fft import dctn

    num_kept = 11
    u, v = np.divmod(np.arange(num_kept**2), num_kept)
    lowest = np.lexsort((u, u + v))[1 : NUM_BANDS * BAND_BITS + 1]
    parts = [
        dctn(thumb_NTT[start : start + CHUNK].astype(np.float32), axes=(1, 2))
        [:, u[lowest], v[lowest]]
        for start in range(0, len(thumb_NTT), CHUNK)
    ]  # fmt: skip
    return np.concatenate(parts)


def _equal_at(sorted_key_N: NDArray[np.int64], distance: int) -> NDArray[np.bool_]:
    """Whether a key equals the one `distance` further on, (N - distance,)."""
    equal: NDArray[np.bool_] = sorted_key_N[distance:] == sorted_key_N[:-distance]
    return equal


def _bucket_pairs(key_N: NDArray[np.int64], order: NDArray[np.int64]) -> Iterator[Pairs]:
    """Pairs with equal keys, at most `WINDOW` positions apart in `order`, which sorts the keys."""
    sorted_key_N = key_N[order]
    for distance in range(1, min(WINDOW, len(order) - 1) + 1):
        left = np.flatnonzero(_equal_at(sorted_key_N, distance))
        if not len(left):
            return
        yield np.stack([order[left], order[left + distance]], axis=1)


def _connected_groups(pairs_Q2: Pairs, num: int) -> tuple[tuple[int, ...], ...]:
    """Connected components of two or more rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs_Q2), np.bool_), tuple(pairs_Q2.T)), shape=(num, num))
    return tuple(groups_of_equal(connected_components(edges, directed=False)[1].tolist()))
