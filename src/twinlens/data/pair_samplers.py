"""Samplers of random pairs and triplets, drawn one by one as published systems do.

In an epoch every genuine picture is the anchor of one triplet or two pairs. Each distinct picture
of a batch is embedded once. Samplers use labels and roles only.

Shapes: V virtual pictures (see `batch`); M anchors of a batch or of an epoch.
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
    """Random partners of genuine pictures, which are given by their position in `genuine.order`."""

    def __init__(self, index: LabelIndex, forged_share: float) -> None:
        genuine, forgeries = index.genuine, index.forgeries
        self._index, self._forged_share = index, forged_share
        self._identity = index.identity[genuine.order]
        self._num_own = genuine.count[self._identity]
        self._num_forged = forgeries.count[self._identity]
        self.has_positive = self._num_own >= 2
        self.has_negative = (self._num_own < len(genuine.order)) | (self._num_forged > 0)

    def positive(self, rng: np.random.Generator, position_M: Ints) -> Ints:
        """A uniformly random other genuine picture of the same identity."""
        genuine, own_M = self._index.genuine, self._num_own[position_M]
        start_M = genuine.start[self._identity[position_M]]
        step_M = rng.integers(1, own_M)
        return genuine.order[start_M + (position_M - start_M + step_M) % own_M]

    def negative(self, rng: np.random.Generator, position_M: Ints) -> Ints:
        """A genuine picture of another identity, or with probability `forged_share` a forgery."""
        genuine, forgeries = self._index.genuine, self._index.forgeries
        identity_M, own_M = self._identity[position_M], self._num_own[position_M]
        num_others_M = len(genuine.order) - own_M
        other_M = rng.integers(0, np.maximum(num_others_M, 1))
        # Skip the anchor's own identity, which is contiguous in the grouped order.
        other_M = other_M + np.where(other_M >= genuine.start[identity_M], own_M, 0)
        forged_M = self._num_forged[position_M]
        which_M = rng.integers(0, np.maximum(forged_M, 1))
        drawn_M = rng.random(len(position_M)) < self._forged_share
        forge_M = (forged_M > 0) & (drawn_M | (num_others_M == 0))
        negative_M = genuine.order[np.where(forge_M, 0, other_M)]
        chosen = forgeries.start[identity_M[forge_M]] + which_M[forge_M]
        negative_M[forge_M] = forgeries.order[chosen]
        return negative_M


class _AnchorBatches:
    """The anchors of an epoch, shuffled and split into batches of nearly equal size.

    `draw(rng, anchors)` returns the pairs or triplets (M, 2 or 3) of anchors (M,).
    """

    def __init__(
        self, num: int, draw: Callable[[np.random.Generator, Ints], Ints],
        settings: SamplerSettings, num_virtual: int, seed: int,
    ) -> None:  # fmt: skip
        self._num, self._draw, self._num_virtual, self._seed = num, draw, num_virtual, seed
        self._mirror = settings.mirror
        self.steps_per_epoch = max(1, -(-num // settings.batch))
        self._epoch = -1
        self._fixed = None
        if not settings.fresh:
            self._fixed = self._drawn(np.random.default_rng([ONCE, seed]), np.arange(num))

    def at(self, step: int) -> tuple[Ints, Ints]:
        """The anchors (M,) of a step, and their pairs or triplets (M, 2 or 3)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([EPOCH, self._seed, epoch])
            self._order, self._epoch = rng.permutation(self._num), epoch
        low = self._num * batch // self.steps_per_epoch
        high = self._num * (batch + 1) // self.steps_per_epoch
        which = self._order[low:high]
        if self._fixed is not None:
            return which, self._fixed[which]
        return which, self._drawn(np.random.default_rng([STEP, self._seed, step]), which)

    def _drawn(self, rng: np.random.Generator, which: Ints) -> Ints:
        drawn = self._draw(rng, which)
        if self._mirror:
            drawn = drawn + self._num_virtual * (rng.random((len(which), 1)) < 0.5)
        return drawn


class PairSampler:
    """Random pairs; each distinct picture of a batch is embedded once.

    Algorithm. In an epoch every genuine picture is the anchor of one positive pair, with a random
    other genuine picture of its identity, and of one negative pair: 2N pairs (PyImageSearch,
    "Building image pairs for siamese networks with Python", 2020). The pairs are shuffled and
    split into ceil(pairs / `batch`) batches of nearly equal size. With `fresh` each epoch draws
    new partners; without, the partners are drawn once for all epochs, as in the tutorial. With
    `mirror` each pair is mirrored with probability 1/2, both pictures alike.

    Corner cases:
      - an anchor that is the only genuine picture of its identity has no positive pair;
      - a negative is a random genuine picture of another identity. If the anchor's identity has
        forgeries, it is one of these with probability `forged_share` (always, if no other
        identity has genuine pictures);
      - a forged picture is never an anchor.

    Raises:
        DataError: no positive or no negative pair.
    """

    def __init__(
        self, label: NDArray[np.int64], forged: NDArray[np.bool_], settings: SamplerSettings,
        seed: int,
    ) -> None:  # fmt: skip
        self._index = LabelIndex.of(label, forged, settings.rotations)
        self._partners = _Partners(self._index, settings.forged_share)
        positive = np.flatnonzero(self._partners.has_positive)
        negative = np.flatnonzero(self._partners.has_negative)
        _check_negatives(len(negative))
        self._anchor = np.concatenate([positive, negative])
        self._same = np.arange(len(self._anchor)) < len(positive)
        self._batches = _AnchorBatches(
            len(self._anchor), self._draw, settings, len(self._index.row), seed
        )
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.num_labels = self._index.num_labels

    def batch(self, step: int) -> Batch:
        """The pairs of a step; `row` and the other arrays hold its distinct pictures, sorted."""
        which, pairs = self._batches.at(step)
        batch, position = _distinct(self._index, pairs)
        return replace(batch, pairs=position, same=self._same[which])

    def _draw(self, rng: np.random.Generator, which: Ints) -> Ints:
        anchor, same = self._anchor[which], self._same[which]
        partner = np.empty_like(anchor)
        partner[same] = self._partners.positive(rng, anchor[same])
        partner[~same] = self._partners.negative(rng, anchor[~same])
        return np.stack([self._index.genuine.order[anchor], partner], axis=1)


class TripletSampler:
    """Random triplets; each distinct picture of a batch is embedded once.

    Algorithm. In an epoch every genuine picture of an identity with two or more is an anchor once.
    The anchors are shuffled and split into ceil(anchors / `batch`) batches of nearly equal size.
    The positive is a random other genuine picture of the identity. Negatives, `fresh` and `mirror`
    are those of `PairSampler`. An identity with one genuine picture is used only as a negative.

    Raises:
        DataError: no triplet.
    """

    def __init__(
        self, label: NDArray[np.int64], forged: NDArray[np.bool_], settings: SamplerSettings,
        seed: int,
    ) -> None:  # fmt: skip
        self._index = LabelIndex.of(label, forged, settings.rotations)
        self._partners = _Partners(self._index, settings.forged_share)
        usable = self._partners.has_positive & self._partners.has_negative
        self._anchor = np.flatnonzero(usable)
        _check_negatives(len(self._anchor))
        self._batches = _AnchorBatches(
            len(self._anchor), self._draw, settings, len(self._index.row), seed
        )
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.num_labels = self._index.num_labels

    def batch(self, step: int) -> Batch:
        """The triplets of a step; `row` and the other arrays hold its distinct pictures, sorted."""
        batch, position = _distinct(self._index, self._batches.at(step)[1])
        return replace(batch, triplets=position)

    def _draw(self, rng: np.random.Generator, which: Ints) -> Ints:
        anchor = self._anchor[which]
        columns = [
            self._index.genuine.order[anchor],
            self._partners.positive(rng, anchor),
            self._partners.negative(rng, anchor),
        ]
        return np.stack(columns, axis=1)


def _distinct(index: LabelIndex, drawn: Ints) -> tuple[Batch, Ints]:
    """The distinct pictures among those drawn, and the position there of each drawn one.

    Numbers from V on mean mirrored pictures: V + i is picture i, mirrored.
    """
    members, position = np.unique(drawn, return_inverse=True)
    mirrored = members >= len(index.row)
    batch = index.batch(members % len(index.row))
    if mirrored.any():
        batch = replace(batch, mirrored=mirrored)
    return batch, position.reshape(drawn.shape)


def _check_negatives(num: int) -> None:
    if num == 0:
        raise DataError(
            "found genuine pictures of one identity only and no forgeries of it, so there is no "
            "impostor pair: give pictures of at least two identities"
        )
