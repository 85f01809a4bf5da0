"""Batches, and the index of labels and roles that samplers draw them from.

Roles: a pair is genuine if both pictures are genuine and of one identity. A forged picture is
never a positive; it is drawn as a negative of the identity that it imitates.

Every batch is a pure function of (seed, step). The purposes of random generators are named here.

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
"""Purposes of a random generator, which is seeded by [purpose, seed, epoch or step]."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The distinct pictures of a batch, and its pairs or triplets if the sampler draws them.

    Attributes:
        row: rows of the training table, (B,). A row repeats only with another turn or mirroring.
        label: labels, (B,); with rotations label * 4 + turn.
        forged: roles, (B,).
        turns: anticlockwise quarter turns, 0..3, (B,).
        pairs: positions in the batch, (Q, 2), or None.
        same: whether the pair is genuine, (Q,), or None.
        triplets: positions of anchor, positive and negative, (T, 3), or None.
        mirrored: whether the picture is mirrored left to right, (B,); None if none is.
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
    """Virtual pictures by identity: `order[start[i] : start[i] + count[i]]` for identity i."""

    order: Ints
    start: Ints
    count: Ints

    @classmethod
    def of(cls, members: Ints, identity_V: Ints, num_identities: int) -> IdentityGroups:
        """The members grouped by identity, in their order."""
        order = members[np.argsort(identity_V[members], kind="stable")]
        count = np.bincount(identity_V[members], minlength=num_identities).astype(np.int64)
        return cls(order, np.cumsum(count) - count, count)

    def shuffled(self, rng: np.random.Generator, identity_V: Ints) -> IdentityGroups:
        """The same groups, each shuffled."""
        return IdentityGroups.of(rng.permutation(self.order), identity_V, len(self.count))

    def take(self, identity_P: Ints, first_P: Ints, num: int) -> Ints:
        """Up to `num` distinct members of each identity, cyclically from position `first_P`."""
        count_P1 = self.count[identity_P][:, None]
        slot_1K = np.arange(num)[None, :]
        position_PK = (first_P[:, None] + slot_1K) % np.maximum(count_P1, 1)
        filled_PK = slot_1K < count_P1
        return self.order[(self.start[identity_P][:, None] + position_PK)[filled_PK]]


@dataclass(frozen=True, eq=False)
class LabelIndex:
    """The virtual pictures that can be drawn, with labels and roles; the arrays are (V,)."""

    row: Ints
    turns: Ints
    label: Ints
    forged: Bools
    identity: Ints  # labels renumbered without gaps
    genuine: IdentityGroups
    forgeries: IdentityGroups

    @classmethod
    def of(cls, label: Ints, forged: Bools, rotations: bool) -> LabelIndex:
        """The index of pictures with these labels and roles, (N,).

        Raises:
            DataError: no pictures, or no identity with two genuine pictures.
        """
        assert label.shape == forged.shape
        assert label.ndim == 1
        if label.size == 0:
            raise DataError("found no pictures to train on: give a folder with pictures")
        num_turns = 4 if rotations else 1
        turns = np.repeat(np.arange(num_turns, dtype=np.int64), len(label))
        label_V = np.tile(label.astype(np.int64), num_turns) * num_turns + turns
        forged_V = np.tile(forged.astype(np.bool_), num_turns)
        distinct, identity_V = np.unique(label_V, return_inverse=True)
        genuine = IdentityGroups.of(np.flatnonzero(~forged_V), identity_V, len(distinct))
        forgeries = IdentityGroups.of(np.flatnonzero(forged_V), identity_V, len(distinct))
        if genuine.count.max() < 2:
            raise DataError(
                f"found {len(np.unique(label))} identities, none with two genuine pictures, so "
                "there is no genuine pair: give at least two pictures of some identities"
            )
        row_V = np.tile(np.arange(len(label), dtype=np.int64), num_turns)
        return cls(row_V, turns, label_V, forged_V, identity_V, genuine, forgeries)

    @property
    def num_labels(self) -> int:
        """One more than the largest label."""
        return int(self.label.max()) + 1

    def batch(self, members: Ints) -> Batch:
        """The batch of distinct virtual pictures, in the given order."""
        return Batch(
            row=self.row[members],
            label=self.label[members],
            forged=self.forged[members],
            turns=self.turns[members],
        )
