"""The same picture twice: exactly, or nearly (saved again, resized, a little brighter).

Exact duplicates share a digest of their pixels. Near duplicates are looked for among pictures
that share a part of a hash of their low frequencies, and confirmed on small grey thumbnails. No
N x N anything: time grows about linearly, and memory is the thumbnails and the pairs found. This
module knows pictures and thumbnails; it knows no tables, labels or splits.

Shapes: N pictures, T the side of a thumbnail, Q pairs, F frequencies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "LIMIT",
    "SHARE",
    "THUMBNAIL",
    "NearDuplicates",
    "exact_groups",
    "is_near",
    "near_duplicates",
    "pixel_digest",
    "thumbnail",
]

THUMBNAIL = 32
LIMIT = 3.0
SHARE = 0.2
BAND_BITS = 16
NUM_BANDS = 4
WINDOW = 32
# All pairs below this: medians of a handful of pictures say nothing.
ALL_PAIRS_UP_TO = 400
CHUNK = 16384

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of pictures that look the same.

    Attributes:
        groups: rows, ascending, two or more in each; groups ascend by their first row. Joined by
            chains: in a group of three, two may differ by more than the limit.
        capped: so many pictures share parts of their hash that each was compared only with the
            nearest of these in brightness; some near duplicates may be missing.
    """

    groups: tuple[tuple[int, ...], ...]
    capped: bool


def pixel_digest(picture: Image.Image) -> bytes:
    """BLAKE2b of size and pixels; a colour picture without colour has its grey one's digest.

    Args:
        picture: of mode "L" or "RGB".
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


def exact_groups(digests: Sequence[bytes]) -> list[tuple[int, ...]]:
    """Rows with equal digests, two or more in each group, ascending by their first row."""
    rows_of: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        rows_of.setdefault(digest, []).append(row)
    return [tuple(rows) for rows in rows_of.values() if len(rows) > 1]


def is_near(
    a_QTT: NDArray[np.uint8],
    b_QTT: NDArray[np.uint8],
    *,
    limit: float = LIMIT,
    share: float = SHARE,
) -> NDArray[np.bool_]:
    """Whether two thumbnails show the same picture, for Q pairs; shape (Q,).

    Their mean absolute difference must be at most `limit` grey levels, and at most `share` of
    the larger one's mean deviation from its own median level. The second holds two different
    drawings apart that are both nearly all paper: they differ by their whole ink.

    Args:
        a_QTT: thumbnails, uint8 (Q, T, T).
        b_QTT: thumbnails, uint8 (Q, T, T).
        limit: grey levels of 255.
        share: a fraction.
    """
    a, b = _flat(a_QTT), _flat(b_QTT)
    difference = np.abs(a - b).mean(axis=1)
    ink = np.maximum(_ink(a), _ink(b))
    near: NDArray[np.bool_] = (difference <= limit) & (difference <= share * ink)
    near |= difference == 0
    return near


def near_duplicates(
    thumb_NTT: NDArray[np.uint8], *, limit: float = LIMIT, share: float = SHARE
) -> NearDuplicates:
    """Find groups of near duplicates.

    The 64 lowest frequencies of each thumbnail (cosine transform, without the mean) are cut to
    bits twice, at 0 and at their median over all pictures; each 64 bits are cut into 4 bands
    (pigeonhole: pictures whose bits differ in up to 3 places share a band). Pictures that share a
    band are compared, in very full bands only with the 32 next in brightness. Up to 400 pictures
    are simply all compared.

    Args:
        thumb_NTT: thumbnails as `thumbnail` makes them, uint8 (N, T, T).
        limit: as in `is_near`.
        share: as in `is_near`.
    """
    first, same_as = _distinct(thumb_NTT)
    looks = _Looks.of(thumb_NTT[first], limit, share)
    num, capped = len(first), False
    found = [np.stack([first[same_as], np.arange(len(thumb_NTT))], axis=1)]
    if num <= ALL_PAIRS_UP_TO:
        pairs = np.stack(np.triu_indices(num, 1), axis=1).astype(np.int64)
        found.append(first[looks.near(pairs)])
    else:
        for key_N in _band_keys(looks.thumb):
            order = np.lexsort((looks.brightness, key_N))
            capped = capped or bool(_neighbours_share(key_N[order], WINDOW + 1).any())
            found.extend(first[looks.near(pairs)] for pairs in _bucket_pairs(key_N, order))
    return NearDuplicates(_groups(np.concatenate(found), len(thumb_NTT)), capped)


@dataclass(frozen=True, eq=False)
class _Looks:
    """Thumbnails with what makes comparing many of them cheap."""

    thumb: NDArray[np.uint8]
    coarse: NDArray[np.float32]  # (N, 16) block means
    fine: NDArray[np.float32]  # (N, 64) block means
    ink: NDArray[np.float32]  # (N,)
    limit: float
    share: float

    @classmethod
    def of(cls, thumb_NTT: NDArray[np.uint8], limit: float, share: float) -> _Looks:
        parts = [thumb_NTT[i : i + CHUNK] for i in range(0, max(len(thumb_NTT), 1), CHUNK)]
        ink = np.concatenate([_ink(_flat(part)) for part in parts])
        coarse, fine = _block_means(thumb_NTT, 4), _block_means(thumb_NTT, 8)
        return cls(thumb_NTT, coarse, fine, ink, limit, share)

    @property
    def brightness(self) -> NDArray[np.float32]:
        brightness: NDArray[np.float32] = self.coarse.mean(axis=1)
        return brightness

    def near(self, pairs_Q2: Pairs) -> Pairs:
        """Those pairs that `is_near` would confirm."""
        kept = [np.empty((0, 2), dtype=np.int64)]
        for start in range(0, len(pairs_Q2), CHUNK):
            pairs = pairs_Q2[start : start + CHUNK]
            # A block mean never differs by more than its pixels do on average: cheap bounds first.
            for measure in (self._coarse_bound, self._fine_bound, self._difference):
                a, b = pairs.T
                most = np.minimum(self.limit, self.share * np.maximum(self.ink[a], self.ink[b]))
                pairs = pairs[measure(a, b) <= most]
            kept.append(pairs)
        return np.concatenate(kept)

    def _coarse_bound(self, a: Pairs, b: Pairs) -> NDArray[np.float32]:
        return _mean_abs(self.coarse[a] - self.coarse[b])

    def _fine_bound(self, a: Pairs, b: Pairs) -> NDArray[np.float32]:
        return _mean_abs(self.fine[a] - self.fine[b])

    def _difference(self, a: Pairs, b: Pairs) -> NDArray[np.float32]:
        return _mean_abs(_flat(self.thumb[a]) - _flat(self.thumb[b]))


def _mean_abs(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.abs(difference, out=difference).mean(axis=1)
    return mean


def _distinct(thumb_NTT: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each distinct thumbnail, and for each row the place of its like there."""
    place_of: dict[bytes, int] = {}
    same_as = np.array(
        [place_of.setdefault(thumb.tobytes(), len(place_of)) for thumb in thumb_NTT], np.int64
    )
    return np.unique(same_as, return_index=True)[1].astype(np.int64), same_as


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
    """(N,) keys of one band after the other."""
    coef_NF = _low_frequencies(thumb_NTT)
    weights = 1 << np.arange(BAND_BITS, dtype=np.int64)
    for cut in (np.zeros(coef_NF.shape[1], np.float32), np.median(coef_NF, axis=0)):
        bits = coef_NF > cut
        for band in range(NUM_BANDS):  # Every fourth frequency, so that each band has all kinds.
            yield bits[:, band::NUM_BANDS] @ weights


def _low_frequencies(thumb_NTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, F): the lowest frequencies of the cosine transform (DCT-II) but the mean."""
    num_kept, side = 11, THUMBNAIL
    frequency, place = np.arange(num_kept)[:, None], np.arange(side)[None, :]
    basis = np.cos(np.pi * frequency * (2 * place + 1) / (2 * side)).astype(np.float32)
    u, v = np.divmod(np.arange(num_kept**2), num_kept)
    lowest = np.lexsort((u, u + v))[1 : NUM_BANDS * BAND_BITS + 1]
    parts = [
        (basis @ thumb_NTT[start : start + CHUNK].astype(np.float32) @ basis.T)
        .reshape(-1, num_kept**2)[:, lowest]
        for start in range(0, len(thumb_NTT), CHUNK)
    ]  # fmt: skip
    return np.concatenate(parts)


def _neighbours_share(sorted_key_N: NDArray[np.int64], distance: int) -> NDArray[np.bool_]:
    share: NDArray[np.bool_] = sorted_key_N[distance:] == sorted_key_N[:-distance]
    return share


def _bucket_pairs(key_N: NDArray[np.int64], order: NDArray[np.int64]) -> Iterator[Pairs]:
    """Pairs with equal keys, up to `WINDOW` places apart in `order`, which sorts the keys."""
    sorted_key_N = key_N[order]
    for distance in range(1, min(WINDOW, len(order) - 1) + 1):
        left = np.flatnonzero(_neighbours_share(sorted_key_N, distance))
        if not len(left):
            return
        yield np.stack([order[left], order[left + distance]], axis=1)


def _groups(pairs: Pairs, num: int) -> tuple[tuple[int, ...], ...]:
    """The connected sets of rows, each with two or more."""
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    label_N = np.arange(num)
    while True:
        lowest = np.minimum(label_N[pairs[:, 0]], label_N[pairs[:, 1]])
        after = label_N.copy()
        for side in (0, 1):
            np.minimum.at(after, pairs[:, side], lowest)
        after = after[after]
        if (after == label_N).all():
            break
        label_N = after
    rows_of: dict[int, list[int]] = {}
    for row in np.unique(pairs):
        rows_of.setdefault(int(label_N[row]), []).append(int(row))
    return tuple(tuple(rows_of[first]) for first in sorted(rows_of))
