"""`twinlens faces`: class folders of photographs become class folders of cropped faces.

Which file goes where is settled before any picture is opened (`face_places`), so nothing depends
on how many processes there are.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any, Literal, get_args

from twinlens.config import DataSettings
from twinlens.data.decode import open_picture
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, PictureError, TwinlensError, unknown_name
from twinlens.face.crop import Detector, Keep, choose_face, cut_face, find_faces, look_closer
from twinlens.face.detectors import DetectorChoice, choose_detector, one_thread, opencv
from twinlens.face.layout import free_place, is_folder, place_all
from twinlens.face.page import FacePage, Outcome, Settled, write_list, write_page
from twinlens.files import creating_folder, expand_user
from twinlens.progress import Progress, console_log

__all__ = ["FaceSet", "faces"]

log = logging.getLogger("twinlens")

MAX_PIXELS = DataSettings().max_pixels
FLOOR = 0.3  # Faces of less confidence are not even doubtful.
MOST_BROKEN = 20  # that are named on the way
PICTURES_A_WORKER = 32  # A process takes as long to start as it takes for so many pictures.
JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class FaceSet:
    """What has become of the pictures; `pictures` is the sum of the five outcomes.

    Attributes:
        out: the folder.
        detector: "yunet" or "haar".
        pictures: how many were looked at.
        faces: how many faces were written: one of each picture in `single` and `several`.
        single: pictures with one face.
        several: pictures with more, of which one was kept.
        low_score: pictures with faces below the score only.
        without: pictures without any face.
        broken: pictures that cannot be read.
        identities: before.
        identities_with_a_face: of which at least one face was written.
        identities_with_two: of which at least two were, as pairs need.
    """

    out: Path
    detector: str
    pictures: int
    faces: int
    single: int
    several: int
    low_score: int
    without: int
    broken: int
    identities: int
    identities_with_a_face: int
    identities_with_two: int

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        values = asdict(self)
        values["out"] = str(self.out)
        return values | {
            "report": str(self.out / "faces.html"),
            "list": str(self.out / "faces.csv"),
        }

    def as_text(self) -> str:
        """Lines to read."""
        return "\n".join(
            (
                f"{self.faces:,} faces of {self.identities_with_a_face:,} identities in {self.out}",
                f"  of {self.pictures:,} pictures: {self.single:,} with one face, "
                f"{self.several:,} with several, {self.low_score:,} below the score, "
                f"{self.without:,} without a face, {self.broken:,} broken",
                f"  {self.identities_with_two:,} of {self.identities:,} identities have two faces "
                "or more",
                f"  look at the doubtful ones: {self.out / 'faces.html'}",
            )
        )


@dataclass(frozen=True)
class _Options:
    """What every process is told."""

    choice: DetectorChoice
    score: float
    keep: Keep
    size: int | None
    margin: float
    align: bool
    pad: float


def faces(
    source: str | Path | ImageTable,
    out: str | Path,
    *,
    detector: Literal["auto", "yunet", "haar"] = "auto",
    model: str | Path | None = None,
    score: float = 0.5,
    keep: Keep = "best",
    size: int | None = None,
    margin: float = 0.0,
    align: bool = False,
    pad: float = 0.0,
    workers: int | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> FaceSet:
    """Cut one face out of every photograph, and say where that was doubtful.

    Args:
        source: folders of photographs, a manifest, or a table of files (see docs/data.md).
        out: a folder that is new or empty; besides the faces it gets `faces.csv`, what became of
            each picture, and `faces.html`, a page with the doubtful ones.
        detector: "auto" is YuNet where its model file is given, cached or can be downloaded, and
            else OpenCV's Haar cascade.
        model: YuNet's model file.
        score: the least confidence of a face; the cascade has none, and takes no notice of it.
        keep: of several faces the one with the best score, or the largest.
        size: of the square faces that are written; None leaves each as large as it is.
        margin: what is added on each side, as a share of the face's box.
        align: turn the face until the eyes are level; needs YuNet.
        pad: puts a border around the picture before looking, as a share of its longer side.
        workers: processes; None takes as many as there are cores and pictures for. A script that
            calls this with more than one needs `if __name__ == "__main__":`.
        root: where the copy of a named set lies, or what a manifest's paths start from.
        quiet: say only warnings.
    Raises:
        ConfigError: a setting out of its range.
        DataError: nothing to read, `out` in use, or a model file that cannot be had.
        MissingExtraError: OpenCV below version 5 is not installed.
    """
    _check(score, keep, size, margin, pad, workers)
    with console_log(quiet):
        opencv()
        table = read_table(source, root=None if root is None else Path(root))
        out = free_place(expand_user(out), table, is_folder(source))
        places = place_all(table, source)
        choice = choose_detector(detector, None if model is None else expand_user(model))
        if not choice.has_confidence:
            _check_haar(align, score)
        options = _Options(choice, score, keep, size, margin, align, pad)
        with creating_folder(out, str(out.parent), "name another place") as folder:
            tasks = [(str(table.path[row]), str(folder / at)) for row, at in enumerate(places)]
            settled = _settle_all(options, tasks, workers)
            found = _counted(out, choice, table, settled)
            command = _command(source, root, out, options)
            _report(folder, table, places, settled, found, options, command)
        _say(found, table, settled)
        return found


# --- before the first picture -------------------------------------------------------------------


def _check(
    score: float, keep: str, size: int | None, margin: float, pad: float, workers: int | None
) -> None:
    for name, value, most in (("score", score, 1.0), ("margin", margin, 4.0), ("pad", pad, 4.0)):
        if not 0 <= value <= most:
            raise ConfigError(f"{name} is between 0 and {most:g}, found {value:g}")
    for name, count, least in (("size", size, 8), ("workers", workers, 1)):
        if count is not None and count < least:
            raise ConfigError(f"{name} is at least {least}, found {count}")
    if keep not in get_args(Keep):
        raise ConfigError(unknown_name("face to keep", keep, get_args(Keep)))


def _check_haar(align: bool, score: float) -> None:
    if align:
        raise ConfigError(
            "the Haar cascade knows no eyes to align by: give YuNet's model file with --model, or "
            "leave the alignment out"
        )
    if score != 0.5:
        log.warning("the Haar cascade has no confidence: the score of %g is not used", score)


def _command(
    source: str | Path | ImageTable, root: str | Path | None, out: Path, options: _Options
) -> str:
    """What to type to repeat it; "" where a table was made in Python."""
    if isinstance(source, ImageTable):
        return ""
    words = ["twinlens", "faces", str(source), str(out), "--detector", options.choice.name]
    if options.choice.model is not None:
        words += ["--model", str(options.choice.model)]
    if root is not None:
        words += ["--root", str(root)]
    for name in ("score", "keep", "size", "margin", "pad"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words + ["--align"] * options.align)


# --- the pictures -------------------------------------------------------------------------------


def _settle_all(
    options: _Options, tasks: Sequence[tuple[str, str]], workers: int | None
) -> list[Settled]:
    progress, settled = Progress("cutting faces"), []
    _detector(options.choice, min(FLOOR, options.score))  # A wrong model shows here, once.
    if workers is None:
        workers = max(1, min(_cores(), len(tasks) // PICTURES_A_WORKER))
    results = _here(options, tasks) if workers == 1 else _elsewhere(options, tasks, workers)
    with closing(progress), closing(results):
        for done, result in enumerate(results, 1):
            settled.append(result)
            progress(done, len(tasks))
    return settled


def _here(options: _Options, tasks: Sequence[tuple[str, str]]) -> Generator[Settled, None, None]:
    with one_thread():
        yield from (_settle(options, task) for task in tasks)


def _elsewhere(
    options: _Options, tasks: Sequence[tuple[str, str]], workers: int
) -> Generator[Settled, None, None]:
    """The same, in other processes, in the order of the tasks."""
    # Not forked: torch's and OpenCV's threads in this process would not be there in the child.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (options,))
    try:
        with _unheard():
            results = pool.map(partial(_settle, options), tasks)  # Starts them all.
        yield from results
    except BrokenProcessPool as error:
        raise TwinlensError(
            "a process that was cutting faces has ended early: too little memory, or a script that "
            'calls this without `if __name__ == "__main__":`; try with one worker'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _unheard() -> Iterator[None]:
    """Ctrl-C waits, and the processes that are started meanwhile never hear it: this one does."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # It would lift the mask when it starts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(options: _Options) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Where there is no mask to inherit.
    opencv().setNumThreads(1)
    _detector(options.choice, min(FLOOR, options.score))


@lru_cache(maxsize=1)
def _detector(choice: DetectorChoice, floor: float) -> Detector:
    """Made once in each process."""
    return choice.make(floor)


def _settle(options: _Options, task: tuple[str, str]) -> Settled:
    """Find the face in a picture and write it; what the process is for."""
    path, target = task
    try:
        picture = open_picture(path, max_pixels=MAX_PIXELS)
    except PictureError as error:
        return Settled("broken", reason=error.reason)
    detector = _detector(options.choice, min(FLOOR, options.score))
    found = find_faces(picture, detector, pad=options.pad)
    sure = [f for f in found if f.score >= options.score or not options.choice.has_confidence]
    if not sure:
        return Settled("low_score" if found else "without", tuple(found))
    face = choose_face(sure, options.keep)
    near = look_closer(picture, face, detector) if options.align else face
    cut = cut_face(picture, near, margin=options.margin, size=options.size, align=options.align)
    place = Path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    cut.save(place, **(JPEG if place.suffix.lower() in (".jpg", ".jpeg") else {}))
    outcome: Outcome = "single" if len(sure) == 1 else "several"
    return Settled(outcome, tuple(found), kept=face, num_sure=len(sure))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- what is said of them -----------------------------------------------------------------------


def _counted(
    out: Path, choice: DetectorChoice, table: ImageTable, settled: Sequence[Settled]
) -> FaceSet:
    count = Counter(result.outcome for result in settled)
    of = Counter(table.identity[row] for row, result in enumerate(settled) if result.kept)
    return FaceSet(
        out=out,
        detector=choice.name,
        pictures=len(settled),
        faces=count["single"] + count["several"],
        single=count["single"],
        several=count["several"],
        low_score=count["low_score"],
        without=count["without"],
        broken=count["broken"],
        identities=len(table.identities()),
        identities_with_a_face=len(of),
        identities_with_two=sum(number >= 2 for number in of.values()),
    )


def _report(
    folder: Path,
    table: ImageTable,
    places: Sequence[Path],
    settled: Sequence[Settled],
    found: FaceSet,
    options: _Options,
    command: str,
) -> None:
    names = [table.relative(row) for row in range(len(table))]
    write_list(folder / "faces.csv", names, places, settled)
    settings = {k: v for k, v in asdict(options).items() if k != "choice"}
    page = FacePage(
        title=found.out.name,
        source=table.source,
        counts=found.as_json(),
        names=names,
        files=table.path.tolist(),
        identities=table.identity.tolist(),
        settled=settled,
        settings=settings | {"model": options.choice.model},
        command=command,
        confident=options.choice.has_confidence,
    )
    write_page(folder / "faces.html", page)


def _say(found: FaceSet, table: ImageTable, settled: Sequence[Settled]) -> None:
    broken = [row for row, result in enumerate(settled) if result.outcome == "broken"]
    if broken:
        log.warning("%d of %d pictures cannot be read and are skipped:", len(broken), len(table))
    for row in broken[:MOST_BROKEN]:
        log.warning("  %s: %s", table.relative(row), settled[row].reason)
    if len(broken) > MOST_BROKEN:
        log.warning("  and %d more; all of them are in faces.csv", len(broken) - MOST_BROKEN)
    if not found.faces:
        log.warning(
            "no face was found: if the pictures are cut off at the face, --pad 0.25 may help; %s",
            found.out / "faces.html",
        )
    elif lost := found.identities - found.identities_with_a_face:
        log.warning("%d of %d identities have no face left", lost, found.identities)
