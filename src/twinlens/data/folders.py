"""What the user names -> ImageTable: folders of pictures, manifests, and named sets.

Folders are understood by their names alone; no picture is opened here, so a broken file with a
picture's ending stays in the table until the decoder names it. Named sets are in `named`,
manifests in `manifests`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from twinlens.data.datasets import NAMED_SETS
from twinlens.data.manifests import MANIFEST_SUFFIXES, SPLIT_NAMES, read_manifest
from twinlens.data.table import ImageTable, Row
from twinlens.errors import DataError, unknown_name
from twinlens.files import expand_user

__all__ = ["NAMED_SETS", "picture_suffixes", "read_folder", "read_table", "read_unlabelled"]

FORGED_NAMES = ("forged", "forgeries", "forg")
"""Folders beside `genuine/` that hold an identity's forgeries."""

IDENTIFIED_ONLY = {"BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats that Pillow recognises and cannot decode by itself: not pictures in a folder."""

LAYOUTS = (
    "understood are class folders (DATA/thing/picture.png, any depth), class folders below train/,"
    " val/ and test/, left/ and right/ with equal file names, and a CSV or Parquet manifest"
    " (path, identity)"
)


def read_table(
    data: str | Path | ImageTable, *, root: Path | None = None, forged_suffix: str = "_forg"
) -> ImageTable:
    """The pictures that `data` names.

    A string that names a set, such as "digits", means that set, even beside a folder of the same
    name; with a path separator ("./digits") it means the folder. A `Path` always means a path.

    Args:
        data: a folder, a manifest (.csv, .parquet), one of `NAMED_SETS`, or a table, which is
            given back as it is.
        root: where a copy of a named set lies, or what a manifest's paths start from.
        forged_suffix: a folder `ID` + this suffix, beside a folder `ID`, holds forgeries of ID;
            "" for no such folders. Only for folders.
    Raises:
        DataError: nothing there, or nothing that is understood.
    """
    if isinstance(data, ImageTable):
        return data
    if isinstance(data, str) and data in NAMED_SETS:
        return NAMED_SETS[data](None if root is None else _existing(expand_user(root)))
    path = _existing(data)
    if path.is_file():
        if path.suffix.lower() not in MANIFEST_SUFFIXES:
            raise DataError(f"{path} is a file, and not a manifest (.csv, .parquet): {LAYOUTS}")
        return read_manifest(path, root=root, source=str(data))
    if root is not None:
        raise DataError(
            f"a root belongs to a named set ({', '.join(NAMED_SETS)}) or a manifest; {path} is a"
            " folder of pictures, which needs none"
        )
    return read_folder(path, forged_suffix=forged_suffix, source=str(data))


def read_folder(
    folder: Path, *, forged_suffix: str = "_forg", source: str | None = None
) -> ImageTable:
    """The pictures of a folder; hidden files, and files without a picture's ending, are ignored.

    - Class folders: the folder that a picture lies in is its identity, named by its path below
      the top with forward slashes.
    - Given splits: `train/`, `val/` (or `valid/`, `validation/`) and `test/` on top, where they
      hold class folders; identities are named by the path below these.
    - Counterparts: `left/` and `right/`, and nothing else, on top, with at least one file name
      (without ending) in both: equal names are one identity.
    - Forgeries: `ID` + `forged_suffix` beside a folder `ID`; or `genuine/` and `forged/` (or
      `forgeries/`, `forg/`) inside an identity.

    Raises:
        DataError: no pictures, pictures outside of class folders, or split folders beside other
            folders.
    """
    source = str(folder) if source is None else source
    files = [PurePosixPath(name) for name in _pictures_below(folder)]
    if not files:
        raise DataError(f"{folder} holds no pictures: {LAYOUTS}")
    splits = _given_splits(folder, files)
    rows: list[Row] = []
    for split_folder, split in splits.items():
        below = [file for file in files if not split_folder or file.parts[0] == split_folder]
        below = [file.relative_to(split_folder) for file in below]
        top = folder / split_folder
        for file, identity, forged in _identify(top, below, forged_suffix):
            rows.append((str(top / file), identity, forged, split))
    return ImageTable.of_rows(rows, source, folder)


def read_unlabelled(folder: Path, *, source: str | None = None) -> ImageTable:
    """The pictures of a folder, at any depth, whatever its folders are called.

    Hidden files, and files without a picture's ending, are ignored. No picture has an identity
    ("") or a split.

    Raises:
        DataError: no pictures, or a folder that cannot be read.
    """
    rows: list[Row] = [(str(folder / name), "", False, "") for name in _pictures_below(folder)]
    if not rows:
        endings = " ".join(sorted(picture_suffixes()))
        raise DataError(
            f"{folder} holds no pictures: needed are files, at any depth, with one of the endings "
            f"{endings}"
        )
    return ImageTable.of_rows(rows, str(folder) if source is None else source, folder)


@cache
def picture_suffixes() -> frozenset[str]:
    """The endings, such as ".png", of all files that the installed Pillow can open."""
    from PIL import Image

    endings = Image.registered_extensions()
    return frozenset(
        ending
        for ending, format_name in endings.items()
        if format_name in Image.OPEN and format_name not in IDENTIFIED_ONLY
    )


def _existing(data: str | Path) -> Path:
    path = expand_user(data)
    try:
        if str(data).strip() and path.exists():
            return path
    except OSError as error:  # A name that is too long, or a folder that is closed to us.
        raise DataError(f"cannot read {data}: {error.strerror}") from error
    lone = isinstance(data, str) and os.sep not in data and "/" not in data
    hint = f"; {unknown_name('named set', str(data), NAMED_SETS)}" if lone else ""
    raise DataError(f"no such file or folder: '{data}'{hint}")


def _pictures_below(folder: Path) -> Iterator[str]:
    """Paths of pictures below a folder, with forward slashes; linked folders are followed."""
    endings = picture_suffixes()
    seen: dict[str, set[tuple[int, int]]] = {"": {_device_and_inode(folder)}}
    pending = [""]
    while pending:
        below = pending.pop()
        above = seen.pop(below)
        for entry in _entries(folder / below):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                key = _device_and_inode(Path(entry.path))
                if key not in above:  # A link to a folder above would never end.
                    seen[name] = above | {key}
                    pending.append(name)
            elif os.path.splitext(entry.name)[1].lower() in endings:  # noqa: PTH122
                yield name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _device_and_inode(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return found.st_dev, found.st_ino


def _given_splits(folder: Path, files: list[PurePosixPath]) -> dict[str, str]:
    """Folder on top -> split; {"": ""} where the top holds class folders."""
    shallow = {file.parts[0] for file in files if len(file.parts) == 2}
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    named = {top: SPLIT_NAMES[top.lower()] for top in sorted(tops) if top.lower() in SPLIT_NAMES}
    nested = [top for top in named if top not in shallow]
    _refuse_loose(folder, [file for file in files if len(file.parts) == 1])
    if named and len(named) == len(tops):
        for top in named:
            loose = [file for file in files if len(file.parts) == 2 and file.parts[0] == top]
            _refuse_loose(folder / top, loose)
        return named
    if nested:
        others = sorted(tops - set(nested))
        raise DataError(
            f"{folder} holds {_some(nested)} (splits) beside {_some(others)}: leave only train/,"
            " val/ and test/ on top, or give these folders other names"
        )
    return {"": ""}


def _refuse_loose(folder: Path, files: list[PurePosixPath]) -> None:
    if files:
        names = _some(sorted(file.name for file in files))
        raise DataError(
            f"{folder} holds pictures without a class folder ({names}), so nobody knows what they"
            f" show: {LAYOUTS}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")


def _identify(
    top: Path, files: list[PurePosixPath], forged_suffix: str
) -> Iterable[tuple[PurePosixPath, str, bool]]:
    """Each file with its identity and whether it is forged; files are paths below `top`."""
    if _are_counterparts(files):
        return [(file, _stem_below(file), False) for file in files]
    parents = sorted({file.parent for file in files})
    meaning = _meanings(top, parents, forged_suffix)
    return [(file, *meaning[file.parent]) for file in files]


def _stem_below(file: PurePosixPath) -> str:
    return PurePosixPath(*file.parts[1:]).with_suffix("").as_posix()


def _are_counterparts(files: list[PurePosixPath]) -> bool:
    if {file.parts[0] for file in files} != {"left", "right"}:
        return False
    left = {_stem_below(file) for file in files if file.parts[0] == "left"}
    return any(_stem_below(file) in left for file in files if file.parts[0] == "right")


def _meanings(
    top: Path, parents: list[PurePosixPath], forged_suffix: str
) -> dict[PurePosixPath, tuple[str, bool]]:
    """Class folder -> (identity, forged)."""
    folders = {folder for parent in parents for folder in (parent, *parent.parents)}
    # Once one identity has both folders, `genuine/` means the same inside all of them.
    roles = any(
        folder.name == "genuine" and any(folder.with_name(name) in folders for name in FORGED_NAMES)
        for folder in folders
        if len(folder.parts) > 1
    )

    def beside(folder: PurePosixPath) -> bool:
        return folder in folders or (top / folder).is_dir()

    def meaning(parent: PurePosixPath) -> tuple[str, bool]:
        parts: list[str] = []
        forged = False
        for place, name in enumerate(parent.parts):
            base = name.removesuffix(forged_suffix) if forged_suffix else name
            if roles and place > 0 and name in ("genuine", *FORGED_NAMES):
                forged |= name != "genuine"
            elif base not in (name, "") and beside(PurePosixPath(*parent.parts[:place], base)):
                parts.append(base)
                forged = True
            else:
                parts.append(name)
        return "/".join(parts), forged

    return {parent: meaning(parent) for parent in parents}
