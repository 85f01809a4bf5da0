"""Files below a folder: the pictures, and what is left out, counted by reason.

Only names and kinds of files are read, no contents.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twinlens.data.picture_file import picture_suffixes, unread_suffix
from twinlens.errors import DataError

__all__ = ["LeftOut", "LeftOutPath", "Walk", "walk_pictures"]

SYSTEM_FOLDERS = re.compile(
    r"@eadir|@tmp|@recycle|#recycle|#snapshot|\$recycle\.bin|recycler|recycled"
    r"|system volume information|found\.\d{3}|lost\+found|__macosx",
    re.IGNORECASE,
)
"""Folders that NAS, Windows, macOS and Linux keep for themselves; others of them are hidden."""

RAW_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".gpr", ".iiq", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf",
    ".srw", ".x3f",
})  # fmt: skip
OTHER_PICTURES = frozenset({".djvu", ".exr", ".hdr", ".svg", ".svgz", ".xcf"})
"""Pictures that neither Pillow nor its plugins read."""

MAX_DEPTH = 100
MAX_SHOWN = 3


@dataclass(frozen=True)
class LeftOutPath:
    """A path below the folder, with forward slashes, and why it is not read."""

    path: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """Files and folders that are not read.

    Attributes:
        pictures: extension -> number of pictures that this installation does not read.
        others: extension -> number of files that are no pictures.
        hidden: number of files and folders whose name begins with a dot.
        system_folders: name -> number of folders that an operating system keeps for itself.
        skipped: links that lead nowhere, folders without permission, pipes and devices.
        repeated: links to folders that are read under another name.
    """

    pictures: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    hidden: int = 0
    system_folders: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[LeftOutPath, ...] = ()
    repeated: tuple[LeftOutPath, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary of the attributes."""
        return asdict(self) | {
            "skipped": [asdict(one) for one in self.skipped],
            "repeated": [asdict(one) for one in self.repeated],
        }

    def pictures_text(self) -> str:
        """The pictures that are not read, with what to do; "" if there are none."""
        kinds: dict[str, list[str]] = {}
        for suffix, num in self.pictures.items():
            kinds.setdefault(_remedy(suffix), []).append(f"{num:,} {suffix}")
        return ", ".join(f"{' and '.join(parts)} ({remedy})" for remedy, parts in kinds.items())

    def problems(self) -> list[str]:
        """A line for each kind of files that should perhaps be read."""
        num = sum(self.pictures.values())
        lines = [f"{_count(num, 'picture')} left out: {self.pictures_text()}"] if num else []
        if self.skipped:
            lines.append(
                f"{_count(len(self.skipped), 'file or folder', 'files or folders')} left out: "
                f"{_some(self.skipped)}"
            )
        return lines

    def notes(self) -> list[str]:
        """A line for each kind of files that are rightly left out."""
        lines = []
        if num := self.others.get(".tar", 0):
            lines.append(f"{num:,} .tar left out: they are read if named, or in a folder of tars")
        if self.system_folders:
            num = sum(self.system_folders.values())
            names = ", ".join(f"{count:,} {name}" for name, count in self.system_folders.items())
            lines.append(f"{_count(num, 'folder')} of the operating system left out: {names}")
        if self.repeated:
            lines.append(
                f"{_count(len(self.repeated), 'linked folder')} left out, read under another name: "
                f"{_some(self.repeated)}"
            )
        return lines

    def text(self) -> str:
        """All counts in a phrase; "" if nothing is left out."""
        counts = list(self.others.items())
        parts = [f"{num:,} {name or 'without an ending'}" for name, num in counts[:MAX_SHOWN]]
        if len(counts) > MAX_SHOWN:
            parts.append(f"{sum(num for _, num in counts[MAX_SHOWN:]):,} with other endings")
        kinds = (
            (sum(self.pictures.values()), "pictures that are not read here"),
            (self.hidden, "hidden"),
            (sum(self.system_folders.values()), "of the operating system"),
            (len(self.skipped), "skipped"),
            (len(self.repeated), "linked again"),
        )
        return ", ".join([*(f"{num:,} {kind}" for num, kind in kinds if num), *parts])


@dataclass(frozen=True)
class Walk:
    """Paths of pictures below a folder, with forward slashes and sorted, and what is left out."""

    pictures: list[str]
    left_out: LeftOut


def walk_pictures(folder: Path) -> Walk:
    """All pictures below a folder, at any depth; linked folders are followed.

    Each folder is read once, by device and inode. A folder that lies below `folder` keeps its own
    name; others get that of the first link in the order of names. Hidden files and folders, and
    those of `SYSTEM_FOLDERS`, are left out, except `folder` itself.

    Raises:
        DataError: `folder` itself cannot be read.
    """
    return _Walker(folder).walk()


class _Walker:
    """The state of a walk."""

    def __init__(self, folder: Path) -> None:
        self.top = folder
        self.suffixes = picture_suffixes()
        self.pictures: list[str] = []
        self.unread, self.others, self.system = Counter[str](), Counter[str](), Counter[str]()
        self.hidden = 0
        self.skipped: list[LeftOutPath] = []
        self.repeated: list[LeftOutPath] = []
        self.folders: list[str] = [""]  # A stack, the next on top.
        self.links: deque[str] = deque()
        self.name_of: dict[tuple[int, int | str], str] = {}

    def walk(self) -> Walk:
        # Links come last, so that a folder and a link to it have the folder's name.
        while self.folders or self.links:
            below = self.folders.pop() if self.folders else self.links.popleft()
            try:
                if self._is_new(below):
                    self._read(below)
            except OSError as error:
                if not below:
                    raise DataError(
                        f"cannot read the folder {self.top}: {error.strerror}"
                    ) from error
                self.skipped.append(LeftOutPath(below, _reason(error)))
        left_out = LeftOut(
            _most_first(self.unread), _most_first(self.others), self.hidden,
            _most_first(self.system), _sorted(self.skipped), _sorted(self.repeated),
        )  # fmt: skip
        return Walk(sorted(self.pictures), left_out)

    def _is_new(self, below: str) -> bool:
        path = self.top / below
        status = path.stat()
        # Some network drives have no inodes.
        key = (status.st_dev, status.st_ino or os.path.realpath(path))
        first = self.name_of.setdefault(key, below)
        if first != below:
            self.repeated.append(LeftOutPath(below, f"the same folder as {first or self.top}"))
        return first == below

    def _read(self, below: str) -> None:
        with os.scandir(self.top / below) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        folders: list[str] = []
        for entry in ordered:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                self.hidden += 1
                continue
            try:
                if not entry.is_dir():
                    self._add_file(entry, name)
                elif SYSTEM_FOLDERS.fullmatch(entry.name):
                    self.system[entry.name] += 1
                elif name.count("/") >= MAX_DEPTH:
                    self.skipped.append(LeftOutPath(name, f"more than {MAX_DEPTH} folders deep"))
                else:
                    (self.links if entry.is_symlink() else folders).append(name)
            except OSError as error:
                self.skipped.append(LeftOutPath(name, _reason(error)))
        self.folders += reversed(folders)

    def _add_file(self, entry: os.DirEntry[str], name: str) -> None:
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  Paths are slow.
        is_file = entry.is_file() if not entry.is_symlink() else stat.S_ISREG(entry.stat().st_mode)
        if suffix in self.suffixes:
            if is_file:
                self.pictures.append(name)
            else:
                self.skipped.append(LeftOutPath(name, "not a regular file"))
        elif suffix in RAW_SUFFIXES or suffix in OTHER_PICTURES or unread_suffix(suffix):
            self.unread[suffix] += 1
        else:
            self.others[suffix] += 1


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link that leads nowhere"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return (error.strerror or str(error)).lower()


def _remedy(suffix: str) -> str:
    if suffix in RAW_SUFFIXES:
        return "raw data of a camera: convert them to TIFF, PNG or JPEG"
    return unread_suffix(suffix) or "convert them to PNG or JPEG"


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sorted(paths: list[LeftOutPath]) -> tuple[LeftOutPath, ...]:
    return tuple(sorted(paths, key=lambda one: one.path))


def _some(paths: Sequence[LeftOutPath]) -> str:
    some = "; ".join(f"{one.path} ({one.reason})" for one in paths[:MAX_SHOWN])
    return some + (f"; ... {len(paths):,} in all" if len(paths) > MAX_SHOWN else "")


def _count(num: int, singular: str, plural: str | None = None) -> str:
    return f"{num:,} {singular if num == 1 else plural or singular + 's'}"
