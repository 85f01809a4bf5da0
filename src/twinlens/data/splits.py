"""Which pictures train, which validate, which test.

By identity, so that what is measured is how strangers are told apart; or by picture, for closed
sets, where the identities of the test are those of the training. Given splits are kept. Nothing
here depends on the order of rows or files: only on paths, identities, roles and the seed.
Duplicates of a picture across splits are for `inspection` to find.

Shapes: N pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ConfigError, DataError, unknown_name

__all__ = ["assign_splits", "is_closed_set", "is_identity_disjoint"]

MODES = ("identities", "images")

LEAST = 2
"""Identities that a split needs: with one there is no impostor pair."""


def assign_splits(
    table: ImageTable,
    *,
    mode: Literal["identities", "images"],
    fractions: Sequence[float],
    seed: int,
) -> ImageTable:
    """The table with every row in a split, as far as this can be done; given splits are kept.

    Without given splits, all pictures are divided by `fractions`:

    - "identities": each identity, its forgeries included, goes to one split. Every split with a
      fraction gets at least 2 identities, and its share of those with two genuine pictures or
      more, which alone give genuine pairs. With 4 or 5 identities three splits are not to be had:
      the test split stays empty. With fewer, and more than one split wanted, it is an error.
    - "images": the pictures of each identity are divided. The first goes to training, and
      validation and test get pictures in twos where they can, since a lone one has no partner.

    With given splits:

    - Rows without a split join the split of their identity ("identities" mode; training if the
      identity is in several). What is left is divided among the splits that are not given, by
      their fractions. If all three are given, it stays without a split and is not used.
    - If training is given, validation is not, and no rows are left for it, validation is cut out
      of training: fractions[1] / (fractions[0] + fractions[1]) of it. By identity in "identities"
      mode if the given splits share no identity; else by picture, since a closed set stays one.
    - A missing test or training split is not made up from the others.

    Args:
        table: N pictures.
        mode: "identities" or "images".
        fractions: of train, val, test; three numbers >= 0, not all 0; their sum is divided out.
        seed: the same seed gives the same splits for the same paths and identities.
    Raises:
        DataError: too few identities; the message says how many are needed.
        ConfigError: an unknown mode, or unusable fractions.
    """
    if mode not in MODES:
        raise ConfigError(unknown_name("split mode", mode, MODES))
    share = _Shares.of(fractions)
    if len(table) == 0:
        return table
    generator = np.random.default_rng(seed)
    given = {name for name in SPLITS if (table.split == name).any()}
    split = table.split.copy()
    if not given:
        _divide(table, split, np.ones(len(table), dtype=np.bool_), share, mode, generator)
        return table.with_split(split)
    if mode == "identities":
        _join_own_identity(table, split)
    loose = np.asarray(split == "", dtype=np.bool_)
    rest = share.only([name for name in SPLITS if name not in given])
    if loose.any() and rest.total > 0:
        _divide(table, split, loose, rest, mode, generator)
    elif "train" in given and "val" not in given and min(share.train, share.val) > 0:
        closed = mode == "images" or not is_identity_disjoint(table)
        cut = np.asarray(split == "train", dtype=np.bool_)
        both = share.only(["train", "val"])
        _divide(table, split, cut, both, "images" if closed else "identities", generator)
    return table.with_split(split)


def is_identity_disjoint(table: ImageTable) -> bool:
    """Whether no identity has pictures in two splits; rows without a split do not count."""
    of_identity: dict[str, str] = {}
    for identity, split in zip(table.identity, table.split, strict=True):
        if split and of_identity.setdefault(identity, split) != split:
            return False
    return True


def is_closed_set(table: ImageTable) -> bool:
    """Whether there are validation or test pictures, and all of identities that training has."""
    known = {i for i, split in zip(table.identity, table.split, strict=True) if split == "train"}
    asked = {
        i for i, split in zip(table.identity, table.split, strict=True) if split in ("val", "test")
    }
    return bool(asked) and asked <= known


@dataclass(frozen=True)
class _Shares:
    train: float
    val: float
    test: float

    @classmethod
    def of(cls, fractions: Sequence[float]) -> _Shares:
        usable = len(fractions) == len(SPLITS) and all(
            math.isfinite(fraction) and fraction >= 0 for fraction in fractions
        )
        if not usable or sum(fractions) <= 0:
            raise ConfigError(
                "fractions are three numbers >= 0 for train, val and test, not all 0, found"
                f" {list(fractions)}"
            )
        return cls(*(float(fraction) for fraction in fractions))

    def only(self, names: Sequence[str]) -> _Shares:
        return _Shares(*(getattr(self, name) if name in names else 0.0 for name in SPLITS))

    @property
    def total(self) -> float:
        return self.train + self.val + self.test

    @property
    def values(self) -> list[float]:
        return [self.train, self.val, self.test]

    @property
    def wanted(self) -> list[str]:
        return [name for name, value in zip(SPLITS, self.values, strict=True) if value > 0]


def _join_own_identity(table: ImageTable, split: NDArray[np.object_]) -> None:
    home: dict[str, str] = {}
    for name in reversed(SPLITS):  # Training comes last, and so wins.
        home.update(dict.fromkeys(table.identity[table.split == name], name))
    for row in np.flatnonzero(split == ""):
        split[row] = home.get(table.identity[row], "")


def _divide(
    table: ImageTable,
    split: NDArray[np.object_],
    rows: NDArray[np.bool_],
    share: _Shares,
    mode: str,
    generator: np.random.Generator,
) -> None:
    """Write splits into `split` (N,) where `rows` (N,) says so."""
    part = table.select(rows)
    by = _by_identity if mode == "identities" else _by_picture
    split[rows] = by(part, share, generator)


def _by_identity(
    table: ImageTable, share: _Shares, generator: np.random.Generator
) -> NDArray[np.object_]:
    """(N,) splits that share no identity."""
    names = table.identities()
    total = _apportion(len(names), _affordable(table, share), LEAST)
    num_genuine = np.bincount(table.labels()[~table.forged], minlength=len(names))
    order = generator.permutation(len(names))
    paired = order[num_genuine[order] >= 2]
    single = order[num_genuine[order] < 2]
    num_paired = _apportion(len(paired), [float(count) for count in total], LEAST)
    of_label = np.empty(len(names), dtype=object)
    of_label[paired] = np.repeat(SPLITS, num_paired)
    of_label[single] = np.repeat(SPLITS, np.subtract(total, num_paired))
    return np.asarray(of_label[table.labels()], dtype=object)


def _affordable(table: ImageTable, share: _Shares) -> list[float]:
    """The fractions, without the test's where the identities suffice only for the others."""
    found, wanted = len(table.identities()), share.wanted
    if len(wanted) == 1 or found >= LEAST * len(wanted):
        return share.values
    if len(wanted) == len(SPLITS) and found >= LEAST * 2:
        return share.only(["train", "val"]).values
    raise DataError(
        f"{table.source}: {found} {'identity is' if found == 1 else 'identities are'} to be divided"
        f" into {' and '.join(wanted)} so that none is in two splits, and each split needs {LEAST}:"
        f" gather at least {LEAST * 2} ({LEAST * len(SPLITS)} for a test split too), or divide the"
        " pictures of each identity instead (--split images)"
    )


def _apportion(total: int, weights: Sequence[float], least: int) -> list[int]:
    """Whole numbers that sum to `total`, by largest remainder, and lifted to `least` if they can.

    A weight of 0 gets 0. Where `total` is too small for `least` everywhere, it is lowered.
    """
    quota = np.asarray(weights) * total / sum(weights)
    # Rounding, so that 0.15 / (0.7 + 0.15 + 0.15) does not decide by its last bit.
    count = np.floor(quota.round(9)).astype(np.int64)
    by_remainder = np.argsort(-(quota - count).round(9), kind="stable")
    count[by_remainder[: total - count.sum()]] += 1
    wanted = np.flatnonzero(np.asarray(weights) > 0)
    least = min(least, total // len(wanted))
    for place in wanted:
        while count[place] < least:
            count[np.argmax(count)] -= 1
            count[place] += 1
    return [int(number) for number in count]


def _by_picture(
    table: ImageTable, share: _Shares, generator: np.random.Generator
) -> NDArray[np.object_]:
    """(N,) splits that divide every identity, genuine and forged pictures each for themselves."""
    split = np.empty(len(table), dtype=object)
    labels = table.labels()
    for forged in (False, True):
        rows = np.flatnonzero(table.forged == forged)
        groups = np.split(
            rows[np.argsort(labels[rows], kind="stable")],
            np.cumsum(np.bincount(labels[rows], minlength=len(table.identities())))[:-1],
        )
        shuffled = [generator.permutation(group) for group in groups if len(group)]
        for row, name in _deal(shuffled, share, in_twos=not forged):
            split[row] = name
    return split


def _deal(
    groups: Sequence[NDArray[np.int64]], share: _Shares, *, in_twos: bool
) -> list[tuple[int, str]]:
    """Each picture in turn to the split that is furthest behind its share.

    With `in_twos`, the first of a group goes to training, and validation and test draw two of a
    group at once where it has them; what this does to the shares, the next groups make good.
    """
    goal = np.asarray(share.values) / share.total
    count = np.zeros(len(SPLITS))
    dealt: list[tuple[int, str]] = []
    for group in groups:
        start = 0
        while start < len(group):
            if in_twos and start == 0 and share.train > 0:
                place = 0
            else:
                place = int(np.argmax((goal * (count.sum() + 1) - count).round(9)))
            num = 2 if in_twos and place > 0 else 1
            taken = group[start : start + num]
            dealt += [(int(row), SPLITS[place]) for row in taken]
            count[place] += len(taken)
            start += len(taken)
    return dealt
