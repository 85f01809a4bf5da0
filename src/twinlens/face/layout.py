"""Where the faces go: a folder of their own, and in it a place for each picture.

No two faces meet, and what was read stays readable. This module opens no pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from twinlens.data.folders import NAMED_SETS
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.files import check_output_folder, expand_user

__all__ = ["KEPT_ENDINGS", "free_place", "is_folder", "place_all"]

KEPT_ENDINGS = (".png", ".jpg", ".jpeg")
"""What keeps its format; everything else becomes PNG, which loses nothing."""


def place_all(table: ImageTable, source: str | Path | ImageTable) -> list[Path]:
    """A place below the new folder for every row of a table, no two alike.

    Of a folder, the folders and names stay as they are, and so what `read_table` makes of them.
    Otherwise (a manifest, a named set, a table) faces go to a folder for each identity, in one
    for each split if every picture has one, and forged ones to `IDENTITY_forg`. The ending stays
    if it is .png, .jpg or .jpeg and becomes .png if not; a name that is taken then (also where
    case plays no part) keeps its old ending in the middle: `a.pgm.png`.

    Raises:
        DataError: two identities whose folders would have one name.
    """
    if is_folder(source) and table.root is not None:
        wanted = [PurePosixPath(table.relative(row)) for row in range(len(table))]
    else:
        wanted = _by_identity(table)
    places = _without_clashes(wanted)
    return [Path(place) for place in places]


def free_place(out: Path, table: ImageTable, of_folder: bool) -> Path:
    """`out`, if it is new or empty, and not among the pictures.

    Raises:
        DataError: it is something else.
    """
    if table.pixels is not None:
        raise DataError(f"{table.source} is held in memory: faces are cut from picture files")
    source = table.root if of_folder else None
    return check_output_folder(out, "the faces", source, "photographs")


def is_folder(source: str | Path | ImageTable) -> bool:
    """Whether `read_table` takes it for a folder of pictures."""
    if isinstance(source, ImageTable) or (isinstance(source, str) and source in NAMED_SETS):
        return False
    return expand_user(source).is_dir()


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
        name = _part(PurePosixPath(str(table.path[row])).name)
        places.append(PurePosixPath(split) / folder / name)
    return places


def _folder_name(identity: str) -> str:
    """The identity as a path that stays below its folder and is not hidden."""
    parts = [_part(part) for part in identity.split("/") if part.strip()]
    return "/".join(parts) or "_"


def _part(part: str) -> str:
    plain = "".join("_" if char in '\\:*?"<>|' or ord(char) < 32 else char for char in part)
    return f"_{plain[1:]}" if plain.startswith(".") else plain


def _without_clashes(wanted: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    places: list[PurePosixPath | None] = [None] * len(wanted)
    taken: set[str] = set()
    # Files that keep their names come first, so that none of them has to give way.
    order = sorted(range(len(wanted)), key=lambda row: _changes(wanted[row]))
    for row in order:
        for place in _candidates(wanted[row]):
            key = str(place).casefold()
            if key not in taken:
                taken.add(key)
                places[row] = place
                break
    return [place for place in places if place is not None]


def _changes(file: PurePosixPath) -> bool:
    return file.suffix.lower() not in KEPT_ENDINGS


def _candidates(file: PurePosixPath) -> Iterator[PurePosixPath]:
    """The name that a file should have, and what to take where it is gone."""
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
