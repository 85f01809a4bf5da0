"""Every picture of a table decoded once, into memory or into a memory-mapped file.

`decode_table` returns all of them at once; `PixelStream` yields them in batches, each once.

A file in the cache is an ordinary `.npy` of shape (N, C, H, W) with a JSON sidecar that names the
rows that could not be read. Both are written beside and renamed, the sidecar last, so that a file
without a sidecar does not count. This module knows tables and settings; it does not augment,
normalise, or judge what is seen in the pictures.

Shapes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, SupportsIndex

import numpy as np
import PIL
from numpy.typing import NDArray

from twinlens.config import PictureSettings
from twinlens.data.decode import read_array, to_array
from twinlens.data.download import cache_folder
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, PictureError

__all__ = ["BrokenPicture", "DecodedTable", "PixelRows", "PixelStream", "Pixels", "decode_table"]

CACHE_FORMAT = 1
BLOCK_BYTES = 32 * 2**20
DAY = 24 * 60 * 60
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BrokenPicture:
    """A picture that cannot be read, and why, in a few words."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class DecodedTable:
    """The readable rows of a table with their pixels.

    Attributes:
        table: the rows that could be read, in the order of the table given.
        pixels: uint8, shape (N, C, H, W), row by row those of `table`; in memory, or a read-only
            memory map.
        broken: the rows that are missing from `table`.
    """

    table: ImageTable
    pixels: NDArray[np.uint8]
    broken: tuple[BrokenPicture, ...]

    def rows(self, row_N: NDArray[np.int64]) -> PixelRows:
        """The pixels of some rows, of which none is copied yet."""
        return PixelRows(self.pixels, row_N)


@dataclass(frozen=True, eq=False)
class PixelRows:
    """The pixels of some pictures, read from memory or a file where they are asked for.

    Attributes:
        pixels: of more pictures, shape (M, C, H, W).
        row: which of the M each of the N is, shape (N,).
    """

    pixels: NDArray[np.uint8]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(
        self, place: SupportsIndex | slice | NDArray[np.integer[Any]]
    ) -> NDArray[np.uint8]:
        """A picture (C, H, W) by its place, or the pictures (B, C, H, W) of several."""
        return np.asarray(self.pixels[self.row[place]])


Pixels = NDArray[np.uint8] | PixelRows
"""Pictures (N, C, H, W) to be looked at a few at a time."""


def decode_table(
    table: ImageTable,
    spec: PictureSettings,
    *,
    max_pixels: int,
    max_broken: float,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
    memory_limit: int = 2**30,
) -> DecodedTable:
    """Decode every picture of a table to the size and colour of `spec`.

    The result depends on the table and `spec` alone, not on threads or on the cache. Up to
    `memory_limit` bytes it lies in memory; above, in a file in `cache_dir` that the next call
    with the same paths, file sizes, file times and settings finds again.

    Args:
        table: files, or an array-backed set.
        spec: size, colour, fit and fill; mean and std play no part.
        max_pixels: as in `open_picture`.
        max_broken: the share of unreadable pictures in [0, 1] above which this is an error.
        progress: called with (pictures done, pictures in all) after each picture.
        cache_dir: a folder for large results; if None, `pixels` in `fetch.cache_folder()`.
        memory_limit: bytes of pixels that may be held in memory.
    Returns:
        The readable rows, their pixels, and what was skipped.
    Raises:
        DataError: an empty table, none readable, more than `max_broken` unreadable, or no room
            in `cache_dir`.
    """
    _check_any(table)
    job = _Job(table, spec, max_pixels, max_broken, progress)
    if job.bytes_needed <= memory_limit:
        memory = _Memory(job.shape)
        broken_rows = _decode_into(job, memory)
        return _decoded(table, memory.pixels(), broken_rows)
    target = _folder(cache_dir) / f"{_key(table, spec, max_pixels)}.npy"
    found = _reuse(job, target)
    if found is None:
        _write(job, target)
        found = _reuse(job, target)
    if found is None:
        raise DataError(f"{target} was written but cannot be read back: is the disk sound?")
    return found


class PixelStream:
    """The readable pictures of a table, a batch at a time.

    They are those of `decode_table` with the same arguments. It holds no more than a block of them,
    writes no file, and takes from a file what an earlier `decode_table` has put there.

    Attributes:
        table: the rows that could be read, after the last batch.
        broken: the rows that are missing from `table`, after the last batch.
    Raises:
        DataError: an empty table; none readable or more than `max_broken` unreadable, which is
            known with the last batch only.
    """

    def __init__(
        self,
        table: ImageTable,
        spec: PictureSettings,
        *,
        max_pixels: int,
        max_broken: float,
        cache_dir: Path | None = None,
    ) -> None:
        _check_any(table)
        self.table, self.broken = table, tuple[BrokenPicture, ...]()
        self._job = _Job(table, spec, max_pixels, max_broken, None)
        folder = _folder(cache_dir)
        self._known = _reuse(self._job, folder / f"{_key(table, spec, max_pixels)}.npy")

    def batches(
        self, size: int, *, meanwhile: bool = True
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Pixels (B, C, H, W) of the next `size` readable pictures, with the rows seen so far.

        B is `size` but for the last batch. The next ones are decoded `meanwhile`, which is for
        work on another device: work on the same cores is kept waiting by it.
        """
        if self._known is not None:
            self.table, self.broken = self._known.table, self._known.broken
            for start in range(0, len(self.table), size):
                batch = np.array(self._known.pixels[start : start + size])
                yield min(start + size, len(self.table)), batch
            return
        kept: list[NDArray[np.uint8]] = []
        broken: list[tuple[int, str]] = []
        for row, result in enumerate(_results(self._job, meanwhile=meanwhile)):
            if isinstance(result, str):
                broken.append((row, result))
                continue
            kept.append(result)
            if len(kept) == size:
                yield row + 1, np.stack(kept)
                kept = []
        _check_broken(self._job, broken)
        self.table, self.broken = _without(self._job.table, broken)
        if kept:
            yield len(self._job.table), np.stack(kept)


# --- decoding -----------------------------------------------------------------------------------


def _check_any(table: ImageTable) -> None:
    if len(table) == 0:
        raise DataError(f"{table.source} holds no pictures: there is nothing to decode")


@dataclass(frozen=True, eq=False)
class _Job:
    table: ImageTable
    spec: PictureSettings
    max_pixels: int
    max_broken: float
    progress: Progress | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.table), self.spec.channels, *self.spec.size)

    @property
    def bytes_needed(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class _Sink(Protocol):
    def add(self, picture: NDArray[np.uint8]) -> None: ...


class _Memory:
    """Pictures one after the other in one array, so that broken rows cost no second copy."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self._pixels = np.empty(shape, dtype=np.uint8)
        self._filled = 0

    def add(self, picture: NDArray[np.uint8]) -> None:
        self._pixels[self._filled] = picture
        self._filled += 1

    def pixels(self) -> NDArray[np.uint8]:
        return self._pixels[: self._filled]


class _File:
    """Pictures one after the other behind an .npy header.

    Plain writes, since a memory map on a full disk kills the process instead of raising.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._filled = 0

    def start(self, shape: tuple[int, int, int, int]) -> None:
        self._stream.seek(0)
        # numpy pads the header so that the first dimension may change without moving the data.
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def add(self, picture: NDArray[np.uint8]) -> None:
        self._stream.write(picture.data)
        self._filled += 1

    def finish(self, shape: tuple[int, int, int, int]) -> None:
        self.start((self._filled, *shape[1:]))
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _decode_into(job: _Job, sink: _Sink) -> list[tuple[int, str]]:
    """Add the readable pictures to `sink` in order; return the others as (row, reason)."""
    broken: list[tuple[int, str]] = []
    for row, result in enumerate(_results(job)):
        if isinstance(result, str):
            broken.append((row, result))
        else:
            sink.add(result)
        if job.progress is not None:
            job.progress(row + 1, len(job.table))
    _check_broken(job, broken)
    return broken


def _results(job: _Job, *, meanwhile: bool = True) -> Iterator[NDArray[np.uint8] | str]:
    """Pixels or a reason for each row in order, decoded up to a block ahead.

    Unless `meanwhile`, no thread decodes while this waits to be asked for more.
    """
    if job.table.pixels is not None:
        yield from (_from_memory(picture, job.spec) for picture in job.table.pixels)
        return

    def one(row: int) -> NDArray[np.uint8] | str:
        try:
            return read_array(str(job.table.path[row]), job.spec, max_pixels=job.max_pixels)
        except PictureError as error:
            return error.reason

    num = len(job.table)
    block = int(np.clip(BLOCK_BYTES * num // job.bytes_needed, 8, 1024))
    rows = iter(range(num))
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        while not meanwhile and (part := list(islice(rows, block))):
            yield from list(pool.map(one, part))
        ahead = deque(pool.submit(one, row) for row in islice(rows, block))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(one, row) for row in islice(rows, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _from_memory(picture: NDArray[np.uint8], spec: PictureSettings) -> NDArray[np.uint8]:
    """`to_array`, with nothing to do for a grey picture of the right size, as in MNIST."""
    if picture.shape == spec.size and spec.color == "grey":
        return np.ascontiguousarray(picture)[None]
    return to_array(picture, spec)


def _check_broken(job: _Job, broken: list[tuple[int, str]]) -> None:
    num = len(job.table)
    if not broken or (len(broken) < num and len(broken) <= job.max_broken * num):
        return
    first = "".join(f"\n  {job.table.path[row]}: {reason}" for row, reason in broken[:5])
    more = f"\n  and {len(broken) - 5:,} more" if len(broken) > 5 else ""
    if len(broken) == num:
        raise DataError(
            f"none of the {num:,} pictures of {job.table.source} can be read:{first}{more}"
        )
    raise DataError(
        f"{len(broken):,} of {num:,} pictures of {job.table.source} cannot be read, which is "
        f"{len(broken) / num:.1%} where at most {job.max_broken:.1%} is allowed:{first}{more}\n"
        "Repair or remove them, or raise data.max_broken to skip them."
    )


def _decoded(
    table: ImageTable, pixels: NDArray[np.uint8], broken_rows: list[tuple[int, str]]
) -> DecodedTable:
    readable, broken = _without(table, broken_rows)
    return DecodedTable(readable, pixels, broken)


def _without(
    table: ImageTable, broken_rows: list[tuple[int, str]]
) -> tuple[ImageTable, tuple[BrokenPicture, ...]]:
    if not broken_rows:
        return table, ()
    good = np.ones(len(table), dtype=np.bool_)
    good[[row for row, _ in broken_rows]] = False
    broken = tuple(BrokenPicture(str(table.path[row]), reason) for row, reason in broken_rows)
    return table.select(good), broken


# --- the file -----------------------------------------------------------------------------------


def _folder(cache_dir: Path | None) -> Path:
    return cache_folder() / "pixels" if cache_dir is None else cache_dir


def _key(table: ImageTable, spec: PictureSettings, max_pixels: int) -> str:
    """Names everything that the pixels depend on."""
    digest = hashlib.blake2b(digest_size=16)
    settings = (CACHE_FORMAT, PIL.__version__, spec.size, spec.color, spec.fit, spec.fill)
    digest.update(repr((settings, max_pixels, len(table))).encode())
    if table.pixels is not None:
        digest.update(table.fingerprint().encode())
        return digest.hexdigest()
    for path in table.path:
        absolute = os.path.abspath(path)  # noqa: PTH100  Path.absolute() keeps "..".
        line = (absolute, *_stamp(absolute))
        digest.update(repr(line).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return (-1, -1, -1)
    # The mode too: a file that nobody might read stays broken only as long as that holds.
    return (status.st_size, status.st_mtime_ns, status.st_mode)


def _reuse(job: _Job, target: Path) -> DecodedTable | None:
    """What an earlier call wrote, or None where it is absent or damaged."""
    try:
        sidecar = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        broken = [(int(row), str(reason)) for row, reason in sidecar["broken"]]
        pixels = np.load(target, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shape = (len(job.table) - len(broken), *job.shape[1:])
    if pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    # Judged again: an earlier call may have allowed a larger share.
    _check_broken(job, broken)
    if job.progress is not None:
        job.progress(len(job.table), len(job.table))
    return _decoded(job.table, pixels, broken)


def _write(job: _Job, target: Path) -> None:
    """Decode into `target` and its sidecar; on any failure leave nothing behind."""
    part = target.with_name(f"{target.stem}.{uuid.uuid4().hex[:8]}.part")
    side = part.with_suffix(".side.part")
    with ExitStack() as undo:
        undo.callback(_remove, part, side)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target.parent)
            _check_room(job, target.parent)
            broken = _write_pixels(job, part)
            side.write_text(json.dumps({"format": CACHE_FORMAT, "broken": broken}), "utf-8")
            part.replace(target)
            side.replace(target.with_suffix(".json"))
        except OSError as error:
            raise DataError(_no_room(job, target.parent, error.strerror or str(error))) from error


def _write_pixels(job: _Job, part: Path) -> list[tuple[int, str]]:
    with part.open("wb") as stream:
        sink = _File(stream)
        sink.start(job.shape)
        broken = _decode_into(job, sink)
        sink.finish(job.shape)
    return broken


def _check_room(job: _Job, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < job.bytes_needed:
        raise DataError(_no_room(job, folder, f"{_size_text(free)} are free"))


def _no_room(job: _Job, folder: Path, found: str) -> str:
    return (
        f"cannot keep {len(job.table):,} decoded pictures in {folder}: {found}, and "
        f"{_size_text(job.bytes_needed)} are needed. Make room, name another folder in "
        "TWINLENS_CACHE, or choose a smaller picture.size."
    )


def _size_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove what killed runs have left; a day without a write means that nobody is writing."""
    for part in folder.glob("*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > DAY:
                part.unlink()
