"""Galleries of the service, by name: those named at the start, and those of its folder."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from twinlens.errors import GalleryError, unknown_name
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.location import is_remote, normalized, table_of
from twinlens.service.errors import ServiceError
from twinlens.service.models import Models
from twinlens.service.settings import NAME, ServiceSettings, check_name
from twinlens.service.storage import data_folder

__all__ = ["Galleries"]

NO_GALLERY = "there is no gallery: create one with POST /v1/galleries"

T = TypeVar("T")


class Galleries:
    """Opens galleries at their first use; every request sees the newest version."""

    def __init__(self, settings: ServiceSettings, models: Models) -> None:
        self._settings, self._models = settings, models
        self._device, self._data = settings.device, settings.data
        self._named = {PurePosixPath(place.rstrip("/")).name: place for place in settings.galleries}
        self._open: dict[str, _OpenGallery] = {}
        self._lock = threading.Lock()

    def places(self) -> dict[str, str]:
        """Folders or addresses by name; those of the start come first."""
        folders = () if self._data is None else sorted(self._data.glob("galleries/*/"))
        own = {folder.name: str(folder) for folder in folders if self._place(folder.name)}
        return self._named | {name: place for name, place in own.items() if name not in self._named}

    def is_own(self, name: str) -> bool:
        """Whether a gallery lies in the service's folder, so that it may be deleted."""
        return name not in self._named

    def name_of(self, name: str | None) -> str:
        """The name itself, or without one that of the only gallery.

        Raises:
            ServiceError: no gallery, or several (404, 422).
        """
        if name is not None:
            return name
        places = self.places()
        if len(places) > 1:
            names = ", ".join(list(places)[:20])
            raise ServiceError(422, f"there are several galleries: name one of {names}")
        if not places:
            raise ServiceError(404, NO_GALLERY)
        return next(iter(places))

    def use(self, name: str | None, work: Callable[[Gallery], T]) -> T:
        """The result of work on an open gallery; again if it was rebuilt or replaced meanwhile.

        Raises:
            ServiceError: no such gallery.
            GalleryError: of the work.
        """
        gallery = self.get(name)
        try:
            return work(gallery)
        except GalleryError:
            newer = self.get(name)
            if newer is gallery:
                raise
            return work(newer)

    def get(self, name: str | None = None) -> Gallery:
        """An open gallery; the only one without a name.

        Raises:
            ServiceError: no such gallery, or no name where there are several (404, 422).
            GalleryError: a damaged one.
        """
        name = self.name_of(name)
        place = self._place(name)
        if place is None:
            self.forget(name)
            places = self.places()
            raise ServiceError(404, unknown_name("gallery", name, places) if places else NO_GALLERY)
        opened = self._open.get(name)
        if opened is None or not opened.is_current():
            with self._lock:
                opened = self._open.get(name)
                if opened is None or not opened.is_current():
                    opened = self._open[name] = _OpenGallery(place, self._device)
        return opened.gallery

    def create(self, name: str, model: str | None) -> Gallery:
        """A new gallery in the service's folder, with a copy of a model.

        Raises:
            ConfigError: not a name for a folder.
            ServiceError: no folder of its own, the name is taken (409), or no such model (404).
        """
        place = self.new_place(name)
        Gallery.create(place, self._models.get(model), device=self._device)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Delete a gallery of the service's folder, with everything in it.

        Raises:
            ServiceError: no such gallery (404), or one that was named at the start (409).
        """
        gallery = self.get(name)
        if not self.is_own(name):
            raise ServiceError(
                409, f"the gallery {name} was named by --gallery, and only those of --data are "
                "deleted",
            )  # fmt: skip
        gallery.delete()
        self.forget(name)

    def forget(self, name: str) -> None:
        """Close a gallery that was deleted."""
        with self._lock:
            self._open.pop(name, None)

    def new_place(self, name: str) -> Path:
        """The folder of a new gallery.

        Raises:
            ConfigError: not a name for a folder.
            ServiceError: the service has no folder of its own, or the name is taken (409).
        """
        check_name("gallery", name)
        folder = data_folder(self._settings, "galleries")
        if self._place(name) is not None:
            raise ServiceError(409, f"there is a gallery {name} already: choose another name")
        return folder / name

    def _place(self, name: str) -> str | None:
        """The place of a gallery; None if missing. A folder without a table was never finished."""
        if name in self._named:
            return self._named[name]
        if self._data is None or NAME.fullmatch(name) is None:
            return None
        place = str(self._data / "galleries" / name)
        return place if Path(table_of(place)).is_dir() else None


class _OpenGallery:
    """An open gallery, and a handle of its folder.

    While the handle is open, no other folder has its number: a gallery that another process deleted
    and created again under the same name is told apart.
    """

    def __init__(self, place: str, device: str) -> None:
        self._handle: int | None = None
        self._place = normalized(place)
        if not is_remote(place) and os.name == "posix":
            with contextlib.suppress(OSError):  # Opening it says what is wrong.
                self._handle = os.open(self._place, os.O_RDONLY)
        self.gallery = Gallery.open(place, device=device, threads=1)

    def is_current(self) -> bool:
        """Whether the gallery is neither rebuilt with another model nor replaced."""
        try:
            if self._handle is not None:
                same = os.path.samestat(os.fstat(self._handle), Path(self._place).stat())
                if not same:
                    return False
            self.gallery.state()
        except (OSError, GalleryError):
            return False
        return True

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
