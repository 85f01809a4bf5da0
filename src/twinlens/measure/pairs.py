"""Genuine and impostor pairs, and their distances.

`twinlens.data.table.pair_masks` defines both kinds. Few pairs are all taken; of many, a random
sample is drawn. No table of all pairs is ever built.

Shapes: N pictures, Q pairs, D numbers in an embedding, R genuine pictures ordered by label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.data.table import pair_masks
from twinlens.errors import DataError

__all__ = ["ALL_PAIRS_LIMIT", "BLOCK_BYTES", "SAMPLED_PAIRS", "Comparison", "OnProgress", "PairSet",
           "blocks", "count_pairs", "draw_pairs", "extract_genuine", "listed_distances",
           "pair_distances", "sample_pictures"]  # fmt: skip

ALL_PAIRS_LIMIT = 200_000
SAMPLED_PAIRS = 100_000
BLOCK_BYTES = 2**26
MIN_PER_IDENTITY = 4  # pictures of an identity that are kept if there are too many pictures

BYTES_LISTED = 48
"""Memory for a number of a listed pair, with the intermediate arrays of a comparison."""

Ints = NDArray[np.int64]
OnProgress = Callable[[int, int], None]


class Comparison(Protocol):
    """Distances between embeddings, float32 in and out; lower is closer.

    `matrix(a, b)[i, j]` and `pairwise(a, b)[i]` are the distances of `a[i]` to `b[j]` and `b[i]`.
    """

    def matrix(self, a_ND: NDArray[np.float32], b_MD: NDArray[np.float32], /) -> NDArray[Any]:
        """Distances of every a to every b, shape (N, M)."""
        ...

    def pairwise(self, a_ND: NDArray[np.float32], b_ND: NDArray[np.float32], /) -> NDArray[Any]:
        """Distances of each a to its own b, shape (N,)."""
        ...


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs of pictures by row: `a` (Q,) and `b` (Q,), and whether they are genuine, `same` (Q,).

    Ordered by `a`, then `b`; `a` is always a genuine picture.
    """

    a: Ints
    b: Ints
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.a)


def sample_pictures(
    label: NDArray[np.int64], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of at most `most` pictures, ascending; several of an identity, so that they make pairs.

    Args:
        label: identities, (N,).
        most: number of rows, at most.
        rng: random generator of the sample.
    """
    order_N = rng.permutation(len(label))
    if len(label) <= most:
        return np.sort(order_N)
    _, code_N = np.unique(label[order_N], return_inverse=True)
    turn_C = rng.permutation(code_N.max() + 1)
    by_identity = np.argsort(turn_C[code_N], kind="stable")
    sorted_N = turn_C[code_N][by_identity]
    place_N = np.arange(len(sorted_N)) - np.searchsorted(sorted_N, sorted_N)
    kept = by_identity[place_N < max(MIN_PER_IDENTITY, most // len(turn_C))][:most]
    return np.sort(order_N[kept])


def draw_pairs(
    label: ArrayLike,
    forged: ArrayLike,
    *,
    num_pairs: int | None = None,
    rng: np.random.Generator,
) -> PairSet:
    """Genuine and impostor pairs, each at most once.

    By default all of them, if there are at most 200,000 of either kind; else up to 100,000 of each
    kind, drawn uniformly without repetition. Pairs of a genuine picture and a forgery of the same
    identity are the hardest impostors. If not all impostors fit, these come first, up to half of
    the number; they are more than half only if there are too few others.

    Args:
        label: identities as integers, shape (N,).
        forged: whether each picture is a forgery, shape (N,).
        num_pairs: maximum of each kind; None chooses as above.
        rng: random generator of the sample; unused if all pairs fit.
    Raises:
        DataError: `num_pairs` below 1.
    """
    label_N, forged_N = np.asarray(label), np.asarray(forged, dtype=bool)
    if num_pairs is not None and num_pairs < 1:
        raise DataError(f"num_pairs must be at least 1, found {num_pairs}")
    partners = _Partners.of(label_N, forged_N)
    most = SAMPLED_PAIRS if num_pairs is None else num_pairs
    if num_pairs is None and max(partners.num_pairs) <= ALL_PAIRS_LIMIT:
        most = ALL_PAIRS_LIMIT
    genuine = _draw(partners.genuine, most, rng)
    num_strangers = int(partners.stranger.sum())
    forgery = _draw(partners.forgery, max(most // 2, most - num_strangers), rng)
    stranger = _draw(partners.stranger, most - len(forgery[0]), rng)
    row = np.concatenate([partners.real[place] for place, _ in (genuine, forgery, stranger)])
    other = np.concatenate(
        [
            partners.real[genuine[0] + 1 + genuine[1]],
            partners.fake[partners.fake_start[forgery[0]] + forgery[1]],
            partners.strangers(*stranger),
        ]
    )
    order = np.lexsort((other, row))
    a, b = row[order], other[order]
    same, impostor = pair_masks(label_N[a], forged_N[a], label_N[b], forged_N[b])
    assert np.all(same | impostor)
    assert np.count_nonzero(same) == len(genuine[0])
    return PairSet(a, b, same)


def count_pairs(label: ArrayLike, forged: ArrayLike) -> tuple[int, int]:
    """Numbers of genuine and impostor pairs that `draw_pairs` draws from."""
    return _Partners.of(np.asarray(label), np.asarray(forged, dtype=bool)).num_pairs


def pair_distances(
    emb_ND: NDArray[Any], pairs: PairSet, comparison: Comparison
) -> NDArray[np.float32]:
    """The distance of each pair, shape (Q,), computed in blocks of at most 64 MB."""
    dist_Q = np.empty(len(pairs), dtype=np.float32)
    for part in blocks(len(pairs), 8 * emb_ND.shape[1]):
        dist_Q[part] = comparison.pairwise(
            emb_ND[pairs.a[part]].astype(np.float32, copy=False),
            emb_ND[pairs.b[part]].astype(np.float32, copy=False),
        )
    return dist_Q


def listed_distances(
    emb_BD: NDArray[np.float32],
    emb_MD: NDArray[np.float32],
    row_BS: NDArray[np.integer[Any]],
    comparison: Comparison,
) -> NDArray[np.float32]:
    """Distances of each of B embeddings to its own list of rows of M, pair by pair.

    Args:
        emb_BD: shape (B, D).
        emb_MD: shape (M, D).
        row_BS: rows of `emb_MD`, shape (B, S).
        comparison: distances between embeddings.
    Returns:
        Shape (B, S).
    """
    num = row_BS.shape[1]
    dist_BS = np.empty(row_BS.shape, dtype=np.float32)
    for part in blocks(len(emb_BD), BYTES_LISTED * num * emb_BD.shape[1]):
        left = np.repeat(emb_BD[part], num, axis=0)
        right = emb_MD[row_BS[part].ravel()]
        dist_BS[part] = np.reshape(comparison.pairwise(left, right), (-1, num))
    return dist_BS


def extract_genuine(
    dist_PN: NDArray[np.float32], own_P: Ints, first_P: Ints, relevant_P: Ints
) -> NDArray[np.float32]:
    """Move the genuine pairs, and each picture's own, out of a block of distances.

    Args:
        dist_PN: distances of P pictures to N, which are ordered by identity; set to inf for the
            extracted pairs.
        own_P: column of the picture itself, shape (P,).
        first_P: first column of its genuine pictures, which include itself, shape (P,).
        relevant_P: number of its genuine pictures without itself, shape (P,).
    Returns:
        Distances of the genuine pairs, shape (P, 1 + max of `relevant_P`), in no order, padded
        with inf.
    """
    place_W = np.arange(int(relevant_P.max()) + 1)
    kept_PW = place_W <= relevant_P[:, None]
    place_PW = first_P[:, None] + np.where(kept_PW, place_W, 0)
    genuine_PW = np.take_along_axis(dist_PN, place_PW, axis=1)
    genuine_PW[~kept_PW | (place_PW == own_P[:, None])] = np.inf
    np.put_along_axis(dist_PN, place_PW, np.inf, axis=1)
    return genuine_PW


def blocks(
    num: int,
    bytes_each: int,
    *,
    least: int = 1,
    progress: OnProgress | None = None,
) -> Iterator[slice]:
    """Slices of `num` rows that need at most 64 MB at a time.

    Args:
        num: number of rows.
        bytes_each: memory for one row.
        least: minimum of rows in a block, whatever their memory.
        progress: called after each block with the number of rows done and of all rows.
    """
    size = max(least, BLOCK_BYTES // max(1, bytes_each))
    for start in range(0, num, size):
        end = min(start + size, num)
        yield slice(start, end)
        if progress is not None:
            progress(end, num)


@dataclass(frozen=True, eq=False)
class _Partners:
    """Pictures ordered by label, and the number of partners of each genuine one (R,), by kind.

    A pair is then a number below the sum of partners, so that a sample is drawn without listing
    the pairs. Genuine partners follow in the same label. Strangers follow in later labels, or are
    forgeries of another label. Forgeries carry the same label.
    """

    real: Ints
    fake: Ints
    end: Ints
    fake_start: Ints
    genuine: Ints
    forgery: Ints
    stranger: Ints

    @classmethod
    def of(cls, label_N: NDArray[Any], forged_N: NDArray[np.bool_]) -> _Partners:
        """Order the pictures and count."""
        real, fake = (_ordered(np.flatnonzero(mask), label_N) for mask in (~forged_N, forged_N))
        label_R = label_N[real]
        end = np.searchsorted(label_R, label_R, side="right")
        fake_start = np.searchsorted(label_N[fake], label_R, side="left")
        forgery = np.searchsorted(label_N[fake], label_R, side="right") - fake_start
        genuine = end - np.arange(len(real)) - 1
        stranger = (len(real) - end) + (len(fake) - forgery)
        return cls(real, fake, end, fake_start, genuine, forgery, stranger)

    @property
    def num_pairs(self) -> tuple[int, int]:
        """Numbers of genuine and impostor pairs."""
        return int(self.genuine.sum()), int(self.forgery.sum() + self.stranger.sum())

    def strangers(self, place: Ints, offset: Ints) -> Ints:
        """The `offset`-th stranger of the genuine picture at each `place`, as a row."""
        beyond = offset - (len(self.real) - self.end[place])
        beyond = beyond + np.where(beyond >= self.fake_start[place], self.forgery[place], 0)
        forged = offset >= len(self.real) - self.end[place]
        row = np.empty(len(place), dtype=np.int64)
        row[forged] = self.fake[beyond[forged]]
        row[~forged] = self.real[(self.end[place] + offset)[~forged]]
        return row


def _ordered(row: Ints, label_N: NDArray[Any]) -> Ints:
    return row[np.argsort(label_N[row], kind="stable")]


def _draw(partners_R: Ints, most: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Up to `most` pairs: places (in R) of the first pictures, and indexes of the partners."""
    bound_R = np.cumsum(partners_R)
    total = int(bound_R[-1]) if len(bound_R) else 0
    if total <= most:
        chosen = np.arange(total)
    else:
        chosen = np.sort(rng.choice(total, size=most, replace=False, shuffle=False))
    place = np.searchsorted(bound_R, chosen, side="right")
    return place, chosen - (bound_R - partners_R)[place]
