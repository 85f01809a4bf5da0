"""Every picture of a table decoded once, into memory, a memory-mapped file, or shards.

`decode_table` returns all of them at once; `PixelStream` yields them in batches, each once.

A file in the cache is an ordinary `.npy` of shape (N, C, H, W) with a JSON sidecar that names the
unreadable rows. Both are written under temporary names and renamed, the sidecar last: a file
without a sidecar is ignored.

Shapes: N pictures, B pictures of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import numpy as np
import PIL
from numpy.typing import NDArray

from twinlens.config import PictureSettings
from twinlens.data.download import cache_folder, cache_limit
from twinlens.data.picture_file import memory_limit, picture_formats
from twinlens.data.pixel_shards import PixelShards, bytes_of
from twinlens.data.pixels import BrokenPicture, DecodedTable, DecodeJob, table_sources
from twinlens.data.stored_pictures import StoredPicture
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.files import part_beside
from twinlens.parsing import read_json

__all__ = ["PixelStream", "decode_table"]

log = logging.getLogger("twinlens")

CACHE_FORMAT = 2  # 1 has 16-bit values shifted by 8


def decode_table(
    table: ImageTable,
    spec: PictureSettings,
    *,
    max_pixels: int,
    max_broken: float,
    progress: Callable[[int, int], None] | None = None,
    cache_dir: Path | None = None,
    memory_limit: int = 2**30,
    limit: int | None = None,
) -> DecodedTable:
    """Decode every picture of a table to the size and colour of `spec`.

    The result depends only on the table and `spec`, not on threads or the cache. It is held in
    memory up to `memory_limit` bytes. Above, it lies in a file in `cache_dir`, which the next call
    with the same paths, file sizes, file times and settings reuses. A set that is larger than the
    cache may be becomes `PixelShards`. Sets that were used longest ago make room.

    Args:
        table: files, or an array-backed set.
        spec: size, colour, fit and fill; mean and std are not used.
        max_pixels: as in `open_picture`.
        max_broken: largest allowed share of unreadable pictures, in [0, 1].
        progress: called with (pictures done, all pictures) after each picture.
        cache_dir: folder for large results; if None, `pixels` in `download.cache_folder()`.
        memory_limit: bytes of pixels that may be held in memory.
        limit: bytes that `cache_dir` may take; if None, those of `download.cache_limit`, or
            nine tenths of what is free.
    Returns:
        The readable rows, their pixels, and the unreadable rows.
    Raises:
        DataError: an empty table, more than `max_broken` or all pictures unreadable, or too
            little space in `cache_dir`.
    """
    job = DecodeJob(table, spec, max_pixels, max_broken, progress)
    if job.num_bytes <= memory_limit:
        return _decode_into_memory(job)
    target = _cache_file(job, cache_dir)
    if (decoded := _load(job, target)) is not None:
        return decoded
    with _others_waiting(target):
        if (decoded := _load(job, target)) is not None:
            return decoded
        room = _make_room(job, target, cache_limit() if limit is None else limit)
        if room < job.num_bytes:
            return _decode_into_shards(job, target.with_suffix(""), room, memory_limit)
        shutil.rmtree(target.with_suffix(""), ignore_errors=True)  # Of a time with less room.
        _write(job, target)
    if (decoded := _load(job, target)) is None:
        raise DataError(
            f"{target} cannot be read back after writing: check the disk, or name another folder "
            "in the environment variable TWINLENS_CACHE"
        )
    return decoded


class PixelStream:
    """The readable pictures of a table, in batches.

    They equal those of `decode_table` with the same arguments. At most one block of them is held in
    memory. No file is written; a file that `decode_table` has written is used.

    Attributes:
        table: the readable rows, complete after the last batch.
        broken: the unreadable rows, complete after the last batch.
    Raises:
        DataError: an empty table; or, after the last batch, more than `max_broken` or all pictures
            unreadable.
    """

    def __init__(
        self,
        table: ImageTable,
        spec: PictureSettings,
        *,
        max_pixels: int,
        max_broken: float | None,
        cache_dir: Path | None = None,
    ) -> None:
        self.table, self.broken = table, tuple[BrokenPicture, ...]()
        self._job = DecodeJob(table, spec, max_pixels, max_broken)
        self._readable = np.arange(len(table))
        self._cached = _load(self._job, _cache_file(self._job, cache_dir))

    def sources(self) -> NDArray[np.int64]:
        """Height x width of the source of each readable row, after the last batch."""
        if self._cached is not None:
            return table_sources(self.table, max_pixels=self._job.max_pixels)
        return self._job.source[self._readable]

    def batches(
        self, size: int, *, prefetch: bool = True
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Number of rows read so far, and pixels (B, C, H, W) of the next readable pictures.

        Args:
            size: B; the last batch may be smaller.
            prefetch: decode the next batches while the caller works. Use it if the caller computes
                on another device; on the same cores decoding would slow the caller down.
        """
        if self._cached is not None:
            self.table, self.broken = self._cached.table, self._cached.broken
            for start in range(0, len(self.table), size):
                batch = np.array(self._cached.pixels[start : start + size])
                yield min(start + size, len(self.table)), batch
            return
        pictures: list[NDArray[np.uint8]] = []
        broken: list[tuple[int, str]] = []
        for row, picture in self._job.readable(broken, prefetch=prefetch):
            pictures.append(picture)
            if len(pictures) == size:
                yield row + 1, np.stack(pictures)
                pictures = []
        self.table, self.broken = self._job.without(broken)
        self._readable = np.delete(self._readable, [row for row, _ in broken])
        if pictures:
            yield len(self._job.table), np.stack(pictures)


def _decode_into_memory(job: DecodeJob) -> DecodedTable:
    pixels = np.empty(job.shape, dtype=np.uint8)
    broken: list[tuple[int, str]] = []
    # One array, filled in order: broken rows cost no second copy.
    for index, (_, picture) in enumerate(job.readable(broken)):
        pixels[index] = picture
    table, unreadable = job.without(broken)
    return DecodedTable(table, pixels[: len(table)], unreadable)


def _decode_into_shards(job: DecodeJob, folder: Path, room: int, memory_limit: int) -> DecodedTable:
    try:
        pixels = PixelShards(job, folder, room, memory_limit)
    except OSError as error:
        raise DataError(_no_space(job, folder.parent, error.strerror or str(error))) from error
    table, unreadable = job.without(pixels.broken)
    return DecodedTable(table, cast("NDArray[np.uint8]", pixels), unreadable)


@contextmanager
def _others_waiting(target: Path) -> Iterator[None]:
    """Let other processes that need the same pictures wait, such as those of one training."""
    from filelock import FileLock, Timeout  # Slow to import.

    lock = FileLock(target.with_name(f".{target.stem}.lock"))
    with suppress(OSError, NotImplementedError):  # Not every file system has locks.
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that decodes the same pictures")
            lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _make_room(job: DecodeJob, target: Path, limit: int | None) -> int:
    """Bytes that `target` may take, after other sets have been deleted where it needs their room.

    The sets beside it are deleted by the time of their last use. A process that reads one of them
    keeps the file that it has open, and decodes a shard again.

    Args:
        job: its pictures.
        target: file or folder of the set.
        limit: bytes of all sets; at most, and if None, nine tenths of what is free without them.
    """
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sets = defaultdict[str, list[Path]](list)  # A file and its sidecar, or a folder.
        for entry in folder.iterdir():
            if entry.name[0] != ".":
                sets[entry.stem].append(entry)
        size = {name: sum(map(bytes_of, entries)) for name, entries in sets.items()}
        used = {name: max(map(_last_use, entries)) for name, entries in sets.items()}
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DataError(_no_space(job, folder, error.strerror or str(error))) from error
    most = sum(size.values()) + free * 9 // 10
    size.pop(target.stem, None)
    room = min(most if limit is None else limit, most) - sum(size.values())
    for name in sorted(size, key=used.__getitem__):
        if room >= job.num_bytes:
            break
        for entry in sets[name]:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):  # Open in another process, on Windows.
                    entry.unlink()
        room += size[name]
    return room


def _last_use(entry: Path) -> int:
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:  # Another process makes room too.
        return 0


# --- the file -----------------------------------------------------------------------------------


def _cache_file(job: DecodeJob, cache_dir: Path | None) -> Path:
    """The file named by a digest of everything that the pixels depend on."""
    folder = cache_folder() / "pixels" if cache_dir is None else cache_dir
    digest = hashlib.blake2b(digest_size=16)
    table, spec = job.table, job.spec
    settings = (
        CACHE_FORMAT, PIL.__version__, picture_formats(), memory_limit(),
        spec.size, spec.color, spec.fit, spec.fill, spec.depth,
    )  # fmt: skip
    digest.update(repr((settings, job.max_pixels, len(table))).encode())
    if table.pixels is not None:
        digest.update(table.fingerprint().encode())
        if table.pixels.dtype == object:  # Larger files count by their last change.
            stored = {value.file for value in table.pixels if isinstance(value, StoredPicture)}
            lines = sorted((file.name, file.version) for file in stored)
            digest.update(repr(lines).encode("utf-8", "surrogatepass"))
    else:
        for path in table.path:
            absolute = os.path.abspath(path)  # noqa: PTH100  Path.absolute() keeps "..".
            line = (absolute, *_file_state(absolute))
            digest.update(repr(line).encode("utf-8", "surrogatepass"))
    return folder / f"{digest.hexdigest()}.npy"


def _file_state(path: str) -> tuple[int, int, int]:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return (-1, -1, -1)
    # With the mode: a file without read permission counts as broken only while that lasts.
    return (status.st_size, status.st_mtime_ns, status.st_mode)


def _load(job: DecodeJob, target: Path) -> DecodedTable | None:
    """The result that an earlier call wrote, or None if it is missing or damaged."""
    try:
        sidecar = read_json(target.with_suffix(".json"))
        broken = [(int(row), str(reason)) for row, reason in sidecar["broken"]]
        pixels = np.load(target, mmap_mode="r")
        os.utime(target)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all(0 <= row < len(job.table) for row, _ in broken):
        return None
    shape = (len(job.table) - len(broken), *job.shape[1:])
    if pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    job.check(broken)  # The earlier call may have allowed a larger share.
    if job.progress is not None:
        job.progress(len(job.table), len(job.table))
    table, unreadable = job.without(broken)
    return DecodedTable(table, pixels, unreadable)


def _write(job: DecodeJob, target: Path) -> None:
    """Decode into `target` and its sidecar; on failure leave nothing behind."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part_beside(target) as beside:
            part, side = beside / "pixels.npy", beside / "pixels.json"
            with part.open("wb") as stream:
                broken = _write_pixels(job, stream)
            side.write_text(json.dumps({"format": CACHE_FORMAT, "broken": broken}), "utf-8")
            part.replace(target)
            side.replace(target.with_suffix(".json"))
    except OSError as error:
        raise DataError(_no_space(job, target.parent, error.strerror or str(error))) from error


def _write_pixels(job: DecodeJob, stream: IO[bytes]) -> list[tuple[int, str]]:
    """Write a `.npy` of the readable pictures; return the others as (row, reason)."""
    broken: list[tuple[int, str]] = []
    _write_header(stream, job.shape)
    # Plain writes: on a full disk a memory map kills the process instead of raising.
    for _, picture in job.readable(broken):
        stream.write(picture.data)
    stream.seek(0)
    _write_header(stream, (len(job.table) - len(broken), *job.shape[1:]))
    stream.flush()
    os.fsync(stream.fileno())
    return broken


def _write_header(stream: IO[bytes], shape: tuple[int, ...]) -> None:
    # numpy pads the header, so that the first dimension can change without moving the data.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def _no_space(job: DecodeJob, folder: Path, reason: str) -> str:
    return (
        f"cannot keep {len(job.table):,} decoded pictures in {folder}: {reason}, and "
        f"{_size_text(job.num_bytes)} are needed. Free space, name another folder in the "
        "environment variable TWINLENS_CACHE, or choose a smaller picture.size."
    )


def _size_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
