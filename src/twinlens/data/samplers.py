"""Which pictures go into which training batch.

Three ways of drawing: P identities x K pictures (`PKSampler`, here), literal random pairs and
triplets (`literal`). Every batch is a pure function of (seed, step), so a resumed run draws what an
unbroken one would; what an epoch shares (its shuffles) is kept until another epoch is asked for.

This module knows labels and roles only: no pixels, no torch, no distances.

Shapes: N pictures; I identities; P identities and K pictures of each a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinlens.config import SamplerSettings
from twinlens.data.batch import EPOCH, Batch, Ints, LabelIndex
from twinlens.data.pair_samplers import PairSampler, TripletSampler
from twinlens.errors import ConfigError, DataError

__all__ = ["PKSampler", "Sampler", "make_sampler"]


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
        self._pool = LabelIndex.of(label, forged, settings.rotations)
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
        rng = np.random.default_rng([EPOCH, self._seed, epoch])
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
