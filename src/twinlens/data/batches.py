"""Which pictures go into which training batch.

Three ways of drawing: P identities x K pictures (`PKSampler`), literal random pairs
(`PairSampler`) and literal random triplets (`TripletSampler`). Every batch is a pure function of
(seed, step), so a resumed run draws what an unbroken one would; what an epoch shares (its
shuffles) is kept until another epoch is asked for.

Roles: a pair is genuine when both pictures are genuine and of one identity. A forged picture is
never a positive of anything; it is drawn as a negative of the identity that it imitates.

This module knows labels and roles only: no pixels, no torch, no distances.

Shapes: N pictures; V virtual pictures (N, or 4N with `rotations`: a quarter turn of a picture is
a picture of another identity, label * 4 + turn); I identities; P identities and K pictures of
each a batch; B distinct pictures, Q pairs and T triplets in a batch; M anchors of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinlens.config import SamplerSettings
from twinlens.errors import ConfigError, DataError

__all__ = [
    "Batch",
    "PKSampler",
    "PairSampler",
    "Sampler",
    "TripletSampler",
    "make_sampler",
]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# What a random stream is for; (purpose, seed, number) seeds it.
_EPOCH, _STEP, _ONCE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Batch:
    """The distinct pictures of a batch, and the pairs or triplets drawn literally, if any.

    Attributes:
        row: rows of the training table, (B,). A row repeats only turned or mirrored otherwise.
        label: labels, (B,); with rotations label * 4 + turn.
        forged: roles, (B,).
        turns: quarter turns anticlockwise, 0..3, (B,).
        pairs: positions in the batch, (Q, 2), or None.
        same: whether the pair is genuine, (Q,), or None.
        triplets: positions of anchor, positive and negative, (T, 3), or None.
        mirrored: whether the picture is seen mirrored left to right, (B,), or None for none.
    """

    row: Ints
    label: Ints
    forged: Bools
    turns: Ints
    pairs: Ints | None = None
    same: Bools | None = None
    triplets: Ints | None = None
    mirrored: Bools | None = None


class Sampler(Protocol):
    """What training needs of a sampler."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, at least 1."""

    @property
    def num_labels(self) -> int:
        """One more than the largest label a batch can hold."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over the whole run."""


@dataclass(frozen=True, eq=False)
class _Groups:
    """Virtual pictures by identity: those of i are `order[start[i] : start[i] + count[i]]`."""

    order: Ints
    start: Ints
    count: Ints

    @classmethod
    def of(cls, members: Ints, identity_V: Ints, num_identities: int) -> _Groups:
        order = members[np.argsort(identity_V[members], kind="stable")]
        count = np.bincount(identity_V[members], minlength=num_identities).astype(np.int64)
        return cls(order, np.cumsum(count) - count, count)

    def shuffled(self, rng: np.random.Generator, identity_V: Ints) -> _Groups:
        """The same groups, each in a new order."""
        return _Groups.of(rng.permutation(self.order), identity_V, len(self.count))

    def take(self, identity_P: Ints, first_P: Ints, num: int) -> Ints:
        """From each identity up to `num` distinct members, from place `first` on, cyclically."""
        count_P1 = self.count[identity_P][:, None]
        slot_1K = np.arange(num)[None, :]
        place_PK = (first_P[:, None] + slot_1K) % np.maximum(count_P1, 1)
        wanted_PK = slot_1K < count_P1
        return self.order[(self.start[identity_P][:, None] + place_PK)[wanted_PK]]


@dataclass(frozen=True, eq=False)
class _Pool:
    """Every virtual picture that can be drawn; the arrays are (V,)."""

    row: Ints
    turns: Ints
    label: Ints
    forged: Bools
    identity: Ints  # label, renumbered without gaps
    genuine: _Groups
    forgeries: _Groups

    @classmethod
    def of(cls, label: Ints, forged: Bools, rotations: bool) -> _Pool:
        assert label.shape == forged.shape
        assert label.ndim == 1
        if label.size == 0:
            raise DataError("found no pictures to train on: give a folder with pictures")
        num_turns = 4 if rotations else 1
        turns = np.repeat(np.arange(num_turns, dtype=np.int64), len(label))
        label_V = np.tile(label.astype(np.int64), num_turns) * num_turns + turns
        forged_V = np.tile(forged.astype(np.bool_), num_turns)
        known, identity_V = np.unique(label_V, return_inverse=True)
        identity_V = identity_V.astype(np.int64)
        genuine = _Groups.of(np.flatnonzero(~forged_V), identity_V, len(known))
        forgeries = _Groups.of(np.flatnonzero(forged_V), identity_V, len(known))
        if genuine.count.max() < 2:
            raise DataError(
                f"found {len(np.unique(label))} identities, none with two genuine pictures, so "
                "there is nothing to pull together: give at least two pictures of some identities"
            )
        row_V = np.tile(np.arange(len(label), dtype=np.int64), num_turns)
        return cls(row_V, turns, label_V, forged_V, identity_V, genuine, forgeries)

    @property
    def num_labels(self) -> int:
        return int(self.label.max()) + 1

    def batch(self, members: Ints) -> Batch:
        """The batch of distinct virtual pictures, in the order given."""
        return Batch(
            row=self.row[members],
            label=self.label[members],
            forged=self.forged[members],
            turns=self.turns[members],
        )


class PKSampler:
    """P identities x K genuine pictures, and forgeries of these identities.

    Algorithm. An epoch is a walk through all identities in a shuffled order, as many times as its
    batches need; each batch takes the next P. A new round of the walk is shuffled so that no
    identity comes twice in the batch that joins two rounds. So within an epoch the numbers of
    times that any two identities are drawn differ by at most one. Each identity's pictures are
    shuffled once an epoch and dealt K at a time, beginning again when they are used up; so they
    too are seen equally often, to within one dealing.

    Corner cases:
      - an identity with fewer than K genuine pictures gives all it has, each once: a picture
        paired with itself teaches nothing;
      - fewer than P identities: every batch has all of them;
      - an identity with one picture serves only as a negative, and so does one of forged pictures
        only (it is left out when `forged_per_label` is 0);
      - of each drawn identity up to `forged_per_label` forgeries come too, dealt like the others;
      - every batch has an identity with two genuine pictures: where the walk brings none, the
        batch's first identity gives its place to a random one that has (then the counts above
        may differ by more), and an impostor pair: at least two identities, or forgeries.

    An epoch is ceil(genuine pictures / (P x K)) batches, but at least as many as it takes to draw
    every identity once.

    Raises:
        DataError: no identity has two genuine pictures, or there is no impostor pair.
        ConfigError: `labels_per_batch` is 1 where there are several identities.
    """

    def __init__(
        self, label: NDArray[np.int64], forged: NDArray[np.bool_], settings: SamplerSettings,
        seed: int,
    ) -> None:  # fmt: skip
        self._pool = _Pool.of(label, forged, settings.rotations)
        self._seed = seed
        self._images = settings.images_per_label
        self._forged = settings.forged_per_label
        genuine, forgeries = self._pool.genuine, self._pool.forgeries
        num_drawn = genuine.count + np.minimum(forgeries.count, self._forged)
        self._walked = np.flatnonzero(num_drawn > 0)
        self._trainable = genuine.count >= 2
        self._labels = min(settings.labels_per_batch, len(self._walked))
        self._refuse_without_impostors()
        by_picture = -(-len(genuine.order) // (self._labels * self._images))
        by_identity = -(-len(self._walked) // self._labels)
        self.steps_per_epoch = max(by_picture, by_identity)
        self.num_labels = self._pool.num_labels
        self._epoch = -1

    def batch(self, step: int) -> Batch:
        """The batch of a step; grouped by identity, first all genuine pictures, then forgeries."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._begin(epoch)
        identity_P, round_P = self._walk[place], self._round[place]
        members = self._genuine.take(identity_P, round_P * self._images, self._images)
        if self._forged and len(self._forgeries.order):
            more = self._forgeries.take(identity_P, round_P * self._forged, self._forged)
            members = np.concatenate([members, more])
        return self._pool.batch(members)

    def _begin(self, epoch: int) -> None:
        rng = np.random.default_rng([_EPOCH, self._seed, epoch])
        num_identities = len(self._walked)
        walk = self._walked[_walk(rng, num_identities, self._labels, self.steps_per_epoch)]
        barren = ~self._trainable[walk].any(axis=1)
        walk[barren, 0] = rng.choice(np.flatnonzero(self._trainable), int(barren.sum()))
        self._walk = walk
        self._round = np.arange(walk.size).reshape(walk.shape) // num_identities
        self._genuine = self._pool.genuine.shuffled(rng, self._pool.identity)
        self._forgeries = self._pool.forgeries.shuffled(rng, self._pool.identity)
        self._epoch = epoch

    def _refuse_without_impostors(self) -> None:
        if self._labels > 1:
            return
        if len(self._walked) > 1:
            raise ConfigError(
                "sampler.labels_per_batch is 1, and a batch of one identity holds no impostor "
                "pair: give at least 2"
            )
        if not self._forged or not len(self._pool.forgeries.order):
            raise DataError(
                "found one identity and no forged picture to draw, so there is nothing to push "
                "apart: give pictures of at least two identities"
            )


def _walk(rng: np.random.Generator, num: int, per_batch: int, steps: int) -> Ints:
    """Shuffled rounds of `range(num)`, (steps, per_batch), no repeat within a row."""
    rounds: list[Ints] = []
    filled = 0
    while filled < steps * per_batch:
        order = rng.permutation(num)
        begun = filled % per_batch
        if begun:  # The last places of the last round share a batch with our first ones.
            free = np.flatnonzero(~np.isin(order, rounds[-1][-begun:]))[: per_batch - begun]
            order = np.concatenate([order[free], np.delete(order, free)])
        rounds.append(order)
        filled += num
    return np.concatenate(rounds)[: steps * per_batch].reshape(steps, per_batch)


class _Partners:
    """Random partners of genuine pictures, named by their place in the grouped order."""

    def __init__(self, pool: _Pool, forged_share: float) -> None:
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
            self._kept = self._drawn(np.random.default_rng([_ONCE, seed]), np.arange(num))

    def at(self, step: int) -> tuple[Ints, Ints]:
        """The anchors (M,) of a step, and their pairs or triplets (M, 2 or 3)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([_EPOCH, self._seed, epoch])
            self._order, self._epoch = rng.permutation(self._num), epoch
        low = self._num * place // self.steps_per_epoch
        high = self._num * (place + 1) // self.steps_per_epoch
        which = self._order[low:high]
        if self._kept is not None:
            return which, self._kept[which]
        return which, self._drawn(np.random.default_rng([_STEP, self._seed, step]), which)

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
        self._pool = _Pool.of(label, forged, settings.rotations)
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
        self._pool = _Pool.of(label, forged, settings.rotations)
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


def _distinct(pool: _Pool, drawn: Ints) -> tuple[Batch, Ints]:
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


_SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "pk": PKSampler,
    "pairs": PairSampler,
    "triplets": TripletSampler,
}


def make_sampler(
    label: NDArray[np.int64], forged: NDArray[np.bool_], settings: SamplerSettings, seed: int
) -> Sampler:
    """The sampler that `settings.kind` names.

    Args:
        label: labels of the training pictures, (N,), 0 or more, gaps allowed.
        forged: roles of the training pictures, (N,).
        settings: how to draw.
        seed: 0 or more; with the step it decides every draw.

    Raises:
        DataError: the pictures give no genuine or no impostor pair.
        ConfigError: the settings can draw no impostor pair.
    """
    return _SAMPLERS[settings.kind](label, forged, settings, seed)
