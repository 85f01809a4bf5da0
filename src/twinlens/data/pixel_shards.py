"""Decoded pictures of a set that is larger than the room for it: shards, of which a part is kept.

A shard holds the readable pictures of consecutive rows. The first pass decodes all of them once,
and keeps shards while the folder has room; others are decoded again whenever they are needed. A
shard that is kept stays: passes over all pictures would otherwise replace each just before its use.

Beside each shard a JSON names its unreadable rows. It is written first, also for a shard that is
not kept, so a killed first pass goes on where it was.

Shapes: N readable pictures, B of them, C channels, H height, W width.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import DecodeJob
from twinlens.errors import DataError
from twinlens.files import part_beside
from twinlens.parsing import read_json

__all__ = ["SHARD_BYTES", "PixelShards", "bytes_of"]

SHARD_BYTES = 64 * 2**20
MOST_OPEN = 256  # shards of the folder that are mapped at once


class PixelShards:
    """The readable pictures of a table, (N, C, H, W) uint8, indexed like an array.

    Attributes:
        shape, dtype, ndim: as of an array.
        broken: the unreadable rows, (row, reason).
        first: number of the first picture of each shard.
        per_window: half of the shards that memory holds together, at least 1; the other half may
            be read ahead.

    Args:
        job: table to decode.
        folder: where shards are kept; made if it is missing.
        budget: bytes that may be kept there.
        memory_limit: bytes of shards in memory.
    Raises:
        DataError: too many unreadable pictures, as in `DecodeJob`.
        OSError: the folder cannot be written.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, job: DecodeJob, folder: Path, budget: int, memory_limit: int) -> None:
        picture_bytes = job.num_bytes // len(job.table)
        size = max(1, min(SHARD_BYTES, memory_limit) // picture_bytes)
        rows = range(len(job.table))
        self._rows = [rows[start : start + size] for start in range(0, len(rows), size)]
        self._job, self._folder, self._budget = job, folder, budget
        self._in_memory = max(1, memory_limit // (size * picture_bytes))
        self._decoded = OrderedDict[int, NDArray[np.uint8]]()
        self._mapped = OrderedDict[int, NDArray[np.uint8]]()
        self._lock, self._reading = Lock(), dict[int, Lock]()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # Its last use.
        unreadable = [self._examine(number) for number in range(len(self._rows))]
        self.broken = [pair for pairs in unreadable for pair in pairs]
        job.check(self.broken)
        counts = [
            len(rows) - len(pairs) for rows, pairs in zip(self._rows, unreadable, strict=True)
        ]
        self._count = counts
        self.first: NDArray[np.int64] = np.cumsum([0, *counts])[:-1]
        self.shape = (sum(counts), *job.shape[1:])
        self.per_window = max(1, self._in_memory // 2)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: SupportsIndex | slice | NDArray[Any]) -> NDArray[np.uint8]:
        """A copy of one picture (C, H, W), or of several (B, C, H, W).

        Raises:
            IndexError: no such picture.
            DataError: pictures have changed since the first pass.
        """
        if isinstance(index, slice):
            position = np.arange(*index.indices(len(self)))
        else:
            position = np.asarray(index)
            position = np.flatnonzero(position) if position.dtype == np.bool_ else position
        flat = np.atleast_1d(position).astype(np.int64)
        flat = np.where(flat < 0, flat + len(self), flat)
        if len(flat) and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"picture {position} of {len(self)}")
        pixels = np.empty((len(flat), *self.shape[1:]), np.uint8)
        shard = self.shard_of(flat)
        for number in np.unique(shard).tolist():
            own = shard == number
            pixels[own] = self._shard(number)[flat[own] - self.first[number]]
        return pixels if position.ndim else pixels[0]

    def shard_of(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each picture, (B,)."""
        return np.searchsorted(self.first, position, "right") - 1

    @property
    def kept(self) -> float:
        """Share of the pictures that the folder holds."""
        is_there = [self._file(number, ".npy").exists() for number in range(len(self._count))]
        return float(np.dot(is_there, self._count)) / len(self)

    def _examine(self, number: int) -> list[tuple[int, str]]:
        """The unreadable rows of a shard, which is decoded unless an earlier pass did so."""
        rows = self._rows[number]
        try:
            listed = [(int(row), str(why)) for row, why in read_json(self._file(number, ".json"))]
            if all(row in rows for row, _ in listed):
                self._report(rows)
                return listed
        except (OSError, ValueError, TypeError):
            pass
        pixels, broken = self._decode(number)
        self._folder.mkdir(parents=True, exist_ok=True)  # Another set may have needed its room.
        with part_beside(self._file(number, ".json")) as part:
            text = part / "broken.json"
            text.write_text(json.dumps(broken), "utf-8")
            text.replace(self._file(number, ".json"))
        self._keep(number, pixels)
        self._report(rows)
        return broken

    def _report(self, rows: range) -> None:
        if self._job.progress is not None:
            self._job.progress(rows.stop, len(self._job.table))

    def _decode(self, number: int) -> tuple[NDArray[np.uint8], list[tuple[int, str]]]:
        rows = self._rows[number]
        pixels = np.empty((len(rows), *self._job.shape[1:]), np.uint8)
        broken = list[tuple[int, str]]()
        for row, result in zip(rows, self._job.results(rows), strict=True):
            if isinstance(result, str):
                broken.append((row, result))
            else:
                pixels[row - rows.start - len(broken)] = result
        return pixels[: len(rows) - len(broken)], broken

    def read_ahead(self, numbers: Iterable[int]) -> None:
        """Read shards into memory while the caller works, as far as memory holds them."""

        def read() -> None:
            with suppress(Exception):  # The caller meets the same error when it needs the shard.
                for number in numbers:
                    self._shard(number)

        Thread(target=read, daemon=True).start()  # A process may end without waiting for it.

    def _shard(self, number: int) -> NDArray[np.uint8]:
        """A shard: from memory, the folder, or decoded again; the longest unused make room."""
        with self._lock:
            held = self._held(number)
            reading = self._reading.setdefault(number, Lock())
        if held is not None:
            return held
        with reading:  # Another thread may be reading this shard.
            with self._lock:
                held = self._held(number)
            return self._read(number) if held is None else held

    def _held(self, number: int) -> NDArray[np.uint8] | None:
        for held in (self._decoded, self._mapped):
            if number in held:
                held.move_to_end(number)
                return held[number]
        return None

    def _read(self, number: int) -> NDArray[np.uint8]:
        pixels, held, most = self._load(number), self._mapped, MOST_OPEN
        if pixels is None:
            pixels, _ = self._decode(number)
            held, most = self._decoded, self._in_memory
            if len(pixels) != self._count[number]:
                raise DataError(
                    f"pictures of {self._job.table.source} have changed since they were first "
                    "read: begin again, and leave them as they are until the end"
                )
            self._keep(number, pixels)
        with self._lock:
            held[number] = pixels
            while len(held) > most:
                held.popitem(last=False)
        return pixels

    def _load(self, number: int) -> NDArray[np.uint8] | None:
        file = self._file(number, ".npy")
        try:
            pixels: NDArray[np.uint8] = np.load(file, mmap_mode="r")
            if pixels.shape == (self._count[number], *self.shape[1:]) and pixels.dtype == np.uint8:
                return pixels
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            pass
        file.unlink(missing_ok=True)  # Damaged: decoded and written again.
        return None

    def _keep(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Write a shard if the folder has room; a full disk only means that it is not kept."""
        target = self._file(number, ".npy")
        if (
            not len(pixels)
            or bytes_of(self._folder) + pixels.nbytes > self._budget
            or target.exists()
        ):
            return
        with suppress(OSError), part_beside(target) as part:
            np.save(part / "pixels.npy", pixels)
            (part / "pixels.npy").replace(target)

    def _file(self, number: int, suffix: str) -> Path:
        return self._folder / f"{number:06d}{suffix}"


def bytes_of(entry: Path) -> int:
    """Bytes of a file, or of a folder's files; other processes may write or delete them."""
    num = 0
    with suppress(FileNotFoundError):
        for file in entry.iterdir() if entry.is_dir() else (entry,):
            with suppress(FileNotFoundError):
                num += file.stat().st_size
    return num
