"""Fusion: from distances of templates to a rank list of identities.

A gallery holds one or more templates of each identity. A rule defines the distance of a probe to an
identity, and the order. Of equal distances the lower code comes first, so that no answer depends on
the order of enrolment. An infinite distance leaves a template out.

Shapes: P probes, M templates, I identities with templates, D numbers in an embedding,
K = min(depth, I) places of a rank list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import ConfigError, DataError, unknown_name

__all__ = ["NOBODY", "RULES", "VOTERS", "RankList", "TemplateGroups", "check_rule",
           "identity_means", "rank_identities"]  # fmt: skip

RULES = ("nearest", "mean", "vote")
VOTERS = 5
NOBODY = -1

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RankList:
    """Identities, best first, for each probe.

    Attributes:
        code: identity codes, (P, K); -1 if no further identity has a template that counts.
        distance: distances of the identities by the rule, (P, K); +inf if the code is -1.
    """

    code: Ints
    distance: Floats


@dataclass(frozen=True, eq=False)
class TemplateGroups:
    """Templates grouped by identity, sorted once for many calls.

    Attributes:
        code: distinct codes, ascending, (I,).
        start: start of each identity's templates in code order, (I,).
        order: rows of the templates in code order, (M,); None if they already are.
        num_templates: M.
    """

    code: Ints
    start: Ints
    order: Ints | None
    num_templates: int

    @classmethod
    def of(cls, code_M: ArrayLike) -> TemplateGroups:
        """Group templates by their identities' codes, integers from 0, shape (M,).

        Raises:
            ValueError: a negative code.
        """
        code = np.asarray(code_M, dtype=np.int64)
        order = None
        if np.any(code[1:] < code[:-1]):
            order = np.argsort(code, kind="stable")
            code = code[order]
        if len(code) and code[0] < 0:
            raise ValueError(f"identity codes must start at 0, found {code[0]}")
        is_first = np.ones(len(code), dtype=bool)
        is_first[1:] = code[1:] != code[:-1]
        start = np.flatnonzero(is_first)
        return cls(code[start], start, order, len(code))

    def count(self) -> Ints:
        """Number of templates of each identity, shape (I,)."""
        return np.diff(self.start, append=self.num_templates)

    def sorted(self, value_PM: NDArray[Any]) -> NDArray[Any]:
        """The columns of `value_PM` in code order."""
        return value_PM if self.order is None else np.take(value_PM, self.order, axis=1)


def check_rule(rule: str, *also: str) -> None:
    """Check the name of a fusion rule; the names in `also` are allowed too.

    Raises:
        ConfigError: unknown rule; lists the choices.
    """
    if rule not in (*RULES, *also):
        raise ConfigError(unknown_name("rule", rule, (*RULES, *also)))


def identity_means(emb_MD: NDArray[Any], code_M: ArrayLike) -> tuple[Floats, Ints]:
    """Mean embedding of each identity, for the rule "mean".

    Args:
        emb_MD: templates, shape (M, D).
        code_M: identity codes of the templates, shape (M,).
    Returns:
        Means (I, D), summed in float64, and codes (I,), ascending.
    """
    grouped = TemplateGroups.of(code_M)
    if not grouped.num_templates:
        return np.empty((0, emb_MD.shape[1]), dtype=np.float32), grouped.code
    ordered = emb_MD if grouped.order is None else emb_MD[grouped.order]
    sum_ID = np.add.reduceat(ordered, grouped.start, axis=0, dtype=np.float64)
    return (sum_ID / grouped.count()[:, None]).astype(np.float32), grouped.code


def rank_identities(
    dist_PM: ArrayLike,
    code_M: ArrayLike,
    rule: str,
    depth: int,
    *,
    grouped: TemplateGroups | None = None,
) -> RankList:
    """The first `depth` identities of each probe.

    - "nearest": the distance of an identity is that of its nearest template.
    - "mean": the same on distances to `identity_means`, with their codes.
    - "vote": the 5 nearest templates have one vote each (of equally far ones, those with the
      lower codes). Identities with more votes come first, then the nearer; those without votes
      follow by distance. The distance is that of the nearest template, so it need not ascend.

    A shortlist gives the same rank list as the whole gallery: the nearest S templates of one
    probe, with S at least 5 and enough to hold `depth` identities.

    >>> ranks = rank_identities([[0.4, 0.2, 0.3]], [7, 7, 9], "nearest", depth=2)
    >>> ranks.code.tolist(), ranks.distance.round(1).tolist()
    ([[7, 9]], [[0.20000000298023224, 0.30000001192092896]])

    Args:
        dist_PM: distances of probes to templates, shape (P, M); +inf leaves a template out.
        code_M: identity codes of the templates, integers from 0, shape (M,).
        rule: one of `RULES`.
        depth: length of the rank list, at least 1.
        grouped: `TemplateGroups.of(code_M)`, if known: sorting takes longer than ranking.
    Raises:
        ConfigError: unknown rule.
        DataError: a distance that is NaN.
    """
    check_rule(rule)
    dist = np.asarray(dist_PM, dtype=np.float32)
    grouped = TemplateGroups.of(code_M) if grouped is None else grouped
    if depth < 1 or dist.ndim != 2 or dist.shape[1] != grouped.num_templates:
        raise ValueError(
            "needed are distances of shape (P, M), M codes, and a depth of at least 1; found shape "
            f"{dist.shape}, {grouped.num_templates} codes and depth {depth}"
        )
    if np.isnan(dist).any():
        raise DataError("found distances that are NaN, so the embeddings are broken: train again")
    dist = grouped.sorted(dist)
    near_PI = _nearest(dist, grouped)
    # Identities with a vote are among the nearest, since the voters are the nearest templates.
    num = max(depth, VOTERS) if rule == "vote" else depth
    place_PK, near_PK = _first(near_PI, num)
    if rule == "vote":
        place_PK, near_PK = _voted(dist, grouped, place_PK, near_PK)
    place_PK, near_PK = place_PK[:, :depth], near_PK[:, :depth]
    code_PK = np.where(np.isposinf(near_PK), NOBODY, grouped.code[place_PK])
    return RankList(code_PK.astype(np.int64), near_PK)


def _nearest(dist_PM: Floats, grouped: TemplateGroups) -> Floats:
    if len(grouped.code) == grouped.num_templates:
        return dist_PM
    return np.minimum.reduceat(dist_PM, grouped.start, axis=1)


def _first(near_PI: Floats, depth: int) -> tuple[Ints, Floats]:
    """Columns and distances of the nearest, ascending; equal ones in the order of columns."""
    column_PK = _columns_of_nearest(near_PI, depth)
    near_PK = np.take_along_axis(near_PI, column_PK, axis=1)
    order_PK = np.argsort(near_PK, axis=1, kind="stable")
    return _reordered(column_PK, near_PK, order_PK)


def _columns_of_nearest(dist_PM: Floats, num: int) -> Ints:
    """Columns of the `num` smallest of each row, ascending; of equal ones the first."""
    rows, width = dist_PM.shape
    if num >= width:
        return np.broadcast_to(np.arange(width), (rows, width))
    edge_P1 = np.partition(dist_PM, num - 1, axis=1)[:, num - 1 : num]
    row, column = np.nonzero(dist_PM <= edge_P1)
    if len(row) > rows * num:
        level = dist_PM[row, column] == edge_P1[row, 0]
        room_P = num - np.bincount(row[~level], minlength=rows)
        before = np.cumsum(level) - level
        first_P = np.searchsorted(row, np.arange(rows))
        taken = ~level | (before - before[first_P][row] < room_P[row])
        column = column[taken]
    return column.reshape(rows, num)


def _voted(
    dist_PM: Floats, grouped: TemplateGroups, place_PK: Ints, near_PK: Floats
) -> tuple[Ints, Floats]:
    """Order by votes; identities with equal votes keep their order."""
    voter_PV = _columns_of_nearest(dist_PM, VOTERS)
    chosen_PV = np.searchsorted(grouped.start, voter_PV, side="right") - 1
    # Templates that are left out have no vote.
    chosen_PV[np.isposinf(np.take_along_axis(dist_PM, voter_PV, axis=1))] = NOBODY
    votes_PK = np.zeros(place_PK.shape, dtype=np.int64)
    few = min(VOTERS, place_PK.shape[1])
    votes_PK[:, :few] = (place_PK[:, :few, None] == chosen_PV[:, None, :]).sum(axis=2)
    order_PK = np.argsort(-votes_PK, axis=1, kind="stable")
    return _reordered(place_PK, near_PK, order_PK)


def _reordered(place_PK: Ints, near_PK: Floats, order_PK: Ints) -> tuple[Ints, Floats]:
    return (
        np.take_along_axis(place_PK, order_PK, axis=1),
        np.take_along_axis(near_PK, order_PK, axis=1),
    )
