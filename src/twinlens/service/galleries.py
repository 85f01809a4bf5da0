"""Galleries of the service, by name: those named at the start, and those of its folder."""

from __future__ import annotations

import threading
from pathlib import Path, PurePosixPath

from twinlens.errors import GalleryError, unknown_name
from twinlens.gallery.gallery import Gallery
from twinlens.service.errors import ServiceError
from twinlens.service.models import Models
from twinlens.service.settings import ServiceSettings

__all__ = ["Galleries"]


class Galleries:
    """Opens galleries at their first use; every request sees the newest version."""

    def __init__(self, settings: ServiceSettings, models: Models) -> None:
        self._device, self._data, self._models = settings.device, settings.data, models
        self._named = {PurePosixPath(place.rstrip("/")).name: place for place in settings.galleries}
        self._open: dict[str, Gallery] = {}
        self._lock = threading.Lock()

    def places(self) -> dict[str, str]:
        """Folders or addresses by name; those of the start come first."""
        folders = () if self._data is None else sorted(self._data.glob("galleries/*/"))
        own = {folder.name: str(folder) for folder in folders if not folder.name.startswith(".")}
        return self._named | {name: place for name, place in own.items() if name not in self._named}

    def get(self, name: str | None = None) -> Gallery:
        """An open gallery; the only one without a name.

        Raises:
            ServiceError: no such gallery, or no name where there are several (404, 422).
            GalleryError: a damaged one.
        """
        places = self.places()
        if name is None:
            if len(places) > 1:
                names = ", ".join(list(places)[:20])
                raise ServiceError(422, f"there are several galleries: name one of {names}")
            name = next(iter(places), None)
            if name is None:
                raise ServiceError(404, "there is no gallery: create one with POST /v1/galleries")
        if name not in places:
            raise ServiceError(404, unknown_name("gallery", name, places))
        with self._lock:
            gallery = self._open.get(name)
            if gallery is not None:
                try:
                    gallery.state()
                except GalleryError:  # Rebuilt with another model, or replaced: open it again.
                    gallery = None
            if gallery is None:
                gallery = self._open[name] = Gallery.open(
                    places[name], device=self._device, threads=1
                )
            return gallery

    def forget(self, name: str) -> None:
        """Close a gallery that was deleted."""
        with self._lock:
            self._open.pop(name, None)

    def new_place(self, name: str) -> Path:
        """The folder of a new gallery.

        Raises:
            ServiceError: the service has no folder of its own, or the name is taken (409).
        """
        if self._data is None:
            raise ServiceError(409, "the service only answers: start it with --data FOLDER")
        if name in self.places():
            raise ServiceError(409, f"there is a gallery {name} already: choose another name")
        return self._data / "galleries" / name
