"""Folders of pictures, manifests and named sets -> ImageTable.

Only names of folders and files are read. No picture is opened here: a broken file with a picture's
extension stays in the table, and the decoder reports it. `walk` lists the files; what it leaves out
is logged here and stays with the table. Named sets are read by `datasets`, manifests by
`manifests`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from twinlens.data.adapters import Data, table_of
from twinlens.data.cluster_names import name_clusters
from twinlens.data.datasets import NAMED_SETS, named_set_in
from twinlens.data.manifests import MANIFEST_SUFFIXES, SPLIT_NAMES, read_manifest
from twinlens.data.pair_list import pairs_in
from twinlens.data.picture_file import picture_suffixes
from twinlens.data.picture_shards import holds_shards, read_shards
from twinlens.data.remote import is_store, refuse_address
from twinlens.data.table import ImageTable, Row
from twinlens.data.walk import LeftOut, walk_pictures
from twinlens.errors import DataError, one_line, unknown_name
from twinlens.files import expand_user

__all__ = [
    "NAMED_SETS",
    "is_folder",
    "picture_suffixes",
    "read_folder",
    "read_table",
    "read_unlabelled",
]

log = logging.getLogger("twinlens")

FORGED_NAMES = ("forged", "forgeries", "forg")
"""Names of folders beside `genuine/` with the forgeries of an identity."""

LAYOUTS = (
    "accepted are class folders (DATA/thing/picture.png, any depth), class folders below train/,"
    " val/ and test/, left/ and right/ with equal file names, a CSV or Parquet manifest"
    " (path, identity), and tar files of these or of WebDataset; `twinlens cluster` sorts"
    " photographs without names"
)


def read_table(
    data: Data,
    *,
    root: Path | None = None,
    forged_suffix: str = "_forg",
    identity_depth: int = 0,
) -> ImageTable:
    """Read a table from a folder, a manifest or a named set.

    A string such as "digits" means the named set, even if there is a folder of the same name; with
    a path separator ("./digits") it means the folder. A `Path` always means a path.

    Args:
        data: a folder, a manifest (.csv, .tsv, .parquet), files of many pictures, also in an
            object store (`picture_shards`: s3://bucket/photos-{000..003}.tar), one of
            `NAMED_SETS`, a list of pairs (`pair_list`), a table, which is returned unchanged, or
            another object of `adapters.table_of`.
        root: folder with a copy of a named set, or base folder of the paths of a manifest.
        forged_suffix: a folder `ID` + this suffix, beside a folder `ID`, holds forgeries of ID;
            "" for no such folders. Only for folders.
        identity_depth: folders of a path that name the identity: 0 for all, 1 for the first, 2 for
            the first two, -1 for the last. Only for class folders.
    Raises:
        DataError: missing data, or an unknown layout.

    >>> read_table("digits")
    ImageTable(1797 pictures of 10 identities from 'digits')
    """
    if not isinstance(data, str | Path):
        return table_of(data, root=root)
    if isinstance(data, str) and data in NAMED_SETS:
        return NAMED_SETS[data](None if root is None else _existing(expand_user(root)))
    if not is_store(data):
        refuse_address(data)
    if root is None and (table := read_shards(data)) is not None:
        return table
    path = _existing(data)
    if path.is_file():
        if path.suffix.lower() not in MANIFEST_SUFFIXES:
            raise DataError(
                f"{path} is a file, but not a manifest (.csv, .tsv, .parquet): {LAYOUTS}"
            )
        if (pairs := pairs_in(path, root)) is not None:
            return pairs.as_table()
        return read_manifest(path, root=root, source=str(data))
    if root is not None:
        raise DataError(
            f"a root belongs to a named set ({', '.join(NAMED_SETS)}) or a manifest; {path} is a"
            " folder of pictures: leave --root out"
        )
    return read_folder(
        path, forged_suffix=forged_suffix, identity_depth=identity_depth, source=str(data)
    )


def read_folder(
    folder: Path,
    *,
    forged_suffix: str = "_forg",
    identity_depth: int = 0,
    source: str | None = None,
) -> ImageTable:
    """The pictures of a folder; other files are left out, see `walk`.

    - Class folders: the identity of a picture is the path of its folder below the top, with
      forward slashes; only its first folders with a positive `identity_depth`, only its last ones
      with a negative one.
    - Given splits: `train/`, `val/` (or `valid/`, `validation/`) and `test/` on top, if they
      contain class folders; identities are paths below these.
    - Counterparts: only `left/` and `right/` on top, with at least one file name (without its
      extension) in both: equal names are one identity.
    - Forgeries: `ID` + `forged_suffix` beside a folder `ID`; or `genuine/` and `forged/` (or
      `forgeries/`, `forg/`) inside an identity.
    - A folder of `twinlens cluster`: its named clusters, see `cluster_names`.

    Raises:
        DataError: no pictures, no named cluster, pictures outside of class folders, or split
            folders beside other folders.
    """
    source = str(folder) if source is None else source
    walk = walk_pictures(folder)
    files = [PurePosixPath(name) for name in walk.pictures]
    if not files:
        raise DataError(_no_pictures(folder, walk.left_out, LAYOUTS))
    _log_left_out(walk.left_out)
    splits = _given_splits(folder, files)
    rows: list[Row] = []
    for split_folder, split in splits.items():
        below = [file for file in files if not split_folder or file.parts[0] == split_folder]
        below = [file.relative_to(split_folder) for file in below]
        top = folder / split_folder
        for file, identity, forged in _identify(top, below, forged_suffix, identity_depth):
            rows.append((str(top / file), identity, forged, split))
    return name_clusters(ImageTable.of_rows(rows, source, folder, walk.left_out), folder)


def read_unlabelled(folder: Path, *, source: str | None = None) -> ImageTable:
    """The pictures of a folder, at any depth, without identities and splits ("").

    Other files are left out, see `walk`.

    Raises:
        DataError: no pictures, or a folder that cannot be read.
    """
    walk = walk_pictures(folder)
    rows: list[Row] = [(str(folder / name), "", False, "") for name in walk.pictures]
    if not rows:
        needed = (
            "needed are files, at any depth, with an extension of "
            f"{' '.join(sorted(picture_suffixes()))}"
        )
        raise DataError(_no_pictures(folder, walk.left_out, needed))
    _log_left_out(walk.left_out)
    source = str(folder) if source is None else source
    return ImageTable.of_rows(rows, source, folder, walk.left_out)


def is_folder(source: Data) -> bool:
    """Whether `read_table` reads it as a folder of pictures."""
    if not isinstance(source, str | Path) or source in NAMED_SETS:
        return False
    path = expand_user(source)
    return path.is_dir() and not holds_shards(path)


def _no_pictures(folder: Path, left_out: LeftOut, needed: str) -> str:
    named_set = named_set_in(folder)
    if named_set is not None:
        return (
            f"{folder} holds no pictures, but looks like a copy of {named_set}: give {named_set} "
            f"--root {folder} instead"
        )
    if left_out.pictures:
        return f"{folder} holds no pictures that can be read: found {left_out.pictures_text()}"
    if left_out.skipped:
        return f"{folder} holds no pictures: {left_out.problems()[0]}"
    text = left_out.text()
    return f"{folder} holds no pictures{f' (left out: {text})' if text else ''}: {needed}"


def _log_left_out(left_out: LeftOut) -> None:
    for line in left_out.problems():
        log.warning("%s", line)
    for line in left_out.notes():
        log.info("%s", line)


def _existing(data: str | Path) -> Path:
    path = expand_user(data)
    try:
        if str(data).strip() and path.exists():
            return path
    except OSError as error:  # A name that is too long, or a folder without permission.
        raise DataError(f"cannot read {data}: {error.strerror}") from error
    is_name = isinstance(data, str) and os.sep not in data and "/" not in data
    problem = f"no such file or folder: '{one_line(str(data), 200)}'"
    if is_name:
        hint = unknown_name("named set", str(data), NAMED_SETS).partition(": ")[2]
        problem += f", and no data set has that name: {hint}"
    raise DataError(problem)


def _given_splits(folder: Path, files: list[PurePosixPath]) -> dict[str, str]:
    """Folder on top -> split; {"": ""} if the top contains class folders."""
    shallow = {file.parts[0] for file in files if len(file.parts) == 2}
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    named = {top: SPLIT_NAMES[top.lower()] for top in sorted(tops) if top.lower() in SPLIT_NAMES}
    nested = [top for top in named if top not in shallow]
    _check_class_folders(folder, [file for file in files if len(file.parts) == 1])
    if named and len(named) == len(tops):
        for top in named:
            loose = [file for file in files if len(file.parts) == 2 and file.parts[0] == top]
            _check_class_folders(folder / top, loose)
        return named
    if nested:
        others = sorted(tops - set(nested))
        raise DataError(
            f"{folder} holds {_shorten(nested)} (splits) beside {_shorten(others)}: leave only"
            " train/, val/ and test/ on top, or rename these folders"
        )
    return {"": ""}


def _check_class_folders(folder: Path, files: list[PurePosixPath]) -> None:
    if files:
        names = _shorten(sorted(file.name for file in files))
        raise DataError(
            f"{folder} holds pictures without a class folder ({names}), so their identities are"
            f" unknown: {LAYOUTS}"
        )


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")


def _identify(
    top: Path, files: list[PurePosixPath], forged_suffix: str, identity_depth: int
) -> Iterable[tuple[PurePosixPath, str, bool]]:
    """Each file with its identity and role (forged or not); files are paths below `top`."""
    if _are_counterparts(files):
        return [(file, _stem_below(file), False) for file in files]
    parents = sorted({file.parent for file in files})
    labels = _folder_labels(top, parents, forged_suffix, identity_depth)
    return [(file, *labels[file.parent]) for file in files]


def _stem_below(file: PurePosixPath) -> str:
    return PurePosixPath(*file.parts[1:]).with_suffix("").as_posix()


def _are_counterparts(files: list[PurePosixPath]) -> bool:
    if {file.parts[0] for file in files} != {"left", "right"}:
        return False
    left = {_stem_below(file) for file in files if file.parts[0] == "left"}
    return any(_stem_below(file) in left for file in files if file.parts[0] == "right")


def _folder_labels(
    top: Path, parents: list[PurePosixPath], forged_suffix: str, identity_depth: int
) -> dict[PurePosixPath, tuple[str, bool]]:
    """Class folder -> (identity, forged)."""
    folders = {folder for parent in parents for folder in (parent, *parent.parents)}
    # If one identity has both folders, `genuine/` is a role inside of every identity.
    roles = any(
        folder.name == "genuine" and any(folder.with_name(name) in folders for name in FORGED_NAMES)
        for folder in folders
        if len(folder.parts) > 1
    )

    def exists(folder: PurePosixPath) -> bool:
        return folder in folders or (top / folder).is_dir()

    def label(parent: PurePosixPath) -> tuple[str, bool]:
        parts: list[str] = []
        forged = False
        for depth, name in enumerate(parent.parts):
            base = name.removesuffix(forged_suffix) if forged_suffix else name
            if roles and depth > 0 and name in ("genuine", *FORGED_NAMES):
                forged |= name != "genuine"
            elif base not in (name, "") and exists(PurePosixPath(*parent.parts[:depth], base)):
                parts.append(base)
                forged = True
            else:
                parts.append(name)
        named = parts[:identity_depth] if identity_depth > 0 else parts[identity_depth:]
        return "/".join(named), forged

    return {parent: label(parent) for parent in parents}
