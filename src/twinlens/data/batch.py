"""What batches are drawn from and made of: labels and roles by identity, turned or not.

Roles: a pair is genuine when both pictures are genuine and of one identity. A forged picture is
never a positive of anything; it is drawn as a negative of the identity that it imitates.

Every batch is a pure function of (seed, step); the streams of random numbers are named here.

Shapes: N pictures; V virtual pictures (N, or 4N with `rotations`: a quarter turn of a picture is
a picture of another identity, label * 4 + turn); P identities and K pictures of each; B distinct
pictures, Q pairs and T triplets in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlens.errors import DataError

__all__ = ["EPOCH", "ONCE", "STEP", "Batch", "Bools", "IdentityGroups", "Ints", "LabelIndex"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

EPOCH, STEP, ONCE = 0, 1, 2
"""What a random stream is for; (purpose, seed, number) seeds it."""


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


@dataclass(frozen=True, eq=False)
class IdentityGroups:
    """Virtual pictures by identity: those of i are `order[start[i] : start[i] + count[i]]`."""

    order: Ints
    start: Ints
    count: Ints

    @classmethod
    def of(cls, members: Ints, identity_V: Ints, num_identities: int) -> IdentityGroups:
        """The members, in their order, by identity."""
        order = members[np.argsort(identity_V[members], kind="stable")]
        count = np.bincount(identity_V[members], minlength=num_identities).astype(np.int64)
        return cls(order, np.cumsum(count) - count, count)

    def shuffled(self, rng: np.random.Generator, identity_V: Ints) -> IdentityGroups:
        """The same groups, each in a new order."""
        return IdentityGroups.of(rng.permutation(self.order), identity_V, len(self.count))

    def take(self, identity_P: Ints, first_P: Ints, num: int) -> Ints:
        """From each identity up to `num` distinct members, from place `first` on, cyclically."""
        count_P1 = self.count[identity_P][:, None]
        slot_1K = np.arange(num)[None, :]
        place_PK = (first_P[:, None] + slot_1K) % np.maximum(count_P1, 1)
        wanted_PK = slot_1K < count_P1
        return self.order[(self.start[identity_P][:, None] + place_PK)[wanted_PK]]


@dataclass(frozen=True, eq=False)
class LabelIndex:
    """Every virtual picture that can be drawn; the arrays are (V,)."""

    row: Ints
    turns: Ints
    label: Ints
    forged: Bools
    identity: Ints  # label, renumbered without gaps
    genuine: IdentityGroups
    forgeries: IdentityGroups

    @classmethod
    def of(cls, label: Ints, forged: Bools, rotations: bool) -> LabelIndex:
        """All that can be drawn from pictures with these labels and roles, (N,).

        Raises:
            DataError: no pictures, or no identity with two genuine ones.
        """
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
        genuine = IdentityGroups.of(np.flatnonzero(~forged_V), identity_V, len(known))
        forgeries = IdentityGroups.of(np.flatnonzero(forged_V), identity_V, len(known))
        if genuine.count.max() < 2:
            raise DataError(
                f"found {len(np.unique(label))} identities, none with two genuine pictures, so "
                "there is nothing to pull together: give at least two pictures of some identities"
            )
        row_V = np.tile(np.arange(len(label), dtype=np.int64), num_turns)
        return cls(row_V, turns, label_V, forged_V, identity_V, genuine, forgeries)

    @property
    def num_labels(self) -> int:
        """One more than the largest label."""
        return int(self.label.max()) + 1

    def batch(self, members: Ints) -> Batch:
        """The batch of distinct virtual pictures, in the order given."""
        return Batch(
            row=self.row[members],
            label=self.label[members],
            forged=self.forged[members],
            turns=self.turns[members],
        )
