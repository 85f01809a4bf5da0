"""Literal random pairs and triplets, as the published systems draw them.

In an epoch every genuine picture is an anchor once (of pairs: twice). Each distinct picture of a
batch is forwarded once. This module knows labels and roles only.

Shapes: V virtual pictures (see `pools`); M anchors of a batch or of an epoch; B distinct pictures,
Q pairs and T triplets in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twinlens.config import SamplerSettings
from twinlens.data.batch import EPOCH, ONCE, STEP, Batch, Ints, LabelIndex
from twinlens.errors import DataError

__all__ = ["PairSampler", "TripletSampler"]


class _Partners:
    """Random partners of genuine pictures, named by their place in the grouped order."""

    def __init__(self, pool: LabelIndex, forged_share: float) -> None:
        genuine, forgeries = pool.genuine, pool.forgeries
        self._pool, self._share = pool, forged_share
        self._identity = pool.identity[genuine.order]
        self._num_own = genuine.count[self._identity]
        self._num_forged = forgeries.count[self._identity]
        self.has_positive = self._num_own >= 2
        self.has_negative = (self._num_own < len(genuine.order)) | (self._num_forged > 0)

    def positive(self, rng: np.random.Generator, place_M: Ints) -> Ints:
        """Another genuine picture of the same identity, each equally likely."""
        genuine, own_M = self._pool.genuine, self._num_own[place_M]
        start_M = genuine.start[self._identity[place_M]]
        step_M = rng.integers(1, own_M)
        return genuine.order[start_M + (place_M - start_M + step_M) % own_M]

    def negative(self, rng: np.random.Generator, place_M: Ints) -> Ints:
        """A genuine picture of another identity; or, at the share of such, a forgery."""
        genuine, forgeries = self._pool.genuine, self._pool.forgeries
        identity_M, own_M = self._identity[place_M], self._num_own[place_M]
        num_others_M = len(genuine.order) - own_M
        other_M = rng.integers(0, np.maximum(num_others_M, 1))
        # Skip over the anchor's own identity, which lies together in the grouped order.
        other_M = other_M + np.where(other_M >= genuine.start[identity_M], own_M, 0)
        forged_M = self._num_forged[place_M]
        which_M = rng.integers(0, np.maximum(forged_M, 1))
        forge_M = (forged_M > 0) & ((rng.random(len(place_M)) < self._share) | (num_others_M == 0))
        negative_M = genuine.order[np.where(forge_M, 0, other_M)]
        chosen = forgeries.start[identity_M[forge_M]] + which_M[forge_M]
        negative_M[forge_M] = forgeries.order[chosen]
        return negative_M


class _Draws:
    """An epoch's anchors in a shuffled order, cut into batches of nearly equal size.

    `draw(rng, anchors)` gives the pairs or triplets (M, 2 or 3) that belong to anchors (M,).
    """

    def __init__(
        self, num: int, draw: Callable[[np.random.Generator, Ints], Ints],
        settings: SamplerSettings, num_virtual: int, seed: int,
    ) -> None:  # fmt: skip
        self._num, self._draw, self._num_virtual, self._seed = num, draw, num_virtual, seed
        self._mirror = settings.mirror
        self.steps_per_epoch = max(1, -(-num // settings.batch))
        self._epoch = -1
        self._kept = None
        if not settings.fresh:
            self._kept = self._drawn(np.random.default_rng([ONCE, seed]), np.arange(num))

    def at(self, step: int) -> tuple[Ints, Ints]:
        """The anchors (M,) of a step, and their pairs or triplets (M, 2 or 3)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([EPOCH, self._seed, epoch])
            self._order, self._epoch = rng.permutation(self._num), epoch
        low = self._num * place // self.steps_per_epoch
        high = self._num * (place + 1) // self.steps_per_epoch
        which = self._order[low:high]
        if self._kept is not None:
            return which, self._kept[which]
        return which, self._drawn(np.random.default_rng([STEP, self._seed, step]), which)

    def _drawn(self, rng: np.random.Generator, which: Ints) -> Ints:
        drawn = self._draw(rng, which)
        if self._mirror:
            drawn = drawn + self._num_virtual * (rng.random((len(which), 1)) < 0.5)
        return drawn


class PairSampler:
    """Literal random pairs, each distinct picture of a batch forwarded once.

    Algorithm. In an epoch every genuine picture is once the anchor of a positive pair, with a
    random other genuine picture of its identity, and once the anchor of a negative pair: 2N pairs
    (PyImageSearch, "Building image pairs for siamese networks with Python", 2020). The pairs are
    shuffled and cut into ceil(pairs / `batch`) batches of nearly equal size. Each epoch draws
    partners anew; without `fresh` every epoch has the partners that were drawn once, as in the
    tutorial. With `mirror` half of the pairs, by chance, are mirrored, both pictures alike.

    Corner cases:
      - an anchor that is its identity's only genuine picture gives only its negative pair;
      - a negative partner is a random genuine picture of another identity; where the anchor's
        identity has forgeries, it is one of these at the share `forged_share` (always, if there
        is no other identity with genuine pictures);
      - a forged picture is never an anchor.

    Raises:
        DataError: there is no positive or no negative pair.
    """

    def __init__(
        self, label: NDArray[np.int64], forged: NDArray[np.bool_], settings: SamplerSettings,
        seed: int,
    ) -> None:  # fmt: skip
        self._pool = LabelIndex.of(label, forged, settings.rotations)
        self._partners = _Partners(self._pool, settings.forged_share)
        positive = np.flatnonzero(self._partners.has_positive)
        negative = np.flatnonzero(self._partners.has_negative)
        _refuse_without_negatives(len(negative))
        self._anchor = np.concatenate([positive, negative])
        self._same = np.arange(len(self._anchor)) < len(positive)
        self._draws = _Draws(len(self._anchor), self._draw, settings, len(self._pool.row), seed)
        self.steps_per_epoch = self._draws.steps_per_epoch
        self.num_labels = self._pool.num_labels

    def batch(self, step: int) -> Batch:
        """The pairs of a step; `row` and the like are its distinct pictures, sorted."""
        which, pairs = self._draws.at(step)
        batch, place = _distinct(self._pool, pairs)
        return replace(batch, pairs=place, same=self._same[which])

    def _draw(self, rng: np.random.Generator, which: Ints) -> Ints:
        anchor, same = self._anchor[which], self._same[which]
        partner = np.empty_like(anchor)
        partner[same] = self._partners.positive(rng, anchor[same])
        partner[~same] = self._partners.negative(rng, anchor[~same])
        return np.stack([self._pool.genuine.order[anchor], partner], axis=1)


class TripletSampler:
    """Literal random triplets, each distinct picture of a batch forwarded once.

    Algorithm. In an epoch every genuine picture of an identity with two or more is once an
    anchor, in a shuffled order cut into ceil(anchors / `batch`) batches of nearly equal size. The
    positive is a random other genuine picture of its identity, the negative is drawn as in
    `PairSampler`, and so do `fresh` and `mirror` work. An identity with one genuine picture serves
    only as a negative.

    Raises:
        DataError: there is no triplet.
    """

    def __init__(
        self, label: NDArray[np.int64], forged: NDArray[np.bool_], settings: SamplerSettings,
        seed: int,
    ) -> None:  # fmt: skip
        self._pool = LabelIndex.of(label, forged, settings.rotations)
        self._partners = _Partners(self._pool, settings.forged_share)
        usable = self._partners.has_positive & self._partners.has_negative
        self._anchor = np.flatnonzero(usable)
        _refuse_without_negatives(len(self._anchor))
        self._draws = _Draws(len(self._anchor), self._draw, settings, len(self._pool.row), seed)
        self.steps_per_epoch = self._draws.steps_per_epoch
        self.num_labels = self._pool.num_labels

    def batch(self, step: int) -> Batch:
        """The triplets of a step; `row` and the like are its distinct pictures, sorted."""
        batch, place = _distinct(self._pool, self._draws.at(step)[1])
        return replace(batch, triplets=place)

    def _draw(self, rng: np.random.Generator, which: Ints) -> Ints:
        anchor = self._anchor[which]
        columns = [
            self._pool.genuine.order[anchor],
            self._partners.positive(rng, anchor),
            self._partners.negative(rng, anchor),
        ]
        return np.stack(columns, axis=1)


def _distinct(pool: LabelIndex, drawn: Ints) -> tuple[Batch, Ints]:
    """The distinct pictures among those drawn, and where each drawn one stands among them.

    A number from V on means the picture of that number less V, mirrored.
    """
    members, place = np.unique(drawn, return_inverse=True)
    mirrored = members >= len(pool.row)
    batch = pool.batch(members % len(pool.row))
    if mirrored.any():
        batch = replace(batch, mirrored=mirrored)
    return batch, place.reshape(drawn.shape).astype(np.int64)


def _refuse_without_negatives(num: int) -> None:
    if num == 0:
        raise DataError(
            "found genuine pictures of one identity only and no forgeries of it, so there is "
            "nothing to push apart: give pictures of at least two identities"
        )
