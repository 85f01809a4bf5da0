"""Inspection of a table of pictures before training.

`sample_statistics` opens a random sample, for choosing settings. `inspect_table` opens every
picture and reports sizes, formats, broken files, duplicates, leaks between splits and
contradictions. Nothing is changed, and no settings are chosen here.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.config import DataSettings
from twinlens.data.decode import Header, open_picture, read_header
from twinlens.data.duplicates import groups_of_equal, near_duplicates, pixel_digest, thumbnail
from twinlens.data.inspection_result import Contradiction, DuplicateGroups, Inspection, MinMedianMax
from twinlens.data.pixels import BrokenPicture
from twinlens.data.splits import is_identity_disjoint
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import DataError, PictureError

__all__ = [
    "Inspection",
    "TableStatistics",
    "has_color",
    "inspect_table",
    "sample_statistics",
]

SAME_LEVEL = 16  # Grey levels within which a pixel counts as ground.
COLOR_SPREAD = 24  # Between channels; scanners and JPEG stay below it on grey paper.
COLOR_SHARE = 1e-3
LOOK_SIZE = (128, 128)
SHOWN_SIZES = 10
BLOCK = 256

T = TypeVar("T")


@dataclass(frozen=True)
class TableStatistics:
    """A quick look at a table. Sizes and colours are those of a sample of readable pictures.

    Attributes:
        num_pictures: rows.
        num_identities: distinct identities.
        num_forged: forged rows.
        num_singletons: identities with fewer than two genuine pictures.
        min_pictures: genuine pictures of the identity with the fewest.
        median_pictures: of the median identity.
        max_pictures: of the identity with the most.
        median_height: pixels, from the headers.
        median_width: pixels, from the headers.
        grey: no picture of the sample has colour.
        border_level: median grey level, 0..255, of the pictures' outermost pixels.
        border_share: median share, 0..1, of a picture's pixels within 16 levels of its border's.
    """

    num_pictures: int
    num_identities: int
    num_forged: int
    num_singletons: int
    min_pictures: int
    median_pictures: float
    max_pictures: int
    median_height: int
    median_width: int
    grey: bool
    border_level: int
    border_share: float


def sample_statistics(
    table: ImageTable,
    *,
    sample: int = 256,
    seed: int = 0,
    max_pixels: int = DataSettings().max_pixels,
) -> TableStatistics:
    """Look quickly at a table: all labels, and a random sample of the pictures.

    Args:
        table: any table.
        sample: how many pictures to open.
        seed: of the draw.
        max_pixels: as in `open_picture`; larger ones are passed over.
    Raises:
        DataError: an empty table, or none of the sampled pictures can be read.
    """
    if len(table) == 0:
        raise DataError(f"{table.source} holds no pictures to look at")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(table), min(sample, len(table)), replace=False))
    looks = list(_each(rows, lambda row: _glance(table, row, max_pixels)))
    seen = [look for look in looks if isinstance(look, _Glance)]
    if not seen:
        raise DataError(
            f"none of the {len(rows):,} pictures looked at in {table.source} can be read; the "
            f"first is {table.path[rows[0]]}: {looks[0]}"
        )
    counts = _genuine_counts(table)
    return TableStatistics(
        num_pictures=len(table),
        num_identities=len(counts),
        num_forged=int(table.forged.sum()),
        num_singletons=int((counts < 2).sum()),
        min_pictures=int(counts.min()),
        median_pictures=float(np.median(counts)),
        max_pictures=int(counts.max()),
        median_height=round(float(np.median([look.header.height for look in seen]))),
        median_width=round(float(np.median([look.header.width for look in seen]))),
        grey=not any(look.color for look in seen),
        border_level=round(float(np.median([look.border_level for look in seen]))),
        border_share=float(np.median([look.border_share for look in seen])),
    )


def inspect_table(
    table: ImageTable,
    *,
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Open every picture of a table and report what is there.

    Exact duplicates have the same pixels; for JPEGs so large that they are looked at in a reduced
    size, the same bytes. Near duplicates are those of `duplicates.near_duplicates`. To see the
    leaks of the split that training would make, assign it first.

    Args:
        table: with or without splits.
        max_pixels: as in `open_picture`.
        progress: called with (pictures done, pictures in all).
    Raises:
        DataError: an empty table.
    """
    if len(table) == 0:
        raise DataError(f"{table.source} holds no pictures to inspect")
    looks: dict[int, _Look] = {}
    broken = []
    results = _each(np.arange(len(table)), lambda row: _look(table, row, max_pixels))
    for row, result in enumerate(results):
        if isinstance(result, _Look):
            looks[row] = result
        else:
            broken.append(BrokenPicture(table.relative(row), result))
        if progress is not None:
            progress(row + 1, len(table))
    exact, near, capped = _duplicate_rows(looks)
    headers = [look.header for look in looks.values()]
    sizes = Counter((header.height, header.width) for header in headers)
    formats = Counter(header.format for header in headers)
    counts = _genuine_counts(table)
    return Inspection(
        source=table.source,
        num_pictures=len(table),
        num_identities=len(counts),
        num_forged=int(table.forged.sum()),
        splits=_splits(table),
        identity_disjoint=is_identity_disjoint(table),
        heights=MinMedianMax.of([header.height for header in headers]) if headers else None,
        widths=MinMedianMax.of([header.width for header in headers]) if headers else None,
        common_sizes=tuple((*size, count) for size, count in _most_common(sizes)[:SHOWN_SIZES]),
        color=_color([look.color for look in looks.values()]),
        formats=dict(_most_common(formats)),
        per_identity=MinMedianMax.of(counts),
        histogram={int(c): int((counts == c).sum()) for c in np.unique(counts)},
        singletons=tuple(
            name for name, count in zip(table.identities(), counts, strict=True) if count < 2
        ),
        broken=tuple(broken),
        exact=_leaks_first(table, exact, capped=False),
        near=_leaks_first(table, near, capped=capped),
        contradictions=tuple(_contradictions(table, exact, near)),
    )


def has_color(picture: Image.Image) -> bool:
    """Whether more than one pixel in a thousand differs visibly between its channels."""
    if picture.mode == "L":
        return False
    array_HWC = np.asarray(picture)
    spread_HW = array_HWC.max(axis=2) - array_HWC.min(axis=2)
    return bool((spread_HW > COLOR_SPREAD).mean() > COLOR_SHARE)


# --- one picture --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Glance:
    header: Header
    color: bool
    border_level: float
    border_share: float


@dataclass(frozen=True, eq=False)
class _Look:
    header: Header
    color: bool
    digest: bytes
    thumb: NDArray[np.uint8]


def _open(table: ImageTable, row: int, max_pixels: int) -> tuple[Header, Image.Image]:
    """A row's header and picture, large JPEGs reduced."""
    if table.pixels is not None:
        picture = Image.fromarray(np.ascontiguousarray(table.pixels[row]))
        return Header("array", picture.height, picture.width), picture
    path = str(table.path[row])
    header = read_header(path, max_pixels=max_pixels)
    return header, open_picture(path, max_pixels=max_pixels, target=LOOK_SIZE)


def _glance(table: ImageTable, row: int, max_pixels: int) -> _Glance:
    header, picture = _open(table, row, max_pixels)
    grey_HW = np.asarray(picture.convert("L")).astype(np.int16)
    edges = (grey_HW[0], grey_HW[-1], grey_HW[1:-1, 0], grey_HW[1:-1, -1])
    level = float(np.median(np.concatenate(edges)))
    share = float((np.abs(grey_HW - level) <= SAME_LEVEL).mean())
    return _Glance(header, has_color(picture), level, share)


def _look(table: ImageTable, row: int, max_pixels: int) -> _Look:
    header, picture = _open(table, row, max_pixels)
    if picture.size == (header.width, header.height):
        digest = pixel_digest(picture)
    else:
        with Path(table.path[row]).open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
    return _Look(header, has_color(picture), digest, thumbnail(picture))


def _each(rows: NDArray[np.int64], work: Callable[[int], T]) -> Iterator[T | str]:
    """`work` of each row in order, by threads; the reason where a picture cannot be read."""

    def one(row: int) -> T | str:
        try:
            return work(row)
        except PictureError as error:
            return error.reason
        except OSError as error:  # The file went away between two looks.
            return error.strerror or "cannot be read"

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(rows), BLOCK):
            yield from pool.map(one, rows[start : start + BLOCK].tolist())


# --- the whole table ----------------------------------------------------------------------------


def _genuine_counts(table: ImageTable) -> NDArray[np.int64]:
    """Genuine pictures of each identity, in the order of `table.identities()`."""
    counts = np.bincount(table.labels()[~table.forged], minlength=len(table.identities()))
    return counts.astype(np.int64)


def _splits(table: ImageTable) -> dict[str, tuple[int, int]]:
    found = {}
    for name in (*SPLITS, ""):
        part = table.of_split(name)
        if len(part):
            found[name or "unassigned"] = (len(part), len(part.identities()))
    return found


def _most_common(counts: Counter[T]) -> list[tuple[T, int]]:
    """The most common first; equals by their text, so that files' order plays no part."""
    return sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))


def _color(colored: Sequence[bool]) -> Literal["grey", "rgb", "mixed"] | None:
    if not colored:
        return None
    if all(colored):
        return "rgb"
    return "mixed" if any(colored) else "grey"


RowGroups = list[tuple[int, ...]]


def _duplicate_rows(looks: dict[int, _Look]) -> tuple[RowGroups, RowGroups, bool]:
    """Exact and near groups of rows. Near groups hold the exact copies of their members too."""
    rows = list(looks)
    exact = [
        tuple(rows[place] for place in group)
        for group in groups_of_equal([look.digest for look in looks.values()])
    ]
    copies = {group[0]: group for group in exact}
    spare = {row for group in exact for row in group[1:]}
    distinct = [row for row in rows if row not in spare]
    if not distinct:
        return exact, [], False
    found = near_duplicates(np.stack([looks[row].thumb for row in distinct]))
    near = [
        tuple(sorted(r for place in group for r in copies.get(distinct[place], (distinct[place],))))
        for group in found.groups
    ]
    return exact, near, found.capped


def _leaks_first(table: ImageTable, groups: RowGroups, *, capped: bool) -> DuplicateGroups:
    leaks = [len({table.split[row] for row in group} - {""}) > 1 for group in groups]
    ordered = sorted(range(len(groups)), key=lambda place: (not leaks[place], groups[place]))
    paths = tuple(tuple(table.relative(row) for row in groups[place]) for place in ordered)
    return DuplicateGroups(len(groups) - sum(leaks), sum(leaks), paths, capped)


def _contradictions(
    table: ImageTable, exact: RowGroups, near: RowGroups
) -> Iterator[Contradiction]:
    def said(rows: Sequence[int]) -> set[tuple[str, bool]]:
        return {(str(table.identity[row]), bool(table.forged[row])) for row in rows}

    told: dict[int, set[tuple[str, bool]]] = {}
    kinds: tuple[tuple[Literal["exact", "near"], RowGroups], ...] = (
        ("exact", exact),
        ("near", near),
    )
    for kind, groups in kinds:
        for rows in groups:
            claims = said(rows)
            # A near group that only repeats what its exact copies contradict is not news.
            if len(claims) < 2 or any(told.get(row) == claims for row in rows):
                continue
            told.update(dict.fromkeys(rows, claims))
            yield Contradiction(
                kind,
                tuple(table.relative(row) for row in rows),
                tuple(str(table.identity[row]) for row in rows),
                tuple(bool(table.forged[row]) for row in rows),
            )
