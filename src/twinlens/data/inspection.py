"""Inspection of a table of pictures before training.

`sample_statistics` opens a random sample, for choosing settings. `inspect_table` opens every
picture and reports sizes, formats, broken files, duplicates, leaks between splits and
contradictions. Nothing is changed, and no settings are chosen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.config import DataSettings
from twinlens.data.contents import digest_of_picture
from twinlens.data.decode import Header, open_picture, read_header
from twinlens.data.duplicates import groups_of_equal, near_duplicates, pixel_digest, thumbnail
from twinlens.data.inspection_result import Contradiction, DuplicateGroups, Inspection, MinMedianMax
from twinlens.data.layout_hints import layout_hints
from twinlens.data.pixels import BrokenPicture
from twinlens.data.splits import is_identity_disjoint
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import DataError, PictureError
from twinlens.machine import decoding_threads

__all__ = ["Inspection", "TableStatistics", "has_color", "inspect_table", "is_blank",
           "sample_statistics"]  # fmt: skip

BACKGROUND_RANGE = 16  # Grey levels around the border level that count as background.
BLANK_SHARE = 1e-3  # Largest share of other pixels in a picture that shows nothing.
COLOR_RANGE = 24  # Between channels; scanners and JPEG stay below it on grey paper.
COLOR_SHARE = 1e-3
REDUCED_SIZE = (128, 128)
MAX_SIZES = 10
BLOCK = 256

T = TypeVar("T")


@dataclass(frozen=True)
class TableStatistics:
    """Statistics of a table; sizes and colours are those of a sample of readable pictures.

    Attributes:
        num_pictures: rows.
        num_identities: distinct identities.
        num_forged: forged rows.
        num_singletons: identities with fewer than two genuine pictures.
        min_pictures: smallest number of genuine pictures of an identity.
        median_pictures: median number of genuine pictures of an identity.
        max_pictures: largest number of genuine pictures of an identity.
        median_height: median height in pixels.
        median_width: median width in pixels.
        grey: whether no picture of the sample has colour.
        border_level: median grey level, 0..255, of the outermost pixels.
        border_share: median share, 0..1, of pixels within 16 levels of a picture's border level.
        sixteen_bit: whether a picture of the sample has 16-bit values.
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
    sixteen_bit: bool = False


def sample_statistics(
    table: ImageTable,
    *,
    sample: int = 256,
    seed: int = 0,
    max_pixels: int = DataSettings().max_pixels,
) -> TableStatistics:
    """Statistics of all labels and of a random sample of the pictures.

    Args:
        table: table with or without splits.
        sample: number of pictures to open.
        seed: random seed of the sample.
        max_pixels: as in `open_picture`; larger pictures are skipped.
    Raises:
        DataError: an empty table, or no readable picture in the sample.
    """
    if len(table) == 0:
        raise DataError(f"{table.source} holds no pictures")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(table), min(sample, len(table)), replace=False))
    results = list(_map_rows(rows, lambda row: _read_sampled(table, row, max_pixels)))
    pictures = [result for result in results if isinstance(result, _SampledPicture)]
    if not pictures:
        raise DataError(
            f"none of the {len(rows):,} pictures sampled from {table.source} can be read; the "
            f"first is {table.path[rows[0]]}: {results[0]}"
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
        median_height=round(float(np.median([picture.header.height for picture in pictures]))),
        median_width=round(float(np.median([picture.header.width for picture in pictures]))),
        grey=not any(picture.color for picture in pictures),
        border_level=round(float(np.median([picture.border_level for picture in pictures]))),
        border_share=float(np.median([picture.border_share for picture in pictures])),
        sixteen_bit=any(picture.header.sixteen_bit for picture in pictures),
    )


def inspect_table(
    table: ImageTable,
    *,
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Open every picture of a table and report sizes, duplicates and problems.

    Exact duplicates have equal pixels, or equal bytes if they are JPEGs so large that they are
    decoded at a reduced size. Near duplicates are those of `duplicates.near_duplicates`. To see
    the leaks of the splits that training would use, assign them first.

    Args:
        table: table with or without splits.
        max_pixels: as in `open_picture`.
        progress: called with (pictures done, all pictures).
    Raises:
        DataError: an empty table.
    """
    if len(table) == 0:
        raise DataError(f"{table.source} holds no pictures to inspect")
    pictures: dict[int, _InspectedPicture] = {}
    broken = []
    results = _map_rows(np.arange(len(table)), lambda row: _read_whole(table, row, max_pixels))
    for row, result in enumerate(results):
        if isinstance(result, _InspectedPicture):
            pictures[row] = result
        else:
            broken.append(BrokenPicture(table.relative(row), result))
        if progress is not None:
            progress(row + 1, len(table))
    exact, near = _duplicate_rows(pictures)
    headers = [picture.header for picture in pictures.values()]
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
        common_sizes=tuple((*size, count) for size, count in _most_common(sizes)[:MAX_SIZES]),
        color=_color([picture.color for picture in pictures.values()]),
        formats=dict(_most_common(formats)),
        per_identity=MinMedianMax.of(counts),
        histogram={int(c): int((counts == c).sum()) for c in np.unique(counts)},
        singletons=tuple(
            name for name, count in zip(table.identities(), counts, strict=True) if count < 2
        ),
        broken=tuple(broken),
        blank=tuple(table.relative(row) for row, picture in pictures.items() if picture.blank),
        exact=_leaks_first(table, exact),
        near=_leaks_first(table, near),
        contradictions=tuple(_contradictions(table, exact, near)),
        left_out=table.left_out,
        layout_hints=tuple(layout_hints(table)),
    )


def has_color(picture: Image.Image) -> bool:
    """Whether the channels of more than one pixel in a thousand differ visibly."""
    if picture.mode == "L":
        return False
    array_HWC = np.asarray(picture)
    range_HW = np.ptp(array_HWC, axis=2)
    return bool((range_HW > COLOR_RANGE).mean() > COLOR_SHARE)


def is_blank(picture: Image.Image) -> bool:
    """Whether a picture shows nothing: its pixels differ by little from their median grey level."""
    grey_HW = np.asarray(picture.convert("L")).astype(np.int16)
    return bool((np.abs(grey_HW - np.median(grey_HW)) > BACKGROUND_RANGE).mean() < BLANK_SHARE)


# --- one picture --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SampledPicture:
    header: Header
    color: bool
    border_level: float
    border_share: float


@dataclass(frozen=True, eq=False)
class _InspectedPicture:
    header: Header
    color: bool
    blank: bool
    digest: bytes
    thumb: NDArray[np.uint8]


def _open(table: ImageTable, row: int, max_pixels: int) -> tuple[Header, Image.Image]:
    """The header and picture of a row, large JPEGs at a reduced size."""
    source = table.picture(row)
    header = read_header(source, max_pixels=max_pixels)
    return header, open_picture(source, max_pixels=max_pixels, target=REDUCED_SIZE)


def _read_sampled(table: ImageTable, row: int, max_pixels: int) -> _SampledPicture:
    header, picture = _open(table, row, max_pixels)
    grey_HW = np.asarray(picture.convert("L")).astype(np.int16)
    edges = (grey_HW[0], grey_HW[-1], grey_HW[1:-1, 0], grey_HW[1:-1, -1])
    level = float(np.median(np.concatenate(edges)))
    share = float((np.abs(grey_HW - level) <= BACKGROUND_RANGE).mean())
    return _SampledPicture(header, has_color(picture), level, share)


def _read_whole(table: ImageTable, row: int, max_pixels: int) -> _InspectedPicture:
    header, picture = _open(table, row, max_pixels)
    if picture.size == (header.width, header.height):
        digest = pixel_digest(picture)
    else:
        digest = digest_of_picture(table, row)
    return _InspectedPicture(
        header, has_color(picture), is_blank(picture), digest, thumbnail(picture)
    )


def _map_rows(rows: NDArray[np.int64], read: Callable[[int], T]) -> Iterator[T | str]:
    """`read` of each row in order, by threads; the reason if a picture cannot be read."""

    def read_or_reason(row: int) -> T | str:
        try:
            return read(row)
        except PictureError as error:
            return error.reason
        except OSError as error:  # The file was removed after its header was read.
            return error.strerror or "cannot be read"

    with ThreadPoolExecutor(decoding_threads()) as pool:
        for start in range(0, len(rows), BLOCK):
            yield from pool.map(read_or_reason, rows[start : start + BLOCK].tolist())


# --- the whole table ----------------------------------------------------------------------------


def _genuine_counts(table: ImageTable) -> NDArray[np.int64]:
    """Number of genuine pictures of each identity, in the order of `table.identities()`."""
    counts = np.bincount(table.labels()[~table.forged], minlength=len(table.identities()))
    return counts.astype(np.int64)


def _splits(table: ImageTable) -> dict[str, tuple[int, int]]:
    parts = {name or "unassigned": table.of_split(name) for name in (*SPLITS, "")}
    return {name: (len(part), len(part.identities())) for name, part in parts.items() if len(part)}


def _most_common(counts: Counter[T]) -> list[tuple[T, int]]:
    """The most common first; ties by their text, independent of the order of files."""
    return sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))


def _color(colored: Sequence[bool]) -> Literal["grey", "rgb", "mixed"] | None:
    if not colored:
        return None
    if all(colored):
        return "rgb"
    return "mixed" if any(colored) else "grey"


RowGroups = list[tuple[int, ...]]


def _duplicate_rows(
    pictures: dict[int, _InspectedPicture],
) -> tuple[RowGroups, RowGroups]:
    """Exact and near groups of rows; near groups include the exact copies of their members."""
    rows = list(pictures)
    exact = [
        tuple(rows[index] for index in group)
        for group in groups_of_equal([picture.digest for picture in pictures.values()])
    ]
    copies = {group[0]: group for group in exact}
    repeated = {row for group in exact for row in group[1:]}
    distinct = [row for row in rows if row not in repeated]
    if not distinct:
        return exact, []
    groups = near_duplicates(np.stack([pictures[row].thumb for row in distinct]))
    near = [
        tuple(
            sorted(
                row for index in group for row in copies.get(distinct[index], (distinct[index],))
            )
        )
        for group in groups
    ]
    return exact, near


def _leaks_first(table: ImageTable, groups: RowGroups) -> DuplicateGroups:
    leaks = [len({table.split[row] for row in group} - {""}) > 1 for group in groups]
    order = sorted(range(len(groups)), key=lambda index: (not leaks[index], groups[index]))
    paths = tuple(tuple(table.relative(row) for row in groups[index]) for index in order)
    return DuplicateGroups(len(groups) - sum(leaks), sum(leaks), paths)


def _contradictions(
    table: ImageTable, exact: RowGroups, near: RowGroups
) -> Iterator[Contradiction]:
    """Groups with several labels; a label is an identity and a role."""
    labels_of: dict[int, set[tuple[str, bool]]] = {}
    kinds: tuple[tuple[Literal["exact", "near"], RowGroups], ...] = (
        ("exact", exact),
        ("near", near),
    )
    for kind, groups in kinds:
        for rows in groups:
            identities = tuple(str(table.identity[row]) for row in rows)
            forged = tuple(bool(table.forged[row]) for row in rows)
            labels = set(zip(identities, forged, strict=True))
            # A near group that only repeats the conflict of its exact copies is not reported.
            if len(labels) < 2 or any(labels_of.get(row) == labels for row in rows):
                continue
            labels_of.update(dict.fromkeys(rows, labels))
            yield Contradiction(
                kind, tuple(table.relative(row) for row in rows), identities, forged
            )
