"""Folders of clusters, with links to the pictures or copies of them, and the list of all.

File names are unique in all folders together, whatever the pictures are called: pictures can be
moved from one folder to another, and are still known by their names.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.clusters.linkage import Clustering
from twinlens.data.cluster_names import SINGLE
from twinlens.data.csv_file import write_csv
from twinlens.data.picture_file import open_file
from twinlens.errors import PictureError, one_line
from twinlens.files import save_picture
from twinlens.progress import Progress

__all__ = ["SINGLE", "Placement", "place_clusters", "write_list"]

log = logging.getLogger("twinlens")

COLUMNS = ("path", "cluster", "distance", "file")
LONGEST = 200  # bytes of a name's stem that leave room for a number and an ending
MOST_NAMED = 5

Put = Callable[[int, Path], None]


@dataclass(frozen=True)
class Placement:
    """Paths of the written pictures.

    Attributes:
        folders: folder names of the clusters, by label, then of the rest.
        files: N paths below the new folder, "" for a picture whose file is missing.
        kind: "links", "copies", or "pictures" (written from memory).
        missing: number of missing files.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    kind: str
    missing: int


def place_clusters(
    folder: Path,
    names: Sequence[str],
    files: Sequence[str] | None,
    opened: Callable[[int], Image.Image],
    label_N: NDArray[np.int64],
    folders: Sequence[str],
    *,
    copy: bool = False,
) -> Placement:
    """Put every picture into the folder of its cluster.

    Links are absolute, so the folder may be moved. If links cannot be made, pictures are copied,
    with a warning. Pictures without a file are written as PNG.

    Args:
        folder: existing empty folder.
        names: N names of pictures; the last parts become the file names.
        files: N paths; None if the pictures have no files.
        opened: callable from a row to its picture, for pictures without a file.
        label_N: cluster of each picture, shape (N,).
        folders: folder names of the first labels, and of the one that the rest share.
        copy: whether to copy instead of linking.
    Raises:
        OSError: no space, or no permission.
    """
    kind, put = _placer(folder, files, opened, copy)
    progress = Progress({"links": "linking", "copies": "copying"}.get(kind, "writing"))
    taken: dict[str, int] = {}
    places, missing = [], []
    for row, name in enumerate(names):
        home = min(int(label_N[row]), len(folders) - 1)
        file = _free_name(name if files is not None else f"{name}.png", taken)
        place = folder / folders[home] / file
        place.parent.mkdir(exist_ok=True)
        try:
            put(row, place)
            places.append(f"{folders[home]}/{file}")
        except (FileNotFoundError, PictureError):
            missing.append(name)
            places.append("")
        progress(row + 1, len(names))
    if missing:
        named = ", ".join(one_line(name) for name in missing[:MOST_NAMED])
        log.warning("%d pictures are missing and were left out: %s", len(missing), named)
    return Placement(tuple(folders), tuple(places), kind, len(missing))


def _placer(
    folder: Path, files: Sequence[str] | None, opened: Callable[[int], Image.Image], copy: bool
) -> tuple[str, Put]:
    """The kind of placement, and the function that places a picture."""
    if files is None:
        return "pictures", lambda row, place: save_picture(opened(row), place)

    def link(row: int, place: Path) -> None:
        os.stat(files[row])  # noqa: PTH116 (a dangling link can be made)
        place.symlink_to(os.path.abspath(files[row]))  # noqa: PTH100

    def copied(row: int, place: Path) -> None:
        with open_file(files[row]) as source, place.open("wb") as target:
            shutil.copyfileobj(source, target)

    if copy or not _can_link(folder):
        return "copies", copied
    return "links", link


def _can_link(folder: Path) -> bool:
    trial = folder / ".link"
    try:
        trial.symlink_to(folder)
        trial.unlink()
    except (OSError, NotImplementedError) as error:
        log.warning("links cannot be made in %s (%s): the pictures are copied", folder, error)
        return False
    return True


def _free_name(name: str, taken: dict[str, int]) -> str:
    """The last part of a name, with a number if it is taken, case ignored.

    `taken` has the last number of each name.
    """
    plain = PurePosixPath(name.replace("\0", "_")).name or "_"
    plain = f"_{plain[1:]}" if plain.startswith(".") else plain
    stem, ending = os.path.splitext(plain)  # noqa: PTH122 (pathlib's keeps less)
    free, number = plain, taken.get(plain.casefold(), 1)
    while free.casefold() in taken:
        number += 1
        short = os.fsdecode(os.fsencode(stem)[:LONGEST])
        free = f"{short}-{number}{ending}"
    taken[plain.casefold()] = number
    taken.setdefault(free.casefold(), 1)
    return free


def write_list(
    file: Path, names: Sequence[str], placement: Placement, clustering: Clustering, num: int
) -> None:
    """Write a CSV row for each picture: its cluster's folder and how well it fits.

    `distance` is the mean distance to the other pictures of the cluster, empty for a singleton.
    """

    def cells(row: int, name: str) -> list[str]:
        label = int(clustering.label[row])
        distance = f"{clustering.doubt[row]:.6g}" if clustering.size[label] > 1 else ""
        return [name, placement.folders[min(label, num)], distance, placement.files[row]]

    write_csv(file, COLUMNS, starmap(cells, enumerate(names)))
