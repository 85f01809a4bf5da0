"""The pixels of a table's pictures: decoded in the table's order, by threads.

Unreadable pictures are left out and named; too many of them are an error. This module writes no
file (see `pixel_cache`); it does not augment or normalise.

Shapes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from twinlens.config import PictureSettings
from twinlens.data.decode import read_depth, read_header, read_sized, to_array
from twinlens.data.picture_value import read_value
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, PictureError
from twinlens.machine import decoding_threads

__all__ = ["BrokenPicture", "DecodeJob", "DecodedTable", "PixelRows", "Pixels", "select_rows",
           "table_depths", "table_sources"]  # fmt: skip

AT_ONCE = 256
BLOCK_BYTES = 32 * 2**20
SHOWN_BROKEN = 5


@dataclass(frozen=True)
class BrokenPicture:
    """A picture that cannot be read, a short reason, and the picture's split, if any."""

    path: str
    reason: str
    split: str = ""


@dataclass(frozen=True, eq=False)
class PixelRows:
    """The pixels of some pictures, copied from memory or a file only when they are indexed.

    Attributes:
        pixels: pictures to choose from, shape (M, C, H, W).
        row: the chosen rows of `pixels`, shape (N,).
    """

    pixels: NDArray[np.uint8]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(
        self, index: SupportsIndex | slice | NDArray[np.integer[Any]]
    ) -> NDArray[np.uint8]:
        """One picture (C, H, W), or several (B, C, H, W)."""
        return np.asarray(self.pixels[self.row[index]])


Pixels = NDArray[np.uint8] | PixelRows
"""Pictures (N, C, H, W) that are read in batches."""


def select_rows(pixels: Pixels, rows: NDArray[np.bool_] | NDArray[np.int64]) -> PixelRows:
    """The pixels of some rows (mask or numbers), not copied."""
    if isinstance(pixels, PixelRows):
        return PixelRows(pixels.pixels, pixels.row[rows])
    return PixelRows(pixels, np.arange(len(pixels))[rows])


@dataclass(frozen=True, eq=False)
class DecodedTable:
    """The readable rows of a table with their pixels.

    Attributes:
        table: the readable rows, in the order of the given table.
        pixels: uint8, shape (N, C, H, W), one for each row of `table`; in memory, or a read-only
            memory map.
        broken: the unreadable rows.
    """

    table: ImageTable
    pixels: NDArray[np.uint8]
    broken: tuple[BrokenPicture, ...]

    def rows(self, row_N: NDArray[np.int64]) -> PixelRows:
        """The pixels of some rows, not copied yet."""
        return PixelRows(self.pixels, row_N)


@dataclass(frozen=True, eq=False)
class DecodeJob:
    """A table to decode, and how.

    Attributes:
        table: files, or an array-backed set.
        spec: size, colour, fit and fill; mean and std are not used.
        max_pixels: as in `open_picture`.
        max_broken: largest allowed share of unreadable pictures, in [0, 1]; None for no check.
        progress: called with (pictures done, all pictures) after each picture.
        source: height x width of each source, shape (N,); 0 before it is decoded, or if unreadable.
    Raises:
        DataError: an empty table.
    """

    table: ImageTable
    spec: PictureSettings
    max_pixels: int
    max_broken: float | None
    progress: Callable[[int, int], None] | None = None
    source: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.table) == 0:
            raise DataError(f"{self.table.source} holds no pictures: there is nothing to decode")
        object.__setattr__(self, "source", np.zeros(len(self.table), np.int64))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) if every picture is readable."""
        return (len(self.table), self.spec.channels, *self.spec.size)

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels if every picture is readable."""
        return int(np.prod(self.shape, dtype=np.int64))

    def readable(
        self, broken: list[tuple[int, str]], *, prefetch: bool = True
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Row and pixels (C, H, W) of each readable picture, in order.

        Args:
            broken: receives (row, reason) of each unreadable picture.
            prefetch: decode the next pictures while the caller works. Without it, no thread decodes
                until the caller requests the next picture.
        Raises:
            DataError: after the last picture, if too many are unreadable.
        """
        for row, result in enumerate(self.results(range(len(self.table)), prefetch=prefetch)):
            if isinstance(result, str):
                broken.append((row, result))
            else:
                yield row, result
            if self.progress is not None:
                self.progress(row + 1, len(self.table))
        self.check(broken)

    def without(
        self, broken: list[tuple[int, str]]
    ) -> tuple[ImageTable, tuple[BrokenPicture, ...]]:
        """The table without the unreadable rows, and these with their paths."""
        if not broken:
            return self.table, ()
        good = np.ones(len(self.table), dtype=np.bool_)
        good[[row for row, _ in broken]] = False
        pictures = tuple(
            BrokenPicture(str(self.table.path[row]), reason, str(self.table.split[row]))
            for row, reason in broken
        )
        return self.table.select(good), pictures

    def check(self, broken: list[tuple[int, str]]) -> None:
        """Check the share of unreadable pictures.

        Raises:
            DataError: all are unreadable, or more than `max_broken` of them.
        """
        num = len(self.table)
        if self.max_broken is None or not broken:
            return
        if len(broken) < num and len(broken) <= self.max_broken * num:
            return
        shown = "".join(
            f"\n  {self.table.path[row]}: {reason}" for row, reason in broken[:SHOWN_BROKEN]
        )
        if len(broken) > SHOWN_BROKEN:
            shown += f"\n  and {len(broken) - SHOWN_BROKEN:,} more"
        if len(broken) == num:
            raise DataError(
                f"none of the {num:,} pictures of {self.table.source} can be read:{shown}"
            )
        raise DataError(
            f"{len(broken):,} of {num:,} pictures of {self.table.source} cannot be read "
            f"({100 * len(broken) / num:.1f} %, at most {100 * self.max_broken:.1f} % allowed):"
            f"{shown}\n"
            "  Repair or remove them, or raise data.max_broken to skip them."
        )

    def results(self, rows: range, *, prefetch: bool = True) -> Iterator[NDArray[np.uint8] | str]:
        """Pixels (C, H, W), or the reason why there are none, of rows in a row.

        They are decoded up to one block ahead.

        Args:
            rows: consecutive rows.
            prefetch: as in `readable`.
        """
        if self.table.pixels is not None and self.table.pixels.dtype == np.uint8:
            self.source[:] = np.prod(self.table.pixels.shape[1:3])
            pictures = self.table.pixels[rows.start : rows.stop]
            yield from (_from_array(picture, self.spec) for picture in pictures)
            return

        def decode(row: int, value: Any) -> NDArray[np.uint8] | str:
            if isinstance(value, PictureError):
                return value.reason
            try:
                pixels, self.source[row] = read_sized(
                    read_value(value), self.spec, max_pixels=self.max_pixels
                )
            except PictureError as error:
                return error.reason
            return pixels

        num = len(self.table)
        block = int(np.clip(BLOCK_BYTES * num // self.num_bytes, 8, 1024))
        pool = ThreadPoolExecutor(decoding_threads())
        try:
            parts = (rows[start : start + block] for start in range(0, len(rows), block))
            if not prefetch:
                for part in parts:
                    yield from list(pool.map(decode, part, self.table.pictures(part)))
                return
            values = (
                item for part in parts for item in zip(part, self.table.pictures(part), strict=True)
            )
            ahead = deque(pool.submit(decode, *item) for item in islice(values, block))
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(decode, *item) for item in islice(values, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def table_sources(table: ImageTable, *, max_pixels: int) -> NDArray[np.int64]:
    """Height x width of each picture, from the headers of its files, shape (N,); 0 if unreadable.

    Args:
        table: files, or an array-backed set.
        max_pixels: as in `open_picture`.
    """

    def source_of_row(row: int) -> int:
        try:
            header = read_header(table.picture(row), max_pixels=max_pixels)
        except PictureError:
            return 0
        return header.height * header.width

    with ThreadPoolExecutor(decoding_threads()) as pool:
        return np.fromiter(pool.map(source_of_row, range(len(table))), np.int64, len(table))


def table_depths(
    table: ImageTable, *, max_pixels: int, progress: Callable[[int, int], None] | None = None
) -> Counter[int]:
    """Number of the 16-bit pictures of a table by the bits that they use.

    Only these are decoded. Unreadable pictures are left out.

    Args:
        table: files, or pictures in memory.
        max_pixels: as in `open_picture`.
        progress: called with (pictures done, all pictures).
    """

    def depth_of_row(row: int) -> int | None:
        try:
            return read_depth(table.picture(row), max_pixels=max_pixels)
        except PictureError:
            return None

    num_of = Counter[int]()
    with ThreadPoolExecutor(decoding_threads()) as pool:
        for start in range(0, len(table), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(table)))
            num_of.update(depth for depth in pool.map(depth_of_row, rows) if depth is not None)
            if progress is not None:
                progress(rows.stop, len(table))
    return num_of


def _from_array(picture: NDArray[np.uint8], spec: PictureSettings) -> NDArray[np.uint8]:
    """`to_array`, which has nothing to do for a grey picture of the right size, as in MNIST."""
    if picture.shape == spec.size and spec.color == "grey":
        return np.ascontiguousarray(picture)[None]
    return to_array(picture, spec)
