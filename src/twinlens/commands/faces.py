"""`twinlens faces`: photographs, in class folders or unsorted, to folders of cropped faces."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from twinlens.config import FaceSettings
from twinlens.data.adapters import Data
from twinlens.data.folders import is_folder, picture_suffixes, read_table, read_unlabelled
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, unknown_name
from twinlens.face.crop import Keep
from twinlens.face.detectors import DetectorChoice, choose_detector, opencv
from twinlens.face.extract import CropOptions, crop_all
from twinlens.face.layout import FACE_LIST, check_faces_folder, face_path, target_paths
from twinlens.face.result import FacesResult, PhotographResult
from twinlens.files import creating_folder, expand_user
from twinlens.progress import console_log
from twinlens.report.faces import FacePage, write_list, write_page

__all__ = ["faces"]

log = logging.getLogger("twinlens")

MOST_BROKEN = 20  # named in the log
MOST_SIZE = 4096


def faces(
    source: Data,
    out: str | Path,
    *,
    detector: Literal["auto", "yunet", "haar"] = "auto",
    model: str | Path | None = None,
    score: float = 0.5,
    keep: Keep | None = None,
    size: int | None = None,
    margin: float = 0.0,
    align: bool = False,
    pad: float = 0.0,
    workers: int | None = None,
    root: str | Path | None = None,
    quiet: bool = False,
) -> FacesResult:
    """Crop the faces of photographs, and list the doubtful ones.

    Of class folders one face of each photograph is kept. Of a folder with pictures outside of class
    folders every face is kept; `twinlens.cluster` then sorts them.

    Args:
        source: folder of photographs, a manifest, or a table of files (see docs/data.md).
        out: new or empty folder. Besides the faces it receives `faces.csv`, the photograph and the
            box of each face, and `faces.html`, a page of the doubtful ones.
        detector: "yunet", "haar" (OpenCV's Haar cascade), or "auto": YuNet if its model file is
            given, cached or downloadable.
        model: YuNet's model file.
        score: least confidence of a face; unused by the cascade, which has no confidence.
        keep: the face to keep of several: "best" score, "largest", or "all". By default all of
            unsorted photographs, and the best of others.
        size: side of the written squares in pixels; None keeps the size of each face.
        margin: margin on each side, as a share of the face's box.
        align: whether to rotate the face until the eyes are level; needs YuNet.
        pad: border around the photograph for detection, as a share of its longer side.
        workers: number of processes; by cores and photographs by default. A script that uses more
            than one needs `if __name__ == "__main__":`.
        root: folder of a named set's copy, or of a manifest's relative paths.
        quiet: whether to log only warnings.
    Raises:
        ConfigError: a setting out of its range.
        DataError: nothing to read, `out` in use, or no model file.
        MissingExtraError: OpenCV below version 5 is not installed.

    Example:
        >>> import twinlens
        >>> twinlens.faces("photos", "faces").faces  # doctest: +SKIP
        64
    """
    _check(score, keep, size, margin, pad, workers)
    with console_log(quiet):
        opencv()
        table, keep = _read(source, root, keep)
        out = check_faces_folder(expand_user(out), table, is_folder(source))
        places = target_paths(table, source)
        choice = choose_detector(detector, None if model is None else expand_user(model))
        if not choice.has_confidence:
            _check_haar(align, score)
        crop = FaceSettings(
            detector="yunet" if choice.has_confidence else "haar", score=score, margin=margin,
            size=size, align=align, pad=pad,
        )  # fmt: skip
        options = CropOptions(choice, keep, crop)
        with creating_folder(out, str(out.parent), "name another place") as folder:
            tasks = [(str(table.path[row]), str(folder / at)) for row, at in enumerate(places)]
            results = crop_all(options, tasks, workers)
            total = _count(out, choice, table, results)
            command = _command(source, root, out, options)
            _write_report(folder, table, places, results, total, options, command)
        _log_losses(total, table, results)
        return total


def _read(
    source: str | Path | ImageTable, root: str | Path | None, keep: Keep | None
) -> tuple[ImageTable, Keep]:
    """The photographs, and the faces to keep of each."""
    if is_folder(source) and root is None and not isinstance(source, ImageTable):
        folder = expand_user(source)
        if keep == "all" or (keep is None and _has_loose_pictures(folder)):
            return read_unlabelled(folder, source=str(source)), "all"
    table = read_table(source, root=None if root is None else Path(root))
    if keep is None:
        keep = "all" if table.identities() == [""] else "best"
    return table, keep


def _has_loose_pictures(folder: Path) -> bool:
    """Whether pictures lie directly in the folder, so that it has no class folders."""
    suffixes = picture_suffixes()
    return any(
        file.suffix.lower() in suffixes and not file.name.startswith(".")
        for file in folder.iterdir()
    )


def _check(
    score: float, keep: str | None, size: int | None, margin: float, pad: float, workers: int | None
) -> None:
    for name, value, limit in (("score", score, 1.0), ("margin", margin, 4.0), ("pad", pad, 4.0)):
        if not 0 <= value <= limit:
            raise ConfigError(f"{name} must be in [0, {limit:g}], found {value:g}")
    for name, count, minimum in (("size", size, 8), ("workers", workers, 1)):
        if count is not None and count < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, found {count}")
    if size is not None and size > MOST_SIZE:
        raise ConfigError(f"size must be at most {MOST_SIZE}, found {size}")
    if keep is not None and keep not in get_args(Keep):
        raise ConfigError(unknown_name("face to keep", keep, get_args(Keep)))


def _check_haar(align: bool, score: float) -> None:
    if align:
        raise ConfigError(
            "the Haar cascade finds no eyes to align by: give YuNet's model file with --model, or "
            "leave out --align"
        )
    if score != 0.5:
        log.warning("the Haar cascade has no confidence: the score of %g is not used", score)


def _command(
    source: str | Path | ImageTable, root: str | Path | None, out: Path, options: CropOptions
) -> str:
    """The command line that repeats it; "" for a table made in Python."""
    if isinstance(source, ImageTable):
        return ""
    words = ["twinlens", "faces", str(source), str(out), "--detector", options.choice.name]
    if options.choice.model is not None:
        words += ["--model", str(options.choice.model)]
    if root is not None:
        words += ["--root", str(root)]
    for name, value in _settings(options).items():
        if value is not None and name != "align":
            words += [f"--{name}", str(value)]
    return shlex.join(words + ["--align"] * options.crop.align)


def _settings(options: CropOptions) -> dict[str, Any]:
    """Settings by name of their option, the detector excluded."""
    crop = options.crop
    return {"score": crop.score, "keep": options.keep, "size": crop.size, "margin": crop.margin,
            "align": crop.align, "pad": crop.pad}  # fmt: skip


def _count(
    out: Path, choice: DetectorChoice, table: ImageTable, results: Sequence[PhotographResult]
) -> FacesResult:
    count = Counter(result.outcome for result in results)
    of = Counter[str]()
    for name, result in zip(table.identity, results, strict=True):
        of[name] += len(result.kept) * (name != "")
    return FacesResult(
        out=out,
        detector=choice.name,
        pictures=len(results),
        faces=sum(len(result.kept) for result in results),
        single=count["single"],
        several=count["several"],
        low_score=count["low_score"],
        without=count["without"],
        broken=count["broken"],
        identities=sum(name != "" for name in table.identities()),
        identities_with_a_face=sum(number >= 1 for number in of.values()),
        identities_with_two=sum(number >= 2 for number in of.values()),
    )


def _write_report(
    folder: Path,
    table: ImageTable,
    places: Sequence[Path],
    results: Sequence[PhotographResult],
    total: FacesResult,
    options: CropOptions,
    command: str,
) -> None:
    names = [table.relative(row) for row in range(len(table))]
    write_list(folder / FACE_LIST, names, places, results, keep_all=options.keep == "all")
    page = FacePage(
        title=total.out.name,
        source=table.source,
        counts=total.as_json(),
        names=names,
        files=table.path.tolist(),
        identities=table.identity.tolist(),
        results=results,
        crops=[
            folder / (face_path(place, number) if options.keep == "all" else place)
            for place, result in zip(places, results, strict=True)
            for number, _ in enumerate(result.kept, 1)
        ],
        settings=_settings(options) | {"model": options.choice.model},
        command=command,
        confident=options.choice.has_confidence,
    )
    write_page(folder / "faces.html", page)


def _log_losses(total: FacesResult, table: ImageTable, results: Sequence[PhotographResult]) -> None:
    broken = [row for row, result in enumerate(results) if result.outcome == "broken"]
    if broken:
        log.warning("%d of %d pictures are unreadable and were skipped:", len(broken), len(table))
    for row in broken[:MOST_BROKEN]:
        log.warning("  %s: %s", table.relative(row), results[row].reason)
    if len(broken) > MOST_BROKEN:
        log.warning("  and %d more; faces.csv lists all", len(broken) - MOST_BROKEN)
    if not total.faces:
        log.warning(
            "no face was detected: if the pictures are cropped to the face, try --pad 0.25; %s",
            total.out / "faces.html",
        )
    elif lost := total.identities - total.identities_with_a_face:
        log.warning("%d of %d identities have no face", lost, total.identities)
