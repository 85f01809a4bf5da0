"""Crop the faces of many photographs, in this process or in several.

Targets are fixed before any photograph is opened, so the result does not depend on the number of
processes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from twinlens.config import DataSettings, FaceSettings
from twinlens.data.decode import open_picture
from twinlens.data.picture_file import share_memory
from twinlens.errors import PictureError, TwinlensError
from twinlens.face.crop import Keep, choose_face
from twinlens.face.detection import Detector, detect_faces
from twinlens.face.detectors import DetectorChoice, one_thread, opencv
from twinlens.face.faces_of import FLOOR, cut_face, number_faces, sure_faces
from twinlens.face.layout import face_path
from twinlens.face.marks import save_face
from twinlens.face.result import Outcome, PhotographResult
from twinlens.machine import available_cores
from twinlens.processes import CAUSES_OF_DEATH, worker_processes
from twinlens.progress import Progress

__all__ = ["CropOptions", "crop_all"]

MAX_PIXELS = DataSettings().max_pixels
PICTURES_A_WORKER = 32  # Starting a process takes as long as this many photographs.


@dataclass(frozen=True)
class CropOptions:
    """Options of cropping; see `commands.faces.faces`."""

    choice: DetectorChoice
    keep: Keep
    crop: FaceSettings


def crop_all(
    options: CropOptions, tasks: Sequence[tuple[str, str]], workers: int | None
) -> list[PhotographResult]:
    """Crop the face of each photograph into its target.

    Args:
        options: detector and crop.
        tasks: (photograph, target) paths; `layout.face_path` has the targets of several faces.
        workers: number of processes; by cores and photographs by default.
    Raises:
        TwinlensError: a worker process died.
    """
    progress, done_results = Progress("cropping faces"), []
    _detector(options.choice, min(FLOOR, options.crop.score))  # Fails early, and once.
    if workers is None:
        workers = max(1, min(available_cores(), len(tasks) // PICTURES_A_WORKER))
    results = (
        _in_this_process(options, tasks) if workers == 1 else _in_workers(options, tasks, workers)
    )
    with closing(progress), closing(results):
        for done, result in enumerate(results, 1):
            done_results.append(result)
            progress(done, len(tasks))
    return done_results


def _in_this_process(
    options: CropOptions, tasks: Sequence[tuple[str, str]]
) -> Generator[PhotographResult, None, None]:
    with one_thread():
        yield from (_crop(options, task) for task in tasks)


def _in_workers(
    options: CropOptions, tasks: Sequence[tuple[str, str]], workers: int
) -> Generator[PhotographResult, None, None]:
    """Crop in worker processes; results are in the order of the tasks."""
    try:
        with worker_processes(workers, _begin_worker, options, workers) as pool:
            yield from pool.map(partial(_crop, options), tasks)
    except BrokenProcessPool as error:
        raise TwinlensError(
            f"a worker process died: {CAUSES_OF_DEATH}; add the line, or set workers to 1"
        ) from error


def _begin_worker(
    lock: AbstractContextManager[Any], options: CropOptions, num_workers: int
) -> None:
    share_memory(num_workers, lock)
    opencv().setNumThreads(1)
    _detector(options.choice, min(FLOOR, options.crop.score))


@lru_cache(maxsize=1)
def _detector(choice: DetectorChoice, floor: float) -> Detector:
    """The detector, made once in each process."""
    return choice.make(floor)


def _crop(options: CropOptions, task: tuple[str, str]) -> PhotographResult:
    """Detect, crop and write the faces of one photograph."""
    path, target = task
    try:
        picture = open_picture(path, max_pixels=MAX_PIXELS)
    except PictureError as error:
        return PhotographResult("broken", reason=error.reason)
    detector = _detector(options.choice, min(FLOOR, options.crop.score))
    detections = detect_faces(picture, detector, pad=options.crop.pad)
    sure = number_faces(sure_faces(detections, options.choice, options.crop.score))
    if not sure:
        return PhotographResult("low_score" if detections else "without", tuple(detections))
    kept = sure if options.keep == "all" else [choose_face(sure, options.keep)]
    for number, face in enumerate(kept, 1):
        place = Path(target)
        place = face_path(place, number) if options.keep == "all" else place
        place.parent.mkdir(parents=True, exist_ok=True)
        save_face(cut_face(picture, face, options.crop, detector), place)
    outcome: Outcome = "single" if len(sure) == 1 else "several"
    return PhotographResult(outcome, tuple(detections), tuple(kept), len(sure))
