"""Picture sets of the service: class folders of identities, and unsorted pictures apart.

pictures/SET/IDENTITY/name.jpg      labelled
pictures/SET/.unsorted/name.jpg     not yet
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from twinlens.data.table import ImageTable
from twinlens.service.settings import ServiceSettings

__all__ = ["Added", "PictureEntry", "PictureSets"]


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

    state: Literal["stored", "duplicate", "contradiction", "refused"]
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

    def names(self) -> list[str]:
        """Names of the sets, sorted."""
        raise NotImplementedError

    def create(self, set: str) -> None:
        """Make a set, if it is not there."""
        raise NotImplementedError

    def delete(self, set: str) -> None:
        """Delete a set with its pictures."""
        raise NotImplementedError

    def add(self, set: str, identity: str | None, name: str, content: bytes) -> Added:
        """Store a picture; the set is made with its first one.

        Args:
            set: name of the set.
            identity: any text; None for an unsorted picture.
            name: file name, without folders.
            content: bytes of the file.
        """
        raise NotImplementedError

    def identities(self, set: str) -> dict[str, int]:
        """Identities and their numbers of pictures, sorted; without unsorted pictures."""
        raise NotImplementedError

    def num_unsorted(self, set: str) -> int:
        """Number of unsorted pictures."""
        raise NotImplementedError

    def pictures(
        self, set: str, identity: str | None = None, *, unsorted: bool = False, offset: int = 0,
        limit: int = 100,
    ) -> list[PictureEntry]:  # fmt: skip
        """A page of the pictures of an identity, of all, or of the unsorted ones, in order."""
        raise NotImplementedError

    def move(self, set: str, picture: str, identity: str | None) -> str:
        """Give a picture another identity, or none; returns its new key."""
        raise NotImplementedError

    def remove(self, set: str, picture: str) -> None:
        """Delete a picture."""
        raise NotImplementedError

    def rename(self, set: str, identity: str, new: str, *, merge: bool = False) -> int:
        """Rename an identity; returns the number of its pictures.

        Args:
            set: name of the set.
            identity: its identity.
            new: any text.
            merge: whether `new` may exist, and gets the pictures.
        """
        raise NotImplementedError

    def file(self, set: str, picture: str) -> Path:
        """The file of a picture."""
        raise NotImplementedError

    def thumbnail(self, set: str, picture: str) -> Path:
        """A JPEG file of at most 192 x 192 pixels, made at its first use."""
        raise NotImplementedError

    def table(self, set: str) -> ImageTable:
        """The labelled pictures of a set, with identities as given."""
        raise NotImplementedError

    def unsorted(self, set: str) -> ImageTable:
        """The unsorted pictures of a set, without identities."""
        raise NotImplementedError

    def summary(self, set: str) -> dict[str, Any]:
        """Counts and the inspection of a set; takes a while after each change.

        Returns:
            `set`, `pictures`, `identities`, `unsorted`, and `inspection`: `Inspection.as_json`, or
            None without labelled pictures.
        """
        raise NotImplementedError
