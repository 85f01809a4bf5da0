"""Samplers: the pictures of each training batch.

`PKSampler` draws P identities x K pictures; `pair_samplers` holds the samplers of random pairs and
triplets. `WindowSampler` takes their batches from a part of the pictures after the other. Every
batch is a pure function of (seed, step), so a resumed run draws the batches of an uninterrupted
one. The shuffles of the current epoch are cached.

Samplers use labels and roles only: no pixels, no torch, no distances.

Shapes: N pictures; I identities; P identities and K pictures of each a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinlens.config import SamplerSettings
from twinlens.data.batch import EPOCH, Batch, Ints, LabelIndex
from twinlens.data.pair_samplers import PairSampler, TripletSampler
from twinlens.errors import ConfigError, DataError

__all__ = ["PKSampler", "Sampler", "Shards", "WindowSampler", "make_sampler"]


class Sampler(Protocol):
    """The interface of samplers that training uses."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, at least 1."""

    @property
    def num_labels(self) -> int:
        """One more than the largest label of a batch."""

    def batch(self, step: int) -> Batch:
        """The batch of a step; steps count from 0 over the whole run."""


class PKSampler:
    """P identities x K genuine pictures, and forgeries of these identities.

    Algorithm. An epoch consists of rounds; each round visits all identities in a shuffled order,
    and each batch takes the next P. A round is shuffled so that no identity occurs twice in the
    batch that spans two rounds. So within an epoch the numbers of draws of any two identities
    differ by at most one. The pictures of each identity are shuffled once an epoch and taken K at
    a time, cyclically. So they too are drawn equally often, up to one draw of K.

    Corner cases:
      - an identity with fewer than K genuine pictures gives all of them, each once: a pair of a
        picture with itself carries no information;
      - fewer than P identities: every batch has all of them;
      - an identity with one picture is used only as a negative, and so is one that has forged
        pictures only (it is left out if `forged_per_label` is 0);
      - up to `forged_per_label` forgeries of each drawn identity are added, taken like the others;
      - every batch has an identity with two genuine pictures: if the round yields none, a random
        one replaces the first identity of the batch (then the counts above may differ by more);
      - every batch has an impostor pair: at least two identities, or forgeries.

    An epoch has ceil(genuine pictures / (P x K)) batches, but at least enough to draw every
    identity once.

    Raises:
        DataError: no identity has two genuine pictures, or there is no impostor pair.
        ConfigError: `labels_per_batch` is 1 with several identities.
    """

    def __init__(
        self, label: NDArray[np.int64], forged: NDArray[np.bool_], settings: SamplerSettings,
        seed: int,
    ) -> None:  # fmt: skip
        self._index = LabelIndex.of(label, forged, settings.rotations)
        self._seed = seed
        self._images = settings.images_per_label
        self._forged = settings.forged_per_label
        genuine, forgeries = self._index.genuine, self._index.forgeries
        num_drawn = genuine.count + np.minimum(forgeries.count, self._forged)
        self._drawable = np.flatnonzero(num_drawn > 0)
        self._trainable = genuine.count >= 2
        self._labels = min(settings.labels_per_batch, len(self._drawable))
        self._check_impostors()
        by_pictures = -(-len(genuine.order) // (self._labels * self._images))
        by_identities = -(-len(self._drawable) // self._labels)
        self.steps_per_epoch = max(by_pictures, by_identities)
        self.num_labels = self._index.num_labels
        self._epoch = -1

    def batch(self, step: int) -> Batch:
        """The batch of a step; grouped by identity, first all genuine pictures, then forgeries."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        identity_P, round_P = self._identity[batch], self._round[batch]
        members = self._genuine.take(identity_P, round_P * self._images, self._images)
        if self._forged and len(self._forgeries.order):
            forged = self._forgeries.take(identity_P, round_P * self._forged, self._forged)
            members = np.concatenate([members, forged])
        return self._index.batch(members)

    def _shuffle(self, epoch: int) -> None:
        rng = np.random.default_rng([EPOCH, self._seed, epoch])
        num_identities = len(self._drawable)
        rounds = _shuffled_rounds(rng, num_identities, self._labels, self.steps_per_epoch)
        self._identity = self._drawable[rounds]
        no_positives = ~self._trainable[self._identity].any(axis=1)
        chosen = rng.choice(np.flatnonzero(self._trainable), int(no_positives.sum()))
        self._identity[no_positives, 0] = chosen
        self._round = np.arange(rounds.size).reshape(rounds.shape) // num_identities
        self._genuine = self._index.genuine.shuffled(rng, self._index.identity)
        self._forgeries = self._index.forgeries.shuffled(rng, self._index.identity)
        self._epoch = epoch

    def _check_impostors(self) -> None:
        if self._labels > 1:
            return
        if len(self._drawable) > 1:
            raise ConfigError(
                "sampler.labels_per_batch is 1, and a batch of one identity holds no impostor "
                "pair: give at least 2"
            )
        if not self._forged or not len(self._index.forgeries.order):
            raise DataError(
                "found one identity and no forged picture to draw, so there is no impostor pair: "
                "give pictures of at least two identities"
            )


def _shuffled_rounds(rng: np.random.Generator, num: int, per_batch: int, steps: int) -> Ints:
    """Permutations of `range(num)` one after the other, (steps, per_batch), distinct in a row."""
    rounds: list[Ints] = []
    filled = 0
    while filled < steps * per_batch:
        order = rng.permutation(num)
        shared = filled % per_batch
        if shared:  # The end of the last round shares a batch with the start of this one.
            free = np.flatnonzero(~np.isin(order, rounds[-1][-shared:]))[: per_batch - shared]
            order = np.concatenate([order[free], np.delete(order, free)])
        rounds.append(order)
        filled += num
    return np.concatenate(rounds)[: steps * per_batch].reshape(steps, per_batch)


class WindowSampler:
    """Batches from some shards at a time, for pictures that are read shard by shard.

    Each epoch shuffles the shards. `per_window` of them are a window, whose pictures alone make its
    batches, so an epoch reads each shard once. An identity is present with those of its pictures
    that lie in the window. A window without a genuine or an impostor pair has batches of all
    pictures instead.

    Args:
        shard: shard of each picture, (N,).
        per_window: shards of a window, at least 1.
        read_ahead: called with the shards of the next window when one begins.
    Raises:
        DataError, ConfigError: as the sampler of `settings.kind` with all pictures.
    """

    def __init__(
        self, label: Ints, forged: NDArray[np.bool_], settings: SamplerSettings, seed: int,
        shard: Ints, per_window: int, read_ahead: Callable[[list[int]], None] | None = None,
    ) -> None:  # fmt: skip
        self._label, self._forged, self._settings, self._seed = label, forged, settings, seed
        self._shard, self._shards, self._per_window = shard, np.unique(shard), per_window
        self._read_ahead = read_ahead
        self._all = make_sampler(label, forged, settings, seed)
        self.num_labels = self._all.num_labels
        num_windows = -(-len(self._shards) // per_window)
        self._steps = -(-self._all.steps_per_epoch // num_windows)
        self.steps_per_epoch = self._steps * num_windows
        self._open = (-1, -1)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        epoch, at = divmod(step, self.steps_per_epoch)
        window, batch = divmod(at, self._steps)
        if self._open != (epoch, window):
            self._open_window(epoch, window)
        drawn = self._sampler.batch(step if self._sampler is self._all else batch)
        return replace(drawn, row=self._row[drawn.row])

    def _open_window(self, epoch: int, window: int) -> None:
        self._row = np.flatnonzero(np.isin(self._shard, self._window(epoch, window)))
        seed = int(np.random.default_rng([EPOCH, self._seed, epoch, window]).integers(2**31))
        try:
            self._sampler = make_sampler(
                self._label[self._row], self._forged[self._row], self._settings, seed
            )
        except DataError:
            self._row, self._sampler = np.arange(len(self._label)), self._all
        self._open = (epoch, window)
        if self._read_ahead is not None:
            num_windows = self.steps_per_epoch // self._steps
            later, following = divmod(epoch * num_windows + window + 1, num_windows)
            self._read_ahead(self._window(later, following).tolist())

    def _window(self, epoch: int, window: int) -> Ints:
        """The shards of a window."""
        order = np.random.default_rng([EPOCH, self._seed, epoch]).permutation(self._shards)
        return order[window * self._per_window : (window + 1) * self._per_window]


Shards = tuple[NDArray[np.int64], int, Callable[[list[int]], None] | None]

_SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "pk": PKSampler,
    "pairs": PairSampler,
    "triplets": TripletSampler,
}


def make_sampler(
    label: NDArray[np.int64],
    forged: NDArray[np.bool_],
    settings: SamplerSettings,
    seed: int,
    shards: Shards | None = None,
) -> Sampler:
    """The sampler named by `settings.kind`.

    Args:
        label: labels of the training pictures, (N,), 0 or more, gaps allowed.
        forged: roles of the training pictures, (N,).
        settings: sampler settings.
        seed: random seed, 0 or more.
        shards: shard of each picture, shards of a window, and `read_ahead`, as of `WindowSampler`.

    Raises:
        DataError: the pictures give no genuine or no impostor pair.
        ConfigError: the settings allow no impostor pair.
    """
    if shards is not None:
        return WindowSampler(label, forged, settings, seed, *shards)
    return _SAMPLERS[settings.kind](label, forged, settings, seed)
