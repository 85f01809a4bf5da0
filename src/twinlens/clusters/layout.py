"""A folder for each cluster, with links to its pictures or copies of them, and the list of all.

No two pictures meet, whatever they are called. This module does not know why pictures belong
together.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.clusters.linkage import Clusters
from twinlens.errors import PictureError, one_line
from twinlens.progress import Progress

__all__ = ["SINGLE", "Placed", "place_clusters", "write_list"]

log = logging.getLogger("twinlens")

SINGLE = "single"
"""The folder for pictures that are in no cluster."""

COLUMNS = ("path", "cluster", "distance", "file")
LONGEST = 200  # bytes of a name's stem that leave room for a number and an ending
MOST_NAMED = 5

Put = Callable[[int, Path], None]


@dataclass(frozen=True)
class Placed:
    """Where the pictures went.

    Attributes:
        folders: the names of the clusters' folders, by label, and then of the one for the rest.
        files: N places below the new folder, "" for a picture whose file is gone.
        kind: "links", "copies", or "pictures".
        missing: how many files are gone.
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
    num: int,
    *,
    copy: bool = False,
) -> Placed:
    """Put every picture into the folder of its cluster.

    Links name whole paths, so that the folder may be moved. Where none can be made, pictures are
    copied, and it is said so. Pictures without a file are written as PNG.

    Args:
        folder: there, and empty.
        names: N pictures as the user knows them; the last parts become their files' names.
        files: where they lie; None where they have no files.
        opened: gives a picture that has no file.
        label_N: the cluster of each, shape (N,).
        num: clusters below this label get a folder each, and the others one together.
        copy: copy, instead of linking.
    Raises:
        OSError: no room, or no permission.
    """
    digits = max(3, len(str(num)))
    folders = (*(f"cluster-{place:0{digits}}" for place in range(1, num + 1)), SINGLE)
    kind, put = _manner(folder, files, opened, copy)
    progress = Progress({"links": "linking", "copies": "copying"}.get(kind, "writing"))
    taken: list[set[str]] = [set() for _ in folders]
    places, missing = [], []
    for row, name in enumerate(names):
        home = min(int(label_N[row]), num)
        file = _free_name(name if files is not None else f"{name}.png", taken[home])
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
        log.warning("%d pictures are gone and could not be put there: %s", len(missing), named)
    return Placed(folders, tuple(places), kind, len(missing))


def _manner(
    folder: Path, files: Sequence[str] | None, opened: Callable[[int], Image.Image], copy: bool
) -> tuple[str, Put]:
    """How a picture is put into its place."""
    if files is None:
        return "pictures", lambda row, place: opened(row).save(place, "PNG")

    def link(row: int, place: Path) -> None:
        os.stat(files[row])  # noqa: PTH116 (a link to nothing can be made)
        place.symlink_to(os.path.abspath(files[row]))  # noqa: PTH100

    def copied(row: int, place: Path) -> None:
        shutil.copyfile(files[row], place)

    if copy or not _can_link(folder):
        return "copies", copied
    return "links", link


def _can_link(folder: Path) -> bool:
    trial = folder / ".link"
    try:
        trial.symlink_to(folder)
        trial.unlink()
    except (OSError, NotImplementedError) as error:
        log.warning("no links can be made in %s (%s): the pictures are copied", folder, error)
        return False
    return True


def _free_name(name: str, taken: set[str]) -> str:
    """The last part of a name, or with a number where that is taken (also in another case)."""
    plain = PurePosixPath(name.replace("\0", "_")).name or "_"
    plain = f"_{plain[1:]}" if plain.startswith(".") else plain
    stem, ending = os.path.splitext(plain)  # noqa: PTH122 (pathlib's keeps less)
    found, number = plain, 2
    while found.casefold() in taken:
        short = os.fsdecode(os.fsencode(stem)[:LONGEST])
        found = f"{short}-{number}{ending}"
        number += 1
    taken.add(found.casefold())
    return found


def write_list(file: Path, names: Sequence[str], placed: Placed, found: Clusters, num: int) -> None:
    """A row for each picture, in their order: its cluster's folder, and how well it fits in.

    `distance` is its mean distance to the others of its cluster, empty where there are none.
    """
    # File names need not be UTF-8; those that are not are written escaped.
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(COLUMNS)
        for row, name in enumerate(names):
            label = int(found.label[row])
            distance = f"{found.doubt[row]:.6g}" if found.size[label] > 1 else ""
            rows.writerow([name, placed.folders[min(label, num)], distance, placed.files[row]])
