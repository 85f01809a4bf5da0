"""The door for files of pictures: regular files only, formats by name, memory within a budget.

Every module that opens a file which should be a picture does so here. Nothing is decoded here.

Two environment variables belong to the machine, so no file that was made elsewhere can set them:
`TWINLENS_FORMATS` names further formats of Pillow, such as "PSD,ICO"; `TWINLENS_DECODE_MEMORY` is
the memory in MiB that all threads of a process may decode in.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import stat
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from twinlens.errors import ConfigError, PictureError, short_repr

__all__ = ["FORMATS", "MEMORY", "file_digest", "jxl_size", "memory_limit", "open_file",
           "picture_formats", "picture_suffixes", "reason_of", "reserved", "share_memory",
           "unread_content", "unread_suffix"]  # fmt: skip

FORMATS = "TWINLENS_FORMATS"
MEMORY = "TWINLENS_DECODE_MEMORY"

COMMON = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "AVIF")
"""Formats that are always read; others have more published holes than pictures."""

PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
PLUGIN_SUFFIXES = {
    ".heic": "HEIF", ".heics": "HEIF", ".heif": "HEIF", ".heifs": "HEIF", ".hif": "HEIF",
    ".jxl": "JXL",
}  # fmt: skip

NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats that Pillow identifies but cannot decode."""

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
JXL_BOX = b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
MAX_BOXES = 1000

DEFAULT_MEMORY = 1024  # MiB
SMALL = 4 * 2**20  # bytes that are not counted, which saves time
BLOCK_BYTES = 2**20


# --- formats ------------------------------------------------------------------------------------


@cache
def _plugins() -> frozenset[str]:
    """The formats of `PLUGINS` that are installed; all formats of Pillow are registered."""
    # In advance: the lazy loading in Image.open loses formats when several threads call it.
    # preinit registers the common ones first.
    Image.preinit()
    Image.init()
    installed = set()
    for name, module in PLUGINS.items():
        try:
            plugin = importlib.import_module(module)
        except ImportError:
            continue
        if name == "HEIF":
            # Threads are ours, and a thumbnail is no substitute for the picture.
            plugin.register_heif_opener(thumbnails=False, decode_threads=1)
        installed.add(name)
    return frozenset(installed)


def picture_formats() -> tuple[str, ...]:
    """Names of the formats that are read: common ones, plugins, and those of `TWINLENS_FORMATS`.

    Raises:
        ConfigError: an unknown name in the environment variable.
    """
    return _formats(os.environ.get(FORMATS, ""))


@cache
def _formats(further: str) -> tuple[str, ...]:
    formats = [*COMMON, *sorted(_plugins())]
    for name in further.upper().replace(",", " ").split():
        if name not in Image.OPEN:
            raise ConfigError(
                f"the environment variable {FORMATS} names {short_repr(name)}, which Pillow does "
                f"not read: choose among {', '.join(sorted(Image.OPEN))}"
            )
        formats.append(name)
    return tuple(formats)


def picture_suffixes() -> frozenset[str]:
    """Extensions, such as ".png", of the formats that are read."""
    formats = {*picture_formats()} - NOT_DECODED
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in formats)


def unread_suffix(suffix: str) -> str | None:
    """Why files with this extension are not read, if they are pictures; else None.

    >>> unread_suffix(".psd")
    'PSD, which is read only if the environment variable TWINLENS_FORMATS names it'
    """
    suffix = suffix.lower()
    if suffix in picture_suffixes():
        return None
    name = PLUGIN_SUFFIXES.get(suffix, Image.registered_extensions().get(suffix))
    is_read_by_some = name in PLUGINS or (name in Image.OPEN and name not in NOT_DECODED)
    return _unread_format(name) if name is not None and is_read_by_some else None


def unread_content(head: bytes) -> str | None:
    """Why a file is not read, from its first bytes, if it is a picture; else None."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return f"a picture in {_unread_format('HEIF')}"
    if _is_jxl(head):
        return f"a picture in {_unread_format('JXL')}"
    for name in sorted(Image.OPEN.keys() - picture_formats()):
        accept = Image.OPEN[name][1]
        if accept is not None and accept(head[:16]) is True:
            return f"a picture in {_unread_format(name)}"
    return None


def _unread_format(name: str) -> str:
    """A format that is not read, and what to do."""
    if name in PLUGINS:
        return f"{name}, which needs `pip install 'twinlens[heif]'`"
    return f"{name}, which is read only if the environment variable {FORMATS} names it"


def _is_jxl(head: bytes) -> bool:
    return head.startswith((b"\xff\x0a", JXL_BOX))


def jxl_size(stream: BinaryIO) -> tuple[int, int] | None:
    """Width and height of a JPEG XL from its header; None for other files.

    Its plugin decodes a picture as it is opened.

    Raises:
        ValueError: a JPEG XL without a header.
    """
    stream.seek(0)
    head = stream.read(32)
    if not _is_jxl(head):
        return None
    stream.seek(0)
    if not head.startswith(b"\xff\x0a"):
        _seek_codestream(stream)
    bits = _Bits(stream.read(12)[2:])
    small = bits.take(1)
    height = 8 * (1 + bits.take(5)) if small else bits.side()
    ratio = bits.take(3)
    if ratio:
        wide, tall = JXL_RATIOS[ratio - 1]
        return height * wide // tall, height
    return 8 * (1 + bits.take(5)) if small else bits.side(), height


def _seek_codestream(stream: BinaryIO) -> None:
    for _ in range(MAX_BOXES):
        length, kind = int.from_bytes(stream.read(4), "big"), stream.read(4)
        head = 8
        if length == 1:
            length, head = int.from_bytes(stream.read(8), "big"), 16
        if kind == b"jxlp":
            stream.read(4)
        if kind in (b"jxlc", b"jxlp"):
            return
        if not kind or length < head:
            break
        stream.seek(length - head, io.SEEK_CUR)
    raise ValueError("a JPEG XL without pixels")


class _Bits:
    """Numbers from bytes, lowest bit first."""

    def __init__(self, content: bytes) -> None:
        self._rest = int.from_bytes(content, "little")

    def take(self, num: int) -> int:
        value = self._rest & ((1 << num) - 1)
        self._rest >>= num
        return value

    def side(self) -> int:
        return 1 + self.take((9, 13, 18, 30)[self.take(2)])


# --- files --------------------------------------------------------------------------------------


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file that is not empty and fits into the memory for decoding.

    Raises:
        PictureError: missing, no permission, a folder, a pipe or device, empty, or too large.
    """
    name = str(path)
    try:
        stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise PictureError(name, reason_of(error)) from error
    try:
        # Of the open file: the path may name another one by now.
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(name, "not a regular file")
        if status.st_size == 0:
            raise PictureError(name, "an empty file")
        if status.st_size > SMALL:
            _check_memory(name, status.st_size, memory_limit())
    except BaseException:
        stream.close()
        raise
    return stream


def _without_waiting(path: str, flags: int) -> int:
    # Opening a pipe would wait for a writer; a terminal would become ours.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def file_digest(path: str | Path, size: int = 16) -> bytes:
    """BLAKE2b of a file of `open_file`, read in blocks.

    Args:
        path: a file.
        size: bytes of the digest.
    Raises:
        PictureError: as in `open_file`.
    """
    digest = hashlib.blake2b(digest_size=size)
    with open_file(path) as stream:
        try:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
        except OSError as error:
            raise PictureError(str(path), reason_of(error)) from error
    return digest.digest()


def reason_of(error: Exception) -> str:
    """A short reason without the path, for an error of opening or decoding."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a picture"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow can read"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.errno == errno.ENXIO:
        return "not a regular file"
    errno_text = error.strerror if isinstance(error, OSError) else None  # str() has the path
    text = " ".join((errno_text or str(error)).split())
    text = f"{text[:80]}..." if len(text) > 80 else text
    if "truncated" in text or isinstance(error, EOFError):
        return f"truncated ({text or 'end of file'})"
    return f"broken ({text or type(error).__name__})"


# --- memory -------------------------------------------------------------------------------------


class _Memory:
    """Bytes that the threads of this process hold, in files and in pixels.

    A thread reserves its file first and its pixels later. So that threads with files never wait for
    each other, pixels are admitted beyond the limit if no others are being decoded.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = {"file": 0, "pixels": 0}
        self.num_processes = 1
        self.big: AbstractContextManager[Any] = nullcontext()  # a lock, if there are several

    def take(self, kind: str, num_bytes: int, limit: int) -> None:
        rest = self._held if kind == "file" else {"pixels": 0}
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    sum(self._held.values()) + num_bytes <= limit
                    or not any(self._held[name] for name in rest)
                )
            )
            self._held[kind] += num_bytes

    def give_back(self, kind: str, num_bytes: int) -> None:
        with self._changed:
            self._held[kind] -= num_bytes
            self._changed.notify_all()


_memory = _Memory()


def share_memory(num_processes: int, lock: AbstractContextManager[Any]) -> None:
    """Share the memory with other processes, each of which calls this.

    Args:
        num_processes: all of them.
        lock: lock of all of them, held for a picture that needs more than an equal share.
    """
    _memory.num_processes, _memory.big = num_processes, lock


def memory_limit() -> int:
    """Bytes that the threads of this process may decode in.

    Raises:
        ConfigError: an environment variable that is no number of MiB.
    """
    text = os.environ.get(MEMORY, "").strip()
    if not text:
        return DEFAULT_MEMORY * 2**20
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) <= 10**9):
        raise ConfigError(
            f"the environment variable {MEMORY} needs a whole number of MiB, such as "
            f"{DEFAULT_MEMORY}, found {short_repr(text)}"
        )
    return int(text[:10]) * 2**20


class reserved:  # noqa: N801  A function that returns a context, without a generator's time.
    """Wait until there is memory for a file, or within it for pixels, and hold it.

    Args:
        kind: "file" or "pixels".
        name: path of the picture.
        num_bytes: bytes to hold; a few are not counted.
        besides: bytes that the same picture holds already.
    Raises:
        PictureError: more than all the memory.
    """

    def __init__(self, kind: str, name: str, num_bytes: int, besides: int = 0) -> None:
        self._kind, self._num_bytes, self._limit = kind, num_bytes, 0
        if num_bytes + besides > SMALL:
            self._limit = memory_limit()
            _check_memory(name, num_bytes + besides, self._limit)

        is_big = (
            self._kind == "pixels" and self._num_bytes * _memory.num_processes > self._limit > 0
        )
        self._lock = _memory.big if is_big else None

    def __enter__(self) -> None:
        if self._lock is not None:
            self._lock.__enter__()
        if self._limit:
            _memory.take(self._kind, self._num_bytes, self._limit)

    def __exit__(self, *error: object) -> None:
        if self._limit:
            _memory.give_back(self._kind, self._num_bytes)
        if self._lock is not None:
            self._lock.__exit__(None, None, None)


def _check_memory(name: str, num_bytes: int, limit: int) -> None:
    """Check that a picture does not need more than all the memory.

    Raises:
        PictureError: it does.
    """
    if num_bytes > limit:
        raise PictureError(
            name, f"needs about {num_bytes / 2**20:,.0f} MiB to decode, over the limit of "
            f"{limit / 2**20:,.0f} MiB ({MEMORY})",
        )  # fmt: skip
