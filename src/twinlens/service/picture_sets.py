"""Picture sets of the service: class folders of identities, and unsorted pictures apart.

    pictures/SET/IDENTITY/name.jpg      labelled
    pictures/SET/.unsorted/name.jpg     not yet
    pictures/SET/.known/SHA256          link to the first picture with these bytes
    pictures/SET/.thumbnails/           small pictures, by inode, time and size of the file
    pictures/SET/.summary.json          inspection of the files as they were
    pictures/SET/.refused.jsonl         uploads that were no readable pictures

File names carry a mark of their content, `name~123456789abc.jpg`, so that uploads at the same time
never meet. Files and folders that were copied here by hand are read as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from twinlens.config import DataSettings
from twinlens.data.decode import open_picture, read_header
from twinlens.data.folders import read_unlabelled
from twinlens.data.inspection import inspect_table
from twinlens.data.table import ImageTable
from twinlens.data.walk import walk_pictures
from twinlens.errors import PictureError, one_line, unknown_name
from twinlens.files import part_beside, save_picture
from twinlens.parsing import parse_json
from twinlens.service.errors import ServiceError
from twinlens.service.folder_names import file_name, folder_name, identity_of
from twinlens.service.picture_files import (
    KNOWN,
    MARK_LENGTH,
    PARTS,
    THUMBNAILS,
    UNSORTED,
    claim_content,
    copy_beside,
    delete_picture,
    known_copy,
    picture_suffix,
    place_file,
    remove_empty,
    temporary_file,
    thumbnail_path,
    write_picture,
)
from twinlens.service.settings import ServiceSettings, check_name
from twinlens.service.storage import data_folder, storing

__all__ = ["THUMBNAIL_SIDE", "Added", "AddedState", "PictureEntry", "PictureSets"]

THUMBNAIL_SIDE = 192  # pixels
MAX_PIXELS = DataSettings().max_pixels
SUMMARY, REFUSED = ".summary.json", ".refused.jsonl"
REFUSED_BYTES = 2**18  # Later ones are not noted.
OURS = (UNSORTED, KNOWN, THUMBNAILS, PARTS, SUMMARY, REFUSED)
MARK = re.compile(rf"~[0-9a-f]{{{MARK_LENGTH}}}(?=\.[^.]*$)")

AddedState = Literal["stored", "duplicate", "contradiction", "refused"]


@dataclass(frozen=True)
class PictureEntry:
    """A picture of a set.

    Attributes:
        picture: its key in the set, `FOLDER/FILE`; changes if the identity changes.
        identity: None if unsorted.
        name: file name.
    """

    picture: str
    identity: str | None
    name: str

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary of the attributes."""
        return asdict(self)


@dataclass(frozen=True)
class Added:
    """What became of an uploaded picture.

    Attributes:
        state: "stored"; "duplicate": the same bytes were there, nothing was stored;
            "contradiction": stored, but the same bytes are there under another identity;
            "refused": no readable picture.
        name: file name of the upload.
        identity: as given.
        picture: its key in the set; of the earlier one for a duplicate; None if refused.
        reason: why it was refused.
        other: key of the same picture under another identity, for a contradiction.
    """

    state: AddedState
    name: str
    identity: str | None
    picture: str | None = None
    reason: str | None = None
    other: str | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary of the attributes."""
        return asdict(self)


class PictureSets:
    """Stores uploaded pictures in sets.

    Every method but `names` raises `ServiceError` (409) in a service without a folder of its own,
    (404) for no such set or picture, (507) for a full disk, and `ConfigError` for a name that
    cannot be stored.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._inspecting = threading.Lock()

    def names(self) -> list[str]:
        """Names of the sets, sorted."""
        if self._settings.data is None:
            return []
        return sorted(path.name for path in self._settings.data.glob("pictures/[!.]*/"))

    def create(self, set: str) -> None:
        """Make a set, if it is not there."""
        folder = data_folder(self._settings, "pictures") / check_name("picture set", set)
        with storing():
            for name in (UNSORTED, KNOWN, THUMBNAILS, PARTS):
                (folder / name).mkdir(parents=True, exist_ok=True)

    def delete(self, set: str) -> None:
        """Delete a set with its pictures."""
        folder = self._folder(set)
        with storing(), part_beside(folder) as part:  # Whole, even if this process is killed.
            folder.rename(part / folder.name)

    def add(self, set: str, identity: str | None, name: str, content: bytes) -> Added:
        """Store a picture; the set is made with its first one.

        An unsorted picture with the same bytes is replaced by a labelled one.

        Args:
            set: name of the set.
            identity: any text; None for an unsorted picture.
            name: file name, without folders.
            content: bytes of the file.
        """
        below = UNSORTED if identity is None else folder_name(identity)
        self.create(set)
        folder = self._folder(set)
        try:
            side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
            open_picture(content, max_pixels=MAX_PIXELS, target=side)
            suffix = picture_suffix(name, read_header(content, max_pixels=MAX_PIXELS).format)
        except PictureError as error:
            refused = Added("refused", name, identity, reason=error.reason)
            _note_refused(folder, refused)
            return refused
        digest = hashlib.sha256(content).hexdigest()
        target = folder / below / file_name(name, suffix, digest[:MARK_LENGTH])
        known = known_copy(folder, digest)
        if known is not None:
            same = known if known.parent == target.parent else copy_beside(target, digest)
            if same is not None or identity is None:
                key = _key(folder, known if same is None else same)
                other = None if same in (None, known) else _key(folder, known)
                return Added("duplicate", name, identity, key, other=other)
        with storing():
            write_picture(folder, target, content)
            first = claim_content(folder, digest, target)
            if known is not None and known.parent.name == UNSORTED:
                delete_picture(folder, known)
        key = _key(folder, target)
        if first != target:
            return Added("contradiction", name, identity, key, other=_key(folder, first))
        return Added("stored", name, identity, key)

    def identities(self, set: str) -> dict[str, int]:
        """Identities and their numbers of pictures, sorted; without unsorted pictures."""
        names = (entry.identity for entry in self._labelled(set))
        return dict(sorted(Counter(name for name in names if name is not None).items()))

    def num_unsorted(self, set: str) -> int:
        """Number of unsorted pictures."""
        return len(self._unsorted(set))

    def pictures(
        self, set: str, identity: str | None = None, *, unsorted: bool = False, offset: int = 0,
        limit: int = 100,
    ) -> list[PictureEntry]:  # fmt: skip
        """A page of the pictures of an identity, of all, or of the unsorted ones, in order."""
        entries = self._unsorted(set) if unsorted else self._labelled(set)
        chosen = (one for one in entries if identity is None or one.identity == identity)
        return list(islice(chosen, offset, offset + limit))

    def entry(self, set: str, picture: str) -> PictureEntry:
        """A picture by its key."""
        self.file(set, picture)
        return _entry(picture)

    def move(self, set: str, picture: str, identity: str | None) -> str:
        """Give a picture another identity, or none; returns its new key."""
        folder, source = self._folder(set), self.file(set, picture)
        below = UNSORTED if identity is None else folder_name(identity)
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        mark = "" if MARK.search(source.name) else f"~{digest[:MARK_LENGTH]}"
        target = folder / below / f"{source.stem}{mark}{source.suffix}"
        if target.parent == source.parent:
            return picture
        with storing():
            same = copy_beside(target, digest)
            if same is not None:
                delete_picture(folder, source)
                target = same
            else:
                place_file(source, target)
                remove_empty(source.parent)
            claim_content(folder, digest, target)
        return _key(folder, target)

    def remove(self, set: str, picture: str) -> None:
        """Delete a picture."""
        delete_picture(self._folder(set), self.file(set, picture))

    def rename(self, set: str, identity: str, new: str, *, merge: bool = False) -> int:
        """Rename an identity; returns the number of its pictures.

        Args:
            set: name of the set.
            identity: its identity.
            new: any text.
            merge: whether `new` may exist, and gets the pictures.
        """
        new = identity_of(folder_name(new))  # In the normal form of Unicode.
        entries = [entry for entry in self._labelled(set) if entry.identity == identity]
        if not entries:
            raise ServiceError(404, f"there is no identity '{one_line(identity)}' in the set {set}")
        if new != identity and not merge and new in self.identities(set):
            raise ServiceError(
                409,
                f"there is an identity '{one_line(new)}' already: merge them, or choose another",
            )
        for entry in entries:
            self.move(set, entry.picture, new)
        return len(entries)

    def file(self, set: str, picture: str) -> Path:
        """The file of a picture."""
        folder = self._folder(set)
        parts = picture.split("/")
        hidden = any(part.startswith(".") for part in parts[parts[0] == UNSORTED :])
        if len(parts) > 1 and not hidden and "\0" not in picture:
            path = folder.joinpath(*parts)
            with suppress(OSError):  # A name that is too long.
                real = path.resolve()
                if real.is_relative_to(folder.resolve()) and real.is_file():
                    return path
        raise ServiceError(404, f"there is no picture '{one_line(picture)}' in the set {set}")

    def thumbnail(self, set: str, picture: str) -> Path:
        """A JPEG file of at most 192 x 192 pixels, made at its first use."""
        folder, path = self._folder(set), self.file(set, picture)
        small = thumbnail_path(folder, path)
        if not small.is_file():
            side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
            opened = open_picture(path, max_pixels=MAX_PIXELS, target=side).convert("RGB")
            opened.thumbnail(side, reducing_gap=3.0)
            with storing(), temporary_file(folder, ".jpg") as part:
                save_picture(opened, part, quality=85)
                place_file(part, small)
        return small

    def table(self, set: str) -> ImageTable:
        """The labelled pictures of a set, with identities as given."""
        folder = self._folder(set)
        walk = walk_pictures(folder)
        rows = [
            (str(folder / entry.picture), entry.identity or "", False, "")
            for entry in map(_entry, walk.pictures)
            if entry.identity is not None
        ]
        if not rows:
            raise ServiceError(409, f"the set {set} has no labelled pictures: add or sort some")
        ours = sum((folder / name).exists() for name in OURS)
        left_out = replace(walk.left_out, hidden=walk.left_out.hidden - ours)
        return ImageTable.of_rows(rows, set, folder, left_out)

    def unsorted(self, set: str) -> ImageTable:
        """The unsorted pictures of a set, without identities."""
        folder = self._folder(set)
        if not self._unsorted(set):
            raise ServiceError(409, f"the set {set} has no unsorted pictures")
        table = read_unlabelled(folder / UNSORTED)
        return replace(table, source=set, root=folder)

    def summary(self, set: str) -> dict[str, Any]:
        """Counts and the inspection of a set; takes a while after each change.

        Returns:
            `set`, `pictures`, `identities`, `unsorted`, `inspection`: `Inspection.as_json`, or None
            without labelled pictures; `refused`: `name`, `identity` and `reason` of uploads that
            were no readable pictures.
        """
        folder, counts = self._folder(set), self.identities(set)
        with self._inspecting:
            inspection = self._inspection(set) if counts else None
        return {
            "set": set,
            "pictures": sum(counts.values()),
            "identities": len(counts),
            "unsorted": self.num_unsorted(set),
            "inspection": inspection,
            "refused": _read_refused(folder),
        }

    def forget_refused(self, set: str) -> None:
        """Forget the uploads that were refused."""
        (self._folder(set) / REFUSED).unlink(missing_ok=True)

    def known_inspection(self, set: str) -> dict[str, Any] | None:
        """The inspection of a set as it is now; None if there is none yet."""
        return self._stored_inspection(set, _stamp(self.table(set)))

    def _stored_inspection(self, set: str, stamp: str) -> dict[str, Any] | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            stored = parse_json((self._folder(set) / SUMMARY).read_text(encoding="utf-8"))
            if stored["stamp"] == stamp:
                return dict(stored["inspection"])
        return None

    def _inspection(self, set: str) -> dict[str, Any]:
        folder, table = self._folder(set), self.table(set)
        stamp = _stamp(table)
        if (stored := self._stored_inspection(set, stamp)) is not None:
            return stored
        inspection = inspect_table(table, max_pixels=MAX_PIXELS).as_json() | {"source": set}
        with storing(), temporary_file(folder, ".json") as part:
            part.write_text(json.dumps({"stamp": stamp, "inspection": inspection}))
            part.replace(folder / SUMMARY)
        return inspection

    def _folder(self, set: str) -> Path:
        folder = data_folder(self._settings, "pictures") / check_name("picture set", set)
        if not folder.is_dir():
            raise ServiceError(404, unknown_name("picture set", set, self.names()))
        return folder

    def _labelled(self, set: str) -> list[PictureEntry]:
        entries = map(_entry, walk_pictures(self._folder(set)).pictures)
        return [entry for entry in entries if entry.identity is not None]

    def _unsorted(self, set: str) -> list[PictureEntry]:
        folder = self._folder(set) / UNSORTED
        if not folder.is_dir():
            return []
        return [_entry(f"{UNSORTED}/{name}") for name in walk_pictures(folder).pictures]


def _stamp(table: ImageTable) -> str:
    # Times as well as the fingerprint's sizes: a file may be replaced by hand.
    times = [Path(path).stat().st_mtime_ns for path in table.path]
    return f"{table.fingerprint()} {hashlib.sha256(repr(times).encode()).hexdigest()}"


def _entry(key: str) -> PictureEntry:
    """The entry of a key; a file outside of any folder has no identity."""
    below, _, name = key.rpartition("/")
    is_labelled = below and not below.startswith(UNSORTED)
    return PictureEntry(key, identity_of(below) if is_labelled else None, MARK.sub("", name))


def _key(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _note_refused(folder: Path, added: Added) -> None:
    path = folder / REFUSED
    line = {"name": added.name, "identity": added.identity, "reason": added.reason}
    with suppress(OSError):  # The answer says it too.
        if not path.exists() or path.stat().st_size < REFUSED_BYTES:
            with path.open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")


def _read_refused(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / REFUSED).read_text(encoding="ascii").splitlines()
        return [dict(parse_json(line)) for line in lines]
    except (OSError, ValueError):
        return []
