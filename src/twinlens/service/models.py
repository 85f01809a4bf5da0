"""Models of the service, by name: the one that was named at the start, and those of the runs."""

from __future__ import annotations

import threading
from pathlib import Path

from twinlens.errors import ModelError, unknown_name
from twinlens.match.matcher import Matcher
from twinlens.model.stored import DESCRIPTION, model_folder
from twinlens.service.errors import ServiceError
from twinlens.service.settings import ServiceSettings, check_name

__all__ = ["Models"]


class Models:
    """Loads models at their first use, and again when their files have changed.

    A model computes on one thread for each request; requests share the cores.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._device, self._data = settings.device, settings.data
        self._named: dict[str, Path] = {}
        if settings.model is not None:
            path = model_folder(settings.model)
            run = path.parent if path.name == "model" else path
            self._named[run.resolve().name] = path
        self._loaded: dict[str, tuple[tuple[int, int], Matcher]] = {}
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """Model folders by name; the one of the start comes first."""
        runs = () if self._data is None else sorted(self._data.glob("runs/*/model"))
        own = {path.parent.name: path for path in runs if (path / DESCRIPTION).is_file()}
        return self._named | {name: path for name, path in own.items() if name not in self._named}

    def get(self, name: str | None = None) -> Matcher:
        """A loaded model; the first one without a name.

        Raises:
            ServiceError: no such model (404).
            ModelError: a damaged one.
        """
        folders = self.folders()
        if name is None:
            name = next(iter(folders), None)
            if name is None:
                raise ServiceError(404, "there is no model: train one, or start with --model")
        if name not in folders:
            raise ServiceError(404, unknown_name("model", name, folders))
        file = folders[check_name("model", name) if name not in self._named else name] / DESCRIPTION
        try:
            status = file.stat()
        except OSError as error:
            raise ModelError(f"the model {name} was removed meanwhile") from error
        version = (status.st_mtime_ns, status.st_ino)
        with self._lock:
            loaded = self._loaded.get(name)
            if loaded is None or loaded[0] != version:
                # Requests that hold the model before finish with it.
                loaded = version, Matcher.load(folders[name], self._device, threads=1)
                self._loaded[name] = loaded
            return loaded[1]
