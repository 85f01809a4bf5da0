"""Crop the faces of many photographs, in this process or in several.

Targets are fixed before any photograph is opened, so the result does not depend on the number of
processes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process, resource_tracker
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
from twinlens.progress import Progress

__all__ = ["CropOptions", "crop_all"]

MAX_PIXELS = DataSettings().max_pixels
# A terminal or a service manager sends them to all processes; the parent ends its workers.
SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)}  # fmt: skip
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
    # Not forked: a child would lack the threads of torch and OpenCV.
    context = get_context("spawn")
    shared = (options, workers, context.Lock())
    pool = ProcessPoolExecutor(workers, context, _begin_worker, shared)
    try:
        with _signals_blocked():
            results = pool.map(partial(_crop, options), tasks)  # Starts them all.
        yield from results
    except BrokenProcessPool as error:
        raise TwinlensError(
            "a worker process died: too little memory, or a script without "
            '`if __name__ == "__main__":`; add the line, or set workers to 1'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals: processes started meanwhile inherit the mask; this one gets them later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # Its start would lift the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(
    options: CropOptions, num_workers: int, lock: AbstractContextManager[Any]
) -> None:
    share_memory(num_workers, lock)
    for number in SIGNALS:  # For systems without masks.
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    opencv().setNumThreads(1)
    _detector(options.choice, min(FLOOR, options.crop.score))


def _end_with_parent() -> None:
    """End a worker whose parent was killed: it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)


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
