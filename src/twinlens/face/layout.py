"""Target paths of cropped faces: unique, and readable by `read_table` again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath

from twinlens.data.csv_file import read_csv
from twinlens.data.folders import is_folder
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.files import check_output_folder

__all__ = ["FACE_LIST", "KEPT_ENDINGS", "check_faces_folder", "face_path", "same_photograph",
           "target_paths"]  # fmt: skip

FACE_LIST = "faces.csv"

KEPT_ENDINGS = (".png", ".jpg", ".jpeg")
"""Formats that are kept; every other becomes PNG, which is lossless."""


def target_paths(table: ImageTable, source: str | Path | ImageTable) -> list[Path]:
    """A unique path below the new folder for every row of a table.

    For a folder, subfolders and names are kept, and with them the labels. Otherwise (a manifest, a
    named set, a table) faces go to one folder per identity, below one per split if every picture
    has a split, and forgeries to `IDENTITY_forg`. The endings .png, .jpg and .jpeg are kept; others
    become .png. A name that is taken then (case ignored) keeps its old ending in the middle:
    `a.pgm.png`.

    Raises:
        DataError: two identities whose folders would have the same name.
    """
    if is_folder(source) and table.root is not None:
        preferred = [PurePosixPath(table.relative(row)) for row in range(len(table))]
    else:
        preferred = _by_identity(table)
    places = _without_clashes(preferred)
    return [Path(place) for place in places]


def face_path(target: Path, number: int) -> Path:
    """The path of a face, if all faces of a photograph are kept.

    >>> face_path(Path("trip/party.jpg"), 2).as_posix()
    'trip/party.face2.jpg'
    """
    return target.with_name(f"{target.stem}.face{number}{target.suffix}")


def check_faces_folder(out: Path, table: ImageTable, of_folder: bool) -> Path:
    """`out`, if it is new or empty, and not among the pictures.

    Raises:
        DataError: it is something else.
    """
    if table.pixels is not None:
        raise DataError(
            f"{table.source} is in memory, but faces are cropped from files: give a folder"
        )
    source = table.root if of_folder else None
    return check_output_folder(out, "the faces", source, "photographs")


def same_photograph(table: ImageTable) -> list[tuple[int, int]]:
    """Pairs of rows that are faces of one photograph, by the `faces.csv` of the table's folder.

    Raises:
        DataError: an invalid `faces.csv`.
    """

    def check(columns: list[str]) -> None:
        if not {"path", "output"} <= set(columns):
            raise DataError(f"{file} has no columns path and output: crop the faces again")

    file = None if table.root is None else Path(table.root) / FACE_LIST
    if file is None or not file.is_file():
        return []
    row_of = {table.relative(row): row for row in range(len(table))}
    rows: dict[str, list[int]] = {}
    for _, cells in read_csv(file, "the list of faces", check, errors="surrogateescape"):
        if cells["output"] in row_of:
            rows.setdefault(cells["path"], []).append(row_of[cells["output"]])
    return [pair for group in rows.values() for pair in combinations(group, 2)]


def _by_identity(table: ImageTable) -> list[PurePosixPath]:
    folders: dict[str, str] = {}
    for identity in table.identities():
        folder = _folder_name(identity)
        other = folders.setdefault(folder.casefold(), identity)
        if other != identity:
            raise DataError(
                f"the identities '{other}' and '{identity}' would share the folder {folder}: "
                "rename one of them"
            )
    divided = all(table.split.tolist())
    places = []
    for row in range(len(table)):
        folder = _folder_name(str(table.identity[row])) + "_forg" * bool(table.forged[row])
        split = str(table.split[row]) if divided else ""
        name = _safe_part(PurePosixPath(str(table.path[row])).name)
        places.append(PurePosixPath(split) / folder / name)
    return places


def _folder_name(identity: str) -> str:
    """The identity as a path that stays below its folder and is not hidden."""
    parts = [_safe_part(part) for part in identity.split("/") if part.strip()]
    return "/".join(parts) or "_"


def _safe_part(part: str) -> str:
    plain = "".join("_" if char in '\\:*?"<>|' or ord(char) < 32 else char for char in part)
    return f"_{plain[1:]}" if plain.startswith(".") else plain


def _without_clashes(preferred: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    places: list[PurePosixPath | None] = [None] * len(preferred)
    taken: set[str] = set()
    # Files that keep their names come first, so that none of them is renamed.
    order = sorted(range(len(preferred)), key=lambda row: _changes(preferred[row]))
    for row in order:
        for place in _candidates(preferred[row]):
            key = str(place).casefold()
            if key not in taken:
                taken.add(key)
                places[row] = place
                break
    return [place for place in places if place is not None]


def _changes(file: PurePosixPath) -> bool:
    return file.suffix.lower() not in KEPT_ENDINGS


def _candidates(file: PurePosixPath) -> Iterator[PurePosixPath]:
    """The preferred name of a file, then alternatives."""
    if not _changes(file):
        yield file
        whole, ending = file.stem, file.suffix
    else:
        yield file.with_name(f"{file.stem}.png")
        yield file.with_name(f"{file.name}.png")
        whole, ending = file.name, ".png"
    number = 2
    while True:
        yield file.with_name(f"{whole}-{number}{ending}")
        number += 1
