"""Training, validation and test splits.

Splits by identity measure how well unseen identities are told apart. Splits by picture are for
closed sets, where test and training share their identities. Given splits are kept. The result
depends on paths, identities, roles and the seed only, not on the order of rows or files.
`inspection` reports duplicates across splits.

Shapes: N pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ConfigError, DataError, unknown_name

__all__ = ["assign_splits", "is_closed_set", "is_identity_disjoint"]

MODES = ("identities", "images")

MIN_IDENTITIES = 2
"""Identities that a split needs: one identity gives no impostor pair."""

Shares = NDArray[np.float64]
"""Fractions of train, val and test, (3,)."""


def assign_splits(
    table: ImageTable,
    *,
    mode: Literal["identities", "images"],
    fractions: Sequence[float],
    seed: int,
) -> ImageTable:
    """Assign a split to each row if possible; given splits are kept.

    Without given splits, all pictures are divided by `fractions`:

    - "identities": each identity, its forgeries included, goes to one split. Every split with a
      fraction above 0 gets at least 2 identities, and its share of those with two genuine pictures
      or more, since only these give genuine pairs. 4 or 5 identities are too few for three splits:
      the test split stays empty. Fewer identities are an error, unless there is only one split.
    - "images": the pictures of each identity are divided. The first goes to training. Validation
      and test get two pictures at a time if possible, since a single one gives no genuine pair.

    With given splits:

    - Rows without a split join the split of their identity ("identities" mode; training if the
      identity is in several). The rest is divided among the splits that are not given, by their
      fractions. If all three are given, the rest stays without a split and is not used.
    - If training is given, validation is not, and no rows are left for it, validation is taken
      from training: fractions[1] / (fractions[0] + fractions[1]) of it. It is taken by identity in
      "identities" mode if the given splits share no identity; else by picture, since a closed set
      stays closed.
    - A missing test or training split is not taken from the others.

    Args:
        table: N pictures.
        mode: "identities" or "images".
        fractions: shares of train, val and test; three numbers >= 0, not all 0, of any sum.
        seed: random seed; the same seed, paths and identities give the same splits.
    Raises:
        DataError: too few identities; the message names the required number.
        ConfigError: an unknown mode, or invalid fractions.
    """
    if mode not in MODES:
        raise ConfigError(unknown_name("split mode", mode, MODES))
    share = _valid_shares(fractions)
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
    rest = np.where([name in given for name in SPLITS], 0, share)
    if loose.any() and rest.any():
        _divide(table, split, loose, rest, mode, generator)
    elif "train" in given and "val" not in given and share[:2].all():
        closed = mode == "images" or not is_identity_disjoint(table)
        cut = np.asarray(split == "train", dtype=np.bool_)
        _divide(
            table, split, cut, _without_test(share), "images" if closed else "identities", generator
        )
    return table.with_split(split)


def is_identity_disjoint(table: ImageTable) -> bool:
    """Whether no identity has pictures in two splits; rows without a split do not count."""
    pairs = {pair for pair in zip(table.identity, table.split, strict=True) if pair[1]}
    return len({identity for identity, _ in pairs}) == len(pairs)


def is_closed_set(table: ImageTable) -> bool:
    """Whether validation and test pictures exist and all show training identities."""
    trained = set(table.identity[table.split == "train"])
    tested = set(table.identity[(table.split == "val") | (table.split == "test")])
    return bool(tested) and tested <= trained


def _valid_shares(fractions: Sequence[float]) -> Shares:
    share = np.asarray(fractions, dtype=np.float64)
    valid = share.shape == (len(SPLITS),) and np.isfinite(share).all() and (share >= 0).all()
    if not valid or not share.any():
        raise ConfigError(
            "fractions are three numbers >= 0 for train, val and test, not all 0, found"
            f" {list(fractions)}"
        )
    return share


def _without_test(share: Shares) -> Shares:
    return share * (1, 1, 0)


def _join_own_identity(table: ImageTable, split: NDArray[np.object_]) -> None:
    split_of: dict[str, str] = {}
    for name in reversed(SPLITS):  # Training is last, so it takes precedence.
        split_of.update(dict.fromkeys(table.identity[table.split == name], name))
    for row in np.flatnonzero(split == ""):
        split[row] = split_of.get(table.identity[row], "")


def _divide(
    table: ImageTable,
    split: NDArray[np.object_],
    rows: NDArray[np.bool_],
    share: Shares,
    mode: str,
    generator: np.random.Generator,
) -> None:
    """Write splits into `split` (N,) at the mask `rows` (N,)."""
    part = table.select(rows)
    by = _by_identity if mode == "identities" else _by_picture
    split[rows] = by(part, share, generator)


def _by_identity(
    table: ImageTable, share: Shares, generator: np.random.Generator
) -> NDArray[np.object_]:
    """(N,) splits that share no identity."""
    names = table.identities()
    total = _apportion(len(names), _feasible(table, share))
    num_genuine = np.bincount(table.labels()[~table.forged], minlength=len(names))
    order = generator.permutation(len(names))
    paired = order[num_genuine[order] >= 2]
    single = order[num_genuine[order] < 2]
    num_paired = _apportion(len(paired), total.astype(np.float64))
    of_label = np.empty(len(names), dtype=object)
    of_label[paired] = np.repeat(SPLITS, num_paired)
    of_label[single] = np.repeat(SPLITS, total - num_paired)
    return np.asarray(of_label[table.labels()], dtype=object)


def _feasible(table: ImageTable, share: Shares) -> Shares:
    """The shares, without that of the test split if there are too few identities for it."""
    num, num_splits = len(table.identities()), np.count_nonzero(share)
    if num_splits == 1 or num >= MIN_IDENTITIES * num_splits:
        return share
    if num_splits == len(SPLITS) and num >= MIN_IDENTITIES * 2:
        return _without_test(share)
    names = " and ".join(np.asarray(SPLITS)[share > 0])
    raise DataError(
        f"{table.source}: {num} {'identity is' if num == 1 else 'identities are'} too few for the"
        f" splits {names}, and each split needs {MIN_IDENTITIES} of its own: gather at least"
        f" {MIN_IDENTITIES * 2} ({MIN_IDENTITIES * len(SPLITS)} for a test split too), or divide"
        " the pictures of each identity instead (--split images)"
    )


def _apportion(total: int, weights: Shares) -> NDArray[np.int64]:
    """Integers that sum to `total`, by largest remainder, raised to `MIN_IDENTITIES` if possible.

    A weight of 0 gets 0. If `total` is too small for the minimum everywhere, the minimum is lower.
    """
    quota = weights * total / weights.sum()
    # Rounded, so that the last bit of 0.15 / (0.7 + 0.15 + 0.15) is irrelevant.
    count: NDArray[np.int64] = np.floor(quota.round(9)).astype(np.int64)
    by_remainder = np.argsort(-(quota - count).round(9), kind="stable")
    count[by_remainder[: total - count.sum()]] += 1
    weighted = np.flatnonzero(weights > 0)
    minimum = min(MIN_IDENTITIES, total // len(weighted))
    for index in weighted:
        while count[index] < minimum:
            count[np.argmax(count)] -= 1
            count[index] += 1
    return count


def _by_picture(
    table: ImageTable, share: Shares, generator: np.random.Generator
) -> NDArray[np.object_]:
    """(N,) splits that divide every identity, separately for genuine and forged pictures."""
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
    groups: Sequence[NDArray[np.int64]], share: Shares, *, in_twos: bool
) -> list[tuple[int, str]]:
    """Each picture in turn goes to the split that is furthest below its share.

    With `in_twos`, the first picture of a group goes to training, and validation and test take two
    pictures of a group at once if there are two. The next groups restore the shares.
    """
    goal = share / share.sum()
    count = np.zeros(len(SPLITS))
    dealt: list[tuple[int, str]] = []
    for group in groups:
        start = 0
        while start < len(group):
            if in_twos and start == 0 and share[0] > 0:
                index = 0
            else:
                index = int(np.argmax((goal * (count.sum() + 1) - count).round(9)))
            num = 2 if in_twos and index > 0 else 1
            taken = group[start : start + num]
            dealt += [(int(row), SPLITS[index]) for row in taken]
            count[index] += len(taken)
            start += len(taken)
    return dealt
