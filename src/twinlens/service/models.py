"""Models of the service, by name: the one that was named at the start, and those of the runs."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np

from twinlens.errors import ModelError, unknown_name
from twinlens.files import part_beside
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.model.stored import DESCRIPTION, MODEL_FILES, model_folder, read_description
from twinlens.parsing import read_json
from twinlens.service.errors import ServiceError, public_text
from twinlens.service.settings import ServiceSettings

__all__ = ["Models"]

log = logging.getLogger("twinlens.service")

REPLACING, POLL = 1.0, 0.02  # seconds that a replaced folder may be missing, and between looks
REPORT, RESULTS = "report.html", "results.json"

Version: TypeAlias = tuple[tuple[str, int, int], ...]


class Models:
    """Loads models at their first use, and again when their files have changed.

    Requests that hold a model finish with it. While a model is being replaced file by file, the
    older one answers. A model computes on one thread for each request; requests share the cores.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._device, self._data = settings.device, settings.data
        self._named: dict[str, Path] = {}
        if settings.model is not None:
            path = model_folder(settings.model)
            run = path.parent if path.name == "model" else path
            self._named[run.resolve().name] = path
        self._loaded: dict[str, tuple[Version, Matcher]] = {}
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """Model folders by name; the one of the start comes first."""
        return self._named | {
            name: path for name, path in self._of_runs().items() if name not in self._named
        }

    def get(self, name: str | None = None) -> Matcher:
        """A loaded model; the one of the start, or the only one, without a name.

        Call it on a thread: it may load.

        Raises:
            ServiceError: no such model, or no name where there are several (404, 422).
            ModelError: a damaged one.
        """
        name, folder = self._place(name)
        version = _version(folder)
        loaded = self._loaded.get(name)
        if loaded is not None and loaded[0] == version:
            return loaded[1]
        with self._lock:
            loaded = self._loaded.get(name)
            if loaded is None or loaded[0] != version:
                loaded = version, self._load(name, folder)
                self._loaded[name] = loaded
            return loaded[1]

    def info(self, name: str) -> dict[str, Any]:
        """Facts of a model without loading it; only name and error of a damaged one.

        Raises:
            ServiceError: no such model (404).
        """
        name, folder = self._place(name)
        try:
            described = read_description(folder)
            calibration = described.calibration
            if calibration is not None:
                calibration = Calibration.from_json(calibration).as_json()
        except ModelError as error:
            return {"name": name, "error": public_text(str(error))}
        origin, start = described.origin, described.start
        return {
            "name": name,
            "fingerprint": described.fingerprint,
            "calibrated": calibration is not None,
            "threshold": None if calibration is None else calibration["threshold"],
            "target_far": None if calibration is None else calibration["target_far"],
            "dim": described.model.embedding,
            "backbone": described.model.backbone,
            "comparator": described.model.comparator,
            "height": described.picture.size[0],
            "width": described.picture.size[1],
            "channels": described.picture.channels,
            "precision": described.precision,
            "knows_domain": described.domain is not None,
            "trained_on": None if origin is None else PurePath(origin.source).name,
            "start": None if start is None else asdict(start),
            "licence": None if start is None else start.licence,
            "has_report": (folder.parent / REPORT).is_file() and folder.name == "model",
            "deletable": name not in self._named,
            "num_bytes": sum(size for _, _, size in _version(folder)),
            "calibration": calibration,
        }

    def files(self, name: str) -> list[Path]:
        """The files of a model that travel; the description is the last.

        Raises:
            ServiceError: no such model (404).
        """
        folder = self._place(name)[1]
        return [folder / file for file in MODEL_FILES if (folder / file).is_file()]

    def report(self, name: str) -> Path:
        """The report of a model's run.

        Raises:
            ServiceError: no such model, or one without a report (404).
        """
        name, folder = self._place(name)
        report = folder.parent / REPORT
        if folder.name != "model" or not report.is_file():
            raise ServiceError(404, f"the model {name} has no report: it lies in no run folder")
        return report

    def at_threshold(self, name: str) -> dict[str, Any] | None:
        """Error rates at a model's threshold, from the test of its training.

        None if none was measured, or the threshold was changed since.

        Raises:
            ServiceError: no such model (404).
        """
        name, folder = self._place(name)
        try:
            results = read_json(folder.parent / RESULTS)
            at: dict[str, Any] = results["verification"]["calibrated"]
            same = at["threshold"]["value"] == self.info(name).get("threshold")
        except (OSError, ValueError, KeyError, TypeError):  # No run folder, or nothing measured.
            return None
        return at if same else None

    def delete(self, name: str) -> None:
        """Delete the run folder of a model; galleries keep their copies of it.

        Raises:
            ServiceError: no such model (404), or the one that was named at the start (409).
        """
        name, folder = self._place(name)
        if name in self._named:
            raise ServiceError(
                409, f"the model {name} was named by --model, and only runs of --data are deleted"
            )
        run = folder.parent
        with part_beside(run) as part:  # Deleted whole, even if this process is killed.
            run.rename(part / run.name)
        with self._lock:
            self._loaded.pop(name, None)

    def _of_runs(self) -> dict[str, Path]:
        runs = () if self._data is None else sorted((self._data / "runs").glob("[!.]*/model"))
        return {path.parent.name: path for path in runs if (path / DESCRIPTION).is_file()}

    def _place(self, name: str | None) -> tuple[str, Path]:
        """Name and folder of a model."""
        if name is None and self._named:
            name = next(iter(self._named))
        if name in self._named:  # Without a look at the disk.
            return name, self._named[name]
        folders = self.folders()
        if name not in folders:
            folders = self._after_replacement()
        if name is None:
            if len(folders) > 1:
                names = ", ".join(list(folders)[:20])
                raise ServiceError(422, f"there are several models: name one of {names}")
            name = next(iter(folders), None)
            if name is None:
                raise ServiceError(404, "there is no model: train one, or start with --model")
        if name not in folders:
            raise ServiceError(404, unknown_name("model", name, folders))
        return name, folders[name]

    def _after_replacement(self) -> dict[str, Path]:
        """Folders once none that answered is missing: a rename may be half done."""
        deadline = time.monotonic() + REPLACING
        while True:
            folders = self.folders()
            missing = self._loaded.keys() - folders.keys()
            if not missing:
                return folders
            if time.monotonic() > deadline:
                break
            time.sleep(POLL)
        with self._lock:
            for name in missing:
                self._loaded.pop(name, None)
        return folders

    def _load(self, name: str, folder: Path) -> Matcher:
        """The model with its graphs open, since its files may be replaced at any time."""
        try:
            matcher = Matcher.load(folder, self._device, threads=1)
            shape = (matcher.picture.channels, *matcher.picture.size)
            noise_CHW = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            emb_1D = matcher.embed_decoded(noise_CHW)
            matcher.comparison.pairwise(emb_1D, emb_1D)
        except ModelError as error:
            older = self._loaded.get(name)
            if older is None:
                raise
            log.warning("the model %s answers as it was before: %s", name, error)
            return older[1]
        return matcher


def _version(folder: Path) -> Version:
    """Time, inode and size of the files that exist; equal while nothing was replaced."""
    version = []
    for name in MODEL_FILES:
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        version.append((f"{name} {status.st_mtime_ns}", status.st_ino, status.st_size))
    return tuple(version)
