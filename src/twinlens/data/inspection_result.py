"""The result of an inspection of pictures, as JSON and as text.

This module handles counts, names and paths; it opens no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import BrokenPicture
from twinlens.data.walk import LeftOut
from twinlens.errors import one_line

__all__ = ["Contradiction", "DuplicateGroups", "Inspection", "MinMedianMax"]

MAX_LINES = 5
MAX_COPIES = 4  # in a line


@dataclass(frozen=True)
class MinMedianMax:
    """Minimum, median and maximum of some numbers."""

    min: int
    median: float
    max: int

    @classmethod
    def of(cls, values: Sequence[int] | NDArray[np.int64]) -> MinMedianMax:
        """Compute from at least one number."""
        return cls(int(min(values)), float(np.median(values)), int(max(values)))


@dataclass(frozen=True)
class DuplicateGroups:
    """Groups of pictures that are the same; groups across splits come first.

    Attributes:
        within: number of groups inside one split, or without a split.
        across: number of groups with pictures in several splits: leaks.
        groups: paths of each group.
    """

    within: int
    across: int
    groups: tuple[tuple[str, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """Keys `within`, `across` and `groups`."""
        groups = [list(group) for group in self.groups]
        return {"within": self.within, "across": self.across, "groups": groups}


@dataclass(frozen=True)
class Contradiction:
    """Copies of a picture with conflicting labels: other identities, or genuine and forged."""

    kind: Literal["exact", "near"]
    paths: tuple[str, ...]
    identities: tuple[str, ...]
    forged: tuple[bool, ...]

    def as_json(self) -> dict[str, Any]:
        """Keys `kind`, `paths`, `identities` and `forged`; identity and role of each path."""
        return {
            "kind": self.kind,
            "paths": list(self.paths),
            "identities": list(self.identities),
            "forged": list(self.forged),
        }


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of `inspect_table`; paths are relative to the root of the table.

    Attributes:
        source: data as the user named it.
        num_pictures: rows.
        num_identities: distinct identities.
        num_forged: forged rows.
        splits: split ("unassigned" if none) -> (pictures, identities).
        identity_disjoint: whether no identity has pictures in two splits.
        heights: in pixels; None if no picture can be read.
        widths: in pixels; None if no picture can be read.
        common_sizes: (height, width, pictures), the most frequent first.
        color: None if no picture can be read.
        formats: file format -> pictures.
        per_identity: genuine pictures of an identity.
        histogram: genuine pictures of an identity -> number of such identities.
        singletons: identities with fewer than two genuine pictures.
        broken: unreadable pictures.
        blank: pictures of one grey level, which show nothing.
        exact: groups of pictures with equal pixels.
        near: groups of near duplicates.
        contradictions: copies with conflicting labels.
        left_out: files of the folder that are not read; None if the data is not a folder.
        layout_hints: sentences on folders that may mean something else.
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
    blank: tuple[str, ...]
    exact: DuplicateGroups
    near: DuplicateGroups
    contradictions: tuple[Contradiction, ...]
    left_out: LeftOut | None
    layout_hints: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary with the keys of `docs/json.md`."""
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
                "height": None if self.heights is None else asdict(self.heights),
                "width": None if self.widths is None else asdict(self.widths),
                "common": [
                    {"height": height, "width": width, "pictures": count}
                    for height, width, count in self.common_sizes
                ],
            },
            "color": self.color,
            "formats": dict(self.formats),
            "pictures_per_identity": {
                **asdict(self.per_identity),
                "histogram": {str(count): num for count, num in self.histogram.items()},
            },
            "singletons": {
                "count": len(self.singletons),
                "names": list(self.singletons),
            },
            "broken": [{"path": one.path, "reason": one.reason} for one in self.broken],
            "blank": list(self.blank),
            "duplicates": {"exact": self.exact.as_json(), "near": self.near.as_json()},
            "contradictions": [c.as_json() for c in self.contradictions],
            "left_out": None if self.left_out is None else self.left_out.as_json(),
            "layout_hints": list(self.layout_hints),
        }

    def as_text(self) -> str:
        """Lines of text: the facts, then each problem with its remedy."""
        lines = [one_line(line, None) for line in (*_fact_lines(self), "", *_warning_lines(self))]
        # A file name that is not UTF-8 must not break the terminal.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


# --- text ---------------------------------------------------------------------------------------


def _fact_lines(result: Inspection) -> list[str]:
    forged = f", {result.num_forged:,} of them forged" if result.num_forged else ""
    facts = {
        "splits": _splits_text(result),
        "size": _sizes_text(result),
        "colour": {"grey": "grey", "rgb": "colour", "mixed": "some grey, some colour"}.get(
            result.color or "", "unknown"
        ),
        "files": ", ".join(f"{name} {count:,}" for name, count in result.formats.items()) or "none",
        "per identity": _per_identity_text(result),
        "duplicates": f"{_groups_text(result.exact)} exact, {_groups_text(result.near)} near",
    }
    left_out = "" if result.left_out is None else result.left_out.text()
    if left_out:
        facts["left out"] = left_out
    title = (
        f"{result.source}: {_count(result.num_pictures, 'picture')} of "
        f"{_count(result.num_identities, 'identity', 'identities')}{forged}"
    )
    return [title, *(f"  {name:<13} {text}" for name, text in facts.items())]


def _splits_text(result: Inspection) -> str:
    if set(result.splits) == {"unassigned"}:
        return "none given"
    parts = [
        f"{name} {pictures:,} ({_count(identities, 'identity', 'identities')})"
        for name, (pictures, identities) in result.splits.items()
    ]
    disjoint = (
        "no identity in two of them" if result.identity_disjoint else "some identities in several"
    )
    return f"{', '.join(parts)}; {disjoint}"


def _sizes_text(result: Inspection) -> str:
    if result.heights is None or result.widths is None:
        return "unknown"
    if result.heights.min == result.heights.max and result.widths.min == result.widths.max:
        return f"all {result.heights.min} high, {result.widths.min} wide"
    high, wide = result.heights, result.widths
    return (
        f"{high.min:,} to {high.max:,} high (median {high.median:,g}), "
        f"{wide.min:,} to {wide.max:,} wide (median {wide.median:,g})"
    )


def _per_identity_text(result: Inspection) -> str:
    num = result.per_identity
    if num.min == num.max:
        return f"{_count(num.min, 'genuine picture')} each"
    return f"{num.min:,} to {num.max:,} genuine pictures, median {num.median:g}"


def _groups_text(copies: DuplicateGroups) -> str:
    return _count(copies.within + copies.across, "group")


def _warning_lines(result: Inspection) -> list[str]:
    lines = [
        *_left_out_lines(result),
        *_broken_lines(result),
        *_blank_lines(result),
        *_contradiction_lines(result),
        *_leak_lines(result),
        *_copy_lines(result),
        *_singleton_lines(result),
    ]
    notes = [] if result.left_out is None else result.left_out.notes()
    return [
        *(["Problems:", *lines] if lines else ["No problems."]),
        *(f"- {note}." for note in notes),
        *(f"? {hint}" for hint in result.layout_hints),
    ]


def _left_out_lines(result: Inspection) -> list[str]:
    return [] if result.left_out is None else [f"! {p}." for p in result.left_out.problems()]


def _broken_lines(result: Inspection) -> list[str]:
    if not result.broken:
        return []
    items = [f"{broken.path}: {broken.reason}" for broken in result.broken]
    return [
        f"! {_count(len(items), 'file')} cannot be read. Training skips and lists them: repair or "
        "remove them.",
        *_first_items(items),
    ]


def _blank_lines(result: Inspection) -> list[str]:
    if not result.blank:
        return []
    num = len(result.blank)
    return [
        f"! {_count(num, 'picture')} {'shows' if num == 1 else 'show'} nothing: all pixels have "
        "about one grey level. Remove them.",
        *_first_items(result.blank),
    ]


def _contradiction_lines(result: Inspection) -> list[str]:
    if not result.contradictions:
        return []
    items = [
        _equals(
            [
                f"{path} ({identity}{', forged' if forged else ''})"
                for path, identity, forged in zip(c.paths, c.identities, c.forged, strict=True)
            ]
        )
        + ("" if c.kind == "exact" else "  [near duplicates]")
        for c in result.contradictions
    ]
    num = len(items)
    return [
        f"! {_count(num, 'picture')} {'has' if num == 1 else 'have'} copies with another label. "
        "A model cannot learn both: keep the right one.",
        *_first_items(items),
    ]


def _leak_lines(result: Inspection) -> list[str]:
    num = result.exact.across + result.near.across
    if not num:
        return []
    leaks = [*result.exact.groups[: result.exact.across], *result.near.groups[: result.near.across]]
    return [
        f"! {_count(num, 'picture')} {'is' if num == 1 else 'are'} in more than one split "
        f"({result.exact.across:,} exact, {result.near.across:,} near copies), so test results are "
        "too good: keep each in one split.",
        *_first_items([_equals(group) for group in leaks]),
    ]


def _copy_lines(result: Inspection) -> list[str]:
    num = result.exact.within + result.near.within
    if not num:
        return []
    items = [
        _equals(group)
        for kind in (result.exact, result.near)
        for group in kind.groups[kind.across :]
    ]
    return [
        f"! {_count(num, 'picture')} {'has' if num == 1 else 'have'} copies within a split "
        f"({result.exact.within:,} exact, {result.near.within:,} near). Their pairs are trivial: "
        "keep one of each.",
        *_first_items(items),
    ]


def _singleton_lines(result: Inspection) -> list[str]:
    if not result.singletons:
        return []
    num = len(result.singletons)
    names = ", ".join(result.singletons[:MAX_LINES]) + (", ..." if num > MAX_LINES else "")
    return [
        f"! {_count(num, 'identity', 'identities')} {'has' if num == 1 else 'have'} fewer than two "
        f"genuine pictures and {'is' if num == 1 else 'are'} used only as negatives: add pictures "
        f"of {names}.",
    ]


def _first_items(items: Sequence[str]) -> list[str]:
    more = [f"    and {len(items) - MAX_LINES:,} more"] if len(items) > MAX_LINES else []
    return [*(f"    {item}" for item in items[:MAX_LINES]), *more]


def _equals(names: Sequence[str]) -> str:
    more = [f"... {len(names):,} in all"] if len(names) > MAX_COPIES else []
    return " = ".join([*names[:MAX_COPIES], *more])


def _count(num: int, singular: str, plural: str | None = None) -> str:
    return f"{num:,} {singular if num == 1 else plural or singular + 's'}"
