"""What an inspection of pictures found, as JSON for scripts and as lines for a person.

This module knows counts, names and paths; it opens nothing and judges no pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import BrokenPicture

__all__ = ["Contradiction", "DuplicateGroups", "Inspection", "MinMedianMax"]

SHOWN_NAMES, SHOWN_GROUPS, SHOWN_LINES = 20, 50, 5


@dataclass(frozen=True)
class MinMedianMax:
    """The smallest, median and largest of some numbers."""

    min: int
    median: float
    max: int

    @classmethod
    def of(cls, values: Sequence[int] | NDArray[np.int64]) -> MinMedianMax:
        """Of at least one number."""
        return cls(int(min(values)), float(np.median(values)), int(max(values)))

    def as_json(self) -> dict[str, Any]:
        """`{"min", "median", "max"}`."""
        return {"min": self.min, "median": self.median, "max": self.max}


@dataclass(frozen=True)
class DuplicateGroups:
    """Groups of pictures that are the same; those that reach over splits come first.

    Attributes:
        within: groups that lie in one split (or in none).
        across: groups with pictures in two splits or more: leaks.
        groups: paths.
        capped: some may be missing (see `NearDuplicates.capped`).
    """

    within: int
    across: int
    groups: tuple[tuple[str, ...], ...]
    capped: bool = False

    def as_json(self) -> dict[str, Any]:
        """`{"within", "across", "groups", "capped"}`, at most 50 groups."""
        groups = [list(group) for group in self.groups[:SHOWN_GROUPS]]
        return {
            "within": self.within,
            "across": self.across,
            "groups": groups,
            "capped": self.capped,
        }


@dataclass(frozen=True)
class Contradiction:
    """One picture that is said to be two things: two identities, or genuine and forged."""

    kind: Literal["exact", "near"]
    paths: tuple[str, ...]
    identities: tuple[str, ...]
    forged: tuple[bool, ...]

    def as_json(self) -> dict[str, Any]:
        """`{"kind", "paths", "identities", "forged"}`, identity and role of each path."""
        return {
            "kind": self.kind,
            "paths": list(self.paths),
            "identities": list(self.identities),
            "forged": list(self.forged),
        }


@dataclass(frozen=True, eq=False)
class Inspection:
    """All that `inspect_table` found; paths are relative to the table's root.

    `splits` maps a split's name ("unassigned" for none) to (pictures, identities). `heights`,
    `widths` and `color` are None where no picture can be read. `per_identity` counts genuine
    pictures, `histogram` maps such a count to the number of identities that have it.
    """

    source: str
    num_pictures: int
    num_identities: int
    num_forged: int
    splits: dict[str, tuple[int, int]]
    identity_disjoint: bool
    heights: MinMedianMax | None
    widths: MinMedianMax | None
    common_sizes: tuple[tuple[int, int, int], ...]
    color: Literal["grey", "rgb", "mixed"] | None
    formats: dict[str, int]
    per_identity: MinMedianMax
    histogram: dict[int, int]
    singletons: tuple[str, ...]
    broken: tuple[BrokenPicture, ...]
    exact: DuplicateGroups
    near: DuplicateGroups
    contradictions: tuple[Contradiction, ...]

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary with the keys that `docs/json.md` promises."""
        return {
            "source": self.source,
            "pictures": self.num_pictures,
            "identities": self.num_identities,
            "forged": self.num_forged,
            "splits": {
                name: {"pictures": pictures, "identities": identities}
                for name, (pictures, identities) in self.splits.items()
            },
            "identity_disjoint": self.identity_disjoint,
            "sizes": {
                "height": None if self.heights is None else self.heights.as_json(),
                "width": None if self.widths is None else self.widths.as_json(),
                "common": [
                    {"height": height, "width": width, "pictures": count}
                    for height, width, count in self.common_sizes
                ],
            },
            "color": self.color,
            "formats": dict(self.formats),
            "pictures_per_identity": {
                **self.per_identity.as_json(),
                "histogram": {str(count): num for count, num in self.histogram.items()},
            },
            "singletons": {
                "count": len(self.singletons),
                "names": list(self.singletons[:SHOWN_NAMES]),
            },
            "broken": [{"path": b.path, "reason": b.reason} for b in self.broken],
            "duplicates": {"exact": self.exact.as_json(), "near": self.near.as_json()},
            "contradictions": [c.as_json() for c in self.contradictions],
        }

    def as_text(self) -> str:
        """Plain lines for a person: the facts, then each thing to look into and what to do."""
        lines = [*_fact_lines(self), "", *_warning_lines(self)]
        # A file name that is not UTF-8 must not break the terminal.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


# --- for a person -------------------------------------------------------------------------------


def _fact_lines(found: Inspection) -> list[str]:
    forged = f", {found.num_forged:,} of them forged" if found.num_forged else ""
    facts = {
        "splits": _splits_text(found),
        "size": _sizes_text(found),
        "colour": {"grey": "grey", "rgb": "colour", "mixed": "some grey, some in colour"}.get(
            found.color or "", "unknown"
        ),
        "files": ", ".join(f"{name} {count:,}" for name, count in found.formats.items()) or "none",
        "per identity": _per_identity_text(found),
        "duplicates": f"{_groups_text(found.exact)} exact, {_groups_text(found.near)} near",
    }
    title = (
        f"{found.source}: {_count(found.num_pictures, 'picture')} of "
        f"{_count(found.num_identities, 'identity', 'identities')}{forged}"
    )
    return [title, *(f"  {name:<13} {text}" for name, text in facts.items())]


def _splits_text(found: Inspection) -> str:
    if set(found.splits) == {"unassigned"}:
        return "none given"
    parts = [
        f"{name} {pictures:,} ({_count(identities, 'identity', 'identities')})"
        for name, (pictures, identities) in found.splits.items()
    ]
    disjoint = "no identity in two of them" if found.identity_disjoint else "identities are shared"
    return f"{', '.join(parts)}; {disjoint}"


def _sizes_text(found: Inspection) -> str:
    if found.heights is None or found.widths is None:
        return "unknown"
    if found.heights.min == found.heights.max and found.widths.min == found.widths.max:
        return f"{found.heights.min} high, {found.widths.min} wide, all of them"
    high, wide = found.heights, found.widths
    return (
        f"{high.min:,} to {high.max:,} high (median {high.median:,g}), "
        f"{wide.min:,} to {wide.max:,} wide (median {wide.median:,g})"
    )


def _per_identity_text(found: Inspection) -> str:
    spread = found.per_identity
    if spread.min == spread.max:
        return f"{_count(spread.min, 'genuine picture')} each"
    return f"{spread.min:,} to {spread.max:,} genuine pictures, median {spread.median:g}"


def _groups_text(found: DuplicateGroups) -> str:
    return _count(found.within + found.across, "group")


def _warning_lines(found: Inspection) -> list[str]:
    lines = [
        *_broken_lines(found),
        *_contradiction_lines(found),
        *_leak_lines(found),
        *_copy_lines(found),
        *_singleton_lines(found),
    ]
    if found.exact.capped or found.near.capped:
        lines += ["! Very many pictures look alike: some near duplicates may not be listed."]
    return ["Worth looking into:", *lines] if lines else ["Nothing looks wrong."]


def _broken_lines(found: Inspection) -> list[str]:
    if not found.broken:
        return []
    items = [f"{broken.path}: {broken.reason}" for broken in found.broken]
    return [
        f"! {_count(len(items), 'file')} cannot be read. A run skips them and says so; repair or "
        "remove them.",
        *_some(items),
    ]


def _contradiction_lines(found: Inspection) -> list[str]:
    if not found.contradictions:
        return []
    items = [
        " = ".join(
            f"{path} ({identity}{', forged' if forged else ''})"
            for path, identity, forged in zip(c.paths, c.identities, c.forged, strict=True)
        )
        + ("" if c.kind == "exact" else "  [nearly the same]")
        for c in found.contradictions
    ]
    num = len(items)
    return [
        f"! {_count(num, 'picture')} {'is' if num == 1 else 'are'} said to be two things. A model "
        "cannot learn both: keep the right one.",
        *_some(items),
    ]


def _leak_lines(found: Inspection) -> list[str]:
    num = found.exact.across + found.near.across
    if not num:
        return []
    leaks = [*found.exact.groups[: found.exact.across], *found.near.groups[: found.near.across]]
    return [
        f"! {_count(num, 'picture')} {'lies' if num == 1 else 'lie'} in more than one split "
        f"({found.exact.across:,} exactly, {found.near.across:,} nearly), so figures of the test "
        "are too good: keep each in one split.",
        *_some([" = ".join(group) for group in leaks]),
    ]


def _copy_lines(found: Inspection) -> list[str]:
    num = found.exact.within + found.near.within
    if not num:
        return []
    items = [
        " = ".join(group)
        for kind in (found.exact, found.near)
        for group in kind.groups[kind.across :]
    ]
    return [
        f"! {_count(num, 'picture')} {'has' if num == 1 else 'have'} copies within a split "
        f"({found.exact.within:,} exact, {found.near.within:,} near). They make pairs that teach "
        "little: keep one of each.",
        *_some(items),
    ]


def _singleton_lines(found: Inspection) -> list[str]:
    if not found.singletons:
        return []
    num = len(found.singletons)
    names = ", ".join(found.singletons[:SHOWN_LINES]) + (", ..." if num > SHOWN_LINES else "")
    return [
        f"! {_count(num, 'identity', 'identities')} {'has' if num == 1 else 'have'} fewer than two "
        f"genuine pictures and {'serves' if num == 1 else 'serve'} only as something different: "
        f"add pictures of {names}.",
    ]


def _some(items: Sequence[str]) -> list[str]:
    more = [f"    and {len(items) - SHOWN_LINES:,} more"] if len(items) > SHOWN_LINES else []
    return [*(f"    {item}" for item in items[:SHOWN_LINES]), *more]


def _count(num: int, one: str, many: str | None = None) -> str:
    return f"{num:,} {one if num == 1 else many or one + 's'}"
